"""First-order attribution against exact removals that are small, and against whole forward passes."""

import numpy as np
import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM

from sae_emotions.causal.attribute import Asked, attributed, of_rows
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
    return [Asked(ids, own, np.setdiff1d(np.arange(4), [own])) for ids, own in zip(made, (0, 2, 0), strict=True)]


def exact(upper, found, one, latent):
    """Effect of removing a latent, by the pass that the stage itself uses."""
    text = enter(upper, TREE, one.ids, SPECIAL)
    acts_Q = torch.zeros(len(text.keep_Q))
    acts_Q[text.keep_Q] = found.features(text.x_QD[text.keep_Q])[:, latent]
    at_P = torch.nonzero(acts_Q)[:, 0]
    change = word_changes(upper, TREE, text, [Removal(at_P, acts_Q[at_P], found.W_dec_FD[latent], (0,))])
    return change.all_JW[0, one.own] - change.all_JW[0, one.outside].mean(), len(at_P), float(acts_Q.sum())


def test_small_removals_have_the_effect_that_the_gradient_says(upper, texts):
    found = dictionary(1e-4)
    seen = dict(attributed(upper, TREE, found, texts, SPECIAL))
    assert sorted(seen) == [0, 1, 2]
    # The words compared with count with their first token alone, so word 0 (two tokens) must not be among them here.
    for n in (0, 2):
        for latent, effect, active, amount in list(zip(*seen[n], strict=True))[:8]:
            wanted, positions, total = exact(upper, found, texts[n], int(latent))
            assert effect == pytest.approx(wanted, rel=0.04, abs=1e-6)
            assert (active, amount) == (positions, pytest.approx(total, rel=1e-4))


def test_a_latent_that_is_silent_has_no_effect(upper, texts):
    found = dictionary(1.0)
    silent = found._replace(active=lambda x_BD: Active.of(found.features(x_BD) * (torch.arange(LATENTS) != 7)))
    for _, one in attributed(upper, TREE, silent, texts, SPECIAL):
        assert 7 not in one.latent_N
        assert len(one.latent_N) == len(set(one.latent_N)) > 5


def test_batches_of_any_size_say_the_same(upper, texts, monkeypatch):
    found = dictionary(1.0)
    together = dict(attributed(upper, TREE, found, texts, SPECIAL))
    monkeypatch.setattr("sae_emotions.causal.attribute.BATCH_TOKENS", 1)
    alone = dict(attributed(upper, TREE, found, texts, SPECIAL))
    for n in together:
        assert np.array_equal(together[n].latent_N, alone[n].latent_N)
        assert together[n].effect_N == pytest.approx(alone[n].effect_N, abs=1e-5)


def test_both_passes_are_counted(upper, texts):
    before = upper.block_tokens
    list(attributed(upper, TREE, dictionary(1.0), texts[:1], SPECIAL))
    positions = len(texts[0].ids) + len(TREE.prompt) + 1
    assert upper.block_tokens - before == positions * (BLOCK + 1) + 2 * positions * (3 - BLOCK)


def test_rows_by_hand():
    found = dictionary(1.0)
    x_SD, grad_SD = torch.randn(3, D), torch.randn(3, D)
    acts_SL = found.features(x_SD)
    wanted_L = -(acts_SL * (grad_SD @ found.W_dec_FD.T)).sum(0)
    one = of_rows(found, x_SD, grad_SD)
    assert one.effect_N == pytest.approx(wanted_L[torch.from_numpy(one.latent_N)].numpy(), rel=1e-4, abs=1e-5)
    assert one.active_N.tolist() == (acts_SL > 0).sum(0)[torch.from_numpy(one.latent_N)].tolist()
