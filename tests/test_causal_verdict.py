"""The causal rule on synthetic effects: its size under the null, its power, and what it refuses to judge."""

import numpy as np
import pytest

from sae_emotions.causal.verdict import benjamini_hochberg, judge, moderated, pooled_p, spread, stands_in

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


@pytest.mark.parametrize("controls", ["screened alike", "not screened"])
def test_a_choice_by_a_screen_is_part_of_the_test(controls):
    """Nothing is causal, but those that a screen chooses by something like their effects are ahead of all others."""
    rng = np.random.default_rng(7)
    runs, labelled, tested, each = 100, 200, 30, 13
    found = 0

    def latents(count: int) -> tuple[np.ndarray, np.ndarray]:
        own = rng.standard_t(4, count)
        return own + 0.5 * rng.standard_normal(count), own + 0.5 * rng.standard_normal(count)

    for _ in range(runs):
        score_F, effect_F = latents(labelled)
        limit = np.sort(score_F)[tested - 1]
        held = [latents(each) for _ in range(labelled)]
        judged = judge(
            effect_F[score_F <= limit],
            np.full(tested, -50.0),
            [latents(each)[1] for _ in range(tested)],
            [effect_K for (_, effect_K), let in zip(held, score_F <= limit, strict=True) if let],
            [np.zeros(0)] * tested,
            0.05,
        )
        if controls == "screened alike":
            judged = judge(
                np.where(score_F <= limit, effect_F, np.inf),
                np.full(labelled, -50.0),
                [latents(each)[0] for _ in range(labelled)],  # references are read to first order
                [np.where(score_K <= limit, effect_K, np.inf) for score_K, effect_K in held],
                [np.zeros(0)] * labelled,
                0.05,
            )
            assert judged.controls_tested == labelled * each
            assert (judged.p_F[score_F > limit] == 1).all()
        found += int(judged.confirmed_F.any())
    # 5 of 100; the 99.5 % point of the binomial is 11.
    assert (found <= 11) == (controls == "screened alike")


def test_a_screen_finds_what_is_found_without_it():
    """Where something is causal, keeping out what is not extreme costs nothing."""
    rng = np.random.default_rng(8)
    effect_F, dense_F, reference, held_back, random = drawn(rng, features=200)
    effect_F[:20] -= 12 * np.array([spread(one) for one in reference[:20]])
    gate = (reference, held_back)
    whole = judge(effect_F, dense_F, reference, held_back, random, 0.05, gate)
    unit_F = whole.unit_F
    limit = np.sort(whole.z_F)[39]
    kept = [np.where(one / unit <= limit, one, np.inf) for one, unit in zip(held_back, unit_F, strict=True)]
    some = judge(np.where(whole.z_F <= limit, effect_F, np.inf), dense_F, reference, kept, random, 0.05, gate)
    assert whole.confirmed_F[:20].sum() >= 18
    assert some.confirmed_F.tolist() == whole.confirmed_F.tolist()
    assert some.controls_confirmed == whole.controls_confirmed
    assert some.dense_p_F.tolist() == whole.dense_p_F.tolist()
    lowest = whole.z_F <= limit
    assert some.p_F[lowest] == pytest.approx(whole.p_F[lowest])


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
