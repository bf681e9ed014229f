"""One forward pass of a transformers model, stopped at the deepest block that is read.

Shapes: B windows, S positions, D residual width. Padding lies on the right, so a causal model needs no mask: no real
token can look at a padded one. Which positions count is decided by the caller's mask alone.
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress

import numpy as np
import torch

from sae_emotions.edit import hidden
from sae_emotions.errors import UserError
from sae_emotions.sources.models import Model, check_blocks, decoder_blocks


class _Deep(Exception):
    """Raised by the deepest hook: nothing above it is needed."""


@contextmanager
def _reading(model: torch.nn.Module, blocks: Sequence[int], found: dict[int, torch.Tensor]) -> Iterator[None]:
    layers = decoder_blocks(model)
    deepest = max(blocks)
    handles: list[torch.utils.hooks.RemovableHandle] = []

    def reader(block: int) -> Callable[[torch.nn.Module, object, object], None]:
        def hook(module: torch.nn.Module, args: object, output: object) -> None:
            found[block] = hidden(output)
            if block == deepest:
                raise _Deep

        return hook

    try:
        handles.extend(layers[block].register_forward_hook(reader(block)) for block in blocks)
        yield
    finally:
        for handle in handles:
            handle.remove()


@torch.inference_mode()
def read_blocks(model: torch.nn.Module, ids_BS: torch.Tensor, blocks: Sequence[int]) -> dict[int, torch.Tensor]:
    """Residual stream after each of `blocks`: block -> x_BSD, in the model's own dtype.

    The forward pass stops at the deepest block. Raises `UserError` where a block is beyond the model's depth.
    """
    check_blocks(blocks, len(decoder_blocks(model)))
    found: dict[int, torch.Tensor] = {}
    with _reading(model, blocks, found), suppress(_Deep):
        model(input_ids=ids_BS, use_cache=False, logits_to_keep=1)
    return found


def residuals(model: Model, ids: Sequence[int], blocks: Sequence[int]) -> dict[int, np.ndarray]:
    """Residual stream of one text of S tokens after each of `blocks`: block -> x_SD, float32.

    Raises `UserError` for a text shorter than two tokens: its only token is the opening one, which carries no feature.
    """
    if len(ids) < 2:
        raise UserError("The text is shorter than two tokens; give a longer one.")
    device = next(model.model.parameters()).device
    found = read_blocks(model.model, torch.tensor([list(ids)], device=device), blocks)
    return {block: x_BSD[0].float().cpu().numpy() for block, x_BSD in found.items()}
