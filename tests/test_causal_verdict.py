"""The causal rule on synthetic effects: its size under the null, its power, and what it refuses to judge."""

import numpy as np
import pytest

from sae_emotions.causal.verdict import Screening, benjamini_hochberg, judge, moderated, pooled_p, spread, stands_in

F, K = 40, 25


def drawn(rng, shift=0.0, dense=-20.0, features=F, controls=K, heavy=True):
    """Effects in which removing anything moves any word a little: every feature has a scale of its own, heavy tails."""
    scale_F = np.exp(rng.normal(0, 0.7, features)) * 0.02
    tails = (lambda size: rng.standard_t(4, size)) if heavy else (lambda size: rng.standard_normal(size))
    effect_F = scale_F * (tails(features) + shift)
    reference, held_back = ([scale * tails(controls) for scale in scale_F] for _ in range(2))
    random = [scale * tails(2) for scale in scale_F]
    return effect_F, scale_F * dense, reference, held_back, random


def judged_of(given):
    effect_F, dense_F, reference, held_back, random = given
    return judge(effect_F, dense_F, reference, held_back, random, 0.05)


def test_no_more_than_the_rate_is_confirmed_where_nothing_is_causal():
    """Benjamini-Hochberg at q under the full null: any confirmation at all in at most q of the runs."""
    rng = np.random.default_rng(0)
    runs = 200
    any_confirmed = sum(judged_of(drawn(rng)).confirmed_F.any() for _ in range(runs))
    # 0.05 · 200 = 10; the 99.5 % point of the binomial is 18.
    assert any_confirmed <= 18


def test_a_single_feature_has_size_at_most_five_percent():
    """With one tested feature q is p: the rule must call at most 5 % of null features causal, at any scale."""
    rng = np.random.default_rng(1)
    p = np.concatenate([judged_of(drawn(rng)).p_F for _ in range(50)])
    share = (p <= 0.05).mean()
    assert 0.03 < share <= 0.05 + 3 * (0.05 * 0.95 / len(p)) ** 0.5


def test_real_effects_are_found_and_controls_are_not():
    rng = np.random.default_rng(2)
    judged = judged_of(drawn(rng, shift=-12.0))
    assert judged.confirmed_F.mean() > 0.9
    assert judged.controls_tested == F * K
    assert judged.controls_confirmed <= 0.05 * judged.controls_tested
    assert judged.random_tested == 2 * F
    assert judged.random_confirmed <= 0.1 * judged.random_tested


def test_a_sign_flip_over_texts_would_be_fooled_and_this_is_not():
    """Each latent shifts a word alike in all texts: tested over texts most controls are 'significant'."""
    from scipy.stats import wilcoxon

    rng = np.random.default_rng(3)
    own = rng.normal(0, 1, 200)
    over_texts = np.mean([wilcoxon(x + rng.normal(0, 0.5, 12), alternative="less").pvalue < 0.05 for x in own])
    assert over_texts > 0.3
    judged = judged_of(drawn(rng, heavy=False))
    assert judged.controls_confirmed <= 0.05 * judged.controls_tested


def test_a_feature_is_tested_only_where_the_dense_vector_moves_the_word():
    rng = np.random.default_rng(4)
    effect_F, dense_F, reference, held_back, random = drawn(rng, shift=-12.0)
    dense_F[:5] = 0.0
    judged = judge(effect_F, dense_F, reference, held_back, random, q=0.05)
    assert judged.tested_F.tolist() == [False] * 5 + [True] * (F - 5)
    assert not judged.confirmed_F[:5].any()
    assert np.isnan(judged.q_F[:5]).all()
    assert judged.controls_tested == (F - 5) * K


def test_raising_the_word_is_never_causal():
    rng = np.random.default_rng(5)
    judged = judged_of(drawn(rng, shift=+12.0))
    assert not judged.confirmed_F.any()
    # Even where every control raises it much more.
    effect_F, dense_F, reference, held_back, random = drawn(rng, shift=+1.0)
    held_back = [np.abs(one) + 1 for one in held_back]
    assert not judge(np.abs(effect_F), dense_F, reference, held_back, random, q=0.9).confirmed_F.any()


def test_too_few_reference_controls_are_not_testable():
    rng = np.random.default_rng(6)
    effect_F, dense_F, reference, held_back, random = drawn(rng, shift=-12.0)
    reference[0], reference[1] = reference[0][:3], reference[1][:0]
    judged = judge(effect_F, dense_F, reference, held_back, random, q=0.05)
    assert not judged.tested_F[:2].any()
    assert np.isnan(judged.z_F[:2]).all()
    assert judged.tested_F[2:].all()


@pytest.mark.parametrize("screened", [True, False])
def test_a_choice_by_a_screen_is_part_of_the_test(screened):
    """Nothing is causal, but what a latent does by chance it does on all texts: those that a screen chooses are ahead."""
    rng = np.random.default_rng(7)
    runs, labelled, tested, each, further = 100, 200, 30, 7, 50
    found = 0

    def latents(count: int) -> tuple[np.ndarray, np.ndarray]:
        own = rng.standard_t(4, count)
        return own + 0.5 * rng.standard_normal(count), own + 0.5 * rng.standard_normal(count)

    for _ in range(runs):
        score_X, effect_X = latents(labelled)
        chosen = np.argsort(score_X)[:tested]
        limit = score_X[chosen].max()
        reference = [latents(each)[1] for _ in chosen]
        held, more = [latents(each) for _ in chosen], [latents(further) for _ in chosen]
        screening = Screening(
            [score_K <= limit for score_K, _ in held],
            [effect_K[score_K <= limit] for score_K, effect_K in more],
            [int((score_K > limit).sum()) for score_K, _ in more],
            labelled - tested,
        )
        judged = judge(
            effect_X[chosen],
            np.full(tested, -50.0),
            reference,
            [effect_K for _, effect_K in held],
            [np.zeros(0)] * tested,
            0.05,
            screening=screening if screened else None,
        )
        found += int(judged.confirmed_F.any())
        if screened:
            assert judged.controls_tested == tested * (each + further)
    # 5 of 100; the 99.5 % point of the binomial is 11.
    assert (found <= 11) == screened


def test_a_screen_that_keeps_nothing_out_changes_nothing():
    rng = np.random.default_rng(8)
    effect_F, dense_F, reference, held_back, random = drawn(rng, shift=-3.0)
    nothing = Screening([np.ones(K, bool)] * F, [np.zeros(0)] * F, [0] * F, 0)
    one, other = (judge(effect_F, dense_F, reference, held_back, random, 0.05, screening=s) for s in (None, nothing))
    assert one.q_F.tolist() == other.q_F.tolist()
    assert one.controls_confirmed == other.controls_confirmed
    twice = Screening([np.ones(K, bool)] * F, [np.zeros(0)] * F, [K] * F, F)
    halved = judge(effect_F, dense_F, reference, held_back, random, 0.05, screening=twice)
    assert halved.p_F == pytest.approx((one.p_F * (1 + F * K)) / (1 + 2 * F * K))
    assert halved.controls_tested == 2 * F * K


def test_no_feature_at_all_is_no_error():
    judged = judge(np.zeros(0), np.zeros(0), [], [], [], q=0.05)
    assert len(judged.z_F) == judged.controls_tested == judged.random_tested == 0


def test_pooled_p_counts_ties_and_is_never_zero():
    null_N = np.array([-2.0, -1.0, -1.0, 0.0])
    assert pooled_p(np.array([-3.0, -2.0, -1.0, 5.0]), null_N) == pytest.approx([1 / 5, 2 / 5, 4 / 5, 1.0])


def test_spread_is_about_zero():
    assert spread(np.array([3.0, 3.0, 3.0])) == pytest.approx(3.0)


def test_a_unit_borrows_from_the_median_feature():
    unit_F = moderated(np.array([0.0, 3.0, 4.0, np.nan]))
    assert unit_F[:3] == pytest.approx([3 / 2**0.5, 3.0, (25 / 2) ** 0.5])
    assert np.isnan(unit_F[3])


def test_benjamini_hochberg_matches_its_definition():
    p = np.random.default_rng(7).random(30) ** 2
    order = np.argsort(p)
    q = np.minimum.accumulate((p[order] * len(p) / np.arange(1, len(p) + 1))[::-1])[::-1]
    assert benjamini_hochberg(p)[order] == pytest.approx(np.minimum(q, 1))


def test_a_stand_in_is_confirmed_as_if_all_were_judged_anew():
    rng = np.random.default_rng(8)
    for _ in range(20):
        others_F, p_X = rng.random(15) ** 4, np.concatenate([rng.random(30) ** 4, [1e-9, 1.0]])
        p_X[:3] = others_F[:3]
        expected = [benjamini_hochberg(np.append(others_F, p))[-1] <= 0.1 for p in p_X]
        assert stands_in(p_X, others_F, 0.1).tolist() == expected
