"""Harvesting beside the peers': tokens a second from the same windows of real text to the same block, in turns.

N rows, D residual width.
"""

import json
import subprocess
import tempfile
from collections.abc import Iterator
from itertools import islice
from pathlib import Path
from shutil import which
from typing import Any

import numpy as np
import torch

from eval.bench.checks import faster_than_ours
from eval.bench.turns import Candidate, Worker, in_turns, summary
from sae_emotions.artefact import read_json, write_json
from sae_emotions.config import RunConfig, load_config
from sae_emotions.errors import UserError
from sae_emotions.harvest.batching import windows
from sae_emotions.harvest.forward import residuals
from sae_emotions.harvest.parity import strays
from sae_emotions.harvest.plan import special_ids, tokenised
from sae_emotions.machine import device
from sae_emotions.progress import say
from sae_emotions.sources.models import Model, check_blocks, decoder_blocks, load_model
from sae_emotions.sources.quiet import quiet
from sae_emotions.sources.text import documents

CANDIDATES = (
    Candidate("ours", "default"),
    Candidate("ours", "forward"),
    Candidate("transformers", "bf16"),
    Candidate("transformers", "fp32"),
    Candidate("transformers", "plain"),
    Candidate("transformers", "compiled"),
    Candidate("saelens", "default"),
    Candidate("saelens", "best"),
    Candidate("dictionary_learning", "default"),
    Candidate("dictionary_learning", "bf16"),
    Candidate("bounds", "bf16"),
    Candidate("bounds", "fp32"),
)
"""Each library at its default and at the settings that make it faster; `bounds` are the model's matrix products alone."""
NO_HARVEST = {"sparsify": "caches no activations: its trainer runs the model again in every step"}


def reviews(config: RunConfig, model: Model, count: int, whole: bool) -> list[list[int]]:
    """`count` windows of the recipe's first text source, cut as the harvest cuts them.

    With `whole` only full ones are taken, as the libraries that do not pad need them. Raises `UserError` for too little text.
    """
    source = config.text.model_copy(update={"sources": config.text.sources[:1]})
    found = list(islice(_windows(config, model, documents(source, model.tokenizer, config.seed), whole), count))
    if len(found) < count:
        raise UserError(f"The first text source holds {len(found)} windows of that kind, not {count}; ask for fewer.")
    return found


def _windows(config: RunConfig, model: Model, texts: Any, whole: bool) -> Iterator[list[int]]:
    special = set(special_ids(model.tokenizer))
    for document in tokenised(texts, model.tokenizer, chunk=16):
        for window in windows(0, [document.ids], config.harvest.context):
            ids = [int(one) for one in window.tokens]
            # A special token has no row in our store, but in the others'.
            if not special & set(ids[1:]) and (len(ids) == config.harvest.context or not whole):
                yield ids


def exact_rows(model: Model, some: list[list[int]], block: int) -> np.ndarray:
    """x_ND of the eager model in float32, read one window at a time; the first of each is left out."""
    return np.concatenate([residuals(model, window, [block])[block][1:] for window in some])


def save_model(model: Model, folder: Path) -> None:
    """The model in a form that older and newer versions of transformers read alike."""
    with quiet():
        model.model.save_pretrained(folder)
        model.tokenizer.save_pretrained(folder)
    path = folder / "config.json"
    config = read_json(path)
    # transformers 5 writes rope_parameters alone; 4 looks for rope_theta, and takes another one where it is missing.
    rope = config.get("rope_parameters") or {}
    write_json(path, config | ({"rope_theta": rope["rope_theta"]} if "rope_theta" in rope else {}))


def hook_of(model: Model, block: int) -> str:
    """Name of the module whose output is the residual stream after `block`."""
    wanted = decoder_blocks(model.model)[block]
    return next(name for name, module in model.model.named_modules() if module is wanted)


def prepared(options: dict[str, Any], folder: Path) -> tuple[dict[str, Any], np.ndarray]:
    """Everything the workers read, in `folder`; returns their task and the exact rows of the first step."""
    config = load_config(options["config"])
    block = config.harvest.blocks[0] if options["block"] is None else options["block"]
    model = load_model(config.model, torch.float32)
    check_blocks([block], model.info["blocks"])
    step = max(1, options["step_tokens"] // config.harvest.context)
    some = reviews(config, model, options["steps"] * step, not options["ragged"])
    (folder / "windows.json").write_text(json.dumps(some), encoding="utf-8")
    save_model(model, folder / "model")
    exact_ND = exact_rows(model, some[:step], block)
    from safetensors.numpy import save_file

    save_file({f"block{block}.centre": exact_ND.mean(0)}, folder / "centre.safetensors")
    settings = config.model_dump(mode="json")
    settings["model"] |= {"source": str(folder / "model"), "sha256": None}
    settings["harvest"]["blocks"] = [block]
    settings["dictionaries"] = [settings["dictionaries"][0] | {"block": block}]
    task = {
        "model": str(folder / "model"),
        "windows": str(folder / "windows.json"),
        "hook": hook_of(model, block),
        "config": settings,
        "block": block,
        "width": model.info["d_model"],
        "step_windows": step,
        "batch_tokens": config.harvest.batch_tokens,
        "threads": torch.get_num_threads(),
        "device": device().type,
    }
    return task, exact_ND


def not_run(one: Candidate, ragged: bool) -> str | None:
    """Why a candidate cannot be run here, or None."""
    if one.variant == "compiled" and not (which("g++") or which("clang++")):
        return "torch.compile needs a C++ compiler, and none is here"
    if one.library == "saelens" and ragged:
        return "its store takes windows of one length"
    return None


def _started(
    chosen: list[Candidate], task: dict[str, Any], folder: Path, tuned: bool
) -> tuple[Any, list[dict[str, str]]]:
    """Workers that are ready, with what they say of themselves; and who is not, with the reason. Ours must be."""
    workers, skipped = [], []
    for one in chosen:
        own = folder / f"{one.library}-{one.variant}"
        own.mkdir()
        (own / "centre.safetensors").symlink_to(folder / "centre.safetensors")
        try:
            workers.append(Worker(one, "harvest", task | {"folder": str(own)}, folder, tuned))
        except subprocess.CalledProcessError:
            skipped.append({"name": str(one), "reason": "its environment could not be made"})
    ready = []
    for worker in workers:
        try:
            ready.append((worker, worker.ready()))
            worker.steps(1)  # some libraries fail only when they are used
        except RuntimeError as error:
            worker.stop()
            if worker.candidate.library == "ours":
                for other in workers:
                    other.stop()
                raise
            say(str(error))
            ready = [one for one in ready if one[0] is not worker]
            skipped.append({"name": str(worker.candidate), "reason": str(error).splitlines()[-1][:200]})
    return ready, skipped


def parity(rows_ND: np.ndarray, exact_ND: np.ndarray) -> dict[str, float]:
    """Mean cosine and relative error against the exact rows. Raises `RuntimeError` where they are not as many."""
    if rows_ND.shape != exact_ND.shape:
        raise RuntimeError(f"{len(rows_ND):,} rows were read where there are {len(exact_ND):,}.")
    return strays(torch.from_numpy(rows_ND), torch.from_numpy(exact_ND))


def compare(options: dict[str, Any], task: dict[str, Any], exact_ND: np.ndarray, folder: Path) -> dict[str, Any]:
    """The table: tokens a second of each candidate, its share of what the products alone allow, and its parity."""
    known = [one for one in CANDIDATES if one.library in options["peers"]]
    reasons = [(one, not_run(one, options["ragged"])) for one in known]
    skipped = [{"name": str(one), "reason": reason} for one, reason in reasons if reason]
    skipped += [{"name": name, "reason": why} for name, why in NO_HARVEST.items() if name in options["peers"]]
    say(f"harvest to block {task['block']}: {', '.join(str(one) for one, reason in reasons if not reason)}")
    ready, failed = _started([one for one, reason in reasons if not reason], task, folder, options["tuned"])
    tokens = sum(map(len, read_json(folder / "windows.json"))) // options["steps"]
    workers = [worker for worker, _ in ready]
    try:
        seconds = in_turns(workers, options["rounds"], warm=1)
        found = {
            worker.candidate: parity(np.load(worker.quality()["rows"]), exact_ND)
            for worker in workers
            if worker.candidate.library != "bounds"
        }
    finally:
        for worker in workers:
            worker.stop()
    rows = []
    for worker, said in ready:
        one = worker.candidate
        row = summary(seconds[one], said.get("tokens", tokens), "tokens_per_second")
        rows.append({"name": str(one), "type": said["note"], **row, **found.get(one, {})})
    return {"candidates": _with_ratios(rows), "skipped": skipped + failed, "tokens_a_step": tokens}


def _with_ratios(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    rates = {row["name"]: row["tokens_per_second"] for row in rows}
    bounds = {"bfloat16": rates.get("bounds (bf16)"), "float32": rates.get("bounds (fp32)")}
    for row in rows:
        if "ours" in rates:
            row["ours_is_faster_by"] = rates["ours"] / row["tokens_per_second"]
        if bound := bounds[row["type"]]:
            row["share_of_products"] = row["tokens_per_second"] / bound
    return rows


def rendered(table: dict[str, Any]) -> str:
    """The table as lines for a person."""
    lines = [f"harvest to block {table['block']}, windows of {table['context']} tokens, {table['model']}"]
    for row in table["candidates"]:
        ratio = f"{row['ours_is_faster_by']:6.2f}x" if "ours_is_faster_by" in row else ""
        share = f"{row['share_of_products']:5.0%} of the products" if "share_of_products" in row else ""
        error = f"relative error {row['relative_error']:.5f}" if "relative_error" in row else ""
        lines.append(
            f"  {row['name']:<30} {row['tokens_per_second']:8,.0f} tokens/s {row['type']:<8} {ratio}  {share}  {error}"
        )
    lines += faster_than_ours(table["candidates"])
    lines += [f"  {one['name']}: not run; {one['reason']}" for one in table["skipped"]]
    return "\n".join(lines)


def run(options: dict[str, Any]) -> dict[str, Any]:
    """The whole benchmark; see `python -m eval.bench harvest --help` for the options."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        task, exact_ND = prepared(options, folder)
        table = compare(options, task, exact_ND, folder)
        table |= {"block": task["block"], "context": task["config"]["harvest"]["context"], "ragged": options["ragged"]}
        table["model"] = load_config(options["config"]).name
    say(rendered(table))
    return table
