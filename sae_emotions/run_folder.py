"""run.json: what a run folder is, which stages are done, and how long they took."""

from collections.abc import Iterable
from pathlib import Path
from typing import Any

from sae_emotions.artefact import read_json, sha256_file, versions, write_json
from sae_emotions.config import RunConfig, config_hash, parse_config
from sae_emotions.errors import UserError


def stage_keys(config: RunConfig) -> list[str]:
    """Keys of all stages of a run, in order."""
    train = [f"train:{d.name}" for d in config.dictionaries]
    per = [f"{stage}:{d.name}" for d in config.dictionaries for stage in ("label", "ablate")]
    return ["harvest", *train, *per, "report"]


def needs(key: str) -> list[str]:
    """Keys of the stages a stage reads from."""
    stage, _, name = key.partition(":")
    return {
        "harvest": [],
        "train": ["harvest"],
        "label": [f"train:{name}"],
        "ablate": [f"label:{name}"],
    }.get(stage, [])


def read_run(run: Path) -> dict[str, Any]:
    """run.json of a folder. Raises `UserError` where the folder is no run."""
    if not (run / "run.json").is_file():
        raise UserError(
            f"{run} is no run folder (it has no run.json); make one with: sae-emotions run CONFIG --out {run}"
        )
    found: dict[str, Any] = read_json(run / "run.json")
    return found


def config_of(run: Path) -> RunConfig:
    """The config that a run was made with."""
    return parse_config(read_run(run)["config"], str(run / "run.json"))


def check(run: Path, config: RunConfig) -> None:
    """Check that `run` is free, or holds a run of `config`; writes nothing.

    Raises `UserError` where the folder holds a run of another config, or something else.
    """
    if (run / "run.json").is_file():
        held = read_run(run)
        if not _is_of(held, config) and _holds_something(run, held):
            raise UserError(
                f"{run} holds a run of another config{_first_difference(held['config'], config.model_dump(mode='json'))}; "
                "choose another --out, or delete that folder."
            )
        return
    if run.is_file() or (run.is_dir() and any(run.iterdir())):
        raise UserError(f"{run} exists and is no run folder; choose another --out.")


def _is_of(held: dict[str, Any], config: RunConfig) -> bool:
    """Whether a run was made with `config`: settings that came later stand at their default there."""
    if held["config_hash"] == config_hash(config):
        return True
    try:
        return parse_config(held["config"], "run.json") == config
    except UserError:
        return False


def _holds_something(run: Path, held: dict[str, Any]) -> bool:
    """False for what a run leaves that failed on its config before anything was planned: the corrected config may go on."""
    return bool(held["stages"].keys() - {"harvest"}) or any(run.glob("activations/*/plan.json"))


def create_or_check(run: Path, config: RunConfig) -> None:
    """Make a run folder for `config`, or check that the one there belongs to it (see `check`)."""
    check(run, config)
    if (run / "run.json").is_file() and _is_of(read_run(run), config):
        return
    write_json(
        run / "run.json",
        {
            "config": config.model_dump(mode="json"),
            "config_hash": config_hash(config),
            "versions": versions(),
            "model": None,
            "stages": {},
        },
    )


def _first_difference(held: Any, wanted: Any, where: str = "") -> str:
    if isinstance(held, dict) and isinstance(wanted, dict):
        for key in sorted(held.keys() | wanted.keys()):
            if held.get(key) != wanted.get(key):
                return _first_difference(held.get(key), wanted.get(key), f"{where}.{key}" if where else key)
    return f" ({where}: {held!r} there, {wanted!r} here)" if where and not isinstance(held, (dict, list)) else ""


def is_done(run: Path, key: str) -> bool:
    """Whether a stage is done. A report is no longer where RUN/validity.json is another than the one it shows."""
    done = read_run(run)["stages"].get(key, {}).get("state") == "done"
    return done and (key != "report" or _is_shown(run))


def validity_sha256(run: Path) -> str | None:
    """sha256 of RUN/validity.json (see `eval/validity`), None where there is none."""
    path = run / "validity.json"
    return sha256_file(path) if path.is_file() else None


def _is_shown(run: Path) -> bool:
    path = run / "summary.json"
    return path.is_file() and read_json(path).get("validity_sha256") == validity_sha256(run)


def mark_done(run: Path, key: str, **facts: Any) -> float:
    """Record a finished stage; whatever was made from its earlier result no longer counts as done. Returns its seconds."""
    held = read_run(run)
    stages = held["stages"]
    for other in _later(key, list(stages)):
        del stages[other]
    stages[key]["state"] = "done"
    write_json(run / "run.json", held | facts)
    return float(stages[key]["seconds"])


def mark_begun(run: Path, key: str, seconds: float) -> None:
    """Record that a stage is in work, and has taken `seconds` more."""
    held = read_run(run)
    earlier = held["stages"].get(key, {})
    spent = earlier["seconds"] if earlier.get("state") == "begun" else 0.0
    held["stages"][key] = {"state": "begun", "seconds": round(spent + seconds, 1)}
    write_json(run / "run.json", held)


def _later(key: str, keys: Iterable[str]) -> list[str]:
    stage, _, name = key.partition(":")
    order = ["harvest", "train", "label", "ablate", "report"]
    return [
        other
        for other in keys
        if order.index(other.partition(":")[0]) > order.index(stage)
        and (other == "report" or not name or other.partition(":")[2] == name)
    ]


def write_manifest(run: Path) -> None:
    """manifest.json: sha256 and size of every file of the run but itself, run.json and the W&B files."""
    files = {}
    for path in sorted(run.rglob("*")):
        name = path.relative_to(run).as_posix()
        if (
            not path.is_file()
            or name in ("manifest.json", "run.json")
            or name.startswith(("wandb/", "."))
            or "/." in name
        ):
            continue
        files[name] = {"sha256": sha256_file(path), "bytes": path.stat().st_size}
    held = read_run(run)
    write_json(
        run / "manifest.json",
        {"config_hash": held["config_hash"], "config": held["config"], "versions": held["versions"], "files": files},
    )
