"""Removals carried as changes alone: the same effects as whole passes of the blocks, and taken only where they are."""

import re

import numpy as np
import pytest
import torch
import transformers

from sae_emotions.causal import deltas, runners
from sae_emotions.causal.readouts import word_tree
from sae_emotions.causal.runners import Whole, runner_for
from sae_emotions.causal.runs import Removal, enter
from sae_emotions.upper import Upper
from tests.test_causal_runs import READOUT, SPECIAL, WORDS, Pieces, removals

BLOCK = 1
SHAPE = {
    "vocab_size": 80,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 4,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "initializer_range": 0.2,
}


def made(name: str = "Llama", **changes):
    torch.manual_seed(0)
    config = getattr(transformers, f"{name}Config")(**SHAPE | changes)
    return getattr(transformers, f"{name}ForCausalLM")(config).eval().requires_grad_(False)


@pytest.fixture(scope="module")
def upper():
    return Upper(made(), BLOCK)


@pytest.fixture(scope="module")
def tree():
    return word_tree(Pieces(), READOUT, WORDS)


@pytest.fixture(scope="module")
def text(upper, tree):
    ids = torch.randint(3, 80, (19,), generator=torch.Generator().manual_seed(1)).tolist()
    return enter(upper, tree, ids, SPECIAL)


@pytest.fixture(scope="module")
def carriers(upper):
    made = {dtype: deltas.deltas(upper.model, BLOCK, 60, dtype) for dtype in (torch.float32, torch.bfloat16)}
    yield made
    for one in made.values():
        one.close()


def words(runner, tree, *work):
    return list(runner.words(tree, work, lambda n: None))


def test_changes_alone_are_the_changes_of_whole_passes(upper, tree, text, carriers):
    some = removals(tree)
    (own,) = words(Whole(upper), tree, (text, some))
    (found,) = words(carriers[torch.float32], tree, (text, some))
    for found_JW, own_JW in zip(found, own, strict=True):
        np.testing.assert_allclose(found_JW, own_JW, rtol=1e-4, atol=5e-6)
    assert np.nanmin(np.nanmax(np.abs(own.all_JW), axis=1)) > 1e-3


def test_rounding_of_changes_is_relative_to_them(upper, tree, text, carriers):
    """However small the removal is, its effects are right to a few thousandths."""
    for size in (1.0, 1e-2):
        some = [one._replace(amount_P=one.amount_P * size) for one in removals(tree)]
        (exact,) = words(carriers[torch.float32], tree, (text, some))
        (found,) = words(carriers[torch.bfloat16], tree, (text, some))
        error_J = np.sqrt(np.nanmean((found.all_JW - exact.all_JW) ** 2, axis=1) / np.nanmean(exact.all_JW**2, axis=1))
        assert 0 < error_J.max() < 0.01


def test_removing_nothing_changes_nothing(tree, text, carriers):
    some = removals(tree)
    nothing = [one._replace(amount_P=one.amount_P * 0) for one in some]
    nothing += [one._replace(positions_P=one.positions_P[:0], amount_P=one.amount_P[:0]) for one in some]
    (found,) = words(carriers[torch.bfloat16], tree, (text, nothing))
    assert np.nanmax(np.abs(found.all_JW)) < 1e-6
    assert max(map(abs, carriers[torch.bfloat16].kl(text, nothing))) < 1e-6


def test_batches_and_texts_come_back_in_order(monkeypatch, upper, tree, text, carriers):
    other = enter(upper, tree, text.packed.ids_Q[3 : text.packed.text].tolist(), SPECIAL)
    some, fewer = removals(tree, 17), removals(tree, 5, seed=4)
    runner = carriers[torch.float32]
    counts: list[int] = []
    together = list(runner.words(tree, [(text, some), (other, fewer)], counts.append))
    assert counts == [17, 5]
    monkeypatch.setattr(deltas, "TOKENS", 70)
    apart = list(runner.words(tree, [(text, some), (other, fewer)], counts.append))
    monkeypatch.setattr(deltas, "SLOTS", 1)
    alone = list(runner.words(tree, [(text, some), (other, fewer)], counts.append))
    assert counts[-22:] == [1] * 22
    for one in (apart, alone):
        for found, wanted in zip(one, together, strict=True):
            np.testing.assert_allclose(found.all_JW, wanted.all_JW, rtol=1e-4, atol=2e-6)


def test_kl_is_that_of_whole_passes(upper, text, carriers):
    g = torch.Generator().manual_seed(3)
    some = [
        Removal(torch.tensor(at), 0.3 * torch.ones(len(at)), torch.randn(32, generator=g)) for at in ([2, 9], [14], [0])
    ]
    no_words = runners.WordTree((), (), (), ())
    plain = enter(upper, no_words, text.packed.ids_Q[: text.packed.text].tolist(), SPECIAL)
    own = Whole(upper).kl(plain, some)
    assert min(own) > 1e-4
    assert carriers[torch.float32].kl(plain, some) == pytest.approx(own, rel=1e-3)
    assert carriers[torch.bfloat16].kl(plain, some) == pytest.approx(own, rel=0.03)


def test_positions_times_blocks_are_counted(monkeypatch, upper, tree, text):
    some = [removals(tree)[n] for n in (4, 1)]  # from positions 15 and 7 on
    read = [1 + len(removal.nodes) for removal in some]
    computed = [text.packed.stem - start - 1 + count for start, count in zip((15, 7), read, strict=True)]
    for tokens in (deltas.TOKENS, 1):  # in one batch, in two
        monkeypatch.setattr(deltas, "TOKENS", tokens)
        runner = deltas.deltas(upper.model, BLOCK, 60, torch.float32)
        words(runner, tree, (text, some))
        runner.close()
        # Both blocks of the unchanged text; of the removals the last one only where words are read.
        assert runner.block_tokens == 2 * len(text.packed.ids_Q) + sum(computed) + sum(read)


@pytest.mark.parametrize(("name", "taken"), [("Llama", True), ("Qwen3", False), ("Gemma2", False)])
def test_changes_alone_are_carried_through_blocks_like_llamas(monkeypatch, name, taken):
    upper = Upper(made(name), BLOCK)
    assert isinstance(runner_for(upper, 1000, 60, torch.float32), Whole)  # not worth it
    monkeypatch.setattr(runners, "WORTH", 0)
    runner = runner_for(upper, 1000, 60, torch.float32)
    runner.close()
    assert isinstance(runner, deltas.Deltas) == taken
    assert runner.block_tokens == upper.block_tokens == 0
    assert re.search("float32" if taken else "whole", runner.how)


def test_other_machines_types_and_last_blocks_run_whole_passes(monkeypatch):
    monkeypatch.setattr(runners, "WORTH", 0)
    model = made()
    assert isinstance(runner_for(Upper(model, 3), 1000, 60, torch.float32), Whole)
    assert isinstance(runner_for(Upper(made().bfloat16(), BLOCK), 1000, 60, torch.float32), Whole)
    upper = Upper(model, BLOCK)
    whole = deltas.Deltas._attend
    monkeypatch.setattr(deltas.Deltas, "_attend", lambda self, qkv, *rest: whole(self, (qkv[0] * 1.2, *qkv[1:]), *rest))
    assert isinstance(runner_for(upper, 1000, 60, torch.float32), Whole)  # it gives other effects
    monkeypatch.setattr(runners, "compiles", lambda device: False)
    assert isinstance(runner_for(upper, 1000, 60, torch.float32), Whole)
