"""What a report draws on: everything a run folder says about itself, read once. Stages that were not run are None."""

from pathlib import Path
from typing import Any, NamedTuple

import pyarrow as pa
import pyarrow.compute as pc

from sae_emotions.config import RunConfig
from sae_emotions.lookup.run import Run
from sae_emotions.lookup.tables import Row, cells_of, rows


class Labels(NamedTuple):
    """What the label stage found."""

    cells: tuple[str, ...]
    features: int
    """features of the dictionary"""
    screened: int
    labelled: list[Row]
    """rows of features.parquet with a label, best held-out AUROC first"""
    one_register: dict[str, int]
    """status -> features with evidence in one register alone"""
    concepts: list[Row]
    """rows of concepts.parquet, best held-out AUROC first, each with the verdict on its feature"""
    null: Row
    rule: list[str]
    summary: Row


class Causal(NamedTuple):
    """What the causal stage found."""

    verdicts: list[Row]
    """rows of verdicts.parquet, strongest effect (lowest z) first, those without one last"""
    z: dict[str, list[float]]
    """`shown` of the tested features ("feature") and of their held-back controls ("control")"""
    rule: list[str]
    summary: Row

    @property
    def shown(self) -> str:
        """The column of z that is drawn and counted, for features and controls alike: of first order if some were kept out."""
        return "z" if (self.summary.get("screen") or {}).get("limit") is None else "first_order_z"

    @property
    def tested(self) -> list[Row]:
        """The verdicts on features that could be tested and were removed exactly."""
        return [one for one in self.verdicts if one["verdict"] != "not testable" and one["z"] is not None]


class Found(NamedTuple):
    """One dictionary."""

    name: str
    block: int
    read: Row
    """how its rows were read: path and dtype, and how they stray from the model in float32"""
    quality: Row
    training: pa.Table | None
    labels: Labels | None
    causal: Causal | None


class Findings(NamedTuple):
    """A whole run."""

    config: RunConfig
    info: Row
    """run.json"""
    tokens: int | None
    """tokens of the general text"""
    dictionaries: tuple[Found, ...]
    validity: Row
    """validity.json, empty where it was not made"""


def gather(config: RunConfig, path: Path) -> Findings:
    """Read a run folder. Raises `UserError` where it is none, or a table is damaged."""
    run = Run(path)
    folder = run._folder
    plan = _json(run, "activations/text/plan.json")
    found = []
    for dictionary in config.dictionaries:
        name = dictionary.name
        quality, training = f"dictionaries/{name}/quality.json", f"dictionaries/{name}/training.parquet"
        labels = _labels(run, name) if folder.has(f"labels/{name}/concepts.parquet") else None
        found.append(
            Found(
                name,
                dictionary.block,
                _read(plan, dictionary.block),
                folder.json(quality) if folder.has(quality) else {},
                folder.table(training) if folder.has(training) else None,
                labels,
                _causal(run, name) if labels and folder.has(f"causal/{name}/verdicts.parquet") else None,
            )
        )
    return Findings(config, run.info, plan.get("tokens"), tuple(found), _json(run, "validity.json"))


def _read(plan: Row, block: int) -> Row:
    if "forward" not in plan:
        return {}
    strays = (plan["parity_with_float32"] or {}).get(str(block), {})
    return {"path": plan["forward"]["path"], "dtype": plan["dtype"], **strays}


def _labels(run: Run, name: str) -> Labels:
    folder = run._folder
    features = folder.table(f"labels/{name}/features.parquet")
    statuses = {status: n for status, n in _counts(features["status"]).items() if status.endswith(" only")}
    return Labels(
        cells_of(folder.table(f"labels/{name}/concepts.parquet")),
        len(features),
        pc.sum(features["screened"]).as_py() or 0,
        _best_first(rows(features.filter(features["label"].is_valid()))),
        statuses,
        _best_first(run.concepts(name)),
        _json(run, f"labels/{name}/null.json"),
        _sentences(_json(run, f"labels/{name}/rule.json").get("rule")),
        _json(run, f"labels/{name}/summary.json"),
    )


def _causal(run: Run, name: str) -> Causal:
    verdicts = rows(run._folder.table(f"causal/{name}/verdicts.parquet"))
    table = run._folder.table(f"causal/{name}/effects.parquet")
    columns = ["feature", "kind", "half", "z", "first_order_z"]
    effects = table.select(columns).to_pylist()
    summary = _json(run, f"causal/{name}/summary.json")
    by_z = sorted(
        verdicts, key=lambda one: (one["z"] is None, one["z"] or 0.0, one["first_order_z"] or 0.0, one["feature"])
    )
    found = Causal(by_z, {}, _sentences(summary.get("rule")), summary)
    tested = {one["feature"] for one in verdicts if one["verdict"] != "not testable"}
    z = {
        "feature": [one[found.shown] for one in verdicts if one["feature"] in tested],
        "control": [
            one[found.shown]
            for one in effects
            if one["kind"] == "control" and one["half"] == "held_back" and one["feature"] in tested
        ],
    }
    return found._replace(z=z)


def _json(run: Run, name: str) -> Row:
    found: Row = run._folder.json(name) if run._folder.has(name) else {}
    return found


def _best_first(found: list[Row]) -> list[Row]:
    return sorted(found, key=lambda one: (-(one["auroc_held_out"] or 0.0), one["feature"] or 0))


def _counts(column: pa.ChunkedArray) -> dict[str, int]:
    return {one["values"]: one["counts"] for one in pc.value_counts(column).to_pylist()}


def _sentences(rule: Any) -> list[str]:
    return [rule] if isinstance(rule, str) else [str(one) for one in rule or []]
