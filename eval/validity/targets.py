"""What this project set out to reach, beside what was measured: the README's last table, from the same committed figures."""

from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

SINGLE = {"plain": 0.92, "literary": 0.85, "crossed": 0.85}
GOEMOTIONS = {"best_feature": ("one feature", 0.78), "sixteen_features": ("sixteen features", 0.86)}
CAUSAL, CONTROLS = 0.5, 0.05
STEERED = 0.6
PERMUTED = 16
"""of 200: what 5 % is within, by the binomial distribution"""


class Row(NamedTuple):
    """One aim."""

    aim: str
    measured: str
    reached: bool


def _single(found: dict[str, Any]) -> Iterator[Row]:
    for cell, one in found["run"]["transfer"]["trained_on"]["both"].items():
        got, least = one["methods"]["single"]["auroc"], SINGLE[cell]
        yield Row(f"one feature, AUROC {cell} ≥ {least:g}", f"{got:.3f}", got >= least)


def _sixteen(found: dict[str, Any]) -> Iterator[Row]:
    """Where sixteen features stand below the dense vector, and where the interval of the difference does too."""
    away = {
        f"{kind} → {cell}": one["methods"]["sixteen"]["less_dense"]
        for kind, cells in found["run"]["transfer"]["trained_on"].items()
        for cell, one in cells.items()
    }
    worst = min(away, key=lambda name: away[name]["difference"])
    below = sum(one["difference"] < 0 for one in away.values())
    surely = sum(one["interval"][1] < 0 for one in away.values())
    told = (
        f"below in {below} of {len(away)} cells (in {surely} beyond the interval), by "
        f"{-away[worst]['difference']:.3f} at most ({worst})"
        if below
        else "in all"
    )
    yield Row("sixteen features ≥ the dense vector in every cell", told, below == 0)


def _people(found: dict[str, Any]) -> Iterator[Row]:
    methods = found["human"]["sets"]["goemotions"]["methods"]
    for name, (title, least) in GOEMOTIONS.items():
        got = methods[name]["macro"]
        yield Row(f"GoEmotions, {title}, macro AUROC ≥ {least:g}", f"{got:.3f}", got >= least)
    got, words = methods["all_features"]["macro"], methods["tfidf"]["macro"]
    yield Row("GoEmotions, all features ≥ TF-IDF on the same rows", f"{got:.3f} and {words:.3f}", got >= words)


def _ratings(found: dict[str, Any]) -> Iterator[Row]:
    for name, dimensions in found["vectors"]["read_out_of_ratings"].items():
        for dimension, one in dimensions.items():
            got, least = one["stories_and_block_chosen_within_folds"]["r"], one["target"]
            yield Row(
                f"{dimension}, {name.replace('_', ' ')}, ridge read-out r ≥ {least:g}", f"{got:.2f}", got >= least
            )


def _causal(found: dict[str, Any]) -> Iterator[Row]:
    one = found["run"]["summary"]["dictionaries"][0]["causal"]
    confirmed, tested = one["confirmed"], one["tested"]
    yield Row(
        f"causal, of the tested features ≥ {CAUSAL:.0%}",
        f"{confirmed} of {tested} ({one['removed']} of them removed exactly)",
        confirmed >= CAUSAL * tested,
    )
    confirmed, tested = one["controls_confirmed"], one["controls_tested"]
    yield Row(
        f"controls that pass the same test ≤ {CONTROLS:.0%}",
        f"{confirmed} of {tested:,}",
        confirmed <= CONTROLS * tested,
    )


def _steered(found: dict[str, Any]) -> Iterator[Row]:
    """The single features that did best on the choosing texts, beside those that read best and beside their control."""
    chosen, reported = found["steering"]["chosen"]["single"], found["steering"]["reported"]
    at, got = found["steering"]["doses_of_residual_norm"].index(chosen["dose"]), chosen["share_whose_word_rises_most"]
    reading, others = (
        reported[f"single {name}"]["share_whose_word_rises_most"][at] for name in ("chosen", "screened others")
    )
    told = (
        f"{got:.0%} (screened features that read something else {others:.0%}; the one that reads it best {reading:.0%})"
    )
    yield Row(f"steered by one feature, its word rises most ≥ {STEERED:.0%}", told, got >= STEERED)


def _permuted(found: dict[str, Any]) -> Iterator[Row]:
    one = found["run"]["summary"]["dictionaries"][0]["labels"]
    got, count = one["permutations_with_any_label"], one["permutations"]
    yield Row(
        f"permutations of the labels with any labelled feature ≤ {PERMUTED} of 200",
        f"{got} of {count}",
        got <= PERMUTED,
    )


ASKED: dict[Callable[[dict[str, Any]], Iterator[Row]], tuple[str, ...]] = {
    _single: (),
    _sixteen: (),
    _people: ("human",),
    _ratings: ("vectors",),
    _causal: (),
    _steered: ("steering",),
    _permuted: (),
}
"""Each with the sections of `eval.validity` that it needs."""


def aims(found: dict[str, Any]) -> list[Row]:
    """All aims whose figures are there."""
    return [row for make, needs in ASKED.items() if all(name in found for name in needs) for row in make(found)]
