"""What grows and what does not: time and memory by tokens, for training and for the harvest, and a step's cost by latents.

Every point is a process of its own. Training reads a temporary store of that many rows, copied from a run's own shards and
repeated where the run has fewer; above `whole` rows it trains on `whole` of them, drawn from all, and reads the rest. What
the others would take is told from the pace of its steps: start and end (choosing rows, evaluation) are there once.
"""

import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import numpy as np

from eval.bench.checks import Check, sentence
from eval.bench.train import Shape, compare, write_rows
from sae_emotions.artefact import read_json, write_json
from sae_emotions.errors import UserError
from sae_emotions.harvest.rows import mapped, read_documents, shard_name
from sae_emotions.machine import free_disk_gb, memory_gb
from sae_emotions.progress import say
from sae_emotions.run_folder import config_of, create_or_check

BYTES_A_ROW = 600
FLAT, LINEAR = 1.5, 1.1


def child(task: dict[str, Any], folder: Path) -> dict[str, Any]:
    """What a process of its own answers. Raises RuntimeError where it fails."""
    answer = folder / "answer.json"
    call = [sys.executable, "-m", "eval.bench.child", json.dumps(task | {"answer": str(answer)})]
    done = subprocess.run(call, cwd=Path(__file__).parents[2], stderr=subprocess.PIPE, text=True, check=False)
    if done.returncode:
        raise RuntimeError(f"{task['what']} ended:\n" + "\n".join(done.stderr.splitlines()[-12:]))
    found: dict[str, Any] = read_json(answer)
    answer.unlink()
    return found


def copy_rows(run: Path, block: int, rows: int, into: Path) -> None:
    """A harvest of exactly `rows` rows in `into`: shards of `run`, again and again, each copy with documents of its own."""
    from safetensors.numpy import save_file

    source = run / "activations" / "text"
    plan = read_json(source / "plan.json")
    shards, count, number, first = plan["shards"], 0, 0, 0
    made = []
    documents = len(read_documents(source))
    into.mkdir(parents=True)
    while count < rows:
        tensors = mapped(source / f"{shard_name(number % len(shards))}.safetensors")
        take = min(rows - count, len(tensors["document"]))
        first = number // len(shards) * documents
        kept = {name: np.array(tensors[name][:take]) for name in ("document", "position", "token")}
        kept["document"] += first
        kept |= {name: np.array(tensors[name][:take]) for name in tensors if name.startswith(f"block{block}.")}
        save_file(kept, into / f"{shard_name(number)}.safetensors")
        write_json(into / f"{shard_name(number)}.json", {"rows": take})
        made.append({"first_document": int(kept["document"][0]), "documents": 0, "rows": take})
        count, number = count + take, number + 1
    (into / "centre.safetensors").write_bytes((source / "centre.safetensors").read_bytes())
    write_json(into / "plan.json", plan | {"shards": made, "rows": rows, "blocks": [block]})


def train_points(options: dict[str, Any]) -> list[dict[str, Any]]:
    """Time and memory of the train stage for each number of rows."""
    config = config_of(options["run"])
    points = []
    for rows in options["train"]:
        if free_disk_gb(options["temp"] or Path(tempfile.gettempdir())) < rows * BYTES_A_ROW / 2**30 + 1:
            raise UserError(
                f"A store of {rows:,} rows needs {rows * BYTES_A_ROW / 1e9:.1f} GB; name a larger disk with --temp."
            )
        say(f"scaling: train on {rows:,} rows")
        with tempfile.TemporaryDirectory(dir=options["temp"]) as name:
            folder = Path(name)
            share = min(1.0, options["whole"] / rows)
            settings = config.dictionaries[0].model_copy(update={"concept_rows": False, "epochs": share})
            settings = settings.model_copy(update={"batch": min(settings.batch, rows // 4)})
            create_or_check(folder / "run", config.model_copy(update={"dictionaries": (settings,)}))
            copy_rows(options["run"], settings.block, rows, folder / "run" / "activations" / "text")
            os.sync()  # or the writing goes on beside the training
            found = child({"what": "train", "run": str(folder / "run")}, folder)
        points.append({"rows": rows, "measured_whole": share == 1.0, "d_sae": settings.d_sae, **found})
        left = rows - found["trained"] if share < 1 else 0
        points[-1]["seconds_for_all"] = found["seconds"] + left / found["pace"]
        say(_train_line(points[-1]))
    return points


def harvest_points(options: dict[str, Any]) -> list[dict[str, Any]]:
    """Time and memory of the harvest for each number of tokens."""
    config = config_of(options["run"])
    harvest = config.harvest.model_copy(update={"shard_tokens": options["shard_tokens"]})
    config = config.model_copy(update={"harvest": harvest})
    points = []
    for tokens in options["harvest"]:
        say(f"scaling: harvest {tokens:,} tokens")
        with tempfile.TemporaryDirectory(dir=options["temp"]) as name:
            task = {"what": "harvest", "run": name, "tokens": tokens, "config": config.model_dump(mode="json")}
            points.append({"asked": tokens, "measured_whole": True, **child(task, Path(name))})
        say(_harvest_line(points[-1]))
    return points


def latent_points(options: dict[str, Any]) -> list[dict[str, Any]]:
    """Milliseconds of a step for each number of latents, ours beside SAELens, which is left out where it would not fit."""
    points: list[dict[str, Any]] = []
    if not options["d_sae"]:
        return points
    width = read_json(options["run"] / "activations" / "text" / "plan.json")["d_in"]
    with tempfile.TemporaryDirectory() as name:
        rows = write_rows(options["run"], None, Path(name))
        for d_sae in options["d_sae"]:
            # Weights, gradients, two moments and a copy; activations and their gradients, about eight at once.
            needs = 4 * (5 * 2 * width * d_sae + 8 * options["batch"] * d_sae) / 2**30
            fits = needs < 0.6 * (memory_gb() or 8)
            names = [one for one in options["peers"] if one == "ours" or fits]
            more = options | {"vectors": 0, "folder": Path(name)}
            table = compare(Shape("topk", d_sae, 32, options["batch"]), names, rows, more)
            points.append(
                {"d_sae": d_sae, "candidates": table["candidates"], "too_large": sorted({*options["peers"]} - {*names})}
            )
            say(
                f"  {d_sae:,} latents: "
                + ", ".join(f"{row['name']} {row['step_ms']:.0f} ms" for row in table["candidates"])
            )
    return points


def run(options: dict[str, Any]) -> dict[str, Any]:
    """The whole benchmark; see `python -m eval.bench scaling --help` for the options."""
    if options["temp"]:
        options["temp"].mkdir(parents=True, exist_ok=True)
    found: dict[str, Any] = {
        "train": train_points(options),
        "harvest": harvest_points(options),
        "shard_tokens": options["shard_tokens"],
        "latents": latent_points(options),
        "batch": options["batch"],
    }
    found["checks"] = checks(found)
    for check in found["checks"]:
        say(sentence(check))
    return found


def checks(found: dict[str, Any]) -> list[dict[str, Any]]:
    """Memory flat from the smallest point to the largest; time linear over the last two, where start-up counts least."""
    made = []
    for what, count, seconds in (("train", "rows", "seconds_for_all"), ("harvest", "tokens", "seconds")):
        points = found[what]
        if len(points) > 1:
            few, before, many = points[0], points[-2], points[-1]
            memory = many["own_bytes"] / few["own_bytes"]
            time = many[seconds] / many[count] / (before[seconds] / before[count])
            span = f"{what}, {many[count]:,} {count} against"
            made.append(Check(f"peak memory in times, {span} {few[count]:,}", memory, FLAT).data())
            made.append(Check(f"time of one in times, {span} {before[count]:,}", time, LINEAR).data())
    return made


def _train_line(point: dict[str, Any]) -> str:
    how = "" if point["measured_whole"] else f" (trained on {point['trained']:,}, read {point['read_only']:,} more)"
    return f"  {point['rows']:,} rows: {point['seconds']:.1f} s{how}, {_memory(point)}"


def _harvest_line(point: dict[str, Any]) -> str:
    return f"  {point['tokens']:,} tokens in {point['shards']} shards: {point['seconds']:.1f} s, {_memory(point)}"


def _memory(point: dict[str, Any]) -> str:
    own, whole = (point[name] / 2**20 for name in ("own_bytes", "mapped_bytes"))
    return f"peak memory {own:,.0f} MiB, {whole:,.0f} with mapped files"
