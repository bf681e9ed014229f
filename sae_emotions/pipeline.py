"""The pipeline's story: harvest, then train all dictionaries, then label and ablate each, then report.

The only module besides the command line that knows all rooms. A stage that is done is not run again.
"""

import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

from sae_emotions.config import RunConfig
from sae_emotions.errors import Diverged, UserError
from sae_emotions.run_folder import (
    config_of,
    create_or_check,
    is_done,
    mark_begun,
    mark_done,
    needs,
    read_run,
    stage_keys,
    write_manifest,
)


def run(config: RunConfig, out: str | Path) -> Path:
    """Run all stages that are not done yet; returns the run folder. Raises `UserError` for bad input."""
    folder = Path(out)
    create_or_check(folder, config)
    run_stages(folder, stage_keys(config))
    return folder


def run_stages(folder: Path, keys: Sequence[str], again: bool = False) -> list[str]:
    """Run those of the stages (`harvest`, `train:NAME`, `label:NAME`, `ablate:NAME`, `report`) that are not done, in order.

    Dictionaries that read the same rows train together. One that diverges stops none of the others: only its own later
    stages are left out, and `Diverged` is raised in the end. Returns the keys of those that ran. Raises `UserError` where
    a stage that one reads from is not done.
    """
    config = config_of(folder)
    ran: list[str] = []
    lost: dict[str, UserError] = {}
    for key in keys:
        if key in ran or key.partition(":")[2] in lost:
            continue
        _check(config, folder, key)
        if is_done(folder, key) and not again:
            continue
        to_do = [other for other in keys if other not in ran and (again or not is_done(folder, other))]
        together = _together(config, folder, key, to_do)
        ran += together
        try:
            _run(config, folder, together)
        except Diverged as error:
            lost |= error.lost
        if len(lost) == len(config.dictionaries):
            break
    if lost:
        raise Diverged(lost)
    return ran


def _check(config: RunConfig, folder: Path, key: str) -> None:
    if key not in stage_keys(config):
        names = ", ".join(d.name for d in config.dictionaries)
        raise UserError(f"There is no dictionary '{key.partition(':')[2]}' in {folder}; it has {names}.")
    for earlier in needs(key):
        if not is_done(folder, earlier):
            raise UserError(f"{earlier.partition(':')[0]} is not done in {folder}; run it first.")


def _together(config: RunConfig, folder: Path, key: str, keys: Sequence[str]) -> list[str]:
    """`key`, and for a training those of `keys` that go with it in one pass over the rows."""
    if not key.startswith("train:"):
        return [key]
    from sae_emotions.artefact import read_json
    from sae_emotions.dictionary.group import groups

    width = read_json(folder / "activations" / "text" / "plan.json")["d_in"]
    cut = groups([one for one in config.dictionaries if f"train:{one.name}" in keys], width)
    return next(found for group in cut if key in (found := [f"train:{one.name}" for one in group]))


def _run(config: RunConfig, folder: Path, keys: Sequence[str]) -> None:
    """Run one stage, or several trainings; each is marked once it is done. Those in work share the time equally."""
    from sae_emotions.adapters.wandb_log import tracker

    stage, names = keys[0].partition(":")[0], [key.partition(":")[2] for key in keys]
    left, since = list(keys), time.monotonic()
    with tracker(config, folder, *keys) as log:
        try:
            for name, facts in _WORK[stage](config, folder, names, log.log):
                since = _spent(folder, left, since)
                key = keys[names.index(name)]
                left.remove(key)
                seconds = mark_done(folder, key, **{k: v for k, v in facts.items() if k == "model"})
                log.summary(key, {"seconds": seconds} | {k: v for k, v in facts.items() if k != "model"})
        except BaseException:
            _spent(folder, left, since)
            raise
    if keys[0] == "report":
        write_manifest(folder)


def _spent(folder: Path, keys: Sequence[str], since: float) -> float:
    """Share the time since then among stages that are in work; returns the time now."""
    now = time.monotonic()
    for key in keys:
        mark_begun(folder, key, (now - since) / len(keys))
    return now


Log = Callable[[str, dict[str, float]], None]
Done = Iterator[tuple[str, dict[str, Any]]]
"""The name of a dictionary that is done (or nothing), and what there is to say of it."""


def _harvest(config: RunConfig, run: Path, names: Sequence[str], log: Log) -> Done:
    from sae_emotions.artefact import read_json
    from sae_emotions.harvest.harvest import harvest

    folder = harvest(config, run)
    plan = read_json(folder / "text" / "plan.json")
    yield "", {"model": plan["model"], "tokens": plan["tokens"], "rows": plan["rows"]}


def _train(config: RunConfig, run: Path, names: Sequence[str], log: Log) -> Done:
    from sae_emotions.artefact import read_json
    from sae_emotions.dictionary.train import splice_quality, train_together

    for name in train_together(config, run, names, lambda name, numbers: log(f"train:{name}", numbers)):
        splice_quality(config, run, name)
        quality = read_json(run / "dictionaries" / name / "quality.json")
        yield name, {key: quality[key] for key in ("fvu", "l0", "dead", "ce_recovered")}


def _label(config: RunConfig, run: Path, names: Sequence[str], log: Log) -> Done:
    from sae_emotions.artefact import read_json
    from sae_emotions.label.label import label

    for name in names:
        yield name, dict(read_json(label(config, run, name) / "summary.json"))


def _ablate(config: RunConfig, run: Path, names: Sequence[str], log: Log) -> Done:
    from sae_emotions.artefact import read_json
    from sae_emotions.causal.ablate import ablate

    for name in names:
        yield name, dict(read_json(ablate(config, run, name) / "summary.json"))


def _report(config: RunConfig, run: Path, names: Sequence[str], log: Log) -> Done:
    from sae_emotions.report.report import report

    report(config, run)
    yield "", {"stages": len(read_run(run)["stages"])}


_WORK: dict[str, Callable[[RunConfig, Path, Sequence[str], Log], Done]] = {
    "harvest": _harvest,
    "train": _train,
    "label": _label,
    "ablate": _ablate,
    "report": _report,
}
