"""Transfer tables on planted texts: each method reads what it was given to read, and controls read nothing."""

from typing import Any

import numpy as np
import pytest

from sae_emotions.concepts.concept_set import Concept, ConceptSet, ConceptText
from sae_emotions.errors import UserError
from sae_emotions.label.baselines import own_auroc
from sae_emotions.label.layout import Layout, layout
from sae_emotions.label.transfer import Pair, Scored, cross_validated_auroc, folded, training_cells, transfer

C = 12
CELLS = {"first": ("first", 4, 2), "second": ("second", 6, 3), "crossed": ("second", 0, 3)}


def planted_concepts() -> ConceptSet:
    """The first register has all concepts on each topic; the second has half of them on each; crossed is held out alone."""
    texts = []
    for cell, (register, selection, held_out) in CELLS.items():
        for n in range(selection + held_out):
            split = "selection" if n < selection else "held_out"
            for c in range(C):
                if cell != "second" or c % 2 == n % 2:
                    key = f"{cell}/{n}/{c}"
                    texts.append(
                        ConceptText(key, f"concept{c}", f"{cell}{n}", register, cell, split, f"word{c} {cell}{n}")
                    )
    names = tuple(Concept(f"concept{c}", f"concept{c}", None, None) for c in range(C))
    return ConceptSet("planted", names, tuple(texts), ("first", "second"), tuple(CELLS), (), "", "0" * 64)


@pytest.fixture(scope="module")
def concepts() -> ConceptSet:
    return planted_concepts()


@pytest.fixture(scope="module")
def found(concepts: ConceptSet) -> Layout:
    return layout(concepts)


def signal(concepts: ConceptSet, registers: tuple[str, ...], noise: float, seed: int) -> np.ndarray:
    """Score of every text for every concept: its own stands out, in these registers alone. (T, C)"""
    rng = np.random.default_rng(seed)
    scores = noise * rng.standard_normal((len(concepts.texts), C)).astype(np.float32)
    for row, text in enumerate(concepts.texts):
        if text.register in registers:
            scores[row, int(text.concept.removeprefix("concept"))] += 1
    return scores


def test_each_training_is_read_where_it_was_not_fitted(found: Layout) -> None:
    cells = {trained.name: list(trained.cells) for trained in training_cells(found)}
    assert cells == {
        "both": ["first", "second", "crossed"],
        "first": ["second", "crossed"],
        "second": ["first", "crossed"],
    }


def test_folds_keep_topics_apart_and_the_same_for_every_method(found: Layout) -> None:
    seen: list[list[tuple[str, ...]]] = []
    for _ in range(2):
        folds = []
        for rest, outside in folded(found.selection, 2):
            for whole, part_, keep_S in zip(found.selection, rest, outside, strict=True):
                left_out = {topic for topic, keep in zip(whole.topics_S, keep_S, strict=True) if not keep}
                assert not left_out & set(part_.topics_S) and left_out | set(part_.topics_S) == set(whole.topics_S)
            folds.append(rest[0].topics_S + rest[1].topics_S)
        seen.append(folds)
    assert seen[0] == seen[1]
    one = found.selection[0]
    assert all(first is second for (first, second), _ in folded((one, one), 2))
    with pytest.raises(UserError, match="folds"):
        list(folded((one, one), 9))


def test_cross_validation_fits_on_the_other_folds_alone(concepts: ConceptSet, found: Layout) -> None:
    """A method that only knows the texts it was fitted on is at chance."""
    rng = np.random.default_rng(0)

    def by_heart(panels: Pair) -> Scored:
        scores = rng.standard_normal((len(concepts.texts), C))
        for whole in panels:
            for c, row in np.argwhere(whole.rows_CS >= 0):
                scores[whole.rows_CS[c, row], c] = 10
        return Scored((scores,))

    assert all(abs(one - 0.5) < 0.15 for one in cross_validated_auroc(found.selection, 2, by_heart))
    perfect = signal(concepts, ("first",), 0.01, 1)
    first, second = cross_validated_auroc(found.selection, 2, lambda panels: Scored((perfect,)))
    assert first == 1.0 and abs(second - 0.5) < 0.15


@pytest.fixture(scope="module")
def told(concepts: ConceptSet, found: Layout) -> dict[str, Any]:
    good, bound = signal(concepts, ("first", "second"), 0.2, 2), signal(concepts, ("first",), 0.2, 3)
    noise = [np.random.default_rng(seed).standard_normal(good.shape) for seed in range(20)]
    methods = {
        "dense": lambda panels: Scored((good,)),
        "bound": lambda panels: Scored((bound,), np.array([[0, 1]] * 6 + [[2, 3]] * 6)),
        "noise": lambda panels: Scored(noise),
    }
    fits: list[int] = []
    return {"fits": fits, **transfer(found, methods, 200, 0, fits.append)}


def test_each_cell_has_its_own_figures(told: dict[str, Any], concepts: ConceptSet, found: Layout) -> None:
    assert len(told["fits"]) == 9
    both = told["both"]
    assert both["first"]["methods"]["dense"]["auroc"] > 0.98 < both["crossed"]["methods"]["dense"]["auroc"]
    assert both["first"]["methods"]["bound"]["auroc"] > 0.98
    assert abs(told["first"]["crossed"]["methods"]["bound"]["auroc"] - 0.5) < 0.15
    assert abs(both["crossed"]["methods"]["noise"]["auroc"] - 0.5) < 0.05  # 20 draws are averaged
    assert both["crossed"]["topics"] == 3 and both["second"]["concepts"] == C and both["first"]["chance"] == 0.5


def test_a_method_is_told_beside_the_dense_vector(told: dict[str, Any]) -> None:
    figures = told["both"]["crossed"]["methods"]
    assert "less_dense" not in figures["dense"]
    less = figures["bound"]["less_dense"]
    assert less["difference"] == pytest.approx(figures["bound"]["auroc"] - figures["dense"]["auroc"], abs=2e-4)
    low, high = less["interval"]
    assert low < less["difference"] < high < 0


def test_counts_and_topics_are_told(told: dict[str, Any], concepts: ConceptSet, found: Layout) -> None:
    figures = told["both"]["first"]["methods"]["bound"]
    assert figures["at_least_90"]["raw"] == C == figures["at_least_90"]["of"]
    assert figures["features"] == 4 == figures["features_at_least_90"]
    assert told["both"]["crossed"]["methods"]["bound"]["features_at_least_90"] < 4
    assert list(figures["by_topic"]) == ["first4", "first5"]
    mean = np.mean([one["auroc"] for one in figures["by_topic"].values()])
    assert mean == pytest.approx(figures["auroc"], abs=2e-4)
    bound = signal(concepts, ("first",), 0.2, 3)
    by_hand = np.nanmean(own_auroc(bound, found.held_out[0]), axis=0)
    assert [one["auroc"] for one in figures["by_topic"].values()] == pytest.approx(by_hand.tolist(), abs=1e-4)
