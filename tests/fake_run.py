"""A small, complete, schema-true run folder with made-up numbers, for all that only reads.

Two dictionaries: `first` was trained here and tested causally; `second` was loaded and has no causal stage.
"""

from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
from safetensors.numpy import save_file

from sae_emotions.artefact import write_json
from sae_emotions.config import config_hash, parse_config
from sae_emotions.schema import schema, write_table

CELLS = ("plain", "literary", "crossed")
FAMILIES = {"Fear and Overwhelm": ("afraid", "ill at ease", "startled"), "Exuberant Joy": ("joyful", "thrilled")}
LONE = "hungry"
FEATURES, WIDTH, PERMUTATIONS = 40, 16, 20
FIRST, SECOND = "block2-topk-40", "block3-loaded"
LABELLED = {3: "afraid", 5: "afraid", 8: "joyful", 13: "ill at ease", 21: "thrilled"}
FAMILY = {13: "ill at ease, uneasy, tense …"}
PLAIN_ONLY, CHOSEN_FOR_STARTLED, CAUSAL, UNTESTABLE = 30, 3, (3, 8), 21


def concepts() -> list[tuple[str, str | None]]:
    """Name and family of each concept."""
    return [(name, family) for family, names in FAMILIES.items() for name in names] + [(LONE, None)]


def config() -> dict[str, Any]:
    """The run's config as plain data."""
    return {
        "name": "fake",
        "seed": 1,
        "model": {"source": "hub/tiny-model"},
        "text": {"tokens": 2000, "sources": [{"source": "texts.jsonl"}]},
        "concepts": "a-set",
        "harvest": {"blocks": [2, 3]},
        "dictionaries": [
            {"name": FIRST, "block": 2, "d_sae": FEATURES, "k": 4},
            {"name": SECOND, "block": 3, "pretrained": {"release": "some-release", "id": "blocks.3"}},
        ],
    }


def fake_run(folder: Path) -> Path:
    """Write the run folder; returns it."""
    made = parse_config(config(), "fake run")
    keys = ["harvest", f"train:{FIRST}", f"label:{FIRST}", f"ablate:{FIRST}", f"train:{SECOND}", f"label:{SECOND}"]
    info = {"source": "hub/tiny-model", "sha256": "0" * 64, "stored": "Q4_1 (4 bits)", "parameters": 1_234_567}
    write_json(
        folder / "run.json",
        {
            "config": made.model_dump(mode="json"),
            "config_hash": config_hash(made),
            "versions": {"sae-emotions": "0.1.0", "torch": "2.9.0"},
            "model": info | {"blocks": 5, "d_model": WIDTH, "vocabulary": 300, "dtype": "float32"},
            "stages": {key: {"state": "done", "seconds": 10.0 + n} for n, key in enumerate(keys)},
        },
    )
    strays = {"2": {"cosine": 0.9999, "relative_error": 0.0064, "eager": {"cosine": 0.9998, "relative_error": 0.0117}}}
    read = {"forward": {"path": "fused", "why": "asked"}, "dtype": "bfloat16", "parity_with_float32": strays}
    write_json(folder / "activations" / "text" / "plan.json", {"tokens": 2048, "rows": 2000, "documents": 9} | read)
    for name, block in ((FIRST, 2), (SECOND, 3)):
        _dictionary(folder / "dictionaries" / name, name, block, np.random.default_rng(block))
        _labels(folder / "labels" / name, np.random.default_rng(10 + block))
    _causal(folder / "causal" / FIRST, np.random.default_rng(5))
    return folder


def _dictionary(folder: Path, name: str, block: int, rng: np.random.Generator) -> None:
    folder.mkdir(parents=True)
    save_file({"W_dec": rng.normal(size=(FEATURES, WIDTH)).astype(np.float32)}, folder / "sae_weights.safetensors")
    quality = {"name": name, "block": block, "d_in": WIDTH, "d_sae": FEATURES, "architecture": "topk", "l0": 4.0}
    write_json(folder / "quality.json", quality | {"fvu": 0.25, "dead": 0.0, "ce_recovered": 0.91, "holdout_rows": 500})
    if name == SECOND:
        return
    steps = np.arange(1, 31)
    falling = np.exp(-steps / 8)
    columns: dict[str, Any] = {"step": steps, "rows": steps * 64, "loss": falling + 0.3, "fvu": falling + 0.2}
    columns |= {"l0": np.full(30, 4.0), "dead": falling / 9, "lr": np.full(30, 4e-4), "unsure": np.zeros(30)}
    types = {field.name: field.type for field in schema("training")}
    write_table(folder / "training.parquet", "training", {k: pa.array(v).cast(types[k]) for k, v in columns.items()})


def _feature_row(number: int, rng: np.random.Generator) -> dict[str, Any]:
    names = concepts()
    label = LABELLED.get(number)
    own = label or names[number % len(names)][0]
    low = 0.8 if label else 0.45
    cell = {f"auroc_{one}": float(low + 0.15 * rng.random()) for one in CELLS}
    p = 1e-6 * (number + 1) if label else float(rng.random())
    tokens = [f" {own[:4]}", f" {own}", "ly", f"tok{number}"]
    return {
        "feature": number,
        "concept": own,
        "family": dict(names)[own],
        "label": label,
        "status": "labelled" if label else "plain only" if number == PLAIN_ONLY else "none",
        **_grain(label, number),
        "screened": label is not None or number == PLAIN_ONLY,
        "auroc_selection": low + 0.1,
        "p_selection_first": p,
        "p_selection_second": p,
        "auroc_held_out": float(np.mean(list(cell.values()))),
        **cell,
        "p_first": p,
        "p_second": p / 2,
        "p": p,
        "q": min(1.0, 4 * p) if label or number == PLAIN_ONLY else None,
        "q_family": 0.01 if number in FAMILY else None,
        "q_norm": None,
        # A cosine that could not be computed: readers must turn it into null.
        "cosine_dense": float("nan") if number == 0 else 0.3,
        "density": 0.01 * (number + 1),
        "max_activation": 5.0 + number,
        "decoder_norm": 1.0,
        "top_tokens": tokens,
        "top_logits": [4.0, 3.0, 2.0, 1.0],
        "bottom_tokens": [" calm", " </td>"],
        "bottom_logits": [-2.0, -1.0],
    }


def _grain(label: str | None, number: int) -> dict[str, Any]:
    controls = ("named", "person", "length", "bag")
    kind = "family" if number in FAMILY else "concept"
    found: dict[str, Any] = {
        "grain": kind,
        "scope": FAMILY.get(number, label),
        "auroc_scope": 0.77,
        "p_within_family": 0.3 if number in FAMILY else 0.001,
        "p_beyond_norms": 0.002 if number in FAMILY else None,
        "given_grain": "concept",
        "given_scope": label,
        **{f"auroc_without_{name}": 0.75 for name in controls},
        **{f"p_without_{name}": 0.001 for name in controls},
        "explained_by": ["length"] if number in FAMILY else [],
    }
    return found if label else dict.fromkeys(found)


def _columns(rows: list[dict[str, Any]]) -> dict[str, list[Any]]:
    return {name: [row[name] for row in rows] for name in rows[0]}


def _labels(folder: Path, rng: np.random.Generator) -> None:
    features = [_feature_row(number, rng) for number in range(FEATURES)]
    write_table(folder / "features.parquet", "features", _columns(features), CELLS)
    rows = [_concept(name, family, features, rng) for name, family in concepts()]
    write_table(folder / "concepts.parquet", "concepts", _columns(rows), CELLS)
    scores = [
        {"feature": f["feature"], "concept": f["concept"], "cell": cell, "split": split, "auroc": f[f"auroc_{cell}"]}
        | {"low": f[f"auroc_{cell}"] - 0.1, "high": f[f"auroc_{cell}"] + 0.05, "p": f["p"]}
        for f in features
        if f["screened"]
        for cell in CELLS
        for split in ("selection", "held_out")
        if (cell, split) != ("crossed", "selection")
    ]
    write_table(folder / "scores.parquet", "scores", _columns(scores))
    write_table(folder / "examples.parquet", "examples", _columns([e for f in features for e in _examples(f, rng)]))
    null = {"permutations": PERMUTATIONS, "labelled_features": [0] * 19 + [1], "confirmed_concepts": [0] * PERMUTATIONS}
    write_json(folder / "null.json", null | {"mean_labelled_features": 0.05, "mean_confirmed_concepts": 0.0})
    write_json(folder / "rule.json", {"rule": "A feature stays if both registers agree.", "screen_p": 0.01, "q": 0.05})
    write_json(folder / "summary.json", {"features": len(LABELLED), "concepts": len(set(LABELLED.values()))})


def _concept(name: str, family: str | None, features: list[dict[str, Any]], rng: np.random.Generator) -> dict[str, Any]:
    own = [f["feature"] for f in features if f["label"] == name]
    best = (
        own or [CHOSEN_FOR_STARTLED] * (name == "startled") or [f["feature"] for f in features if f["concept"] == name]
    )
    number = best[0]
    cell = {f"auroc_{one}": float(0.6 + 0.3 * rng.random()) for one in CELLS}
    if features[number]["concept"] == name:
        cell = {f"auroc_{one}": features[number][f"auroc_{one}"] for one in CELLS}
    return {
        "concept": name,
        "family": family,
        "feature": number,
        "auroc_selection": 0.8,
        **cell,
        "auroc_held_out": float(np.mean(list(cell.values()))),
        "p": 1e-5 if own else 0.2,
        "q": 1e-4 if own else 0.3,
        "confirmed": bool(own),
        **{f"dense_{one}": float(0.85 + 0.1 * rng.random()) for one in CELLS},
        **{f"tfidf_{one}": float(0.7 + 0.1 * rng.random()) for one in CELLS},
        "labelled_features": own,
    }


def _examples(feature: dict[str, Any], rng: np.random.Generator) -> list[dict[str, Any]]:
    found = []
    for rank in range(3):
        values = [0.0, 0.0, feature["max_activation"] - rank, 1.0, 0.0]
        tokens = ["It", " was", f" {feature['concept']}", " <b>", "\n"]
        where = {"source": "text", "document": int(rng.integers(9)), "position": int(rng.integers(2, 90))}
        context = {"value": values[2], "tokens": tokens, "values": values}
        found.append({"feature": feature["feature"], "rank": rank} | where | context)
    return found[::-1]


JOINT = {
    "concepts": 2,
    "features": 5,
    "tested": 2,
    "confirmed": 1,
    "control_groups_tested": 10,
    "control_groups_confirmed": 0,
    "median_effect": -0.12,
    "median_sum_of_single": -0.1,
    "p_joint_differs_from_sum": 0.031,
    "beyond_sum": 2,
}
SCREEN = {
    "limit": None,
    "rank_agreement": {"rho": 0.97, "low": 0.9, "high": 0.99, "pairs": 30},
    "rank_agreement_of_z": {"rho": 0.95, "low": 0.8, "high": 0.99, "pairs": 20},
}


def _causal(folder: Path, rng: np.random.Generator) -> None:
    rows = [
        _effect(number, concept, *one)
        for number, concept in LABELLED.items()
        if number != UNTESTABLE
        for one in _interventions(number, rng)
    ]
    write_table(folder / "effects.parquet", "effects", _columns(rows))
    write_table(folder / "verdicts.parquet", "verdicts", _columns([_verdict(*one) for one in LABELLED.items()]))
    counts = {
        "removed": 4,
        "controls_removed": 16,
        "tested": 4,
        "confirmed": 2,
        "not_testable": 1,
        "controls_tested": 16,
        "controls_confirmed": 0,
    }
    more = {"joint": JOINT, "screen": SCREEN, "times_fewer_than_full_forwards": 14.2}
    write_json(
        folder / "summary.json", counts | more | {"rule": "z against held-back controls; Benjamini-Hochberg at 5 %"}
    )


def _interventions(number: int, rng: np.random.Generator) -> list[tuple[str, int | None, str | None, float]]:
    """Kind, control, half and z of everything that was done to a feature's texts."""
    done: list[tuple[str, int | None, str | None, float]] = [
        ("feature", None, None, _z(number)),
        ("dense", None, None, -30.0),
    ]
    done += [("random", n, None, rng.normal()) for n in range(2)]
    return done + [("control", 30 + n, "held_back" if n % 2 else "reference", rng.normal()) for n in range(8)]


def _z(number: int) -> float:
    return -9.0 if number in CAUSAL else 0.1 * number


def _effect(number: int, concept: str, kind: str, control: int | None, half: str | None, z: float) -> dict[str, Any]:
    let = True if kind == "control" else None
    named = {"feature": number, "concept": concept, "kind": kind, "control": control, "half": half, "let_through": let}
    return named | {
        "texts": 14,
        "active_share": 0.1,
        "removed_norm": 3.0,
        "effect": 0.02 * z,
        "profile": 0.03 * z,
        "specific": 0.1 * z,
        "z": z,
        "first_order": 0.03 * z,
        "first_order_z": 0.9 * z,
    }


def _verdict(number: int, concept: str) -> dict[str, Any]:
    z = _z(number)
    row: dict[str, Any] = {"feature": number, "concept": concept, "first_order": 0.03 * z, "first_order_z": 0.9 * z}
    row["removed"] = number != UNTESTABLE
    numbers: dict[str, Any] = {
        "effect": 0.02 * z,
        "profile": 0.03 * z,
        "specific": 0.1 * z,
        "z": z,
        "p": 1e-3,
        "q": 4e-3,
        "rank": 1,
    }
    numbers |= {
        "dense_effect": -0.5,
        "dense_profile": -0.8,
        "dense_first_order": -0.7,
        "dense_p": 1e-3,
        "kl": 2e-4,
        "kl_flag": False,
    }
    if number == UNTESTABLE:
        row |= {"verdict": "not testable", "reason": "it fires in 4 texts", "texts": 4}
        return row | dict.fromkeys(numbers)
    verdict, reason = ("causal", "q below .05") if number in CAUSAL else ("not shown", "within its controls")
    return row | {"verdict": verdict, "reason": reason, "texts": 14} | numbers
