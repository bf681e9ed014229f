"""The harvest: residual streams of the general text and of the concept texts, shard by shard.

Shapes: N rows of a shard, D residual width.
"""

from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch

from sae_emotions.concepts.concept_set import load_concepts
from sae_emotions.config import HarvestConfig, RunConfig
from sae_emotions.harvest.batching import batches, kept, padded, windows
from sae_emotions.harvest.forward import read_blocks
from sae_emotions.harvest.lens import write_lens
from sae_emotions.harvest.plan import make_plan, special_ids, stored_plan, tokenised
from sae_emotions.harvest.rows import mapped
from sae_emotions.harvest.store import shard_is_done, write_shard
from sae_emotions.machine import compute_dtype, tune_allocator
from sae_emotions.progress import Progress, say
from sae_emotions.schema import read_table
from sae_emotions.sources.models import Model, check_blocks, load_model, model_info
from sae_emotions.sources.text import Document, documents


class ShardRows(NamedTuple):
    """All rows of one shard, in document order, then position."""

    rows: dict[int, torch.Tensor]
    """block -> x_ND, float32"""
    document: np.ndarray
    position: np.ndarray
    token: np.ndarray


def shard_rows(
    model: Model,
    first_document: int,
    ids: Sequence[Sequence[int]],
    settings: HarvestConfig,
    special: Sequence[int],
    advance: Callable[[int], None] = lambda tokens: None,
) -> ShardRows:
    """Read the residual stream of some documents: the one code path of the store and of the stream.

    `advance` hears of the tokens read. The first position of every window and special tokens have no row.
    """
    cut = windows(first_document, ids, settings.context)
    keep = [kept(window.tokens[None], np.ones((1, len(window.tokens)), bool), np.asarray(special))[0] for window in cut]
    ends = np.cumsum([int(keep_S.sum()) for keep_S in keep]) if cut else np.zeros(0, np.int64)
    count = int(ends[-1]) if len(ends) else 0
    where = next(model.model.parameters()).device
    rows: dict[int, torch.Tensor] = {}
    for batch in batches(cut, settings.batch_tokens):
        ids_BS, mask_BS = padded([cut[i] for i in batch], 0)
        found = read_blocks(model.model, torch.from_numpy(ids_BS).to(where), settings.blocks)
        for block, x_BSD in found.items():
            held_BSD = x_BSD.float().cpu()
            out_ND = rows.setdefault(block, torch.empty(count, held_BSD.shape[-1]))
            for row, i in enumerate(batch):
                picked_ND = held_BSD[row, : len(cut[i].tokens)][torch.from_numpy(keep[i])]
                out_ND[ends[i] - len(picked_ND) : ends[i]] = picked_ND
        advance(int(mask_BS.sum()))
    spans = list(zip(cut, keep, strict=True))
    return ShardRows(
        rows,
        np.concatenate([np.full(int(k.sum()), w.document) for w, k in spans]),
        np.concatenate([w.start + np.flatnonzero(k) for w, k in spans]),
        np.concatenate([w.tokens[k] for w, k in spans]),
    )


def stream(model: Model, texts: Iterable[Document], settings: HarvestConfig) -> Iterator[ShardRows]:
    """Rows of `texts`, about `batch_tokens` tokens at a time, without touching the disk."""
    special = special_ids(model.tokenizer)
    held: list[list[int]] = []
    first = 0
    for document in tokenised(texts, model.tokenizer):
        held.append(document.ids)
        if sum(map(len, held)) >= settings.batch_tokens:
            yield shard_rows(model, first, held, settings, special)
            first, held = first + len(held), []
    if held:
        yield shard_rows(model, first, held, settings, special)


def run_job(
    folder: Path, plan: dict[str, Any], number: int, model: Model, config: RunConfig, advance: Callable[[int], None]
) -> None:
    """Write one shard. Its bytes depend on the plan alone."""
    table = read_table(folder / f"documents-{number:05d}.parquet")
    first = plan["shards"][number]["first_document"]
    found = shard_rows(model, first, table["token_ids"].to_pylist(), config.harvest, plan["special_ids"], advance)
    centres = {
        block: torch.from_numpy(np.array(mapped(folder / "centre.safetensors")[f"block{block}.centre"]))
        for block in plan["blocks"]
    }
    columns = {"document": found.document, "position": found.position, "token": found.token}
    write_shard(folder, number, found.rows, centres, columns, plan["store"])


def _texts(config: RunConfig, source: str, model: Model) -> Iterator[Document]:
    if source == "text":
        return documents(config.text, model.tokenizer, config.seed)
    concept_set = load_concepts(config.concepts)
    return iter([Document(text.id, text.cell, text.text) for text in concept_set.texts])


def describe_texts(config: RunConfig, source: str) -> dict[str, Any]:
    """What stands in a plan for its texts: their config, or the concept set's sha256."""
    if source == "text":
        return {"text": config.text.model_dump(mode="json")}
    return {"concepts": config.concepts, "sha256": load_concepts(config.concepts).sha256}


def harvest(config: RunConfig, run: Path) -> Path:
    """Harvest both sources into RUN/activations, resuming where an earlier run stopped; returns that folder.

    Raises `UserError` for a wrong block, an empty corpus, a plan of other settings, a shard changed on disk.
    """
    tune_allocator()
    info = model_info(config.model)
    check_blocks(config.harvest.blocks, info["blocks"])
    folder = run / "activations"
    plans = {s: stored_plan(folder / s, config, describe_texts(config, s)) for s in ("text", "concepts")}
    todo = {
        source: [n for n in range(len(plan["shards"])) if not shard_is_done(folder / source, n)]
        for source, plan in plans.items()
        if plan
    }
    if all(plans.values()) and not any(todo.values()) and (run / "unembedding.safetensors").is_file():
        return folder
    known = next((plan for plan in plans.values() if plan), None)
    torch.set_num_threads(known["threads"] if known else config.harvest.threads or torch.get_num_threads())
    dtype = getattr(torch, known["dtype"]) if known else compute_dtype(config.model)
    model = load_model(config.model, dtype)
    for source in plans:
        if plans[source] is None:
            wanted = config.text.wanted(dtype == torch.float32) if source == "text" else None
            texts = _texts(config, source, model)
            like = None if source == "text" else folder / "text"
            plan = make_plan(config, folder / source, model, texts, wanted, describe_texts(config, source), like)
            plans[source], todo[source] = plan, list(range(len(plan["shards"])))
            if wanted and plan["tokens"] < wanted:
                say(
                    f"The text sources hold {plan['tokens']:,} tokens, fewer than the {wanted:,} asked for: all are used."
                )
    write_lens(run, model)
    for source, made in plans.items():
        assert made is not None
        _run_jobs(folder / source, made, todo[source], model, config)
    return folder


def _run_jobs(folder: Path, plan: dict[str, Any], todo: list[int], model: Model, config: RunConfig) -> None:
    share = plan["tokens"] / max(1, plan["rows"])
    done = plan["tokens"] - round(share * sum(plan["shards"][n]["rows"] for n in todo))
    with Progress(f"harvest {folder.name}", plan["tokens"], "tok", done) as bar:
        for number in todo:
            run_job(folder, plan, number, model, config, bar.advance)
