"""Read-outs of all concepts at once, against scikit-learn and planted truth."""

import numpy as np
import pytest

from sae_emotions.label.baselines import difference_of_means
from sae_emotions.label.layout import Panel, panel
from sae_emotions.label.probes import centred, logistic_regression, own_label, sample, without_components
from sae_emotions.label.sparse_probes import (
    Picked,
    candidates,
    few_features,
    l1_logistic,
    ridge_weights,
    stepwise,
    targets,
)
from tests.test_label_statistics import small_layout


def grid(concepts: int, topics: int, register: str = "first", start: int = 0) -> Panel:
    columns = {
        (register, f"{register}{s}"): start + np.arange(concepts, dtype=np.int32) + concepts * s for s in range(topics)
    }
    return panel(register, "selection", columns)


def test_a_sample_holds_every_text_once_and_is_centred_by_topic() -> None:
    found, rng = small_layout(), np.random.default_rng(0)
    rows = sample(found.selection)
    assert sorted(rows.text_N) == sorted(np.concatenate([w.rows_CS[w.rows_CS >= 0] for w in found.selection]))
    assert len(sample((found.selection[0], found.selection[0])).text_N) == found.selection[0].size_S.sum()
    values = rng.random((len(rows.text_N), 3)) + rows.stratum_N[:, None]
    x = centred(values, rows)
    for s in range(rows.stratum_N.max() + 1):
        np.testing.assert_allclose(x[rows.stratum_N == s].mean(0), 0, atol=1e-6)
    np.testing.assert_array_equal(own_label(rows, 5).argmax(1), rows.concept_N)


@pytest.mark.parametrize("l2", [0.5, 20.0])
def test_logistic_regression_is_sklearns(l2: float) -> None:
    from sklearn.linear_model import LogisticRegression

    rng = np.random.default_rng(1)
    x = rng.standard_normal((200, 6)).astype(np.float32)
    y = (x @ rng.standard_normal((6, 3)) + rng.standard_normal((200, 3)) > 1).astype(np.float32)
    got = logistic_regression(x, y, l2)
    for c in range(3):
        expected = LogisticRegression(C=1 / l2, tol=1e-8, max_iter=1000).fit(x, y[:, c]).coef_[0]
        np.testing.assert_allclose(got[:, c], expected, atol=2e-3)


def test_neutral_components_are_gone_and_no_more_than_asked_for() -> None:
    rng = np.random.default_rng(2)
    directions = np.linalg.qr(rng.standard_normal((10, 10)))[0]
    vectors = rng.standard_normal((7, 10))
    for variances, gone in (([6.0, 3.0, 1.0], 1), ([4.0, 3.5, 2.5], 2)):
        neutral = 5 + rng.standard_normal((4000, 3)) * np.sqrt(variances) @ directions[:3]
        left = without_components(vectors, neutral) @ directions.T
        np.testing.assert_allclose(left.mean(0), 0, atol=1e-9)
        assert np.abs(left[:, :gone]).max() < 0.15
        np.testing.assert_allclose(
            left[:, gone + 1 :], ((vectors - vectors.mean(0)) @ directions.T)[:, gone + 1 :], atol=0.2
        )


def greedy(x: np.ndarray, target: np.ndarray, picks: int) -> list[int]:
    """The feature next that leaves the smallest residual of a least-squares fit on all so far."""
    chosen: list[int] = []
    for _ in range(picks):
        left = {}
        for f in set(range(x.shape[1])) - set(chosen):
            some = x[:, [*chosen, f]]
            left[f] = np.sum((target - some @ np.linalg.lstsq(some, target, rcond=None)[0]) ** 2)
        chosen.append(min(left, key=left.__getitem__))
    return chosen


def test_stepwise_without_ridge_is_greedy_least_squares() -> None:
    rng = np.random.default_rng(3)
    x = rng.standard_normal((120, 30)) * rng.uniform(0.3, 3, 30)
    target = x @ (rng.standard_normal((30, 5)) * (rng.random((30, 5)) < 0.3)) + 0.05 * rng.standard_normal((120, 5))
    got = stepwise(x.astype(np.float32), target.astype(np.float32), 6, 0.0)
    for c in range(5):
        expected = greedy(x, target[:, c], 6)
        assert got.feature_CK[c].tolist() == expected
        np.testing.assert_allclose(got.weight_CK[c], np.linalg.lstsq(x[:, expected], target[:, c])[0], atol=1e-3)


def test_ridge_weights_are_sklearns() -> None:
    from sklearn.linear_model import Ridge

    rng = np.random.default_rng(4)
    x, y = rng.standard_normal((80, 9)).astype(np.float32), rng.standard_normal((80, 3)).astype(np.float32)
    picks = np.array([[0, 4, 8], [1, 2, 3], [5, 0, 7]])
    got = ridge_weights(x, y, picks, 4.0)
    for c in range(3):
        expected = Ridge(alpha=4.0, fit_intercept=False).fit(x[:, picks[c]], y[:, c]).coef_
        np.testing.assert_allclose(got[c], expected, atol=1e-4)


def test_a_feature_of_one_text_does_not_win_by_ridge() -> None:
    """Without a ridge the feature that fires in the noisiest text alone comes first."""
    rng = np.random.default_rng(5)
    x = np.zeros((100, 2), np.float32)
    x[:, 0] = rng.random(100)
    target = 0.5 * x[:, [0]]
    target[3] += 1.6
    x[3, 1] = 1.0
    x -= x.mean(0)
    target -= target.mean(0)
    assert stepwise(x, target, 1, 0.0).feature_CK[0, 0] == 1
    assert stepwise(x, target, 1, 20.0).feature_CK[0, 0] == 0


def test_picks_differ_and_silent_features_are_never_picked() -> None:
    rng = np.random.default_rng(6)
    x = rng.standard_normal((50, 8)).astype(np.float32)
    x[:, 5] = 0
    x[:, 6] = x[:, 2]
    x -= x.mean(0)
    found = stepwise(x, rng.standard_normal((50, 4)).astype(np.float32), 6, 1.0)
    for feature_K in found.feature_CK:
        assert len(set(feature_K)) == 6 and 5 not in feature_K and not {2, 6} <= set(feature_K)
    assert np.isfinite(found.weight_CK).all()


def test_scores_are_the_weighted_sums() -> None:
    rng = np.random.default_rng(7)
    acts = rng.random((9, 6)).astype(np.float32)
    picked = Picked(np.array([[1, 3], [5, 0]]), np.array([[2.0, -1.0], [1.0, 0.5]], np.float32))
    expected = np.stack([2 * acts[:, 1] - acts[:, 3], acts[:, 5] + 0.5 * acts[:, 0]], axis=1)
    np.testing.assert_allclose(picked.scores(acts), expected, rtol=1e-6)


def test_l1_logistic_picks_what_was_planted() -> None:
    rng = np.random.default_rng(8)
    x = np.maximum(rng.standard_normal((400, 30)) - 1, 0).astype(np.float32)
    y = np.stack([x[:, a] + x[:, b] > 1.2 for a, b in ((3, 9), (17, 2))], axis=1).astype(np.float32)
    found = l1_logistic(x - x.mean(0), y, 2, count=12)
    assert [set(row) for row in found.feature_CK.tolist()] == [{3, 9}, {17, 2}]
    assert (found.weight_CK > 0).all()


def test_difference_of_means_of_one_panel_twice_is_that_of_the_panel() -> None:
    whole = grid(4, 3)
    values = np.random.default_rng(9).random((12, 5))
    twice = difference_of_means(values, (whole, whole))
    for c in range(4):
        own = np.stack([values[4 * s + c] - values[4 * s : 4 * s + 4].mean(0) for s in range(3)]).mean(0)
        np.testing.assert_allclose(twice[c], own)


def near_synonyms(rng: np.random.Generator, topics: int) -> tuple[Panel, np.ndarray]:
    """Twelve concepts in three families of four: a feature each, a family's feature each, and fifty of noise."""
    whole = grid(12, topics)
    acts = 0.5 * np.maximum(rng.standard_normal((12 * topics, 60)), 0)
    for c in range(12):
        acts[whole.rows_CS[c], c] += 1.0
        acts[whole.rows_CS[c], 12 + c // 4] += 1.0
    return whole, acts.astype(np.float32)


def test_few_features_are_the_concepts_own_and_its_familys() -> None:
    whole, acts = near_synonyms(np.random.default_rng(10), 12)
    rows = sample((whole, whole))
    found = few_features(acts[rows.text_N], rows, 12, 2)
    assert [set(row) for row in found.feature_CK.tolist()] == [{c, 12 + c // 4} for c in range(12)]
    assert (found.weight_CK > 0).all()
    assert few_features(acts[rows.text_N], rows, 12, 100).feature_CK.shape == (12, 60)


def test_targets_rank_the_own_text_first_and_the_familys_before_the_others() -> None:
    whole, acts = near_synonyms(np.random.default_rng(11), 12)
    rows = sample((whole,))
    target = targets(centred(acts[rows.text_N], rows), rows, 12)
    own = rows.concept_N[:, None] == np.arange(12)
    family = ~own & (rows.concept_N[:, None] // 4 == np.arange(12) // 4)
    assert target[own].mean() > target[family].mean() > target[~own & ~family].mean()
    for s in range(12):
        np.testing.assert_allclose(target[rows.stratum_N == s].mean(0), 0, atol=1e-5)


def test_candidates_tell_concepts_apart() -> None:
    whole, acts = near_synonyms(np.random.default_rng(12), 12)
    rows = sample((whole,))
    assert candidates(centred(acts[rows.text_N], rows), own_label(rows, 12), 15).tolist() == list(range(15))
