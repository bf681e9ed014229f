"""The dictionary stage: train SAEs on the rows of a harvest, or take one made elsewhere.

Those that read the same rows in the same order train together: one permutation, one read of each block's rows a step. The
step lies behind one call, `saelens.step_together`; the loop, the order of rows, the checkpoints and the file format do not
know what it does inside. B: rows of a batch, D: residual width.
"""

import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing
from pathlib import Path
from typing import Any

import torch

from sae_emotions.adapters import saelens
from sae_emotions.artefact import read_json, write_json, written_folder
from sae_emotions.config import DictionaryConfig, RunConfig
from sae_emotions.dictionary.data import TrainingRows, prefetched, shuffled, training_rows
from sae_emotions.dictionary.encode import load_dictionary, wrapped
from sae_emotions.dictionary.group import reads
from sae_emotions.dictionary.member import Member, check_finite, finish, member
from sae_emotions.dictionary.quality import measure, write_quality
from sae_emotions.dictionary.splice import spliced_cross_entropy
from sae_emotions.errors import Diverged, UserError
from sae_emotions.machine import tune_allocator
from sae_emotions.progress import Progress
from sae_emotions.sources.models import load_model

LOG_EVERY = 10
Log = Callable[[str, dict[str, float]], None]
"""Hears a dictionary's name and its curve's numbers."""


def named(config: RunConfig, name: str) -> DictionaryConfig:
    """The dictionary `name` of a config. Raises `UserError` naming those there are."""
    for dictionary in config.dictionaries:
        if dictionary.name == name:
            return dictionary
    raise UserError(f"There is no dictionary '{name}'; this run has {', '.join(d.name for d in config.dictionaries)}.")


def train(config: RunConfig, run: Path, name: str) -> Path:
    """Train (or load) dictionary `name` into RUN/dictionaries/<name>; returns that folder. See `train_together`."""
    for _ in train_together(config, run, [name]):
        pass
    return _folder(run, name)


def train_together(
    config: RunConfig, run: Path, names: Sequence[str], log: Log = lambda name, numbers: None
) -> Iterator[str]:
    """Train dictionaries of one group (see `dictionary.group`) in one pass; yields each name once its folder is there.

    Each ends with the same bytes as if it had been trained alone. An interrupted training goes on from its last
    checkpoint, and ends with the same weights, bit for bit, as one that was not interrupted. One that diverges is left
    behind, and the others go on to their end; then `Diverged` is raised. Raises `UserError` for too few rows, or a
    pretrained SAE of another width, and ValueError for dictionaries of different groups.
    """
    chosen = [named(config, name) for name in names]
    if len({reads(one) for one in chosen}) > 1:
        raise ValueError(f"{', '.join(names)} do not read the same rows in the same order")
    tune_allocator()
    plan = read_json(run / "activations" / "text" / "plan.json")
    torch.set_num_threads(plan["threads"])
    rows = {block: training_rows(run, config, one) for block, one in {one.block: one for one in chosen}.items()}
    if chosen[0].pretrained is not None:
        for one in chosen:
            _load(one, rows[one.block], plan, _folder(run, one.name))
            yield one.name
        return
    members = [member(one, rows[one.block], plan, config.seed, _folder(run, one.name)) for one in chosen]
    lost = _pass(members, config.seed, log)
    while members:
        # Each is let go before the next takes memory to be measured.
        first = members.pop(0)
        if first.name not in lost:
            finish(first, plan, _folder(run, first.name))
            yield first.name
    if lost:
        raise Diverged(lost)


def _folder(run: Path, name: str) -> Path:
    return run / "dictionaries" / name


def _load(settings: DictionaryConfig, rows: TrainingRows, plan: dict[str, Any], folder: Path) -> None:
    """Copy an SAE made elsewhere into `folder`, and measure it."""
    assert settings.pretrained is not None
    sae = saelens.load_pretrained(settings.pretrained)
    if int(sae.cfg.d_in) != plan["d_in"]:
        raise UserError(
            f"Dictionary {settings.name} reads rows of width {int(sae.cfg.d_in)}, but the model's are {plan['d_in']} "
            "wide; choose a dictionary made for this model."
        )
    with written_folder(folder) as beside:
        saelens.save_loaded(sae, beside)
        quality = measure(wrapped(sae, settings.name, settings.block), rows)
        write_quality(beside, settings, plan, quality | {"dead": quality["silent_on_holdout"], "steps": 0})


def _pass(members: Sequence[Member], seed: int, log: Log) -> dict[str, UserError]:
    """Take all members to their end over one pass of rows; returns why some were left behind.

    Members may stand at different steps: one that is ahead waits for the others.
    """
    steps, batch = members[0].steps, members[0].settings.batch
    start = min(one.step for one in members)
    minutes = min(one.settings.checkpoint_minutes for one in members)
    blocks = {one.settings.block: one.rows for one in members}
    lost: dict[str, UserError] = {}
    saved = time.monotonic()
    source = shuffled(list(blocks.values()), seed, batch, steps, start)
    with closing(prefetched(source)) as batches, Progress(_title(members), steps * batch, "rows", start * batch) as bar:
        for step, rows in enumerate(batches, start + 1):
            last: list[tuple[Member, Any]] = []
            for block, x_BD in zip(blocks, rows, strict=True):
                here = [m for m in members if m.settings.block == block and m.step < step and m.name not in lost]
                last += zip(here, saelens.step_together([one.trainer for one in here], x_BD), strict=True)
            due = time.monotonic() - saved > 60 * minutes and step < steps
            for one, output in last:
                try:
                    _follow(one, output, due, log)
                except UserError as error:
                    lost[one.name] = error
                    continue
                if due:
                    one.save()
            if due:
                saved = time.monotonic()
            bar.advance(batch)
            if len(lost) == len(members):
                break
    return lost


def _follow(one: Member, output: Any, certainly: bool, log: Log) -> None:
    """Note every `LOG_EVERY`th step. Raises `UserError` where the training diverged; `certainly` looks for it now."""
    if isinstance(output, UserError):
        raise output
    noted = one.step % LOG_EVERY == 0 or one.step == one.steps
    if noted or certainly:
        check_finite(output)
    if noted:
        log(one.name, one.note(output))


def _title(members: Sequence[Member]) -> str:
    more = f" and {len(members) - 1} more" if len(members) > 1 else ""
    return f"train {members[0].name}{more}"


def splice_quality(config: RunConfig, run: Path, name: str, documents: int = 24) -> dict[str, float]:
    """Cross-entropy with the SAE spliced into the model, on held-out documents; written into quality.json and returned.

    See `spliced_cross_entropy` for what the numbers mean.
    """
    rows = training_rows(run, config, named(config, name))
    plan = read_json(run / "activations" / "text" / "plan.json")
    model = load_model(config.model, getattr(torch, plan["dtype"])).model
    held = rows.holdout_documents[:documents]
    found = spliced_cross_entropy(model, load_dictionary(run, name), run, held, config.harvest.context)
    path = run / "dictionaries" / name / "quality.json"
    write_json(path, read_json(path) | found)
    return found
