"""Rows: a read-only, memory-mapped view of a harvest, random access by row.

Shapes: N rows asked for, D residual width. A shard is one safetensors file with `block<b>.rows` (int8 around the centre,
or bfloat16), `block<b>.scale` (int8 alone), `document`, `position` and `token`. Rows are in document order, then position.
"""

import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pyarrow as pa

from sae_emotions.artefact import read_json
from sae_emotions.errors import UserError
from sae_emotions.schema import read_table

_TYPES = {"I8": np.int8, "BF16": np.uint16, "F32": np.float32, "I32": np.int32}


def shard_name(number: int) -> str:
    """File stem of a shard."""
    return f"shard-{number:05d}"


def mapped(path: Path) -> dict[str, np.ndarray]:
    """The tensors of a safetensors file as memory maps; bfloat16 comes as its bits in uint16.

    Raises `UserError` where the file is missing or cut short.
    """
    try:
        with path.open("rb") as file:
            length = int.from_bytes(file.read(8), "little")
            header = json.loads(file.read(length))
        header.pop("__metadata__", None)
        tensors = {}
        for name, entry in header.items():
            start, stop = entry["data_offsets"]
            kind = np.dtype(_TYPES[entry["dtype"]])
            if stop == start:
                tensors[name] = np.zeros(entry["shape"], kind)
                continue
            tensors[name] = np.memmap(path, kind, "r", offset=8 + length + start, shape=tuple(entry["shape"]))
    except FileNotFoundError:
        raise UserError(f"{path} is missing; run the harvest again to make it.") from None
    except (ValueError, KeyError, json.JSONDecodeError, UnicodeDecodeError, OverflowError, MemoryError):
        raise UserError(f"{path} is damaged; delete it and run the harvest again.") from None
    return tensors


class Stored(NamedTuple):
    """The rows of one block on disk, shard after shard."""

    rows: list[np.ndarray]
    scales: list[np.ndarray]
    """empty for bfloat16"""
    centre_D: np.ndarray

    def read(self, index_N: np.ndarray) -> np.ndarray:
        """x_ND, float32, in the order of `index_N`.

        Rows are gathered shard by shard as they are stored, and decoded all at once: 1.8 million rows a second on one
        core of a Zen 4 (int8, D 576, shuffled, 2,048 at a time, files in memory). numpy does all of it without the GIL.
        """
        ends = np.cumsum([len(rows) for rows in self.rows])
        shard_N = np.searchsorted(ends, index_N, side="right")
        order_N = np.argsort(shard_N, kind="stable")
        shards, cuts = np.unique(shard_N[order_N], return_index=True)
        raw_ND = np.empty((len(index_N), len(self.centre_D)), self.rows[0].dtype)
        scale_N = np.empty(len(index_N), np.float32)
        for shard, here in zip(shards.tolist(), np.split(order_N, cuts)[1:], strict=True):
            rows = self.rows[shard]
            inside = index_N[here] - (ends[shard] - len(rows))
            raw_ND[here] = rows.take(inside, axis=0)
            if self.scales:
                scale_N[here] = self.scales[shard].take(inside)
        if not self.scales:
            bits_ND = raw_ND.astype(np.uint32)
            bits_ND <<= 16
            return bits_ND.view(np.float32)
        x_ND = raw_ND.astype(np.float32)
        x_ND *= scale_N[:, None]
        x_ND += self.centre_D
        return x_ND


def joined(stores: Sequence["Rows"]) -> Stored:
    """The rows of several harvests of one model and block, one after the other.

    Raises `UserError` where they were stored around different points.
    """
    first = stores[0].stored
    for other in stores[1:]:
        if not np.array_equal(other.stored.centre_D, first.centre_D):
            raise UserError(f"{other.folder} was stored around another centre; delete it and run the harvest again.")
    return Stored(
        [rows for one in stores for rows in one.stored.rows],
        [scale for one in stores for scale in one.stored.scales],
        first.centre_D,
    )


class Rows:
    """Rows of one block of one harvest. Open with `open_rows`."""

    def __init__(self, folder: Path, block: int) -> None:
        plan = read_json(folder / "plan.json")
        if block not in plan["blocks"]:
            raise UserError(f"{folder} holds no block {block}; it has {', '.join(map(str, plan['blocks']))}.")
        self.folder, self.block, self.d_in = folder, block, int(plan["d_in"])
        missing = [n for n in range(len(plan["shards"])) if not (folder / f"{shard_name(n)}.json").is_file()]
        if missing:
            raise UserError(f"{folder} lacks shard {missing[0]}; run the harvest again to finish it.")
        shards = [mapped(folder / f"{shard_name(n)}.safetensors") for n in range(len(plan["shards"]))]
        # As plain arrays: a memmap's own class costs time at every look.
        self.stored = Stored(
            [shard[f"block{block}.rows"].view(np.ndarray) for shard in shards],
            [shard[f"block{block}.scale"].view(np.ndarray) for shard in shards] if plan["store"] == "int8" else [],
            np.array(mapped(folder / "centre.safetensors")[f"block{block}.centre"]),
        )
        self.centre_D = self.stored.centre_D
        self.document_N = np.concatenate([shard["document"] for shard in shards])
        self.position_N = np.concatenate([shard["position"] for shard in shards])
        self.token_N = np.concatenate([shard["token"] for shard in shards])

    def __len__(self) -> int:
        return len(self.document_N)

    def read(self, index_N: np.ndarray) -> np.ndarray:
        """x_ND, float32, in the order of `index_N`. Raises IndexError for a row that is not there."""
        index_N = np.asarray(index_N, dtype=np.int64)
        if index_N.size and (index_N.min() < 0 or index_N.max() >= len(self)):
            raise IndexError(f"rows are 0 to {len(self) - 1}")
        return self.stored.read(index_N)

    def slice(self, start: int, stop: int) -> np.ndarray:
        """x_ND, float32, rows `start` to `stop` (exclusive)."""
        return self.read(np.arange(start, min(stop, len(self))))

    def batches(self, seed: int, batch: int, start: int = 0) -> Iterator[np.ndarray]:
        """One pass in a seeded global permutation, from position `start` on: the rest of the pass, exactly."""
        order = np.random.default_rng(seed).permutation(len(self))
        for at in range(start, len(order), batch):
            yield self.read(order[at : at + batch])


def open_rows(folder: Path, block: int) -> Rows:
    """Open the finished harvest in `folder`. Raises `UserError` where it is missing, unfinished or lacks the block."""
    return Rows(Path(folder), block)


def read_documents(folder: Path) -> pa.Table:
    """All documents of a harvest, in order (schema `documents`)."""
    count = len(read_json(folder / "plan.json")["shards"])
    return pa.concat_tables([read_table(folder / f"documents-{n:05d}.parquet") for n in range(count)])
