"""The plan of a harvest, stored before the first row: what to read, in which shards, with which numerics.

A plan fixes everything that could change a byte: token ids of every document, shards, data type, threads, centre. Its
shards are independent jobs; who runs them, and in which order, does not matter. D: residual width.
"""

import hashlib
import json
import random
import shutil
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from safetensors.torch import save_file

from sae_emotions.artefact import read_json, versions, write_json, written, written_folder
from sae_emotions.config import HarvestConfig, RunConfig
from sae_emotions.errors import UserError
from sae_emotions.harvest.batching import kept, padded, windows
from sae_emotions.harvest.forward import read_blocks
from sae_emotions.schema import write_table
from sae_emotions.sources.models import Model
from sae_emotions.sources.text import Document


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


def centre_of(model: Model, sample: Sequence[Tokenised], config: RunConfig) -> dict[str, Any]:
    """Mean residual of the sample's rows per block, and how far the compute type strays from float32 there.

    Returns `centres` (block -> D, float32) and `parity` (block -> mean cosine and relative error against float32).
    """
    settings, special = config.harvest, np.array(special_ids(model.tokenizer))
    cut = windows(0, [document.ids for document in sample], settings.context)
    device = next(model.model.parameters()).device
    dtype = next(model.model.parameters()).dtype
    held: dict[int, list[torch.Tensor]] = {block: [] for block in settings.blocks}
    exact: dict[int, list[torch.Tensor]] = {block: [] for block in settings.blocks}
    for half, into in ((dtype, held), (torch.float32, exact)):
        if half == dtype and into is exact:
            break
        model.model.to(half)
        for window in cut:
            ids_BS, mask_BS = padded([window], 0)
            keep_BS = torch.from_numpy(kept(ids_BS, mask_BS, special))
            found = read_blocks(model.model, torch.from_numpy(ids_BS).to(device), settings.blocks)
            for block in settings.blocks:
                into[block].append(found[block].float().cpu()[keep_BS])
    model.model.to(dtype)
    rows = {block: torch.cat(parts) for block, parts in held.items()}
    parity = {}
    for block, x_ND in rows.items():
        if dtype == torch.float32:
            parity[str(block)] = {"cosine": 1.0, "relative_error": 0.0}
            continue
        y_ND = torch.cat(exact[block])
        parity[str(block)] = {
            "cosine": float(torch.cosine_similarity(x_ND, y_ND).mean()),
            "relative_error": float((x_ND - y_ND).norm() / y_ND.norm()),
        }
    return {"centres": {block: x_ND.double().mean(0).float() for block, x_ND in rows.items()}, "parity": parity}


def _opening(sample: Sequence[Tokenised], settings: HarvestConfig) -> list[Tokenised]:
    """The first windows of the sample, until there are `centre_tokens`."""
    held, short = 0, []
    for one in sample:
        short.append(one._replace(ids=one.ids[: settings.context]))
        held += len(short[-1].ids)
        if held >= settings.centre_tokens:
            break
    return short


def make_plan(
    config: RunConfig,
    folder: Path,
    model: Model,
    texts: Iterable[Document],
    tokens: int | None,
    what: dict[str, Any],
    like: Path | None = None,
) -> dict[str, Any]:
    """Tokenise, cut into shards, sample the centre, and store it all in `folder`; returns the plan.

    The centre is that of the harvest in `like`, if given: rows that one dictionary reads are stored around one point.
    Raises `UserError` where the texts hold no document of at least two tokens.
    """
    settings = config.harvest
    special = special_ids(model.tokenizer)
    picker = random.Random(config.seed)
    sample: list[Tokenised] = []
    wanted = max(8, settings.centre_tokens // 64)
    shards, document, total = [], 0, 0
    with written_folder(folder) as beside:
        for number, shard in enumerate(_sharded(tokenised(texts, model.tokenizer), tokens, settings.shard_tokens)):
            ids = [one.ids for one in shard]
            cut = windows(document, ids, settings.context)
            rows = sum(int((~np.isin(window.tokens[1:], special)).sum()) for window in cut)
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
            centre = centre_of(model, _opening(sample, settings), config)
            with written(beside / "centre.safetensors") as path:
                save_file({f"block{block}.centre": mean_D for block, mean_D in centre["centres"].items()}, path)
            width, parity = int(next(iter(centre["centres"].values())).numel()), centre["parity"]
        else:
            shutil.copyfile(like / "centre.safetensors", beside / "centre.safetensors")
            other = read_json(like / "plan.json")
            width, parity = other["d_in"], other["parity_with_float32"]
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
            "parity_with_float32": parity,
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
