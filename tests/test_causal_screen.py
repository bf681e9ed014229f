"""The screen's choice and its agreement, and groups of features with control groups, on numbers that are known."""

import numpy as np
import pytest

from sae_emotions.causal.controls import Matched, halves
from sae_emotions.causal.joint import CONTROLS, groups_of, redundancy
from sae_emotions.causal.linear import HELD, Linear, basis_of
from sae_emotions.causal.profile import Profile, read
from sae_emotions.causal.screen import Screened, agreement, screen
from sae_emotions.causal.texts import Firing
from sae_emotions.causal.verdict import units

WORDS, FEATURES = 30, 40


@pytest.fixture
def known():
    """Forty features and 160 candidates whose first-order effects on 30 words are drawn; feature 7 lowers its concept's."""
    rng = np.random.default_rng(0)
    basis_RW = np.linalg.qr(rng.standard_normal((WORDS, 6)))[0].T
    latents_TRL = rng.standard_normal((5, 6, FEATURES + 160)).astype(np.float32)
    profiles = {}
    for own in range(3):
        weight_C = rng.standard_normal(WORDS) @ basis_RW.T @ basis_RW
        profiles[own] = Profile(own, np.arange(10, WORDS), weight_C / np.linalg.norm(weight_C))
    own_F = np.arange(FEATURES) % 3
    latents_TRL[:, :, 7] = -20 * basis_RW @ profiles[1].weight_C
    uses = [np.sort(rng.permutation(5)[:3]) for _ in range(FEATURES)]
    matches = [Matched(FEATURES + rng.permutation(160)[:14], np.ones(14, bool)) for _ in range(FEATURES)]
    held = [halves(14, rng) for _ in range(FEATURES)]
    random = {2: np.zeros(6), 3: -50 * basis_RW @ profiles[0].weight_C}
    dense_RC = np.stack([-50 * basis_RW @ profiles[own].weight_C for own in range(3)], axis=1)
    found = Linear(basis_RW, latents_TRL, np.tile(dense_RC.astype(np.float32), (5, 1, 1)), random)
    return found, np.arange(FEATURES), own_F, profiles, uses, matches, held


def through(known, most: int | None) -> Screened:
    found, places_F, own_F, profiles, uses, matches, held = known
    return screen(found, places_F, own_F, profiles, uses, matches, held, most)


def test_effects_are_read_as_exact_ones_are(known):
    found, _, own_F, profiles, uses, matches, held = known
    screened = through(known, None)
    change_TLW = np.einsum("trl,rw->tlw", found.latents_TRL, found.basis_RW)
    for f in (0, 7, 31):
        of = profiles[int(own_F[f])]
        for place, got in ((f, screened.feature.some(np.array([f]))), (matches[f].controls_K[4], screened.controls[f])):
            changes = {t: (change_TLW[t, place],) * 2 for t in range(5)}
            wanted, n = read([changes], uses[f], of), 0 if place == f else 4
            assert [one[n] for one in got] == pytest.approx([one[0] for one in wanted], rel=1e-4)
    reference = [one.specific_N[~held_K] for one, held_K in zip(screened.controls, held, strict=True)]
    assert screened.unit_F == pytest.approx(units(reference))


def test_without_a_limit_all_is_let_through(known):
    screened = through(known, None)
    assert screened.limit == np.inf
    assert screened.feature_F.all() and screened.random == {2, 3}
    assert all((one == held_K).all() for one, held_K in zip(screened.held, known[-1], strict=True))


def test_features_controls_and_random_directions_go_through_one_limit(known):
    screened = through(known, 10)
    assert screened.feature_F.sum() == 10 and screened.feature_F[7]
    # The first feature that is kept out sets the limit.
    assert screened.z_F[screened.feature_F].max() < screened.limit == screened.z_F[~screened.feature_F].min()
    z_FK = np.array([one.specific_N / unit for one, unit in zip(screened.controls, screened.unit_F, strict=True)])
    let_FK, held_FK = np.array(screened.held), np.array(known[-1])
    assert z_FK[let_FK].max() < screened.limit <= z_FK[held_FK & ~let_FK].min()
    assert 0 < let_FK.sum() < 0.5 * held_FK.sum() and not (let_FK & ~held_FK).any()
    assert screened.random == {3}  # the other does nothing


def test_what_cannot_be_tested_takes_no_place(known):
    """The dense vector of concept 1 raises its words, so none of its features is run, and others are let through."""
    found = known[0]
    found.dense_TRC[:, :, 1] *= -1
    screened = through(known, 10)
    assert screened.feature_F.sum() == 10 and not screened.feature_F[known[2] == 1].any()
    assert sum(one.sum() for one in np.array(screened.held)[known[2] == 1]) > 0  # but controls stay part of the null


def test_a_feature_without_a_reference_is_not_let_through(known):
    *given, held = known
    held[4] = np.ones(14, bool)
    screened = through((*given, held), 10)
    assert np.isnan(screened.unit_F[4]) and not screened.feature_F[4] and not screened.held[4].any()


def test_the_fewest_directions_that_hold_most_of_the_weights():
    rng = np.random.default_rng(1)
    common_RW = rng.standard_normal((4, WORDS))
    some = [
        Profile(0, np.arange(9), rng.standard_normal(4) @ common_RW + 0.01 * rng.standard_normal(WORDS))
        for _ in range(50)
    ]
    basis_RW = basis_of(some)
    assert len(basis_RW) <= 4
    assert basis_RW @ basis_RW.T == pytest.approx(np.eye(len(basis_RW)), abs=1e-6)
    weight_CW = np.stack([one.weight_C for one in some])
    held = np.sum((weight_CW @ basis_RW.T) ** 2) / np.sum(weight_CW**2)
    less = np.sum((weight_CW @ basis_RW[:-1].T) ** 2) / np.sum(weight_CW**2)
    assert less < HELD <= held
    assert basis_of([Profile(0, np.arange(0), np.zeros(5))]).shape == (1, 5)  # a single concept, which nothing is like


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
