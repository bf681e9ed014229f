"""Writing a shard: rows to int8 around the centre (or bfloat16), beside their document, position and token.

Shapes: N rows of the shard, D residual width.
"""

from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from safetensors.torch import save_file

from sae_emotions.artefact import read_json, sha256_file, write_json, written
from sae_emotions.errors import UserError
from sae_emotions.harvest.rows import shard_name


def quantised(x_ND: torch.Tensor, centre_D: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """int8 rows around `centre_D` and their float32 scale (largest deviation / 127).

    The centre takes outlier dimensions out of the scale: without it the others would get few of the 127 steps.
    """
    off_ND = x_ND - centre_D
    scale_N = (off_ND.abs().amax(1) / 127).clamp_min(torch.finfo(torch.float32).tiny)
    return (off_ND / scale_N[:, None]).round().to(torch.int8), scale_N


class Kept(NamedTuple):
    """Rows of one block of a shard as they are stored; filled in batch by batch."""

    rows_ND: torch.Tensor
    scale_N: torch.Tensor | None
    """for int8 alone"""
    norm_N: torch.Tensor
    """norms of the rows as they were read"""


def room_for(rows: int, width: int, store: str) -> Kept:
    """Room for the rows of a shard, in `store` (int8 or bfloat16)."""
    dtype = torch.int8 if store == "int8" else torch.bfloat16
    scale_N = torch.empty(rows) if store == "int8" else None
    return Kept(torch.empty(rows, width, dtype=dtype), scale_N, torch.empty(rows))


def keep(kept: Kept, place_N: torch.Tensor, x_ND: torch.Tensor, centre_D: torch.Tensor) -> None:
    """Put rows into their places."""
    kept.norm_N[place_N] = x_ND.norm(dim=1)
    if kept.scale_N is None:
        kept.rows_ND[place_N] = x_ND.bfloat16()
    else:
        kept.rows_ND[place_N], kept.scale_N[place_N] = quantised(x_ND, centre_D)


def write_shard(folder: Path, number: int, kept: dict[int, Kept], columns: dict[str, np.ndarray]) -> None:
    """Write shard `number`: `kept` is block -> its rows, `columns` has document, position and token of each row.

    The .json with the sha256 is written last: a shard without it does not count as done.
    """
    tensors = {name: torch.from_numpy(column.astype(np.int32)) for name, column in columns.items()}
    norms = {}
    for block, (rows_ND, scale_N, norm_N) in kept.items():
        norms[str(block)] = float(norm_N.double().mean()) if len(norm_N) else 0.0
        tensors[f"block{block}.rows"] = rows_ND
        if scale_N is not None:
            tensors[f"block{block}.scale"] = scale_N
    path = folder / f"{shard_name(number)}.safetensors"
    with written(path) as beside:
        save_file(tensors, beside)
        checksum = sha256_file(beside)
    write_json(
        folder / f"{shard_name(number)}.json",
        {"sha256": checksum, "rows": len(columns["document"]), "mean_norm": norms},
    )


def shard_is_done(folder: Path, number: int) -> bool:
    """Whether the shard is there and has its checksum. Raises `UserError` where the file was changed on disk."""
    note, path = folder / f"{shard_name(number)}.json", folder / f"{shard_name(number)}.safetensors"
    if not note.is_file() or not path.is_file():
        return False
    if sha256_file(path) != read_json(note)["sha256"]:
        raise UserError(f"{path} was changed on disk: its sha256 differs from {note.name}; delete both and run again.")
    return True
