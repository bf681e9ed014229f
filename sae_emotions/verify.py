"""Verify a run: every checksum, and random rows recomputed from their text through the model.

Shapes: N rows of a document, D residual width.
"""

import secrets
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch

from sae_emotions.artefact import read_json, sha256_file
from sae_emotions.errors import UserError
from sae_emotions.harvest.harvest import shard_rows
from sae_emotions.harvest.plan import path_of
from sae_emotions.harvest.readers import alike
from sae_emotions.harvest.rows import open_rows, read_documents, shard_name
from sae_emotions.progress import Progress
from sae_emotions.run_folder import config_of
from sae_emotions.sources.models import load_model

TOLERANCE = {"float32": 0.05, "bfloat16": 0.2}
"""Relative error of a recomputed row that is still the same row: int8 storage alone costs one or two hundredths, and
bfloat16 products depend on the batch (seen: .07) and on the forward pass (seen: .16). Another token's row is off by several
times as much."""


class Verified(NamedTuple):
    """What was checked."""

    files: int
    rows: int
    worst: float
    """largest relative error of a recomputed row"""
    seed: int


def check_files(run: Path) -> int:
    """Compare every file with its recorded sha256; returns how many. Raises `UserError` naming the first that differs."""
    listed: dict[Path, str] = {}
    for source in ("text", "concepts"):
        folder = run / "activations" / source
        for number in range(len(read_json(folder / "plan.json")["shards"])):
            note = read_json(folder / f"{shard_name(number)}.json")
            listed[folder / f"{shard_name(number)}.safetensors"] = note["sha256"]
    if (run / "manifest.json").is_file():
        listed |= {run / name: entry["sha256"] for name, entry in read_json(run / "manifest.json")["files"].items()}
    with Progress("verify files", len(listed), "files") as bar:
        for path, wanted in listed.items():
            if not path.is_file():
                raise UserError(f"{path} is missing; run the stage that makes it again.")
            if sha256_file(path) != wanted:
                raise UserError(f"{path} was changed on disk: its sha256 differs from the recorded one.")
            bar.advance(1)
    return len(listed)


def verify(run: Path, documents: int = 16, seed: int | None = None) -> Verified:
    """Check all files, then read `documents` random documents a source through the model again and compare their rows.

    Raises `UserError` where a file or a row differs by more than storage and arithmetic explain.
    """
    config = config_of(run)
    files = check_files(run)
    seed = secrets.randbelow(2**31) if seed is None else seed
    picker = np.random.default_rng(seed)
    plan = read_json(run / "activations" / "text" / "plan.json")
    torch.set_num_threads(plan["threads"])
    model = load_model(config.model, getattr(torch, plan["dtype"]))
    worst, count = 0.0, 0
    reader = alike(model.model, config.harvest, path_of(plan))
    for source in ("text", "concepts"):
        folder = run / "activations" / source
        table = read_documents(folder)
        chosen = np.sort(picker.choice(len(table), min(documents, len(table)), replace=False))
        stores = {block: open_rows(folder, block) for block in config.harvest.blocks}
        for number in chosen:
            ids = table["token_ids"][int(number)].as_py()
            again = shard_rows(model, int(number), [ids], config.harvest, plan["special_ids"], reader)
            for block, rows in stores.items():
                stored_ND = rows.read(np.flatnonzero(rows.document_N == number))
                fresh_ND = again.rows[block].numpy() if block in again.rows else np.zeros((0, rows.d_in), np.float32)
                if stored_ND.shape != fresh_ND.shape:
                    raise UserError(
                        f"{folder}: document {number} has {len(stored_ND)} rows, but its text gives {len(fresh_ND)}."
                    )
                if not len(stored_ND):
                    continue
                error = np.linalg.norm(stored_ND - fresh_ND, axis=1) / np.linalg.norm(fresh_ND, axis=1)
                worst, count = max(worst, float(error.max())), count + len(error)
    reader.close()
    if worst > TOLERANCE[plan["dtype"]]:
        raise UserError(
            f"{run}: a recomputed row differs by {worst:.1%}, more than {TOLERANCE[plan['dtype']]:.0%}; "
            "the model or the store is not the one of the plan."
        )
    return Verified(files, count, worst, seed)
