"""The plan of a harvest, stored before the first row: what to read, in which shards, with which numerics.

A plan fixes everything that could change a byte: token ids of every document, shards, data type, forward pass, centre. Its
shards are independent jobs; who runs them, and in which order, does not matter. D: residual width.
"""

import hashlib
import json
import random
import shutil
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from safetensors.torch import save_file

from sae_emotions.artefact import read_json, versions, write_json, written, written_folder
from sae_emotions.config import RunConfig
from sae_emotions.errors import UserError
from sae_emotions.harvest.batching import Window, has_row, windows
from sae_emotions.harvest.parity import TOKENS, opening, parity
from sae_emotions.harvest.readers import Choice, Reader
from sae_emotions.schema import write_table
from sae_emotions.sources.models import Model
from sae_emotions.sources.text import Document
from sae_emotions.threads import prepared


class Tokenised(NamedTuple):
    """One document as token ids."""

    key: str
    source: str
    ids: list[int]


def identity(config: RunConfig, what: dict[str, Any]) -> str:
    """sha256 over all settings that shape a harvest's bytes; `what` describes its texts."""
    parts = {"model": config.model, "harvest": config.harvest}
    data = {name: part.model_dump(mode="json") for name, part in parts.items()} | {"seed": config.seed, "texts": what}
    return hashlib.sha256(json.dumps(data, sort_keys=True).encode()).hexdigest()


def tokenised(texts: Iterable[Document], tokenizer: Any, chunk: int = 256) -> Iterator[Tokenised]:
    """Token ids of each text, with the tokenizer's own opening token; texts shorter than two tokens are left out."""
    bos = tokenizer.bos_token

    def encoded(held: list[Document]) -> Iterator[Tokenised]:
        for opened in (False, True):
            some = [(n, d) for n, d in enumerate(held) if bool(bos and d.text.startswith(bos)) == opened]
            if some:
                ids = tokenizer([d.text for _, d in some], add_special_tokens=not opened)["input_ids"]
                found.update({n: i for (n, _), i in zip(some, ids, strict=True)})
        for n, document in enumerate(held):
            if len(found[n]) > 1:
                yield Tokenised(document.key, document.source, found[n])

    held: list[Document] = []
    found: dict[int, list[int]] = {}
    for document in texts:
        held.append(document)
        if len(held) == chunk:
            yield from encoded(held)
            held = []
    yield from encoded(held)


def _sharded(documents: Iterable[Tokenised], tokens: int | None, shard_tokens: int) -> Iterator[list[Tokenised]]:
    """Group documents into shards of about `shard_tokens`, stopping once `tokens` are reached."""
    shard: list[Tokenised] = []
    held = seen = 0
    for document in documents:
        shard.append(document)
        held += len(document.ids)
        seen += len(document.ids)
        full = tokens is not None and seen >= tokens
        if held >= shard_tokens or full:
            yield shard
            shard, held = [], 0
        if full:
            return
    if shard:
        yield shard


def special_ids(tokenizer: Any) -> list[int]:
    """Ids of all tokens that structure a text instead of being part of it."""
    added = {i for i, token in tokenizer.added_tokens_decoder.items() if token.special}
    return sorted(added | set(tokenizer.all_special_ids))


def centre_of(reader: Reader, cut: Sequence[Window], special: Sequence[int], blocks: Sequence[int]) -> dict[int, Any]:
    """Mean residual of the windows' rows: block -> D, float32. The windows are read one by one, whatever the batches."""
    held: dict[int, list[torch.Tensor]] = {block: [] for block in blocks}
    for window, found in zip(cut, reader.each(lambda window: reader.read([window], blocks), cut), strict=True):
        keep_N = torch.from_numpy(has_row([window], special))
        for block in blocks:
            held[block].append(found[block][keep_N])
    return {block: torch.cat(parts).double().mean(0).float() for block, parts in held.items()}


def make_plan(
    config: RunConfig,
    folder: Path,
    model: Model,
    texts: Iterable[Document],
    tokens: int | None,
    what: dict[str, Any],
    reader_of: Callable[[int], Choice],
    like: Path | None = None,
) -> dict[str, Any]:
    """Tokenise, cut into shards, sample the centre, and store it all in `folder`; returns the plan.

    `reader_of` gives the reader of so many tokens. Centre and parity are those of the harvest in `like`, if given: rows
    that one dictionary reads are stored around one point. Raises `UserError` where the texts hold no document of at
    least two tokens.
    """
    settings = config.harvest
    special = special_ids(model.tokenizer)
    picker = random.Random(config.seed)
    sample: list[Tokenised] = []
    wanted = max(8, settings.centre_tokens // 64)
    shards, document, total = [], 0, 0
    with written_folder(folder) as beside:
        coming = _sharded(tokenised(texts, model.tokenizer), tokens, settings.shard_tokens)
        for number, shard in enumerate(prepared(coming)):
            ids = [one.ids for one in shard]
            cut = windows(document, ids, settings.context)
            rows = int(has_row(cut, special).sum()) if cut else 0
            write_table(
                beside / f"documents-{number:05d}.parquet",
                "documents",
                {
                    "document": list(range(document, document + len(shard))),
                    "key": [one.key for one in shard],
                    "source": [one.source for one in shard],
                    "shard": [number] * len(shard),
                    "token_ids": ids,
                },
            )
            shards.append({"first_document": document, "documents": len(shard), "rows": rows})
            total += sum(map(len, ids))
            for one in shard:
                document += 1
                if len(sample) < wanted:
                    sample.append(one)
                elif (at := picker.randrange(document)) < wanted:
                    sample[at] = one
        if not shards:
            raise UserError("The texts hold no document of at least two tokens; check the sources and the text column.")
        if like is None:
            choice = reader_of(total)
            forward = {"path": choice.reader.path, "why": choice.why}
            first = [Window(n, 0, np.array(one.ids[: settings.context])) for n, one in enumerate(sample)]
            centres = centre_of(choice.reader, opening(first, settings.centre_tokens), special, settings.blocks)
            with written(beside / "centre.safetensors") as path:
                save_file({f"block{block}.centre": mean_D for block, mean_D in centres.items()}, path)
            width, few = len(next(iter(centres.values()))), opening(first, TOKENS)
            close = parity(model.model, choice.reader, few, torch.from_numpy(has_row(few, special)), settings.blocks)
        else:
            shutil.copyfile(like / "centre.safetensors", beside / "centre.safetensors")
            other = read_json(like / "plan.json")
            width, close, forward = other["d_in"], other["parity_with_float32"], other["forward"]
        plan = {
            "identity": identity(config, what),
            "texts": what,
            "model": model.info,
            "d_in": width,
            "dtype": str(next(model.model.parameters()).dtype).removeprefix("torch."),
            "threads": torch.get_num_threads(),
            "device": next(model.model.parameters()).device.type,
            "processor": torch.backends.cpu.get_cpu_capability(),
            "blocks": list(settings.blocks),
            "hook": settings.hook,
            "context": settings.context,
            "batch_tokens": settings.batch_tokens,
            "shard_tokens": settings.shard_tokens,
            "store": settings.store,
            "special_ids": special,
            "tokens": total,
            "documents": document,
            "rows": sum(shard["rows"] for shard in shards),
            "forward": forward,
            "parity_with_float32": close,
            "shards": shards,
            "versions": versions(),
        }
        write_json(beside / "plan.json", plan)
    return plan


def stored_plan(folder: Path, config: RunConfig, what: dict[str, Any]) -> dict[str, Any] | None:
    """The plan in `folder`, or None. Raises `UserError` where it was made with other settings."""
    if not (folder / "plan.json").is_file():
        return None
    plan: dict[str, Any] = read_json(folder / "plan.json")
    if plan["identity"] != identity(config, what):
        raise UserError(
            f"{folder} was planned with another model, text or harvest setting; choose another --out, or delete it."
        )
    return plan


def path_of(plan: dict[str, Any]) -> str:
    """The forward pass that a harvest is read by. Raises `UserError` for a plan that does not say it."""
    if "forward" not in plan:
        raise UserError(
            "This harvest was planned by an earlier version, which did not note its forward pass; choose another --out, "
            "or delete its activations."
        )
    return str(plan["forward"]["path"])
