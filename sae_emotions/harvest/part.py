"""A part of a harvest: the rows of some documents as a harvest of its own, without running the model again.

For comparisons on the same texts, and for halves of the data. Shapes: N rows of a shard.
"""

import hashlib
from collections.abc import Collection
from pathlib import Path
from shutil import copyfile
from typing import Any

import numpy as np
import torch

from sae_emotions.artefact import read_json, write_json, written_folder
from sae_emotions.errors import UserError
from sae_emotions.harvest.rows import mapped, shard_name
from sae_emotions.harvest.store import Kept, write_shard
from sae_emotions.schema import read_table, write_table


def write_part(source: Path, target: Path, keys: Collection[str], blocks: Collection[int]) -> Path:
    """Write the rows of the documents of harvest `source` that `keys` names, after `blocks`, to `target`; returns it.

    Rows stay as they are stored, around the same centre; documents are numbered anew, in the same order. Raises
    `UserError` where a document or a block is not in the harvest.
    """
    plan, wanted = read_json(source / "plan.json"), set(keys)
    if not set(blocks) <= set(plan["blocks"]):
        raise UserError(
            f"{source} holds the blocks {', '.join(map(str, plan['blocks']))}; some that are asked for lack."
        )
    shards: list[dict[str, int]] = []
    document = tokens = 0
    with written_folder(target) as beside:
        for number in range(len(plan["shards"])):
            table = read_table(source / f"documents-{number:05d}.parquet").to_pydict()
            kept = [i for i, key in enumerate(table["key"]) if key in wanted]
            if not kept:
                continue
            wanted -= {table["key"][i] for i in kept}
            found = _part_of_shard(
                source / f"{shard_name(number)}.safetensors", blocks, table["document"], kept, document
            )
            here = {name: [table[name][i] for i in kept] for name in ("key", "source", "token_ids")}
            here |= {"document": list(range(document, document + len(kept))), "shard": [len(shards)] * len(kept)}
            write_table(beside / f"documents-{len(shards):05d}.parquet", "documents", here)
            write_shard(beside, len(shards), *found)
            shards.append({"first_document": document, "documents": len(kept), "rows": len(found[1]["document"])})
            document, tokens = document + len(kept), tokens + sum(map(len, here["token_ids"]))
        if wanted or not shards:
            raise UserError(f"{source} lacks {len(wanted)} of the documents asked for; harvest these texts first.")
        copyfile(source / "centre.safetensors", beside / "centre.safetensors")
        mark = hashlib.sha256(f"{plan['identity']} {sorted(keys)}".encode()).hexdigest()
        rows = sum(shard["rows"] for shard in shards)
        counts: dict[str, Any] = {"tokens": tokens, "documents": document, "rows": rows, "shards": shards}
        write_json(beside / "plan.json", plan | counts | {"identity": mark, "blocks": sorted(blocks)})
    return target


def _part_of_shard(
    path: Path, blocks: Collection[int], documents: list[int], kept: list[int], first: int
) -> tuple[dict[int, Kept], dict[str, np.ndarray]]:
    """What `store.write_shard` takes, for the `kept` of a shard's documents, which are numbered from `first` on."""
    shard = mapped(path)
    number = np.full(len(documents), -1)
    number[kept] = np.arange(first, first + len(kept))
    number_N = number[shard["document"] - documents[0]]
    some = np.flatnonzero(number_N >= 0)
    columns = {name: np.asarray(shard[name][some]) for name in ("position", "token")}
    stored = {}
    for block in blocks:
        rows_ND = torch.from_numpy(np.asarray(shard[f"block{block}.rows"][some]))
        scale = shard.get(f"block{block}.scale")
        scale_N = None if scale is None else torch.from_numpy(np.asarray(scale[some]))
        if scale_N is None:
            rows_ND = rows_ND.view(torch.bfloat16)
        # Norms are for the shard's note alone: those of the rows as they were read are not kept one by one.
        stored[block] = Kept(rows_ND, scale_N, torch.full((len(some),), _mean_norm(path, block)))
    return stored, columns | {"document": number_N[some]}


def _mean_norm(path: Path, block: int) -> float:
    return float(read_json(path.with_suffix(".json"))["mean_norm"][str(block)])
