"""Choice of texts and matched controls on counts that are known."""

import numpy as np
import pytest

from sae_emotions.causal.controls import (
    FIRES_IN,
    MOST,
    REFERENCE,
    SHARE_FACTOR,
    SIZE_FACTOR,
    controls_each,
    halves,
    match,
    traits,
)
from sae_emotions.causal.estimate import estimate
from sae_emotions.causal.texts import Firing, choose, strongest
from sae_emotions.config import AblateConfig

T, LATENTS = 30, 120


@pytest.fixture
def firing():
    rng = np.random.default_rng(0)
    rate_L = np.exp(rng.uniform(np.log(0.01), np.log(0.3), LATENTS))
    tokens_T = rng.integers(60, 140, T)
    active_TL = rng.binomial(tokens_T[:, None], rate_L).astype(np.float32)
    amount_TL = active_TL * np.exp(rng.normal(1, 0.4, LATENTS)).astype(np.float32)
    return Firing(active_TL, amount_TL, tokens_T)


def test_traits_are_shares_and_mean_norms(firing):
    norms_L = np.linspace(0.5, 2, LATENTS)
    found = traits(firing, norms_L, np.array([3, 7]))
    assert found.share_L[5] == pytest.approx(firing.active_TL[[3, 7], 5].sum() / firing.tokens_T[[3, 7]].sum())
    busy = int(firing.active_TL[3].argmax())
    mean = firing.amount_TL[[3, 7], busy].sum() / firing.active_TL[[3, 7], busy].sum()
    assert found.size_L[busy] == pytest.approx(mean * norms_L[busy])


def test_controls_match_on_the_features_own_texts(firing):
    norms_L = np.ones(LATENTS)
    features_F, candidates_C = np.arange(10), np.arange(10, LATENTS)
    uses = [np.flatnonzero(firing.active_TL[:, f] > 0)[:12] for f in features_F]
    for f, one in enumerate(match(firing, norms_L, features_F, uses, candidates_C, 8)):
        found = traits(firing, norms_L, uses[f])
        assert len(one.controls_K) == len(set(one.controls_K)) == 8
        assert set(one.controls_K) <= set(candidates_C)
        inside = one.controls_K[one.within_K]
        assert (np.abs(np.log(found.share_L[inside] / found.share_L[f])) <= np.log(SHARE_FACTOR) + 1e-6).all()
        assert (np.abs(np.log(found.size_L[inside] / found.size_L[f])) <= np.log(SIZE_FACTOR) + 1e-6).all()
        assert (found.fires_L[inside] >= FIRES_IN).all()
        # An outsider is taken only once no match is left.
        distance_C = np.maximum(
            np.abs(np.log(np.maximum(found.share_L, 1e-9) / found.share_L[f])) / np.log(SHARE_FACTOR),
            np.abs(np.log(np.maximum(found.size_L, 1e-9) / found.size_L[f])) / np.log(SIZE_FACTOR),
        )
        matches = ((distance_C <= 1) & (found.fires_L >= FIRES_IN))[candidates_C].sum()
        assert one.within_K.sum() == min(matches, 8)


def test_a_silent_latent_is_no_control(firing):
    firing.active_TL[:, 50] = firing.amount_TL[:, 50] = 0
    (one,) = match(firing, np.ones(LATENTS), np.array([0]), [np.arange(12)], np.arange(1, LATENTS), LATENTS)
    assert 50 not in one.controls_K


def test_controls_are_shared_within_the_tolerances(firing):
    features_F, candidates_C = np.arange(10), np.arange(10, LATENTS)
    uses = [np.arange(12)] * 10
    matches = match(firing, np.ones(LATENTS), features_F, uses, candidates_C, 8)
    assert len({c for one in matches for c in one.controls_K}) < 80


def test_controls_that_are_not_shared_are_all_different(firing):
    uses = [np.arange(12)] * 10
    matches = match(firing, np.ones(LATENTS), np.arange(10), uses, np.arange(10, LATENTS), 8, share=False)
    assert len({c for one in matches for c in one.controls_K}) == sum(len(one.controls_K) for one in matches) == 80


def test_halves_split_blindly_evenly_and_reproducibly():
    times_K = np.sum([halves(14, np.random.default_rng(seed)) for seed in range(200)], axis=0)
    assert 70 < times_K.min() < times_K.max() < 130  # 100 expected of each, wherever it stands in the order
    held_K = halves(21, np.random.default_rng(3))
    assert held_K.sum() == 10
    assert (halves(21, np.random.default_rng(3)) == held_K).all()


def test_few_and_short_texts_cover_all_features():
    rng = np.random.default_rng(4)
    fires_TF = rng.random((200, 15)) < 0.3
    tokens_T = rng.integers(50, 200, 200)
    chosen = choose(fires_TF, tokens_T, 12)
    assert (fires_TF[chosen].sum(0) >= 12).all()
    assert len(chosen) == len(set(chosen)) < 60
    assert tokens_T[chosen].mean() < tokens_T.mean()
    # The first text has the best ratio of features to cost of all.
    assert chosen[0] == np.argmax(fires_TF.sum(1) / (tokens_T + 25))


def test_a_feature_that_fires_too_seldom_takes_what_there_is():
    fires_TF = np.zeros((50, 2), bool)
    fires_TF[:, 0] = True
    fires_TF[[7, 30], 1] = True
    chosen = choose(fires_TF, np.full(50, 80), 12)
    assert {7, 30} <= set(chosen)
    assert len(chosen) == 12
    assert len(choose(np.zeros((50, 2), bool), np.full(50, 80), 12)) == 0


def test_a_features_texts_are_those_in_which_it_fires_most():
    amount_TF = np.array([[3.0, 0.0], [1.0, 0.0], [2.0, 5.0], [0.0, 0.0]])
    assert strongest(amount_TF, 2).tolist() == [[True, False], [False, False], [True, True], [False, False]]
    assert strongest(amount_TF, 9).tolist() == (amount_TF > 0).tolist()


def test_the_estimate_grows_with_features_texts_and_blocks():
    small, large = AblateConfig(max_texts=12), AblateConfig(max_texts=24)
    base = estimate(small, 100, (23, 7), 7e6, 57e6)
    assert estimate(small, 0, (23, 7), 7e6, 57e6) == 0
    assert base < estimate(small, 200, (23, 7), 7e6, 57e6) < 2 * base
    assert 1.5 * base < estimate(large, 100, (23, 7), 7e6, 57e6) < 2 * base
    assert estimate(small, 100, (23, 14), 7e6, 57e6) > 1.6 * base
    # What the screen keeps out costs its first-order effect alone, and that of its controls.
    some = small.model_copy(update={"features": 100})
    assert base < estimate(some, 1000, (23, 7), 7e6, 57e6) < estimate(small, 1000, (23, 7), 7e6, 57e6)


def test_as_many_controls_are_judged_as_were_asked_for_though_some_features_fall_out() -> None:
    for features in (1, 40, 199, 334, 5000):
        count = controls_each(1000, features)
        assert count % 2 == 0
        assert REFERENCE <= count // 2 <= MOST
        assert count // 2 * int(0.8 * features) >= 1000 or count // 2 == MOST
    assert controls_each(1000, 5000) == 2 * REFERENCE
