"""Training steps beside the peers': vectors a second on the same real rows, in turns; quality after the same number of vectors.

B rows of a batch, D residual width, M latents.
"""

import statistics
import tempfile
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch

from eval.bench.checks import faster_than_ours, of_family, sentence
from eval.bench.limits import products
from eval.bench.turns import Candidate, Worker, in_turns, summary
from sae_emotions.errors import UserError
from sae_emotions.harvest.rows import open_rows
from sae_emotions.machine import device
from sae_emotions.progress import say
from sae_emotions.run_folder import config_of

ROWS = 65_536
CANDIDATES = {
    "topk": (
        Candidate("ours", "default"),
        Candidate("saelens", "default"),
        Candidate("saelens", "autocast"),
        Candidate("saelens", "sparse"),
        Candidate("dictionary_learning", "default"),
        Candidate("dictionary_learning", "autocast"),
        Candidate("sparsify", "default"),
        Candidate("sparsify", "adam"),
        Candidate("bounds", "lb2"),
    ),
    "batchtopk": (
        Candidate("ours", "default"),
        Candidate("saelens", "default"),
        Candidate("saelens", "autocast"),
        Candidate("dictionary_learning", "default"),
    ),
    "matryoshka": (Candidate("ours", "default"), Candidate("saelens", "default"), Candidate("saelens", "autocast")),
    "auxk": (Candidate("ours", "auxk"), Candidate("saelens", "auxk")),
    "family": tuple(Candidate("ours", variant) for variant in ("topk", "batchtopk", "matryoshka", "auxk")),
}
"""Each library at its default and at the settings that make it faster; `bounds` is no library but the machine.

`auxk` is TopK with some latents dead at every step; `family` has our own kinds beside each other.
"""


class Shape(NamedTuple):
    """What is trained."""

    kind: str
    d_sae: int
    k: int
    batch: int


def write_rows(run: Path, block: int | None, folder: Path) -> tuple[Path, Path]:
    """Random rows of a finished run, scaled to a mean norm of √D, and their centre, as .npy. Raises `UserError`."""
    block = config_of(run).dictionaries[0].block if block is None else block
    store = open_rows(run / "activations" / "text", block)
    if len(store) < 4 * 8192:
        raise UserError(f"{run} holds {len(store):,} rows; a benchmark needs at least 32,768.")
    picked = np.random.default_rng(0).permutation(len(store))[:ROWS]
    x_ND = store.read(picked)
    scale = np.float32(store.d_in**0.5 / np.linalg.norm(x_ND, axis=1).mean())
    rows, centre = folder / "rows.npy", folder / "centre.npy"
    np.save(rows, x_ND * scale)
    np.save(centre, store.centre_D * scale)
    return rows, centre


def _workers(shape: Shape, names: list[str], rows: tuple[Path, Path], options: dict[str, Any]) -> list[Worker]:
    task = {
        "rows": str(rows[0]),
        "centre": str(rows[1]),
        "steps": max(100, options["vectors"] // shape.batch),
        "lr": 4e-4,
        "threads": torch.get_num_threads(),
        "device": device().type,
        **shape._asdict(),
    }
    if shape.kind in ("auxk", "family"):
        task["kind"] = "topk"
    chosen = [one for one in CANDIDATES[shape.kind] if one.library in names]
    say(
        f"{shape.kind}, {shape.d_sae:,} latents, k {shape.k}, {shape.batch:,} rows a step: {', '.join(map(str, chosen))}"
    )
    workers = [Worker(one, "train", task, options["folder"], options["tuned"]) for one in chosen]
    for worker in workers:
        worker.ready()
    return workers


def compare(shape: Shape, names: list[str], rows: tuple[Path, Path], options: dict[str, Any]) -> dict[str, Any]:
    """One table: each candidate's vectors a second with their spread, and ratios of ours to it.

    `options`: rounds, vectors (see `equal_data`), tuned (the allocator), folder (for logs).
    """
    workers = _workers(shape, names, rows, options)
    try:
        seconds = in_turns(workers, options["rounds"])
    finally:
        for worker in workers:
            worker.stop()
    return shape._asdict() | {"candidates": _table(seconds, shape.batch)}


def equal_data(shape: Shape, names: list[str], rows: tuple[Path, Path], options: dict[str, Any]) -> dict[str, Any]:
    """What each candidate has learned after the same `vectors`: FVU, L0, silent share."""
    steps = max(1, options["vectors"] // shape.batch)
    quality = {}
    workers = _workers(shape, [name for name in names if name != "bounds"], rows, options)
    try:
        for worker in workers:
            worker.steps(steps)
            quality[str(worker.candidate)] = worker.quality()
    finally:
        for worker in workers:
            worker.stop()
    return shape._asdict() | {"after": steps * shape.batch, "quality": quality}


def _table(seconds: dict[Candidate, list[float]], batch: int) -> list[dict[str, Any]]:
    ours = next((statistics.median(times) for one, times in seconds.items() if one.library == "ours"), None)
    table = []
    for one, times in seconds.items():
        row = {"name": str(one), **summary(times, batch, "vectors_per_second")}
        if ours is not None:
            row["ours_is_faster_by"] = statistics.median(times) / ours
        table.append(row)
    return table


def run(options: dict[str, Any]) -> dict[str, Any]:
    """The whole benchmark; see `python -m eval.bench train --help` for the options."""
    with tempfile.TemporaryDirectory() as folder:
        rows = write_rows(options["run"], options["block"], Path(folder))
        options = options | {"folder": Path(folder)}
        tables, equal = [], []
        for kind in options["kinds"]:
            for d_sae in options["d_sae"]:
                shape = Shape(kind, d_sae, options["k"], options["batch"])
                tables.append(compare(shape, options["peers"], rows, options))
                say(rendered(tables[-1]))
            if options["vectors"] and kind not in ("auxk", "family"):
                shape = Shape(kind, options["quality_d_sae"], options["k"], options["batch"])
                equal.append(equal_data(shape, options["peers"], rows, options))
                say(rendered_quality(equal[-1]))
    checks = [check for table in tables if table["kind"] == "family" for check in of_family(table)]
    for check in checks:
        say(sentence(check))
    return {"limits_gops": products(device().type), "tables": tables, "equal_data": equal, "checks": checks}


def rendered(table: dict[str, Any]) -> str:
    """A table as lines for a person."""
    lines = [f"{table['kind']}, d_sae {table['d_sae']:,}, k {table['k']}, {table['batch']:,} rows a step"]
    for row in table["candidates"]:
        low, high = row["quartiles_ms"]
        ratio = f"{row['ours_is_faster_by']:6.2f}x" if "ours_is_faster_by" in row else ""
        lines.append(
            f"  {row['name']:<32} {row['vectors_per_second']:10,.0f} vectors/s  {row['step_ms']:8.1f} ms "
            f"({low:.1f} to {high:.1f})  {ratio}"
        )
    return "\n".join(lines + faster_than_ours(table["candidates"]))


def rendered_quality(table: dict[str, Any]) -> str:
    """What each candidate has learned, as lines for a person."""
    lines = [f"{table['kind']}, d_sae {table['d_sae']:,}, k {table['k']}, after {table['after']:,} rows"]
    for name, found in table["quality"].items():
        lines.append(f"  {name:<32} " + "  ".join(f"{key} {value:.4f}" for key, value in found.items()))
    return "\n".join(lines)
