"""Which rows train a dictionary, which are kept for evaluation, and in what order they come.

Shapes: B rows of a batch, D residual width. Row numbers run through the general text first, then the concept texts.
"""

import queue
import threading
from collections.abc import Generator, Iterator, Sequence
from pathlib import Path
from typing import NamedTuple, TypeVar

import numpy as np
import torch

from sae_emotions.concepts.concept_set import load_concepts
from sae_emotions.config import DictionaryConfig, RunConfig
from sae_emotions.errors import UserError
from sae_emotions.harvest.rows import Rows, Stored, joined, open_rows, read_documents

T = TypeVar("T")


class TrainingRows(NamedTuple):
    """Rows to train on and rows to evaluate on; no document is in both, no held-out concept text is in either."""

    stores: tuple[Rows, ...]
    stored: Stored
    """what they hold, one after the other"""
    train: np.ndarray
    """numbers over all stores, one after the other"""
    holdout: np.ndarray
    """numbers within the general text"""
    holdout_documents: np.ndarray
    """documents of the general text"""

    def read(self, numbers: np.ndarray) -> np.ndarray:
        """x_BD, float32, in the order of `numbers`."""
        return self.stored.read(numbers)


def training_rows(run: Path, config: RunConfig, dictionary: DictionaryConfig) -> TrainingRows:
    """Choose the rows: general text but for a seeded share of its documents, and the selection set's concept texts.

    Raises `UserError` where the rows are fewer than one batch.
    """
    text = open_rows(run / "activations" / "text", dictionary.block)
    documents = np.unique(text.document_N)
    count = max(1, round(dictionary.holdout * len(documents))) if len(documents) > 1 else 0
    held = np.sort(np.random.default_rng(config.seed).choice(documents, count, replace=False))
    is_held_N = np.isin(text.document_N, held)
    train = [np.flatnonzero(~is_held_N)]
    stores = [text]
    if dictionary.concept_rows:
        folder = run / "activations" / "concepts"
        concepts = open_rows(folder, dictionary.block)
        split = {one.id: one.split for one in load_concepts(config.concepts).texts}
        table = read_documents(folder)
        pairs = zip(table["document"].to_pylist(), table["key"].to_pylist(), strict=True)
        selection = np.array([number for number, key in pairs if split[key] == "selection"])
        train.append(len(text) + np.flatnonzero(np.isin(concepts.document_N, selection)))
        stores.append(concepts)
    rows = np.concatenate(train)
    if dictionary.epochs and len(rows) * dictionary.epochs < dictionary.batch:
        raise UserError(
            f"{len(rows):,} rows are fewer than one batch of {dictionary.batch:,}; harvest more text or set a smaller batch."
        )
    return TrainingRows(tuple(stores), joined(stores), rows, np.flatnonzero(is_held_N), held)


def order(count: int, seed: int, batch: int, steps: int, start: int) -> Iterator[np.ndarray]:
    """Which of `count` rows come in steps `start` to `steps`: one permutation an epoch, so any start repeats the rest."""
    epoch, permuted = -1, np.zeros(0, np.int64)
    for step in range(start, steps):
        found = np.empty(batch, np.int64)
        filled = 0
        while filled < batch:
            now, at = divmod(step * batch + filled, count)
            if now != epoch:
                permuted, epoch = np.random.default_rng([seed, now]).permutation(count), now
            take = min(batch - filled, count - at)
            found[filled : filled + take] = permuted[at : at + take]
            filled += take
        yield found


def shuffled(
    blocks: Sequence[TrainingRows], seed: int, batch: int, steps: int, start: int
) -> Iterator[list[torch.Tensor]]:
    """Batches of steps `start` to `steps`, one x_BD for each of `blocks`: the same rows of the same harvest in all."""
    for found in order(len(blocks[0].train), seed, batch, steps, start):
        yield [torch.from_numpy(rows.read(rows.train[found])) for rows in blocks]


def prefetched(source: Iterator[T], ahead: int = 4) -> Generator[T, None, None]:
    """Read `source` in a thread, at most `ahead` items before they are needed; its errors are raised here."""
    ready: queue.Queue[T | BaseException | None] = queue.Queue(ahead)
    closed = threading.Event()

    def put(item: T | BaseException | None) -> bool:
        while not closed.is_set():
            try:
                ready.put(item, timeout=0.2)
                return True
            except queue.Full:
                continue
        return False

    def work() -> None:
        try:
            for item in source:
                if not put(item):
                    return
            put(None)
        except BaseException as error:
            put(error)

    thread = threading.Thread(target=work, daemon=True)
    thread.start()
    try:
        while (item := ready.get()) is not None:
            if isinstance(item, BaseException):
                raise item
            yield item
    finally:
        closed.set()
        thread.join()
