"""Stratified linear rank statistics, and what else explains a label, against brute force and known truth."""

from itertools import permutations

import numpy as np
import pytest
from scipy import stats

from sae_emotions.label.confounds import names_word, residual_ranks, told_in_first_person
from sae_emotions.label.exact import exact_p
from sae_emotions.label.layout import ABSENT, Panel, panel
from sae_emotions.label.linear import mean_auroc, patterns, ranked, set_auroc, standardised, statistic, sums, upper_p
from sae_emotions.label.ranks import auroc, doubled_midranks, pair_sums


def crossed(concepts: int, strata: int, lacking: dict[int, tuple[int, ...]] | None = None) -> Panel:
    """A panel with one text a concept and stratum, but for the concepts that a stratum lacks."""
    columns, start = {}, 0
    for s in range(strata):
        column = np.arange(start, start + concepts, dtype=np.int32)
        column[list((lacking or {}).get(s, ()))] = ABSENT
        columns["cell", f"topic{s}"] = column
        start += concepts
    return panel("register", "held_out", columns)


def test_moments_are_those_of_all_permutations() -> None:
    whole, rng = crossed(4, 1), np.random.default_rng(0)
    values_TF = rng.integers(0, 3, (4, 3)).astype(np.float32)
    weights_LC = np.array([[1, 0, 0, 0], [1, 1, 0, 0], [0.2, 3, -1, 0.5]])
    ranks = doubled_midranks(values_TF, [whole])
    found = statistic(sums(ranks, whole), weights_LC, ranked(ranks, whole))
    unit = (ranks / 2 - 1) / 3 - 0.5
    away = weights_LC - weights_LC.mean(1, keepdims=True)
    every = np.array([away[:, list(order)] @ unit for order in permutations(range(4))])
    np.testing.assert_allclose(found.total_LF, away @ unit, atol=1e-6)
    np.testing.assert_allclose(found.variance_LF, (every**2).mean(0), atol=1e-6)
    np.testing.assert_allclose(found.third_LF, (every**3).mean(0), atol=1e-6)


def test_strata_with_other_concepts_add_up() -> None:
    lacking: dict[int, tuple[int, ...]] = {1: (0, 3), 2: (0, 3), 3: (1, 2, 4)}
    whole, rng = crossed(5, 4, lacking), np.random.default_rng(1)
    ranks = doubled_midranks(rng.random((20, 2)).astype(np.float32), [whole])
    weights_LC = rng.random((3, 5))
    assert sorted(len(strata) for _, strata in patterns(whole)) == [1, 1, 2]
    np.testing.assert_allclose(mean_auroc(sums(ranks, whole), 5), auroc(ranks, whole), atol=1e-6)
    one_by_one = [
        statistic(sums(ranks, part_of), weights_LC, ranked(ranks, part_of))
        for s in range(4)
        for part_of in [panel("r", "held_out", {("cell", str(s)): whole.rows_CS[:, s]})]
    ]
    together = statistic(sums(ranks, whole), weights_LC, ranked(ranks, whole))
    for got, parts in zip(together, zip(*one_by_one, strict=True), strict=True):
        np.testing.assert_allclose(got, sum(parts), atol=1e-6)
    np.testing.assert_allclose((one_by_one[0] + one_by_one[1]).total_LF, sum(f.total_LF for f in one_by_one[:2]))


def test_tail_is_near_the_exact_one_for_a_single_concept() -> None:
    whole, rng = crossed(30, 6), np.random.default_rng(2)
    values = np.where(rng.random((180, 40)) < 0.5, rng.random((180, 40)), 0).astype(np.float32)
    ranks = doubled_midranks(values, [whole])
    p_LF = upper_p(statistic(sums(ranks, whole), np.eye(30), ranked(ranks, whole)))
    concept, feature = (index.ravel() for index in np.indices((30, 40)))
    exact = exact_p(ranks, whole, whole.group_C[concept], feature, pair_sums(ranks, whole, concept, feature))
    ratio = (p_LF.ravel() / exact)[exact < 0.05]
    assert len(ratio) > 40
    assert ratio.min() > 0.9, "not smaller than it is"
    assert np.median(ratio) < 1.2


def test_tail_of_a_set_is_that_of_random_sets() -> None:
    """Skewed ranks (most values tied at zero): the normal tail would be too small."""
    whole, rng = crossed(40, 3), np.random.default_rng(3)
    values = np.where(rng.random((120, 1)) < 0.1, rng.random((120, 1)), 0).astype(np.float32)
    ranks = doubled_midranks(values, [whole])
    sets = (rng.random((20_000, 40)).argsort(1) < 5).astype(float)
    found = statistic(sums(ranks, whole), sets, ranked(ranks, whole))
    # Each stratum draws its own set in the null, so totals of single strata are put together at random.
    parts = [
        statistic(sums(ranks, one), sets, ranked(ranks, one)).total_LF[rng.permutation(len(sets)), 0]
        for s in range(3)
        for one in [panel("r", "held_out", {("cell", str(s)): whole.rows_CS[:, s]})]
    ]
    drawn = np.sum(parts, axis=0)
    p = upper_p(found)[:, 0]
    for level in (0.05, 0.01, 0.004):
        at = found.total_LF[np.argmin(np.abs(p - level)), 0]
        assert 0.5 * level < (drawn >= at - 1e-9).mean() < 1.3 * level


def test_two_values_give_the_rank_sum_test() -> None:
    whole, rng = crossed(60, 1), np.random.default_rng(4)
    values = rng.random((60, 1)).astype(np.float32)
    inside = np.arange(60) < 25
    values[inside] += 0.3
    ranks = doubled_midranks(values, [whole])
    found = statistic(sums(ranks, whole), inside[None].astype(float), ranked(ranks, whole))
    want = stats.mannwhitneyu(
        values[inside, 0], values[~inside, 0], alternative="greater", use_continuity=False, method="asymptotic"
    )
    assert stats.norm.sf(standardised(found))[0, 0] == pytest.approx(want.pvalue, rel=1e-6)
    assert set_auroc(ranks, [whole], inside, np.array([0]))[0] == pytest.approx(want.statistic / (25 * 35))


def test_a_feature_without_spread_has_no_evidence() -> None:
    whole = crossed(5, 2)
    ranks = doubled_midranks(np.zeros((10, 1), np.float32), [whole])
    found = statistic(sums(ranks, whole), np.eye(5), ranked(ranks, whole))
    assert (upper_p(found) == 1).all() and (standardised(found) == 0).all()


def test_a_covariate_takes_its_own_signal_and_leaves_the_other() -> None:
    whole, rng = crossed(30, 4), np.random.default_rng(5)
    length = rng.random(120)
    own = np.tile(np.arange(30) == 7, 4)
    values = np.stack([length, own + 0.1 * rng.random(120)], axis=1).astype(np.float32)
    ranks = doubled_midranks(values, [whole])
    left = residual_ranks(ranks, [whole], np.array([0, 1]), length[:, None, None])
    assert abs(np.corrcoef(left[:30, 0], length[:30])[0, 1]) < 0.2
    assert left[own, 1].mean() > 54, "of 60"
    constant = residual_ranks(ranks, [whole], np.array([0, 1]), np.ones((120, 1, 1)))
    np.testing.assert_array_equal(constant, ranks)


def test_every_label_may_have_its_own_covariate() -> None:
    whole, rng = crossed(20, 2), np.random.default_rng(6)
    values = rng.random((40, 2)).astype(np.float32)
    ranks = doubled_midranks(values, [whole])
    each = np.stack([values[:, 0], np.zeros(40)], axis=1)[:, :, None]
    left = residual_ranks(ranks, [whole], np.array([0, 1]), each)
    np.testing.assert_array_equal(left[:, 1], ranks[:, 1])
    assert abs(np.corrcoef(left[:20, 0], values[:20, 0])[0, 1]) < 0.3


def test_words_and_person_are_found_in_the_text() -> None:
    texts = ["She was sad; her sadness grew.", "I sat at ease.", 'He said: "I am angry."', "The saddle broke. We left."]
    named = names_word(texts, ["sad", "at ease", "angry"])
    assert named.tolist() == [[True, False, False], [False, True, False], [False, False, True], [False, False, False]]
    assert told_in_first_person(texts).tolist() == [False, True, False, True]
