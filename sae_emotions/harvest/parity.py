"""How far the rows of a harvest stray from the model in float32, measured in every run on a few of its own windows.

N rows, D residual width.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch

from sae_emotions.harvest.batching import Window
from sae_emotions.harvest.readers import Eager, Reader
from sae_emotions.machine import memory_gb

TOKENS = 2048
"""Tokens that are compared, about."""


@contextmanager
def in_float32(model: Any) -> Iterator[None]:
    """While open, the parameters are float32; then they are the very ones that they were.

    `model.to` would round the rotary frequencies on the way back, which are float32 in a bfloat16 model.
    """
    held = [(one, one.data) for one in model.parameters()]
    try:
        for one, data in held:
            one.data = data.float()
        yield
    finally:
        for one, data in held:
            one.data = data


def fits(model: Any) -> bool:
    """Whether there is room for a copy of the model in float32."""
    one = next(model.parameters())
    if one.device.type == "cuda":
        free = float(torch.cuda.mem_get_info(one.device)[0])
    else:
        free = (memory_gb() or 0.0) * 2**30 / 2
    return sum(4 * one.numel() for one in model.parameters()) < free


def strays(x_ND: torch.Tensor, exact_ND: torch.Tensor) -> dict[str, float]:
    """Mean cosine with the exact rows, and the relative error of all of them."""
    return {
        "cosine": float(torch.cosine_similarity(x_ND, exact_ND).mean()),
        "relative_error": float((x_ND - exact_ND).norm() / exact_ND.norm()),
    }


def opening(cut: Sequence[Window], tokens: int) -> list[Window]:
    """The first windows that hold `tokens` tokens together."""
    held, some = 0, []
    for window in cut:
        if held >= tokens:
            break
        some.append(window)
        held += len(window.tokens)
    return some


def parity(
    model: Any, reader: Reader, cut: Sequence[Window], keep_N: torch.Tensor, blocks: Sequence[int]
) -> dict[str, Any] | None:
    """Per block: how the reader's rows stray from the model in float32, and how the model's own forward's do.

    `keep_N`: which of the windows' tokens have a row. None where there is no room for the model in float32.
    """
    if not fits(model):
        return None
    own = Eager(model)
    (found,) = reader.each(lambda windows: reader.read(windows, blocks), [cut])
    plain = found if reader.path == own.path else own.read(cut, blocks)
    exact = plain
    if next(model.parameters()).dtype != torch.float32:
        with in_float32(model):
            exact = own.read(cut, blocks)
    return {
        str(block): strays(found[block][keep_N], exact[block][keep_N])
        | {"eager": strays(plain[block][keep_N], exact[block][keep_N])}
        for block in blocks
    }
