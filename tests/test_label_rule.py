"""The labelling rule on planted story means: what was planted comes out, in the right register, and nothing else."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from sae_emotions.concepts.concept_set import Concept, ConceptSet, ConceptText
from sae_emotions.concepts.shape import Norm
from sae_emotions.config import LabelConfig
from sae_emotions.errors import UserError
from sae_emotions.label.baselines import difference_of_means, own_auroc, tfidf_scores
from sae_emotions.label.choose import cross_validated, topic_folds
from sae_emotions.label.contexts import Contexts
from sae_emotions.label.labelling import labelling, readings, whitening
from sae_emotions.label.layout import ABSENT, Layout, cell_panels, layout, permuted
from sae_emotions.label.lens import logit_lens
from sae_emotions.label.linear import ranked, sums
from sae_emotions.label.means import StoryMeans
from sae_emotions.label.measure import Measured, held_out_means, measure, pair_scores
from sae_emotions.label.ranks import auroc, doubled_midranks, pair_sums
from sae_emotions.label.rule import Choice, Evidence, Outcome, choose, decide, judged, pair_p
from sae_emotions.label.strength import neighbours, strength
from sae_emotions.label.tables import concept_columns, feature_columns, statuses
from sae_emotions.schema import write_table

C, FEATURES = 24, 60
SETTINGS = LabelConfig(screen_product=1e-6, bootstraps=200, permutations=20, families=6, own=0.5)
BOTH, FIRST_ONLY, SECOND_ONLY, CHOSEN_ONLY, DEAD = (0, 1, 2, 3), (4,), (5,), (6,), (59,)
NORMS = (Norm("warmth", tuple(np.linspace(-1, 1, C))),)
CELLS = {"first": "first", "second": "second", "crossed": "second"}


def topics_of(concept: int, cell: str, split: str) -> list[str]:
    """As in the built-in set: the second register's topics come in groups of concepts."""
    if cell == "second":
        group = concept % 2
        return [f"{split} s{group}{t}" for t in range(5)] + [f"{split} f0"]
    return [f"{split} {cell[0]}{t}" for t in range(5)]


@pytest.fixture(scope="module")
def concepts() -> ConceptSet:
    texts = []
    for cell, register in CELLS.items():
        for split in ("selection", "held_out"):
            if cell == "crossed" and split == "selection":
                continue
            for concept in range(C):
                for topic in topics_of(concept, cell, split):
                    name, key = f"concept{concept}", f"{cell}/{topic}/{concept}"
                    word = f"word{concept} of {topic} " + ("" if split == "selection" else "unseen")
                    texts.append(ConceptText(key, name, topic, register, cell, split, word))
    names = tuple(Concept(f"concept{c}", f"concept{c}", f"family{c % 3}" if c % 4 else None, None) for c in range(C))
    return ConceptSet("planted", names, tuple(texts), ("first", "second"), tuple(CELLS), (), "", "0" * 64, NORMS)


@pytest.fixture(scope="module")
def found(concepts: ConceptSet) -> Layout:
    return layout(concepts)


@pytest.fixture(scope="module")
def story(concepts: ConceptSet) -> StoryMeans:
    """Feature f reads concept f wherever its kind says so; the others are sparse noise with ties."""
    rng = np.random.default_rng(0)
    shape = (len(concepts.texts), FEATURES)
    acts = np.where(rng.random(shape) < 0.15, rng.integers(1, 4, shape), 0).astype(np.float32)
    resid = rng.standard_normal((shape[0], 12)).astype(np.float32)
    vectors = rng.standard_normal((C, 12)).astype(np.float32)
    for row, text in enumerate(concepts.texts):
        concept = int(text.concept.removeprefix("concept"))
        held_out = text.split == "held_out"
        reads = {
            **dict.fromkeys(BOTH, True),
            **dict.fromkeys(FIRST_ONLY, not held_out or text.register == "first"),
            **dict.fromkeys(SECOND_ONLY, not held_out or text.register == "second"),
            **dict.fromkeys(CHOSEN_ONLY, not held_out),
        }
        if reads.get(concept):
            acts[row, concept] = 5 + rng.random()
        resid[row] += 2 * vectors[concept]
    acts[:, DEAD] = 0
    return StoryMeans(acts, resid, np.full(shape[0], 40))


@pytest.fixture(scope="module")
def measured(concepts: ConceptSet, found: Layout, story: StoryMeans) -> Measured:
    return measure(concepts, found, story, SETTINGS, seed=0)


def test_layout_puts_every_text_in_one_stratum(concepts: ConceptSet, found: Layout) -> None:
    rows = np.concatenate([whole.rows_CS[whole.rows_CS != ABSENT] for whole in found.panels])
    assert sorted(rows) == list(range(len(concepts.texts)))
    for whole in found.panels:
        for concept, s in np.argwhere(whole.rows_CS != ABSENT):
            text = concepts.texts[whole.rows_CS[concept, s]]
            assert (text.concept, text.register, text.split) == (f"concept{concept}", whole.register, whole.split)
            assert (text.cell, text.topic) == (whole.cells_S[s], whole.topics_S[s])
    assert [len(whole.groups) for whole in found.panels] == [1, 2, 1, 2]


def test_exactly_the_planted_features_are_labelled(measured: Measured) -> None:
    outcome = measured.outcome
    assert np.flatnonzero(outcome.concept.screened_F).tolist() == [*BOTH, *FIRST_ONLY, *SECOND_ONLY, *CHOSEN_ONLY]
    assert np.flatnonzero(outcome.labelled_F).tolist() == list(BOTH)
    assert outcome.choice.concept_F[list(BOTH)].tolist() == list(BOTH)
    status = dict(enumerate(statuses(measured, ("first", "second"))))
    assert {f: s for f, s in status.items() if s not in ("none", "labelled")} == {4: "first only", 5: "second only"}


def test_exactly_the_planted_concepts_are_confirmed(measured: Measured) -> None:
    outcome = measured.outcome
    assert np.flatnonzero(outcome.confirmed_C).tolist() == list(BOTH)
    assert outcome.choice.feature_C[: len(BOTH) + 3].tolist() == list(range(len(BOTH) + 3))
    assert np.isfinite(outcome.q_C).all()


def test_the_null_finds_nothing_and_says_so(measured: Measured) -> None:
    assert measured.null["permutations"] == 20
    assert measured.null["labelled_features"] == [0] * 20
    assert measured.null["mean_confirmed_concepts"] <= 0.5  # type: ignore[operator]


def test_permutations_go_through_the_same_rule_as_real_labels(found: Layout, story: StoryMeans) -> None:
    """A permutation judged among others gets what it gets when judged alone."""
    read = readings(doubled_midranks(story.acts_TF, found.panels), found)
    whiten = whitening(story.resid_TD, found.selection)
    real, other = (
        labelling(one, story.resid_TD, whiten, SETTINGS) for one in (found, permuted(found, np.random.default_rng(5)))
    )
    together, alone = decide(read, [real, other], NORMS, SETTINGS)[1], decide(read, [other], NORMS, SETTINGS)[0]
    np.testing.assert_array_equal(together.choice.concept_F, alone.choice.concept_F)
    for kind in ("concept", "family", "norm"):
        np.testing.assert_allclose(
            getattr(together, kind).p_selection_F2, getattr(alone, kind).p_selection_F2, rtol=1e-6
        )
    np.testing.assert_allclose(together.p_C2, alone.p_C2, rtol=1e-6)
    np.testing.assert_array_equal(together.labelled_F, alone.labelled_F)


def test_without_neighbours_the_choice_is_the_sum_of_equally_noisy_registers(found: Layout, story: StoryMeans) -> None:
    ranks = doubled_midranks(story.acts_TF, found.panels)
    both = sum(auroc(ranks, whole) for whole in (found.selection[0], found.selection[0]))
    totals, moments = [sums(ranks, found.selection[0])] * 2, [ranked(ranks, found.selection[0])] * 2
    got = choose(totals, moments, neighbours(story.resid_TD[:C], own=1.0), SETTINGS.apart)
    firing = ranks[found.selection[0].rows_CS].std(axis=(0, 1)) > 0
    np.testing.assert_array_equal(got.concept_F[firing], both.argmax(0)[firing])  # type: ignore[union-attr]
    np.testing.assert_allclose(got.auroc_F[firing], both.max(0)[firing] / 2, rtol=1e-6)  # type: ignore[union-attr]


def test_strength_is_the_posterior_mean_of_the_model() -> None:
    """Against the joint normal distribution of both registers, written out whole."""
    rng = np.random.default_rng(3)
    vectors, noise, apart = rng.standard_normal((6, 4)), np.array([[0.01], [0.03]]), 0.7
    first, second = 0.5 + 0.2 * rng.standard_normal((2, 6, 1)) + 0.1
    got = strength(first.astype(np.float32), second.astype(np.float32), noise, neighbours(vectors, 0.2), apart)
    unit = vectors / np.linalg.norm(vectors, axis=1, keepdims=True)
    prior = max(((first - 0.5) * (second - 0.5)).mean(), 1e-5) * (0.2 * np.eye(6) + 0.8 * unit @ unit.T)
    own, observed = (1 + apart) * prior, np.concatenate([first - 0.5, second - 0.5])
    covariance = np.block([[own + noise[0] * np.eye(6), prior], [prior, own + noise[1] * np.eye(6)]])
    with_observed = np.hstack([(1 + apart / 2) * prior] * 2)
    np.testing.assert_allclose(got, with_observed @ np.linalg.solve(covariance, observed), rtol=1e-4, atol=1e-6)
    alone = strength(first.astype(np.float32), None, noise[:1], neighbours(vectors, 0.2), apart)
    size = max((((first - 0.5) ** 2).mean() - noise[0, 0]) / (1 + apart), 1e-5)
    prior = size * (0.2 * np.eye(6) + 0.8 * unit @ unit.T)
    covariance = (1 + apart) * prior + noise[0] * np.eye(6)
    expected = (1 + apart / 2) * prior @ np.linalg.solve(covariance, first - 0.5)
    np.testing.assert_allclose(alone, expected, rtol=1e-4, atol=1e-6)


def test_strength_is_borrowed_from_neighbours() -> None:
    """Two features read one concept equally by its own stories; the one that also reads its neighbour is chosen."""
    vectors = np.array([[1.0, 0.1], [1.0, -0.1], [-1.0, 0.1], [0.0, -1.0]])
    table = np.array([[0.7, 0.7], [0.5, 0.8], [0.5, 0.3], [0.5, 0.4]], np.float32)
    noise = np.full((2, 2), 0.01)
    assert strength(table, table, noise, neighbours(vectors, 0.1), 1.0)[0].argmax() == 1
    alone = strength(table[:, [0, 0]], table[:, [0, 0]], noise, neighbours(vectors, 1.0), 1.0)
    np.testing.assert_allclose(alone[1:], 0, atol=1e-6)


def test_held_out_p_is_that_of_the_whole_register(found: Layout, measured: Measured) -> None:
    outcome, features = measured.outcome, np.arange(FEATURES)
    for register, whole in enumerate(found.held_out):
        alone = pair_p(measured.ranks_TF, [whole], [(outcome.choice.concept_F, features)])[0]
        np.testing.assert_allclose(outcome.concept.p_F2[:, register], alone, rtol=1e-6)
    assert set(found.held_out[1].cells_S) == {"second", "crossed"}
    total = pair_sums(measured.ranks_TF, found.held_out[1], np.array([0]), np.array([0]))
    assert (
        total[0] == 2 * (6 * 12 + 5 * 24) + 2 * 12
    )  # first of 12 on 5 topics, of 24 on the shared one and on 5 crossed


def outcome_of(p_F2: list[list[float]], q: float = 0.05) -> Outcome:
    p, none = np.array(p_F2), np.full((len(p_F2), 2), np.nan)
    choice = Choice(np.zeros(len(p), int), np.ones(len(p)), np.zeros(2, int), np.ones(2))
    concept = Evidence(choice.concept_F, p, np.ones(len(p), bool), p, none[:, 0])
    wider = Evidence(choice.concept_F, p, np.zeros(len(p), bool), none, none[:, 0])
    return judged(choice, (concept, wider, wider), np.array([[0.001, 0.002], [0.5, 0.1]]), q)


def test_a_label_needs_both_registers_and_one_alone_is_named() -> None:
    got = outcome_of([[1e-4, 1e-4], [1e-4, 0.6], [0.7, 1e-4], [0.8, 0.9]])
    assert got.labelled_F.tolist() == [True, False, False, False]
    assert got.only_F.tolist() == [-1, 0, 1, -1]
    np.testing.assert_allclose(got.concept.q_F, [4e-4, 0.9, 0.9, 0.9])
    assert got.confirmed_C.tolist() == [True, False]


def test_dense_and_words_read_what_they_were_shown(concepts: ConceptSet, found: Layout, story: StoryMeans) -> None:
    dense = difference_of_means(story.resid_TD, found.selection)
    rows = found.selection[0].rows_CS
    for whole in found.selection[:1]:
        by_hand = sum(story.resid_TD[rows[2, s]] - story.resid_TD[rows[:, s]].mean(0) for s in range(5))
        alone = difference_of_means(story.resid_TD, (whole, whole))[2]
        np.testing.assert_allclose(alone, by_hand / 5, atol=1e-5)
    words = tfidf_scores([text.text for text in concepts.texts], found.selection)
    for whole in cell_panels(found, "held_out").values():
        assert np.nanmean(own_auroc(story.resid_TD @ dense.T, whole)) > 0.9
        assert np.nanmean(own_auroc(words, whole)) == 1.0
        np.testing.assert_array_equal(np.isnan(own_auroc(words, whole)), whole.rows_CS == ABSENT)


def test_cross_validation_sees_the_selection_set_alone(found: Layout, story: StoryMeans) -> None:
    blind = StoryMeans(story.acts_TF.copy(), story.resid_TD.copy(), story.tokens_T)
    held_out = np.concatenate([whole.rows_CS[whole.rows_CS != ABSENT] for whole in found.held_out])
    blind.acts_TF[held_out] = np.nan
    blind.resid_TD[held_out] = np.nan
    got = cross_validated(blind, found, 3, SETTINGS)
    assert got == cross_validated(story, found, 3, SETTINGS)
    assert set(got) == {"first", "second"}
    assert 0.55 < got["first"] < 0.9  # 7 of 24 concepts have a feature, the others are at chance


def test_a_topic_lies_in_one_fold_and_folds_are_even(found: Layout) -> None:
    folds = topic_folds(found.selection, 3)
    assert set(folds) == {topic for whole in found.selection for topic in whole.topics_S}
    for whole in found.selection:
        for strata in whole.groups:
            sizes = np.bincount([folds[whole.topics_S[s]] for s in strata], minlength=3)
            assert sizes.max() - sizes.min() <= 1
    for wrong in (1, 99):
        with pytest.raises(UserError, match="folds cannot be made"):
            topic_folds(found.selection, wrong)


def test_tables_have_the_documented_columns(measured: Measured, concepts: ConceptSet, tmp_path: Path) -> None:
    directions = torch.randn(FEATURES, 12, generator=torch.Generator().manual_seed(0))
    one = np.array([3])
    heard = Contexts(one, one * 0, one, one, np.array([2.5]), np.zeros((1, 5), np.float32), 2, np.full(FEATURES, 0.1))
    lens = logit_lens(directions, torch.randn(20, 12, generator=torch.Generator().manual_seed(1)), 4)
    features = feature_columns(measured, concepts, directions, heard, lens, [f"t{i}" for i in range(20)], SETTINGS.q)
    write_table(tmp_path / "features.parquet", "features", features, concepts.cells)
    assert features["concept"][DEAD[0]] is None
    assert [name for name in features["label"] if name] == [f"concept{c}" for c in BOTH]
    assert features["max_activation"][3] == 2.5
    table = concept_columns(measured, concepts)
    write_table(tmp_path / "concepts.parquet", "concepts", table, concepts.cells)
    assert table["labelled_features"] == [[c] if c in BOTH else [] for c in range(C)]
    scores = pair_scores(measured, np.array([0, 7]), np.array([0, 7]))
    write_table(tmp_path / "scores.parquet", "scores", scores)
    assert len(scores["p"]) == 2 * 5
    for low, value, high in zip(scores["low"], scores["auroc"], scores["high"], strict=True):
        assert low - 1e-9 <= value <= high + 1e-9  # type: ignore[operator]


def test_means_have_intervals_around_them(measured: Measured) -> None:
    summary: dict[str, Any] = held_out_means(measured, SETTINGS, seed=0)
    for name in ("auroc", "dense_auroc", "tfidf_auroc"):
        for cell in CELLS:
            interval: list[float] = summary[f"{name}_{cell}_interval"]
            assert interval[0] <= summary[f"{name}_{cell}"] <= interval[1]
    assert summary["dense_auroc_crossed"] > summary["auroc_crossed"] > 0.5
