"""The harvest: residual streams of the general text and of the concept texts, shard by shard.

Batches are read by one reader after another or by several threads at once; a thread of its own writes what is finished.
Shapes: N rows of a shard, D residual width.
"""

from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import closing
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch

from sae_emotions.concepts.concept_set import load_concepts
from sae_emotions.config import HarvestConfig, RunConfig
from sae_emotions.harvest.batching import Window, batches, has_row, windows
from sae_emotions.harvest.lens import write_embedding, write_lens
from sae_emotions.harvest.plan import make_plan, path_of, special_ids, stored_plan, tokenised
from sae_emotions.harvest.readers import Eager, Reader, Reading
from sae_emotions.harvest.rows import mapped
from sae_emotions.harvest.store import Kept, keep, room_for, shard_is_done, write_shard
from sae_emotions.machine import compute_dtype, tune_allocator
from sae_emotions.progress import Progress, say
from sae_emotions.schema import read_table
from sae_emotions.sources.models import Model, check_blocks, load_model, model_info
from sae_emotions.sources.text import Document, documents


class Cut(NamedTuple):
    """Some documents as windows, and where each window's rows stand among all of theirs."""

    windows: list[Window]
    keep: list[np.ndarray]
    """per window: which of its tokens have a row"""
    start_W: np.ndarray
    """its first row; behind the last one, how many rows there are"""

    @property
    def columns(self) -> dict[str, np.ndarray]:
        """document, position and token of each row: in document order, then position."""
        spans = list(zip(self.windows, self.keep, strict=True))
        return {
            "document": np.concatenate([np.full(int(k.sum()), w.document) for w, k in spans]),
            "position": np.concatenate([w.start + np.flatnonzero(k) for w, k in spans]),
            "token": np.concatenate([w.tokens[k] for w, k in spans]),
        }

    def read(
        self, reader: Reader, batch: Sequence[int], blocks: Sequence[int]
    ) -> tuple[torch.Tensor, dict[int, torch.Tensor]]:
        """Places of a batch's rows, and the rows: block -> x_ND, float32."""
        found = reader.read([self.windows[i] for i in batch], blocks)
        keep_N = torch.from_numpy(np.concatenate([self.keep[i] for i in batch]))
        place_N = np.concatenate([np.arange(self.start_W[i], self.start_W[i + 1]) for i in batch])
        return torch.from_numpy(place_N), {block: x_ND[keep_N] for block, x_ND in found.items()}


class ShardRows(NamedTuple):
    """All rows of some documents, in document order, then position."""

    rows: dict[int, torch.Tensor]
    """block -> x_ND, float32"""
    document: np.ndarray
    position: np.ndarray
    token: np.ndarray


def cut_up(first_document: int, ids: Sequence[Sequence[int]], context: int, special: Sequence[int]) -> Cut:
    """Cut documents into windows. The first position of every window and special tokens have no row."""
    cut = windows(first_document, ids, context)
    keep = [has_row([window], special) for window in cut]
    return Cut(cut, keep, np.append(0, np.cumsum([int(keep_N.sum()) for keep_N in keep], dtype=np.int64)))


def shard_rows(
    model: Model,
    first_document: int,
    ids: Sequence[Sequence[int]],
    settings: HarvestConfig,
    special: Sequence[int],
    reader: Reader | None = None,
) -> ShardRows:
    """Read the residual stream of some documents, by the model's own forward pass where no `reader` is given."""
    cut, by = cut_up(first_document, ids, settings.context, special), reader or Eager(model.model)
    rows: dict[int, torch.Tensor] = {}
    some = batches(cut.windows, settings.batch_tokens, by.pads)
    for place_N, found in by.each(lambda batch: cut.read(by, batch, settings.blocks), some):
        for block, x_ND in found.items():
            rows.setdefault(block, torch.empty(int(cut.start_W[-1]), x_ND.shape[1]))[place_N] = x_ND
    return ShardRows(rows, **cut.columns)


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


class Job(NamedTuple):
    """A batch of a shard."""

    number: int
    """of the shard"""
    cut: Cut
    kept: dict[int, Kept]
    batch: list[int]
    last: bool

    @property
    def tokens(self) -> int:
        """Tokens of the batch."""
        return sum(len(self.cut.windows[i].tokens) for i in self.batch)


def _jobs(folder: Path, plan: dict[str, Any], todo: Sequence[int], pads: bool) -> Iterator[Job]:
    """The batches of the shards that are to be made, in order."""
    for number in todo:
        ids = read_table(folder / f"documents-{number:05d}.parquet")["token_ids"].to_pylist()
        cut = cut_up(plan["shards"][number]["first_document"], ids, plan["context"], plan["special_ids"])
        kept = {block: room_for(int(cut.start_W[-1]), plan["d_in"], plan["store"]) for block in plan["blocks"]}
        some = list(batches(cut.windows, plan["batch_tokens"], pads))
        for n, batch in enumerate(some, start=1):
            yield Job(number, cut, kept, batch, n == len(some))


def write_shards(folder: Path, plan: dict[str, Any], todo: list[int], reader: Reader) -> None:
    """Make shards. Their bytes depend on the plan alone."""
    centres = mapped(folder / "centre.safetensors")
    centre = {block: torch.from_numpy(np.array(centres[f"block{block}.centre"])) for block in plan["blocks"]}
    share = plan["tokens"] / max(1, plan["rows"])
    done = plan["tokens"] - round(share * sum(plan["shards"][n]["rows"] for n in todo))

    def read(job: Job) -> Job:
        place_N, found = job.cut.read(reader, job.batch, plan["blocks"])
        for block, x_ND in found.items():
            keep(job.kept[block], place_N, x_ND, centre[block])
        return job

    writing: Future[None] | None = None
    title = f"harvest {folder.name} ({reader.path})"
    with ThreadPoolExecutor(1) as writer, Progress(title, plan["tokens"], "tok", done) as bar:
        for job in reader.each(read, _jobs(folder, plan, todo, reader.pads)):
            bar.advance(job.tokens)
            if job.last:
                if writing:
                    writing.result()  # one shard waits for the disk, no more
                writing = writer.submit(write_shard, folder, job.number, job.kept, job.cut.columns)
        if writing:
            writing.result()


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
    beside = all((run / f"{name}.safetensors").is_file() for name in ("unembedding", "embedding"))
    if all(plans.values()) and not any(todo.values()) and beside:
        return folder
    known = next((plan for plan in plans.values() if plan), None)
    torch.set_num_threads(known["threads"] if known else config.harvest.threads or torch.get_num_threads())
    dtype = getattr(torch, known["dtype"]) if known else compute_dtype(config.model)
    model = load_model(config.model, dtype)
    reading = Reading(model.model, config.harvest, path_of(known) if known else None)
    with closing(reading):
        for source in plans:
            if plans[source] is None:
                wanted = config.text.wanted(dtype == torch.float32) if source == "text" else None
                texts, what = _texts(config, source, model), describe_texts(config, source)
                like = None if source == "text" else folder / "text"
                plan = make_plan(config, folder / source, model, texts, wanted, what, reading.of, like)
                plans[source], todo[source] = plan, list(range(len(plan["shards"])))
                if wanted and plan["tokens"] < wanted:
                    say(
                        f"The text sources hold {plan['tokens']:,} tokens, fewer than the {wanted:,} asked for: "
                        "all are used."
                    )
        write_lens(run, model)
        write_embedding(run, model)
        for source, made in plans.items():
            assert made is not None
            write_shards(folder / source, made, todo[source], reading.of(made["tokens"]).reader)
    return folder
