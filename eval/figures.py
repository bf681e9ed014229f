"""The README's figures on validity, from eval/results/validity.json, which `python -m eval.validity --json` writes."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

from eval.validity.__main__ import SECTIONS
from sae_emotions.artefact import read_json

FILE = Path(__file__).parent / "results" / "validity.json"
METHODS = {
    "single": "one SAE feature",
    "five": "five SAE features",
    "sixteen": "sixteen SAE features",
    "all_features": "all SAE features",
    "dense": "difference of means (dense)",
    "dense_denoised": "the same, neutral components removed",
    "logistic": "logistic regression on the residual",
    "tfidf": "TF-IDF",
    "embeddings": "bag of embeddings",
    "best_dimension": "best residual dimension",
    "random_dictionary": "one feature of random directions",
    "random_direction": "random direction",
}
TABLES = {
    "zero_shot_features": "features labelled on our stories, unchanged",
    "zero_shot_dense": "dense vectors of our stories, unchanged",
    "best_feature": "one SAE feature",
    "sixteen_features": "sixteen SAE features",
    "all_features": "all SAE features",
    "dense_difference_of_means": "difference of means (dense)",
    "residual_regression": "regression on the residual",
    "best_residual_dimension": "best residual dimension",
    "bag_of_embeddings": "bag of embeddings",
    "tfidf": "TF-IDF, same rows",
    "tfidf_whole_training_split": "TF-IDF, whole training split",
    "permuted_best_feature": "one SAE feature, permuted labels",
}


def read() -> dict[str, Any]:
    """All measurements."""
    found: dict[str, Any] = read_json(FILE)
    return found


def transfer(found: dict[str, Any]) -> str:
    """Every method after every kind of training."""
    trained, further = found["run"]["transfer"]["trained_on"], found["transfer"]["trained_on"]
    columns = [(kind, cell) for kind, cells in trained.items() for cell in cells if kind == "both" or cell != "plain"]
    heads = " | ".join(f"{'plain + literary' if kind == 'both' else kind} → {cell}" for kind, cell in columns)
    lines = [f"| mean held-out AUROC, 171 concepts | {heads} |", "|---" * (len(columns) + 1) + "|"]
    for name, title in METHODS.items():
        own = [trained[kind][cell]["methods"].get(name) for kind, cell in columns]
        there = [
            one or further[kind][cell]["methods"].get(name) for one, (kind, cell) in zip(own, columns, strict=True)
        ]
        if all(there):
            lines.append(f"| {title} | " + " | ".join(_with_interval(one) for one in there) + " |")
    single = {cell: one["methods"]["single"] for cell, one in trained["both"].items()}
    counts = ", ".join(
        f"{one['at_least_90']['raw']} in {cell} (expected after shrinkage {one['at_least_90']['expected']:.0f}, with "
        f"{one['features_at_least_90']} distinct features)"
        for cell, one in single.items()
    )
    return "\n".join([*lines, "", f"Concepts that one feature reads at .9 or better: {counts}.", ""])


def _with_interval(one: dict[str, Any]) -> str:
    low, high = one["interval"]
    return f"{one['auroc']:.3f} ({low:.2f}-{high:.2f})"


def human(found: dict[str, Any]) -> str:
    """People's labels, set by set; nothing where no set was measured."""
    sets = found.get("human", {}).get("sets")
    if not sets:
        return ""
    lines = ["| | " + " | ".join(sets) + " |", "|---" * (len(sets) + 1) + "|"]
    for name, title in TABLES.items():
        cells = [one["methods"].get(name, {}).get("macro") for one in sets.values()]
        if any(cell is not None for cell in cells):
            lines.append(f"| {title} | " + " | ".join("–" if c is None else f"{c:.3f}" for c in cells) + " |")
    measures = ", ".join(
        f"{name} {one['measure']} over {len(one['rows_with_label'])} labels, {one['test_rows']:,} test rows"
        for name, one in sets.items()
    )
    return "\n".join([*lines, "", f"Macro means: {measures}.", ""])


def power(found: dict[str, Any]) -> str:
    """What could have been found."""
    one = found["power"]
    cells = ", ".join(
        f"{cell['without_ties']:.2f} in the {name.removeprefix('held_out_')} register"
        for name, cell in one["one_pair"].items()
        if name.startswith("held_out")
    )
    return (
        f"At the p that the false discovery rate asks for here, one feature's AUROC must be {cells} to be confirmed with 80 % "
        "probability.\n"
    )


def vectors(found: dict[str, Any]) -> str:
    """Read-outs of valence and arousal, and clusters."""
    one, lines = found["vectors"], []
    for name, dimensions in one["read_out_of_ratings"].items():
        for dimension, got in dimensions.items():
            chosen, null = got["stories_and_block_chosen_within_folds"], got["r_beside_it"]["embedding-only null"]
            lines.append(
                f"| {dimension}, {name.replace('_', ' ')} (n = {got['n']}) | {got['r_block_chosen_within_folds']:.2f} | "
                f"{chosen['r']:.2f} | {null['word embeddings']:.2f} | {got['target']:.2f} |"
            )
    head = (
        "| ridge read-out, r | block chosen | block and stories chosen | words' embeddings | to reach |\n"
        + "|---" * 5
        + "|"
    )
    return "\n".join([head, *lines, ""])


STEERED = {
    "single chosen": "one feature, the one that reads the concept best",
    "single writes": "one feature, by what its direction writes",
    "single screened": "one feature, screened on other texts",
    "top three screened": "three features, screened on other texts",
    "dense": "difference of means (dense)",
}


def steering(found: dict[str, Any]) -> str:
    """Whose word rises most, dose by dose."""
    one = found["steering"]
    doses, controls = one["doses_of_residual_norm"], one["controls"]
    heads = " | ".join(f"{dose:g}" for dose in doses)
    lines = [f"| steered by, in units of the mean residual norm | {heads} |", "|---" * (len(doses) + 1) + "|"]
    rows = {title: one["reported"][name]["share_whose_word_rises_most"] for name, title in STEERED.items()}
    rows["matched unlabelled features"] = controls["matched_share_whose_word_rises_most"]
    rows["random directions"] = controls["random_share_whose_word_rises_most"]
    lines += [f"| {title} | " + " | ".join(f"{share:.0%}" for share in shares) + " |" for title, shares in rows.items()]
    return "\n".join([*lines, ""])


def unmeasured(found: dict[str, Any]) -> str:
    """Sections that the committed figures lack."""
    lacking = [name for name in SECTIONS if name not in found]
    if not lacking:
        return ""
    return f"Not measured on this run yet, though built and tested: {', '.join(f'`{name}`' for name in lacking)}.\n"


MAKERS: dict[str, Callable[[dict[str, Any]], str]] = {
    "transfer": transfer,
    "steering": steering,
    "human": human,
    "unmeasured": unmeasured,
    "power": power,
    "vectors": vectors,
}
