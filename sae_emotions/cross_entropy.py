"""How well a model predicts text while its residual stream is edited.

Shapes: B texts, S positions, D residual width, V vocabulary.
"""

from collections.abc import Collection

import torch

from sae_emotions.edit import Edit, edited
from sae_emotions.errors import UserError


@torch.inference_mode()
def cross_entropy(
    model: torch.nn.Module,
    ids_BS: torch.Tensor,
    mask_BS: torch.Tensor,
    block: int,
    edit: Edit | None,
    special: Collection[int] = (),
) -> float:
    """Mean nats a token of predicting each real token from the ones before it, with `edit` after `block`.

    `mask_BS` is nonzero at real tokens, which come first in each row (padding on the right: a causal model then needs
    no mask). The first token of a row is not predicted. `special` ids are never edited. The mean is over all
    `mask_BS[:, 1:].sum()` predicted tokens of the batch. Raises `UserError` where there is none, or for padding on the
    left.
    """
    real_BS = mask_BS.bool()
    predicted_BS = real_BS[:, 1:]
    if not predicted_BS.any():
        raise UserError("There is no token to predict: every text is shorter than two tokens.")
    if (real_BS[:, 1:] & ~real_BS[:, :-1]).any():
        raise UserError("The texts are padded on the left; pad them on the right.")
    with edited(model, block, edit, special, real_BS):
        logits_BSV = model(input_ids=ids_BS, use_cache=False).logits
    total = 0.0
    for logits_SV, ids_S, predicted_S in zip(logits_BSV, ids_BS, predicted_BS, strict=True):
        # Row by row: a float32 copy of a whole batch's logits would double the largest tensor of the pass.
        rows_NV = logits_SV[:-1][predicted_S].float()
        total += torch.nn.functional.cross_entropy(rows_NV, ids_S[1:][predicted_S], reduction="sum").item()
    return total / int(predicted_BS.sum())
