"""The README's figures on validity, from eval/results/validity.json, which `python -m eval.validity --json` writes."""

from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

from eval.validity.__main__ import SECTIONS
from eval.validity.targets import aims
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
    "zero_shot_features": "features chosen on our stories, unchanged",
    "zero_shot_dense": "dense vectors of our stories, unchanged",
    "best_feature": "one SAE feature",
    "five_features": "five SAE features",
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


def _table(heads: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """A table in Markdown."""
    lines = [f"| {' | '.join(heads)} |", "|---" * len(heads) + "|"]
    return "\n".join([*lines, *(f"| {' | '.join(row)} |" for row in rows)]) + "\n"


def transfer(found: dict[str, Any]) -> str:
    """Every method after every kind of training."""
    trained, further = found["run"]["transfer"]["trained_on"], found["transfer"]["trained_on"]
    columns = [(kind, cell) for kind, cells in trained.items() for cell in cells if kind == "both" or cell != "plain"]
    heads = [f"{'plain + literary' if kind == 'both' else kind} → {cell}" for kind, cell in columns]
    rows = []
    for name, title in METHODS.items():
        own = [trained[kind][cell]["methods"].get(name) for kind, cell in columns]
        there = [
            one or further[kind][cell]["methods"].get(name) for one, (kind, cell) in zip(own, columns, strict=True)
        ]
        if all(there):
            rows.append([title, *map(_with_interval, there)])
    single = {cell: one["methods"]["single"] for cell, one in trained["both"].items()}
    counts = ", ".join(
        f"{one['at_least_90']['raw']} in {cell} (expected after shrinkage {one['at_least_90']['expected']:.0f}, with "
        f"{one['features_at_least_90']} distinct features)"
        for cell, one in single.items()
    )
    table = _table(["mean held-out AUROC, 171 concepts", *heads], rows)
    return f"{table}\nConcepts that one feature reads at .9 or better: {counts}.\n"


def _with_interval(one: dict[str, Any]) -> str:
    low, high = one["interval"]
    return f"{one['auroc']:.3f} ({low:.2f}-{high:.2f})"


def human(found: dict[str, Any]) -> str:
    """People's labels, set by set; nothing where no set was measured."""
    sets = found["human"].get("sets")
    if not sets:
        return ""
    rows = []
    for name, title in TABLES.items():
        cells = [one["methods"].get(name, {}).get("macro") for one in sets.values()]
        if any(cell is not None for cell in cells):
            rows.append([title, *("–" if c is None else f"{c:.3f}" for c in cells)])
    measures = ", ".join(
        f"{name} {one['measure']} over {one['methods']['tfidf']['labels_scored']} labels, {one['test_rows']:,} test rows"
        for name, one in sets.items()
    )
    mapped = ", ".join(
        f"{one['methods']['zero_shot_dense']['labels_scored']} of {name}"
        for name, one in sets.items()
        if "zero_shot_dense" in one["methods"]
    )
    table = _table(["mean over labels", *sets], rows)
    return f"{table}\nMacro means: {measures}; unchanged ones over the mapped labels alone ({mapped}).\n"


def power(found: dict[str, Any]) -> str:
    """What could have been found."""
    one = found["power"]
    cells = ", ".join(
        f"{cell['without_ties']:.2f} in the {name.removeprefix('held_out_')} register"
        for name, cell in one["one_pair"].items()
        if name.startswith("held_out")
    )
    whole = one["whole_rule"]
    told = "; ".join(f"{says}, {_least(whole[how])}" for how, says in PLANTED.items())
    return (
        f"At the p that the false discovery rate asks for here, a feature without ties passes with {one['power']:.0%} "
        f"probability where its AUROC is {cells}; a label asks for both. A reading planted in features that nobody labelled "
        f"goes through the whole rule: {told}.\n"
    )


PLANTED = {
    "with_neighbours": "with the concept's neighbours raised as the rule expects",
    "alone": "with no other concept raised",
}


def _least(one: dict[str, Any]) -> str:
    """From which AUROC on a planted reading is labelled; else how often the strongest is."""
    strongest = one["levels"][-1]
    says = []
    for key, share, what in (
        ("any_label", "share_with_any_label", "it gets a label"),
        ("concept", "share_labelled_with_the_concept", "that of its own concept"),
    ):
        least = one[key]["least_auroc"]
        reached = (
            f"{strongest[share]:.0%} of the time at {strongest['auroc']:.2f}"
            if least is None
            else f"from {least:.2f} on"
        )
        says.append(f"{what} {reached}")
    return " and ".join(says)


def vectors(found: dict[str, Any]) -> str:
    """Read-outs of valence and arousal."""
    rows = []
    for name, dimensions in found["vectors"]["read_out_of_ratings"].items():
        for dimension, got in dimensions.items():
            chosen, null = got["stories_and_block_chosen_within_folds"], got["r_beside_it"]["embedding-only null"]
            numbers = (got["r_block_chosen_within_folds"], chosen["r"], null["word embeddings"], got["target"])
            title = f"{dimension}, {name.replace('_', ' ')} (n = {got['n']})"
            rows.append([title, *(f"{number:.2f}" for number in numbers)])
    heads = ["ridge read-out, r", "block chosen", "block and stories chosen", "words' embeddings", "to reach"]
    return _table(heads, rows)


STEERED = {
    "single chosen": "one feature, the one that reads the concept best",
    "single writes": "one feature, by what its direction writes",
    "single screened": "one feature that reads it, screened on other texts",
    "single screened others": "one feature that reads something else, screened alike",
    "top three screened": "three features, screened on other texts",
    "dense": "difference of means (dense)",
}


def steering(found: dict[str, Any]) -> str:
    """Whose word rises most, dose by dose."""
    one = found["steering"]
    doses, controls = one["doses_of_residual_norm"], one["controls"]
    rows = {title: one["reported"][name]["share_whose_word_rises_most"] for name, title in STEERED.items()}
    rows["matched unlabelled features"] = controls["matched_share_whose_word_rises_most"]
    rows["random directions"] = controls["random_share_whose_word_rises_most"]
    heads = ["steered by, in units of the mean residual norm", *(f"{dose:g}" for dose in doses)]
    return _table(heads, [[title, *(f"{share:.0%}" for share in shares)] for title, shares in rows.items()])


SHOWN = {
    "continuation": "the story's second half, removed in the first",
    "reading_further_up": "the dense vector's reading at a higher block",
}


def causal(found: dict[str, Any]) -> str:
    """What removal does beyond the word: counts of features and controls, and effects."""
    one = found["causal"]
    rows = {title: one[key] for key, title in SHOWN.items() if "tested" in one.get(key, {})}
    rows |= {name: row for name, row in one.get("position", {}).items() if isinstance(row, dict)}
    if not rows:
        return ""
    heads = [
        "readout",
        "causal features",
        "controls passing",
        "below the controls' 5th percentile",
        "dense vector's effect",
        "feature's (median)",
        "control's",
    ]
    cells = []
    for title, row in rows.items():
        share = row.get("share_below_5th_percentile_of_controls")
        counts = (
            f"{row['confirmed']} of {row['tested']}",
            f"{row['controls_confirmed']} of {row['controls_tested']:,}",
        )
        effects = [row.get(f"median_effect{of}") for of in ("_of_dense_vectors", "", "_of_controls")]
        shown = ["–" if effect is None else f"{effect:.2g}" for effect in effects]
        cells.append([title, *counts, "–" if share is None else f"{share:.0%}", *shown])
    against = ", ".join(
        f"{one[key]['first_order_against_exact']['rho']:.2f}"
        for key in SHOWN
        if one[key].get("first_order_against_exact", {}).get("rho") is not None
    )
    return f"{_table(heads, cells)}\nRank correlation of these first-order effects with exact removals: {against}.\n"


COMPARED = {
    "seeds": "another seed of the dictionary",
    "halves_of_the_rows": "dictionaries of two halves of the data",
    "halves_of_the_topics": "labels by two halves of the topics",
}


def stability(found: dict[str, Any]) -> str:
    """Which labels are found again."""
    heads = [
        "found again by",
        "confirmed concepts (by chance)",
        "labelled concepts (by chance)",
        "concepts' AUROC, Spearman",
        "labelled features with a partner of cosine ≥ .7",
        "whose label is the same concept (by chance)",
    ]
    rows = []
    for key, title in COMPARED.items():
        one = found["stability"][key]
        sets = [_against_chance(one[f"{kind}_concepts"], "share_found_again") for kind in ("confirmed", "labelled")]
        rho, partner = one["concept_auroc"]["spearman"], one["features"]["labelled"]["share_with_partner"]
        same = _against_chance(one["partners_labels"], "share_of_labelled_with_the_same_concept")
        rows.append([title, *sets, f"{rho:.2f}", f"{partner:.0%}", same])
    return _table(heads, rows)


def _against_chance(one: dict[str, Any], key: str) -> str:
    return f"{one[key]:.0%} ({one[f'{key}_by_chance']:.0%})"


SCRAMBLED = {
    "trained": "the model, its dictionary",
    "untrained_dictionary": "the model, an untrained dictionary",
    "random_weights": "a model of random weights",
    "permuted_weights": "a model of permuted weights",
}


def nulls(found: dict[str, Any]) -> str:
    """What the same rule finds where nothing was learned."""
    one = found["nulls"]
    heads = [
        f"{one['concepts']} concepts, {one['stories']:,} stories",
        "labelled features",
        "confirmed concepts",
        "one feature, plain / literary / crossed",
        "dense",
        "FVU",
    ]
    rows = []
    for key, title in SCRAMBLED.items():
        row = one[key]
        read = [
            " / ".join(f"{row['held_out'][f'{kind}auroc_{cell}']:.3f}" for cell in ("plain", "literary", "crossed"))
            for kind in ("", "dense_")
        ]
        counts = f"{row['labelled_features']} of {row['features']:,}", str(row["confirmed_concepts"])
        rows.append([title, *counts, *read, f"{row['fvu']:.3f}"])
    return _table(heads, rows)


def targets(found: dict[str, Any]) -> str:
    """What was aimed at, and whether it was reached."""
    rows = [[aim, measured, "reached" if reached else "missed"] for aim, measured, reached in aims(found)]
    return _table(["aim", "measured", "outcome"], rows)


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
    "causal": causal,
    "stability": stability,
    "nulls": nulls,
    "unmeasured": unmeasured,
    "power": power,
    "vectors": vectors,
    "targets": targets,
}


def made(name: str, found: dict[str, Any]) -> str:
    """One of `MAKERS`' texts; nothing where its section was not measured."""
    return "" if name in SECTIONS and name not in found else MAKERS[name](found)
