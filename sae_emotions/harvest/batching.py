"""Windows and batches: how documents become forward passes.

A window is a run of at most `context` tokens of one document, read on its own. Batches hold windows of like length, so
that padding costs little; they never cross a shard. S: padded length of a batch.
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


def batches(cut: Sequence[Window], batch_tokens: int) -> Iterator[list[int]]:
    """Yield lists of indices into `cut`, alike in length, each at most `batch_tokens` padded tokens (or one window)."""
    order = sorted(range(len(cut)), key=lambda i: len(cut[i].tokens))
    batch: list[int] = []
    for index in order:
        if batch and len(cut[index].tokens) * (len(batch) + 1) > batch_tokens:
            yield batch
            batch = []
        batch.append(index)
    if batch:
        yield batch


def padded(cut: Sequence[Window], pad: int) -> tuple[np.ndarray, np.ndarray]:
    """Right-padded token ids and mask, each (windows, S)."""
    longest = max(len(window.tokens) for window in cut)
    ids_BS = np.full((len(cut), longest), pad, dtype=np.int64)
    mask_BS = np.zeros((len(cut), longest), dtype=bool)
    for row, window in enumerate(cut):
        ids_BS[row, : len(window.tokens)] = window.tokens
        mask_BS[row, : len(window.tokens)] = True
    return ids_BS, mask_BS


def kept(ids_BS: np.ndarray, mask_BS: np.ndarray, special: np.ndarray) -> np.ndarray:
    """Which positions have a row: real, not the first of their window, not a special token. Shape (B, S), bool."""
    keep_BS = mask_BS & ~np.isin(ids_BS, special)
    keep_BS[:, 0] = False
    return keep_BS
