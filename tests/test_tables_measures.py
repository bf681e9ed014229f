"""Strengths, fits and their choice, against libraries and on planted truth; no model."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.sparse import csr_array

from sae_emotions.tables.choosing import best_dimension, choose, difference_of_means, regression, word_views
from sae_emotions.tables.few import TARGETS, few, setting
from sae_emotions.tables.fits import linear, logistic, ridge, turned
from sae_emotions.tables.strength import bootstrap, strength, strengths, weighted_auroc

T, F, L = 240, 40, 3
PLANTED = {0: (4, 11), 1: (17, 30), 2: (7, 23)}


@pytest.fixture(scope="module")
def planted_table():
    """Sparse features, and labels that are sums of two of them each: (values_TF, classes_TL, numbers_TL)."""
    rng = np.random.default_rng(0)
    values_TF = np.where(rng.random((T, F)) < 0.4, rng.gamma(2, 1, (T, F)), 0).astype(np.float32)
    numbers_TL = np.stack([values_TF[:, a] + values_TF[:, b] for a, b in PLANTED.values()], 1).astype(np.float64)
    return values_TF, (numbers_TL > np.median(numbers_TL, axis=0)).astype(float), numbers_TL


@given(st.integers(0, 10_000), st.booleans())
@settings(max_examples=10, deadline=None)
def test_all_strengths_at_once_are_those_of_scikit_learn(seed, sparse):
    rng = np.random.default_rng(seed)
    values_TF = rng.integers(0, 4, (30, 5)).astype(np.float32)
    labels_TL = (rng.random((30, 2)) < 0.4).astype(float)
    labels_TL[:2] = [[0, 1], [1, 0]]
    got_LF = strengths("classes", csr_array(values_TF) if sparse else values_TF, labels_TL)
    for label in range(2):
        own_TL = np.repeat(labels_TL[:, [label]], 5, axis=1)
        assert got_LF[label] + 0.5 == pytest.approx(strength("classes", values_TF, own_TL), abs=1e-9)


@pytest.mark.parametrize("sparse", [False, True])
def test_numbers_are_held_against_pearson(planted_table, sparse):
    values_TF, _, numbers_TL = planted_table
    got_LF = strengths("numbers", csr_array(values_TF) if sparse else values_TF, numbers_TL)
    wanted = np.corrcoef(numbers_TL[:, 1], values_TF.T)[0, 1:]
    assert got_LF[1] == pytest.approx(wanted, abs=1e-5)
    assert strength("numbers", values_TF[:, :3], numbers_TL) == pytest.approx(np.diag(got_LF[:, :3]), abs=1e-5)


def test_an_empty_feature_is_at_chance():
    values_TF = csr_array(np.zeros((6, 2), np.float32))
    labels_TL = np.array([[1.0], [0], [1], [0], [0], [1]])
    assert strengths("classes", values_TF, labels_TL).tolist() == [[0, 0]]
    assert strengths("numbers", values_TF, labels_TL).tolist() == [[0, 0]]


@given(st.integers(0, 10_000))
@settings(max_examples=10, deadline=None)
def test_weighted_auroc_is_that_of_the_rows_written_out(seed):
    from sklearn.metrics import roc_auc_score

    rng = np.random.default_rng(seed)
    scores_T, values_T = rng.integers(0, 5, 20).astype(float), np.arange(20) % 3 == 0
    times_BT = rng.multinomial(20, np.full(20, 1 / 20), 4)
    got_B = weighted_auroc(times_BT.astype(float), scores_T, values_T)
    for times_T, got in zip(times_BT, got_B, strict=True):
        rows = np.repeat(np.arange(20), times_T)
        if 0 < values_T[rows].sum() < len(rows):
            assert got == pytest.approx(roc_auc_score(values_T[rows], scores_T[rows]))
        else:
            assert np.isnan(got)


@pytest.mark.parametrize("kind", ["classes", "numbers"])
def test_bootstrap_is_spread_about_the_strength(planted_table, kind):
    _, classes_TL, numbers_TL = planted_table
    labels_TL = classes_TL if kind == "classes" else numbers_TL
    scores_TL = numbers_TL + 2 * np.random.default_rng(1).standard_normal(numbers_TL.shape)
    found_B = bootstrap(kind, scores_TL, labels_TL, 200, np.random.default_rng(2))
    whole = strength(kind, scores_TL, labels_TL).mean()
    low, high = np.quantile(found_B, [0.025, 0.975])
    assert low < whole < high and 0.01 < high - low < 0.15


def test_logistic_regression_is_that_of_scikit_learn(planted_table):
    from sklearn.linear_model import LogisticRegression

    values_TF, classes_TL, _ = planted_table
    noisy_TL = np.abs(classes_TL - (np.random.default_rng(3).random(classes_TL.shape) < 0.1))
    for values in (values_TF, csr_array(values_TF)):
        got = logistic(values, noisy_TL, C=0.05)
        for label in range(L):
            own = LogisticRegression(C=0.05, tol=1e-8, max_iter=1000).fit(values_TF, noisy_TL[:, label])
            assert got.weights_XL[:, label] == pytest.approx(own.coef_[0], abs=2e-3)
            assert got.scores(values)[:, label] == pytest.approx(own.decision_function(values_TF), abs=2e-2)


def test_ridge_reads_numbers(planted_table):
    values_TF, _, numbers_TL = planted_table
    for values in (values_TF, csr_array(values_TF)):
        assert strength("numbers", ridge(values, numbers_TL, 1.0).scores(values), numbers_TL).min() > 0.999


@pytest.mark.parametrize("kind", ["classes", "numbers"])
@pytest.mark.parametrize("target", list(TARGETS))
def test_a_few_features_are_the_planted_ones(planted_table, kind, target):
    values_TF, classes_TL, numbers_TL = planted_table
    labels_TL = classes_TL if kind == "classes" else numbers_TL
    values = csr_array(values_TF)
    train, test = np.arange(T) % 2 == 0, np.arange(T) % 2 == 1
    scorers = few((2, 5), C=0.01)(kind, values[train], labels_TL[train])
    assert len(scorers) == 2 * len(TARGETS)
    scores_TL = scorers[setting(2, target)](values[test])
    assert strength(kind, scores_TL, labels_TL[test]).min() > 0.95
    for label, pair in PLANTED.items():
        other = values_TF[test].copy()
        other[:, np.setdiff1d(np.arange(F), pair)] = 0
        assert scorers[setting(2, target)](csr_array(other))[:, label] == pytest.approx(scores_TL[:, label], abs=1e-4)
    alone = few((2, 5), C=0.01)(kind, values[train], labels_TL[train], setting(5, target))
    assert list(alone) == [setting(5, target)]


@pytest.mark.parametrize("kind", ["classes", "numbers"])
def test_the_best_dimension_may_have_either_sign(kind):
    rng = np.random.default_rng(4)
    labels_TL = (rng.random((60, 2)) < 0.5).astype(float)
    values_TX = rng.random((60, 6))
    values_TX[:, 2], values_TX[:, 5] = labels_TL[:, 0], 3 - labels_TL[:, 1]
    for values in (values_TX, csr_array(values_TX)):
        assert strength(
            kind, best_dimension(kind, values, labels_TL)["one dimension"](values), labels_TL
        ) == pytest.approx([1, 1])


def test_difference_of_means_is_what_it_says(planted_table):
    values_TF, classes_TL, _ = planted_table
    there_T = classes_TL[:, 1] > 0
    wanted_F = values_TF[there_T].mean(0) - values_TF[~there_T].mean(0)
    for values in (values_TF, csr_array(values_TF)):
        got_TL = difference_of_means("classes", values, classes_TL)["one direction"](values)
        assert got_TL[:, 1] == pytest.approx(values_TF @ wanted_F, rel=1e-4)


def test_cross_validation_chooses_the_view_and_keeps_groups_together(planted_table):
    values_TF, classes_TL, _ = planted_table
    noise_TF = np.random.default_rng(5).random((T, F)).astype(np.float32)
    views = {"noise": noise_TF, "features": values_TF}
    chosen = choose("classes", views, regression((1e-6, 0.1)), classes_TL, np.arange(T), seed=0)
    assert set(chosen) == {"C 1e-06", "C 0.1"}
    assert chosen["C 0.1"].view == "features" and chosen["C 0.1"].value > 0.95
    # What tells groups apart helps no row outside them.
    group_T = np.arange(T) // 8
    views, by_group_TL = {"marks": np.eye(T // 8, dtype=np.float32)[group_T]}, (group_T % 2 == 0).astype(float)[:, None]
    (together,) = choose("classes", views, regression((1.0,)), by_group_TL, group_T, seed=0).values()
    (apart,) = choose("classes", views, regression((1.0,)), by_group_TL, np.arange(T), seed=0).values()
    assert together.value == pytest.approx(0.5) and apart.value > 0.9


@pytest.mark.parametrize("kind", ["classes", "numbers"])
@pytest.mark.parametrize("texts", [30, T])
def test_principal_axes_change_no_solution(planted_table, kind, texts):
    values_TF, classes_TL, numbers_TL = planted_table
    some, labels_TL = values_TF[:texts], (classes_TL if kind == "classes" else numbers_TL)[:texts]
    along_TZ, _ = turned(csr_array(some))
    away_TF = some - some.mean(0)
    assert along_TZ.shape == (texts, min(texts - 1, F))
    assert along_TZ @ along_TZ.T == pytest.approx(away_TF @ away_TF.T, abs=1e-2)
    for values in (some, csr_array(some)):
        for C, readout in linear(kind, values, labels_TL, (0.01, 0.1)).items():
            own = ridge(some, labels_TL, C) if kind == "numbers" else logistic(some, labels_TL, C)
            assert readout.weights_XL == pytest.approx(own.weights_XL, abs=5e-3)
            assert readout.scores(values) == pytest.approx(own.scores(some), abs=3e-2)


def test_texts_of_few_words_stay_sparse():
    few_words = csr_array(np.eye(400, dtype=np.float32))
    assert turned(few_words)[0] is few_words


def test_words_are_weighed_by_the_training_texts_alone():
    texts = ["the red fox", "the red hen", "the green hen", "hen and green fox"]
    views = word_views(texts, np.array([True, True, True, False]))
    assert list(views) == ["words", "words and pairs"]
    assert views["words"].shape == (4, 3) and views["words and pairs"].shape == (4, 4)  # the, red, hen; the red
    assert views["words"][[3]].sum() == pytest.approx(1)  # "hen" alone: the others are not in two training texts
