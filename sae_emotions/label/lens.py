"""Logit lens: which tokens a decoder direction speaks for. F features, D residual width, V vocabulary, n tokens."""

from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch

from sae_emotions.errors import UserError
from sae_emotions.schema import read_table

_CHUNK = 128


class Lens(NamedTuple):
    """Tokens a direction raises and lowers most, strongest first."""

    top_Fn: np.ndarray
    top_logit_Fn: np.ndarray
    bottom_Fn: np.ndarray
    bottom_logit_Fn: np.ndarray


def logit_lens(W_dec_FD: torch.Tensor, W_U_VD: torch.Tensor, n: int = 10) -> Lens:
    """Direction times unembedding, the final norm's weight already in `W_U_VD`.

    The final norm's division by the size of the residual stream is left out: it depends on the text and rescales all
    tokens alike, so the order is exact to first order and the numbers are logits times that size.
    """
    n = min(n, len(W_U_VD))
    W_U_DV = W_U_VD.float().T.contiguous()
    found: list[list[np.ndarray]] = [[], [], [], []]
    for start in range(0, len(W_dec_FD), _CHUNK):
        logits_FV = W_dec_FD[start : start + _CHUNK].float().cpu() @ W_U_DV
        top, bottom = logits_FV.topk(n), logits_FV.topk(n, largest=False)
        for kept, part in zip(found, (top.indices, top.values, bottom.indices, bottom.values), strict=True):
            kept.append(part.numpy())
    return Lens(*(np.concatenate(kept) for kept in found))


def read_unembedding(run: Path, d_in: int) -> torch.Tensor:
    """`W_U` of a run (V, D). Raises `UserError` where it is missing, damaged or of another width."""
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    path = run / "unembedding.safetensors"
    if not path.is_file():
        raise UserError(f"{path} is missing; run the harvest stage again to write it.")
    try:
        W_U_VD = load_file(path)["W_U"]
    except (SafetensorError, KeyError, OSError):
        raise UserError(f"{path} is damaged; delete it and run the harvest stage again.") from None
    if W_U_VD.shape[1] != d_in:
        raise UserError(f"{path} is {W_U_VD.shape[1]} wide but the dictionary reads {d_in}; they are of two models.")
    return W_U_VD


def read_vocabulary(run: Path) -> list[str]:
    """What each token id looks like in a text."""
    table = read_table(run / "vocabulary.parquet")
    size = int(max(table["token"].to_numpy(), default=-1)) + 1
    words = [""] * size
    for token, word in zip(table["token"].to_pylist(), table["text"].to_pylist(), strict=True):
        words[token] = word
    return words
