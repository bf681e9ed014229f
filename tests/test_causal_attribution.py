"""First-order attribution against exact removals that are small, and against whole forward passes."""

import numpy as np
import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM

from sae_emotions.causal.attribute import Asked, Slope, attribution, projection_effect, slopes, words_asked
from sae_emotions.causal.collateral import acts_of
from sae_emotions.causal.linear import Removable, linear
from sae_emotions.causal.profile import Profile, read
from sae_emotions.causal.readouts import WordTree
from sae_emotions.causal.runs import Removal, enter, word_changes
from sae_emotions.dictionary.encode import Dictionary
from sae_emotions.sparse.shapes import Active
from sae_emotions.upper import Upper

BLOCK, D, LATENTS, SPECIAL = 1, 32, 40, (0,)
# Word 0 is two tokens; the others one.
TREE = WordTree((5, 6), (7,), (-1,), (((-1, 7), (0, 4)), ((-1, 3),), ((-1, 8),), ((-1, 9),)))


@pytest.fixture(scope="module")
def upper():
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=80, hidden_size=D, intermediate_size=48, num_hidden_layers=4, num_attention_heads=4,
        num_key_value_heads=2, initializer_range=0.2,
    )  # fmt: skip
    return Upper(LlamaForCausalLM(config).eval(), BLOCK)


def dictionary(scale):
    """A dictionary of random directions, whose activations are so small that effects are linear in them."""
    g = torch.Generator().manual_seed(1)
    encoder_DL, W_dec_FD = torch.randn(D, LATENTS, generator=g), torch.randn(LATENTS, D, generator=g)

    def active(x_BD):
        return Active.of(scale * torch.relu(x_BD @ encoder_DL - 1))

    return Dictionary("random", BLOCK, D, LATENTS, W_dec_FD, torch.zeros(D), None, active)


@pytest.fixture(scope="module")
def texts():
    g = torch.Generator().manual_seed(2)
    made = [torch.randint(10, 80, (length,), generator=g).tolist() for length in (9, 14, 11)]
    made[1][4] = SPECIAL[0]
    return list(zip(made, (0, 2, 0), strict=True))


def profile(own):
    """Word 0 is two tokens, of which only the own word's second one is read."""
    weight_C = np.array([0.0, 0.3, -0.5, 0.2])
    weight_C[own] = 0.8
    return Profile(own, np.setdiff1d(np.arange(1, 4), [own]), weight_C)


def attributed(upper, found, texts):
    asked = [words_asked(TREE, ids, profile(own)) for ids, own in texts]
    return {n: attribution(found, slope) for n, slope in slopes(upper, asked, SPECIAL)}


def exact(upper, found, one, latent):
    """Effect of removing a latent, by the pass that the stage itself uses."""
    ids, own = one
    text = enter(upper, TREE, ids, SPECIAL)
    acts_Q = torch.zeros(len(text.keep_Q))
    acts_Q[text.keep_Q] = found.features(text.x_QD[text.keep_Q])[:, latent]
    at_P = torch.nonzero(acts_Q)[:, 0]
    change = word_changes(upper, TREE, text, [Removal(at_P, acts_Q[at_P], found.W_dec_FD[latent], (0,))])
    by_text = {0: (change.first_JW[0], change.all_JW[0])}
    return read([by_text], [0], profile(own)).profile_N[0], len(at_P), float(acts_Q.sum())


def test_small_removals_have_the_effect_that_the_gradient_says(upper, texts):
    found = dictionary(1e-4)
    seen = attributed(upper, found, texts)
    assert sorted(seen) == [0, 1, 2]
    for n in range(3):
        for latent, effect, active, amount in list(zip(*seen[n], strict=True))[:8]:
            wanted, positions, total = exact(upper, found, texts[n], int(latent))
            assert effect == pytest.approx(wanted, rel=0.04, abs=1e-6)
            assert (active, amount) == (positions, pytest.approx(total, rel=1e-4))


def test_a_latent_that_is_silent_has_no_effect(upper, texts):
    found = dictionary(1.0)
    silent = found._replace(active=lambda x_BD: Active.of(found.features(x_BD) * (torch.arange(LATENTS) != 7)))
    for one in attributed(upper, silent, texts).values():
        assert 7 not in one.latent_N
        assert one.effect_of(7) == 0
        assert len(one.latent_N) == len(set(one.latent_N)) > 5


def test_batches_of_any_size_say_the_same(upper, texts, monkeypatch):
    found = dictionary(1.0)
    together = attributed(upper, found, texts)
    monkeypatch.setattr("sae_emotions.causal.attribute.BATCH_TOKENS", 1)
    alone = attributed(upper, found, texts)
    for n in together:
        assert np.array_equal(together[n].latent_N, alone[n].latent_N)
        assert together[n].effect_N == pytest.approx(alone[n].effect_N, rel=1e-4, abs=1e-5)


def test_both_passes_are_counted(upper, texts):
    before = upper.block_tokens
    attributed(upper, dictionary(1.0), texts[:1])
    positions = len(texts[0][0]) + len(TREE.prompt) + 1
    assert upper.block_tokens - before == positions * (BLOCK + 1) + 2 * positions * (3 - BLOCK)


def test_rows_by_hand():
    found = dictionary(1.0)
    x_SD, grad_SD = torch.randn(3, D), torch.randn(3, D)
    acts_SL = found.features(x_SD)
    wanted_L = -(acts_SL * (grad_SD @ found.W_dec_FD.T)).sum(0)
    one = attribution(found, Slope(torch.arange(3), x_SD, grad_SD))
    assert one.effect_N == pytest.approx(wanted_L[torch.from_numpy(one.latent_N)].numpy(), rel=1e-4, abs=1e-5)
    assert one.active_N.tolist() == (acts_SL > 0).sum(0)[torch.from_numpy(one.latent_N)].tolist()


def test_what_is_read_further_up_moves_as_the_gradient_says(upper, texts):
    """A projection on a vector after block 2, at the last position, when a little is added at one position."""
    vector_D, reached = torch.nn.functional.normalize(torch.randn(D), dim=0), 2
    ids, after = texts[0][0], (5, 6)
    asked = [Asked(ids, after, lambda x_AD: x_AD[-1] @ vector_D)]
    ((_, slope),) = slopes(upper, asked, SPECIAL, reached)
    x_QD = upper.residual(torch.tensor([[*ids, *after]]))[0]

    def reading(x_QD):
        block = upper.blocks[reached]
        seen = []
        handle = block.register_forward_hook(
            lambda module, args, output: seen.append(output[0] if isinstance(output, tuple) else output)
        )
        upper.run(x_QD[None])
        handle.remove()
        return float(seen[0].reshape(len(x_QD), D)[-1] @ vector_D)

    step_D = 1e-2 * torch.randn(D, generator=torch.Generator().manual_seed(3))
    moved_QD = x_QD.clone()
    moved_QD[4] += step_D
    where = slope.at_S.tolist().index(4)
    assert reading(moved_QD) - reading(x_QD) == pytest.approx(float(slope.grad_SD[where] @ step_D), rel=0.05)
    only = slope.where(slope.at_S == 4)
    usual_D = only.x_SD[0] + vector_D
    assert projection_effect(only, vector_D, usual_D) == pytest.approx(float(only.grad_SD[0] @ vector_D), rel=1e-3)


SINGLE = WordTree(TREE.prompt, (), (), (((-1, 7),), ((-1, 3),), ((-1, 8),), ((-1, 9),)))


def all_at_once(upper, found, texts, random=()):
    """First-order effects on each word by itself."""
    entered = [enter(upper, SINGLE, ids, SPECIAL) for ids, _ in texts]
    acts = [acts_of(found, text, np.arange(LATENTS)) for text in entered]
    g = torch.Generator().manual_seed(5)
    dense_CD = torch.nn.functional.normalize(torch.randn(4, D, generator=g), dim=1)
    removable = Removable(found.W_dec_FD, dense_CD, torch.randn(D, generator=g), dict(random))
    uses = [np.array([0, 2])] * LATENTS
    given = (entered, acts, removable, np.arange(LATENTS), uses, np.eye(4))
    return removable, linear(upper, SINGLE, *given, lambda n: None)


@pytest.mark.parametrize("tokens", [1, 1024])
def test_all_words_at_once_are_what_each_profile_says(upper, texts, monkeypatch, tokens):
    found = dictionary(1.0)
    monkeypatch.setattr("sae_emotions.causal.attribute.BATCH_TOKENS", tokens)
    removable, once = all_at_once(upper, found, texts)
    asked = [words_asked(SINGLE, ids, profile(own)) for ids, own in texts]
    for n, slope in slopes(upper, asked, SPECIAL):
        weight_W = profile(texts[n][1]).weight_C
        seen = attribution(found, slope)
        wanted_L = np.zeros(LATENTS)
        wanted_L[seen.latent_N] = seen.effect_N
        assert weight_W @ once.latents_TRL[n] == pytest.approx(wanted_L, rel=1e-3, abs=1e-4)
        for c, vector_D in enumerate(removable.dense_CD):
            wanted = projection_effect(slope, vector_D, removable.usual_D)
            assert weight_W @ once.dense_TRC[n][:, c] == pytest.approx(wanted, rel=1e-3, abs=1e-4)


def test_a_random_direction_is_removed_as_far_as_its_feature_reaches(upper, texts):
    """A direction that is the feature's own has the feature's effect; another has what its part along the gradient says."""
    found = dictionary(1.0)
    own_D = torch.nn.functional.normalize(found.W_dec_FD[6], dim=0)
    _, once = all_at_once(upper, found, texts, {6: own_D, 7: torch.zeros(D)}.items())
    assert once.random[6] == pytest.approx(once.latents_TRL[[0, 2], :, 6].mean(0), rel=1e-4, abs=1e-6)
    assert np.abs(once.random[6]).max() > 0
    assert once.random[7].tolist() == [0] * 4


def test_a_pass_back_for_each_number_is_counted(upper, texts):
    before = upper.block_tokens
    all_at_once(upper, dictionary(1.0), texts[:1])
    positions = len(texts[0][0]) + len(TREE.prompt)
    assert upper.block_tokens - before == positions * (BLOCK + 1) + (1 + 4) * positions * (3 - BLOCK)
