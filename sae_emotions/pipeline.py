"""The pipeline's story: harvest, then train, label and ablate for each dictionary, then report.

The only module besides the command line that knows all rooms. A stage that is done is not run again.
"""

import time
from collections.abc import Callable
from pathlib import Path

from sae_emotions.config import RunConfig
from sae_emotions.errors import UserError
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
    for key in stage_keys(config):
        run_stage(folder, key)
    return folder


def run_stage(folder: Path, key: str, again: bool = False) -> bool:
    """Run one stage (`harvest`, `train:NAME`, `label:NAME`, `ablate:NAME`, `report`) unless it is done.

    Returns whether it ran. Raises `UserError` where a stage that it reads from is not done.
    """
    config = config_of(folder)
    if key not in stage_keys(config):
        names = ", ".join(d.name for d in config.dictionaries)
        raise UserError(f"There is no dictionary '{key.partition(':')[2]}' in {folder}; it has {names}.")
    for earlier in needs(key):
        if not is_done(folder, earlier):
            raise UserError(f"{earlier.partition(':')[0]} is not done in {folder}; run it first.")
    if is_done(folder, key) and not again:
        return False
    from sae_emotions.adapters.wandb_log import tracker

    stage, _, name = key.partition(":")
    start = time.monotonic()
    with tracker(config, folder, key) as log:
        try:
            facts = _WORK[stage](config, folder, name, log.log)
        except BaseException:
            mark_begun(folder, key, time.monotonic() - start)
            raise
        log.summary({"seconds": time.monotonic() - start} | {k: v for k, v in facts.items() if k != "model"})
    model = {"model": facts["model"]} if "model" in facts else {}
    mark_done(folder, key, time.monotonic() - start, **model)
    if key == "report":
        write_manifest(folder)
    return True


Log = Callable[[dict[str, float]], None]


def _harvest(config: RunConfig, run: Path, name: str, log: Log) -> dict[str, object]:
    from sae_emotions.artefact import read_json
    from sae_emotions.harvest.harvest import harvest

    folder = harvest(config, run)
    plan = read_json(folder / "text" / "plan.json")
    return {"model": plan["model"], "tokens": plan["tokens"], "rows": plan["rows"]}


def _train(config: RunConfig, run: Path, name: str, log: Log) -> dict[str, object]:
    from sae_emotions.artefact import read_json
    from sae_emotions.dictionary.train import splice_quality, train

    folder = train(config, run, name, log)
    splice_quality(config, run, name)
    quality = read_json(folder / "quality.json")
    return {key: quality[key] for key in ("fvu", "l0", "dead", "ce_recovered")}


def _label(config: RunConfig, run: Path, name: str, log: Log) -> dict[str, object]:
    from sae_emotions.artefact import read_json
    from sae_emotions.label.label import label

    return dict(read_json(label(config, run, name) / "summary.json"))


def _ablate(config: RunConfig, run: Path, name: str, log: Log) -> dict[str, object]:
    from sae_emotions.artefact import read_json
    from sae_emotions.causal.ablate import ablate

    return dict(read_json(ablate(config, run, name) / "summary.json"))


def _report(config: RunConfig, run: Path, name: str, log: Log) -> dict[str, object]:
    from sae_emotions.report.report import report

    report(config, run)
    return {"stages": len(read_run(run)["stages"])}


_WORK: dict[str, Callable[[RunConfig, Path, str, Log], dict[str, object]]] = {
    "harvest": _harvest,
    "train": _train,
    "label": _label,
    "ablate": _ablate,
    "report": _report,
}
