"""summary.json: the run's numbers for programs."""

from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np

from sae_emotions.report.findings import Causal, Findings, Found, Labels

BASELINES = ("dense", "tfidf")


def summary(found: Findings) -> dict[str, Any]:
    """The run in numbers; what was not run is None. Seconds are those of run.json; the report's own are not in yet."""
    stages = {key: float(one["seconds"]) for key, one in found.info["stages"].items() if key != "report"}
    seconds: dict[str, float] = {}
    for key, spent in stages.items():
        stage = key.partition(":")[0]
        seconds[stage] = round(seconds.get(stage, 0.0) + spent, 1)
    return {
        "name": found.config.name,
        "config_hash": found.info["config_hash"],
        "model": found.info["model"],
        "tokens": found.tokens,
        "wall_seconds": round(sum(stages.values()), 1),
        "dictionaries": [_dictionary(one, stages) for one in found.dictionaries],
        "seconds": seconds,
    }


def _dictionary(one: Found, stages: dict[str, float]) -> dict[str, Any]:
    quality = {key: one.quality.get(key) for key in ("d_sae", "l0", "fvu", "dead", "ce_recovered")}
    return {
        "name": one.name,
        "block": one.block,
        "read": one.read or None,
        **quality,
        "labels": label_numbers(one.labels) if one.labels else None,
        "causal": causal_numbers(one.causal) if one.causal else None,
        "seconds": {k.partition(":")[0]: spent for k, spent in stages.items() if k.partition(":")[2] == one.name},
    }


def label_numbers(labels: Labels) -> dict[str, Any]:
    """Counts, and held-out means over all concepts of the feature chosen on the selection set, labelled or not.

    A baseline's mean stands under `<baseline>_auroc_<cell>`, and under `<baseline>_<cell>` as its column is called in
    concepts.parquet. `<key>_interval` is the 95 % interval where the label stage gave one.
    """
    found: dict[str, Any] = {
        "features": len(labels.labelled),
        "concepts": labels.summary.get("concepts"),
        "confirmed_concepts": sum(bool(one["confirmed"]) for one in labels.concepts),
        "screened": labels.screened,
    }
    for key in [f"auroc_{cell}" for cell in labels.cells]:
        found[key] = mean(one[key] for one in labels.concepts)
    for baseline in BASELINES:
        for cell in labels.cells:
            value = mean(one[f"{baseline}_{cell}"] for one in labels.concepts)
            found |= {f"{baseline}_auroc_{cell}": value, f"{baseline}_{cell}": value}
    found |= {key: value for key, value in labels.summary.items() if key.endswith("_interval")}
    found |= {
        key: labels.summary.get(key)
        for key in ("hypotheses", "grain", "given_grain", "concepts_not_told_from_siblings", "explained_by")
    }
    found["permutations_with_any_label"] = labels.null.get("permutations_with_any_label")
    found["null_features"] = labels.null.get("mean_labelled_features")
    found["null_confirmed_concepts"] = labels.null.get("mean_confirmed_concepts")
    return found | {"permutations": labels.null.get("permutations"), "one_register": labels.one_register}


def causal_numbers(causal: Causal) -> dict[str, Any]:
    """Counts of the causal test and of the controls that were judged by the same rule."""
    verdicts = [one["verdict"] for one in causal.verdicts]
    return {
        "tested": len(verdicts) - verdicts.count("not testable"),
        "confirmed": verdicts.count("causal"),
        "not_testable": verdicts.count("not testable"),
        "removed": causal.summary.get("removed"),
        "controls_removed": causal.summary.get("controls_removed"),
        "controls_tested": causal.summary.get("controls_tested", len(causal.z["control"])),
        "controls_confirmed": causal.summary.get("controls_confirmed"),
        "below_most_controls": below_most(causal.z["feature"], causal.z["control"]),
        "joint": causal.summary.get("joint"),
        "screen": causal.summary.get("screen"),
        "times_fewer_than_full_forwards": causal.summary.get("times_fewer_than_full_forwards"),
    }


def below_most(feature_z: Sequence[float], control_z: Sequence[float]) -> float | None:
    """Share of the features with a z below the 5th percentile of the controls'; chance gives .05."""
    if not feature_z or not control_z:
        return None
    low = np.quantile(control_z, 0.05)
    return float(np.mean([z < low for z in feature_z]))


def mean(values: Iterable[float | None]) -> float | None:
    """Mean of those that are there, None if none is."""
    known = [value for value in values if value is not None]
    return sum(known) / len(known) if known else None
