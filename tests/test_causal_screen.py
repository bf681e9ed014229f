"""The screen's choice and its agreement, and groups of features with control groups, on numbers that are known."""

import numpy as np
import pytest

from sae_emotions.causal.joint import CONTROLS, groups_of, redundancy
from sae_emotions.causal.screen import Screened, _scores, agreement, chosen
from sae_emotions.causal.texts import Firing


def test_the_lowest_scores_are_chosen_and_keep_their_order():
    score_X = np.array([-0.1, -3.0, 2.0, -1.0, 0.0])
    assert chosen(score_X, 2).tolist() == [1, 3, 0, 2, 4]
    assert (
        chosen(score_X, None).tolist() == chosen(score_X, 5).tolist() == chosen(score_X, 9).tolist() == [0, 1, 2, 3, 4]
    )


def test_scores_are_effects_for_as_much_that_is_added_in_units_of_the_candidates():
    effect_CL = np.array([[-4.0, 1.0, -1.0, 0.0, 9.0]])
    removed_CL = np.array([[2.0, 1.0, 1.0, 0.0, 3.0]])
    scores = _scores(effect_CL, removed_CL, np.array([1, 2, 3]))  # of which the last is silent
    assert scores[0].tolist() == [-2.0, 1.0, -1.0, 0.0, 3.0]
    found = Screened(np.array([7]), np.array([2]), effect_CL, np.zeros((1, 5)), scores)
    assert [one.tolist() for one in found.of(np.array([7, 7]), np.array([4, 0]))] == [[9.0, -4.0], [3.0, -2.0]]


def test_rank_agreement_is_spearmans_with_an_interval_that_holds_it():
    rng = np.random.default_rng(0)
    within = 0
    for _ in range(200):
        x, y = rng.multivariate_normal([0, 0], [[1, 0.7], [0.7, 1]], 60).T
        found = agreement(x, np.exp(y))
        within += found.low < 6 / np.pi * np.arcsin(0.35) < found.high
    assert 180 <= within <= 199
    assert agreement(x, x)[:3] == (1.0, 1.0, 1.0)
    assert agreement(x[:7], y[:7]).rho is None
    assert agreement(x, np.zeros(60)).rho is None


@pytest.fixture
def firing():
    rng = np.random.default_rng(1)
    active_TL = rng.binomial(80, 0.05, (20, 120)).astype(np.float32)
    active_TL[:, 3] = 0
    return Firing(active_TL, active_TL * rng.uniform(1, 2, 120).astype(np.float32), np.full(20, 80))


def test_groups_are_concepts_with_several_features_that_fire(firing):
    own_F = np.array([5, 2, 5, 2, 8, 5, 8])
    found = groups_of(firing, np.ones(120), own_F, np.arange(7, 120))
    # Of concept 2 one feature (number 3) is silent, so that nothing is removed together.
    assert [(one.own, one.members_M.tolist()) for one in found] == [(5, [0, 2, 5]), (8, [4, 6])]
    for one in found:
        added_T = firing.amount_TL[:, one.members_M].sum(1)
        assert sorted(one.texts.tolist()) == sorted(np.argsort(-added_T)[:6].tolist())
        assert one.controls_KM.shape == (CONTROLS, len(one.members_M))
        assert len(np.unique(one.controls_KM)) == one.controls_KM.size  # nor in two groups
        assert one.controls_KM.min() >= 7
    few = Firing(firing.active_TL[:5], firing.amount_TL[:5], firing.tokens_T[:5])
    assert groups_of(few, np.ones(120), own_F, np.arange(7, 120)) == []


def test_too_few_candidates_give_fewer_groups(firing):
    (one,) = groups_of(firing, np.ones(120), np.array([0, 0]), np.arange(7, 12))
    assert len(one.controls_KM) == 2


def test_redundancy_is_told_from_sums():
    rng = np.random.default_rng(2)
    sums = -rng.uniform(0.5, 1, 30)
    more = redundancy(sums * 1.5, sums)
    assert more.joint is not None and more.single is not None and more.p is not None
    assert more.joint < more.single < 0
    assert more.p < 1e-4
    assert redundancy(sums, sums).p == 1.0
    assert (redundancy(sums + rng.normal(0, 0.1, 30), sums).p or 0) > 0.01
    assert redundancy([], []) == (None, None, None)
