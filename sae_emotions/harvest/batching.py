"""Windows and batches: how documents become forward passes.

A window is a run of at most `context` tokens of one document, read on its own. Batches hold windows of like length, so
that padding costs little; they never cross a shard. S: padded length of a batch; N: its real tokens.
"""

from collections.abc import Iterator, Sequence
from typing import NamedTuple

import numpy as np


class Window(NamedTuple):
    """`tokens` of document `document`, the first of which stands at `start` of the document."""

    document: int
    start: int
    tokens: np.ndarray


def windows(first_document: int, documents: Sequence[Sequence[int]], context: int) -> list[Window]:
    """Cut documents into windows, in order. A tail of one token is dropped: it would have no row."""
    cut = []
    for number, ids in enumerate(documents, start=first_document):
        array = np.asarray(ids, dtype=np.int64)
        for start in range(0, len(array), context):
            tokens = array[start : start + context]
            if len(tokens) > 1:
                cut.append(Window(number, start, tokens))
    return cut


def batches(cut: Sequence[Window], batch_tokens: int, pad: bool = True) -> Iterator[list[int]]:
    """Yield lists of indices into `cut`, alike in length, each at most `batch_tokens` tokens (or one window).

    Padded tokens count, unless not `pad`.
    """
    order = sorted(range(len(cut)), key=lambda i: len(cut[i].tokens))
    batch: list[int] = []
    real = 0
    for index in order:
        length = len(cut[index].tokens)
        if batch and (length * (len(batch) + 1) if pad else real + length) > batch_tokens:
            yield batch
            batch, real = [], 0
        batch.append(index)
        real += length
    if batch:
        yield batch


class Packed(NamedTuple):
    """Windows end to end, without padding."""

    ids_N: np.ndarray
    length_W: np.ndarray
    start_W: np.ndarray
    """where each window begins, and behind the last one N"""


def packed(cut: Sequence[Window]) -> Packed:
    """Lay windows end to end."""
    length_W = np.array([len(window.tokens) for window in cut])
    return Packed(np.concatenate([window.tokens for window in cut]), length_W, np.append(0, length_W.cumsum()))


def padded(cut: Sequence[Window], pad: int) -> tuple[np.ndarray, np.ndarray]:
    """Right-padded token ids and mask, each (windows, S)."""
    longest = max(len(window.tokens) for window in cut)
    ids_BS = np.full((len(cut), longest), pad, dtype=np.int64)
    mask_BS = np.zeros((len(cut), longest), dtype=bool)
    for row, window in enumerate(cut):
        ids_BS[row, : len(window.tokens)] = window.tokens
        mask_BS[row, : len(window.tokens)] = True
    return ids_BS, mask_BS


def has_row(cut: Sequence[Window], special: Sequence[int]) -> np.ndarray:
    """Which tokens of the windows, end to end, have a row: not the first of a window, no special token. Bool, N."""
    return np.concatenate([np.append(False, ~np.isin(window.tokens[1:], special)) for window in cut])
