"""Encoding and scoring beside the forward pass over the same texts, and reading the store.

The forward pass is run on some of the texts and taken to go on at that rate; encoding too where the run has more rows.
"""

import time
from pathlib import Path
from typing import Any

import numpy as np
import torch

from eval.bench.checks import Check, sentence
from sae_emotions.artefact import read_json
from sae_emotions.concepts.concept_set import load_concepts
from sae_emotions.config import RunConfig
from sae_emotions.dictionary.encode import load_dictionary
from sae_emotions.harvest.harvest import shard_rows
from sae_emotions.harvest.plan import path_of
from sae_emotions.harvest.readers import Reading
from sae_emotions.harvest.rows import Rows, open_rows, read_documents, shard_name
from sae_emotions.label.label import concept_means
from sae_emotions.label.layout import layout
from sae_emotions.label.measure import measure
from sae_emotions.machine import tune_allocator
from sae_emotions.progress import say
from sae_emotions.run_folder import config_of
from sae_emotions.sources.models import load_model

BATCH = 4096
SHARE, READS = 0.10, 1e6


def store(rows: Rows, folder: Path, most: int) -> dict[str, float]:
    """Vectors a second of shuffled reads from memory-mapped shards that have been read before, and bytes a row on disk."""
    count = min(most, len(rows))
    for at in range(0, len(rows), BATCH):
        rows.slice(at, at + BATCH)
    order = np.random.default_rng(0).permutation(len(rows))[:count]
    start = time.perf_counter()
    for at in range(0, count, BATCH):
        rows.read(order[at : at + BATCH])
    seconds = time.perf_counter() - start
    shards = range(len(read_json(folder / "plan.json")["shards"]))
    size = sum((folder / f"{shard_name(n)}.safetensors").stat().st_size for n in shards)
    return {"vectors_per_second": count / seconds, "vectors": count, "bytes_per_row": size / len(rows)}


def forward(config: RunConfig, run: Path, tokens: int) -> dict[str, float]:
    """Tokens a second of the harvest's forward pass over the run's own general text, first documents first."""
    plan = read_json(run / "activations" / "text" / "plan.json")
    model = load_model(config.model, getattr(torch, plan["dtype"]))
    ids, held = [], 0
    for one in read_documents(run / "activations" / "text")["token_ids"].to_pylist():
        ids.append(one)
        held += len(one)
        if held >= tokens:
            break
    reader = Reading(model.model, config.harvest, path_of(plan)).of(plan["tokens"]).reader
    shard_rows(model, 0, ids[:8], config.harvest, plan["special_ids"], reader)
    start = time.perf_counter()
    shard_rows(model, 0, ids, config.harvest, plan["special_ids"], reader)
    return {"tokens_per_second": held / (time.perf_counter() - start), "tokens": held}


def encoding(dictionary: Any, rows: Rows, most: int) -> dict[str, float]:
    """Rows a second from the store through the dictionary to its active latents."""
    count = min(most, len(rows))
    dictionary.active(torch.from_numpy(rows.slice(0, BATCH)))  # the first rows compile it
    start = time.perf_counter()
    for at in range(0, count, BATCH):
        dictionary.active(torch.from_numpy(rows.slice(at, min(at + BATCH, count))))
    seconds = time.perf_counter() - start
    return {
        "rows_per_second": count / seconds,
        "rows": count,
        "latents": dictionary.d_sae,
    }


def scoring(config: RunConfig, run: Path, dictionary: Any) -> dict[str, float]:
    """Seconds from the stories' rows to every concept's labels, baselines and permutations included."""
    concepts = load_concepts(config.concepts)
    start = time.perf_counter()
    means = concept_means(config, run, dictionary)
    between = time.perf_counter()
    measure(concepts, layout(concepts), means, config.label, config.seed)
    return {
        "concepts": len(concepts.concepts),
        "story_means_seconds": between - start,
        "seconds": time.perf_counter() - between,
        "permutations": config.label.permutations,
    }


def run(options: dict[str, Any]) -> dict[str, Any]:
    """The whole benchmark; see `python -m eval.bench encode --help` for the options."""
    if options["tuned"]:
        tune_allocator()
    folder = options["run"]
    config = config_of(folder)
    dictionary = load_dictionary(folder, options["dictionary"] or config.dictionaries[0].name)
    stores = {source: open_rows(folder / "activations" / source, dictionary.block) for source in ("text", "concepts")}
    plans = [read_json(folder / "activations" / source / "plan.json") for source in stores]
    torch.set_num_threads(plans[0]["threads"])
    found: dict[str, Any] = {
        "store": store(stores["text"], folder / "activations" / "text", options["rows"]),
        "encoding": encoding(dictionary, stores["text"], options["rows"]),
        "scoring": scoring(config, folder, dictionary),
        "forward": forward(config, folder, options["tokens"]),
        "rows": sum(map(len, stores.values())),
        "tokens": sum(plan["tokens"] for plan in plans),
    }
    reading = found["tokens"] / found["forward"]["tokens_per_second"]
    encoded = found["rows"] / found["encoding"]["rows_per_second"]
    found["seconds"] = {"forward": reading, "encoding": encoded, "scoring": found["scoring"]["seconds"]}
    share = (encoded + found["scoring"]["seconds"]) / reading
    found["checks"] = [
        Check("encoding all rows and scoring all concepts, as a share of the forward pass", share, SHARE).data(),
        Check("shuffled reads, vectors a second", found["store"]["vectors_per_second"], READS, at_least=True).data(),
    ]
    say(rendered(found))
    return found


def rendered(found: dict[str, Any]) -> str:
    """The figures as lines for a person."""
    disk, encoded, scored, read = (found[name] for name in ("store", "encoding", "scoring", "forward"))
    lines = [
        f"store: {disk['vectors_per_second']:,.0f} vectors/s in shuffled batches of {BATCH:,}, "
        f"{disk['bytes_per_row']:,.0f} bytes a row",
        f"forward pass: {read['tokens_per_second']:,.0f} tokens/s on {read['tokens']:,} tokens; "
        f"{found['seconds']['forward']:,.0f} s for all {found['tokens']:,}",
        f"encoding: {encoded['rows_per_second']:,.0f} rows/s with {encoded['latents']:,} latents on {encoded['rows']:,} "
        f"rows; {found['seconds']['encoding']:,.0f} s for all {found['rows']:,}",
        f"scoring: {scored['seconds']:,.1f} s for {scored['concepts']} concepts and {scored['permutations']} permutations",
    ]
    return "\n".join(lines + [sentence(check) for check in found["checks"]])
