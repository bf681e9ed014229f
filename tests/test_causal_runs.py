"""Word readouts and removals: a packed tree equals separate passes, reuse equals no reuse, nothing removed is nothing."""

import re

import numpy as np
import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM

from sae_emotions.causal.readouts import pack, word_log_probs, word_tree
from sae_emotions.causal.runs import Removal, batches, enter, removed, unchanged, word_changes
from sae_emotions.errors import UserError
from sae_emotions.upper import Upper

BLOCK, SPECIAL = 1, (0,)
WORDS = ("sad", "at ease", "glad", "gladden", "gladdening", "overjoyed", "at a loss")
READOUT = "\nThe one here feels"


class Pieces:
    """A tokenizer that cuts words into pieces of three letters, a leading space kept with the first."""

    def __init__(self):
        self.number = {}

    def __call__(self, text, add_special_tokens=True):
        pieces = re.findall(r"\s?\w{1,3}|[^\w]", text)
        return {"input_ids": [self.number.setdefault(piece, 3 + len(self.number)) for piece in pieces]}


@pytest.fixture(scope="module")
def model():
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=80,
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=4,
        num_attention_heads=4,
        num_key_value_heads=2,
        initializer_range=0.2,
    )
    return LlamaForCausalLM(config).eval()


@pytest.fixture(scope="module")
def upper(model):
    return Upper(model, BLOCK)


@pytest.fixture(scope="module")
def tree():
    return word_tree(Pieces(), READOUT, WORDS)


@pytest.fixture(scope="module")
def text(upper, tree):
    ids = torch.randint(3, 80, (12,), generator=torch.Generator().manual_seed(1)).tolist()
    ids[6] = SPECIAL[0]
    return enter(upper, tree, ids, SPECIAL)


def removals(tree, count=6, seed=2):
    g = torch.Generator().manual_seed(seed)
    out = []
    for n in range(count):
        positions_P = torch.tensor([[3, 5], [7], [9, 11, 13], [1, 2], [15], [4, 8]][n % 6])
        nodes = tree.nodes_of([n % len(WORDS)]) if n % 3 else tuple(range(len(tree.tokens)))
        out.append(Removal(positions_P, torch.rand(len(positions_P), generator=g), torch.randn(32, generator=g), nodes))
    return out


def spelled(tree, word):
    return [token for _, token in tree.paths[word]]


def test_the_tree_shares_prefixes(tree):
    assert tree.single().tolist() == [True, False, False, False, False, False, False]
    glad, gladden, _gladdening = (spelled(tree, WORDS.index(word)) for word in ("glad", "gladden", "gladdening"))
    assert gladden[: len(glad) - 1] == glad[:-1]
    inner = {tuple(ids[:n]) for ids in (spelled(tree, w) for w in range(len(WORDS))) for n in range(1, len(ids))}
    assert len(tree.tokens) == len(inner)
    assert all(parent < node for node, parent in enumerate(tree.parents))
    assert set(tree.nodes_of([WORDS.index("gladdening")])) >= set(tree.nodes_of([WORDS.index("gladden")]))


def test_tree_readout_equals_a_separate_pass_a_word(model, upper, tree, text):
    base = unchanged(upper, text, 1 + len(tree.tokens))
    found = word_log_probs(tree, base.logits_CV[None], [range(len(tree.tokens))])
    stem = text.packed.ids_Q[: text.packed.stem].tolist()
    for word in range(len(WORDS)):
        ids = spelled(tree, word)
        with torch.inference_mode():
            logits_SV = torch.log_softmax(model(torch.tensor([stem + ids]), use_cache=False).logits[0].double(), -1)
        steps = [logits_SV[len(stem) - 1 + n, token].item() for n, token in enumerate(ids)]
        assert found.first_JW[0, word] == pytest.approx(steps[0], abs=1e-5)
        assert found.all_JW[0, word] == pytest.approx(sum(steps), abs=1e-5)


def test_words_whose_nodes_are_missing_are_nan(upper, tree, text):
    base = unchanged(upper, text, 1 + len(tree.tokens))
    only = tree.nodes_of([WORDS.index("glad")])
    slots = base.logits_CV[[0, *(1 + node for node in only)]][None]
    found = word_log_probs(tree, slots, [only])
    full = word_log_probs(tree, base.logits_CV[None], [range(len(tree.tokens))])
    for word in range(len(WORDS)):
        if set(tree.nodes_of([word])) <= set(only):
            assert found.all_JW[0, word] == pytest.approx(full.all_JW[0, word])
        else:
            assert np.isnan(found.all_JW[0, word])
    assert not np.isnan(found.first_JW).any()


def test_removal_equals_editing_the_full_forward(model, upper, tree, text):
    """The whole path (tree, reuse, last block only where read) against a plain hook on the plain model."""
    some = removals(tree)
    change = word_changes(upper, tree, text, some)
    stem = text.packed.ids_Q[: text.packed.stem].tolist()
    for row, removal in enumerate(some):

        def hook(module, args, output, removal=removal):
            output = output.clone()
            output[0, removal.positions_P] -= removal.amount_P[:, None] * removal.direction_D
            return output

        def log_p(ids):
            with torch.inference_mode():
                logits_SV = model(torch.tensor([stem + ids]), use_cache=False).logits[0].double()
            logits_SV = torch.log_softmax(logits_SV, -1)
            return sum(logits_SV[len(stem) - 1 + n, token].item() for n, token in enumerate(ids))

        for word in range(len(WORDS)):
            if not set(tree.nodes_of([word])) <= set(removal.nodes):
                continue
            before = log_p(spelled(tree, word))
            handle = model.model.layers[BLOCK].register_forward_hook(hook)
            after = log_p(spelled(tree, word))
            handle.remove()
            assert change.all_JW[row, word] == pytest.approx(after - before, abs=2e-5)
            assert abs(after - before) > 1e-4


def test_prefix_reuse_equals_no_reuse(upper, tree, text):
    base = unchanged(upper, text, 1 + len(tree.tokens))
    late = [removal for removal in removals(tree) if removal.first >= 7]
    logits, start = removed(upper, text, base, late, wanted=1)
    again, begin = removed(upper, text, base, late, wanted=1, reuse=False)
    assert (start, begin) == (7, 0)
    for row, removal in enumerate(late):
        slots = 1 + len(removal.nodes)
        assert torch.allclose(logits[row, :slots], again[row, :slots], atol=1e-5)


def test_removing_nothing_is_the_baseline_bit_for_bit_in_the_same_shape(upper, tree, text):
    base = unchanged(upper, text, 1 + len(tree.tokens))
    some = removals(tree)
    nothing = [removal._replace(amount_P=removal.amount_P * 0) for removal in some]
    empty = [removal._replace(positions_P=removal.positions_P[:0], amount_P=removal.amount_P[:0]) for removal in some]
    zeroed, _ = removed(upper, text, base, nothing, wanted=1, reuse=False)
    untouched, _ = removed(upper, text, base, empty, wanted=1, reuse=False)
    assert torch.equal(zeroed, untouched)
    change = word_changes(upper, tree, text, nothing)
    assert np.nanmax(np.abs(change.all_JW)) < 1e-5


def test_protected_positions_are_never_offered(text):
    keep_Q = text.keep_Q.tolist()
    assert keep_Q[0] is False
    assert keep_Q[6] is False
    # The prompt and the words are the measuring instrument.
    assert not any(keep_Q[text.packed.text :])
    assert sum(keep_Q) == text.packed.text - 2


def test_every_removal_is_in_one_batch(tree):
    some = removals(tree, 60)
    held = [n for batch in batches(some) for n in batch]
    assert sorted(held) == list(range(60))


def test_nodes_stand_where_they_would_alone(tree):
    packed = pack(tree, [5, 6, 7])
    for node in range(len(tree.tokens)):
        line = tree.ancestors(node)
        assert packed.positions_Q[packed.stem + node] == packed.stem + len(line) - 1
        seen = packed.see_QQ[packed.stem + node].nonzero()[:, 0].tolist()
        assert seen == [*range(packed.stem), *(packed.stem + one for one in line)]


def test_two_words_of_the_same_tokens_are_refused():
    with pytest.raises(UserError, match="'glad'"):
        word_tree(Pieces(), READOUT, ("glad", "sad", "glad"))


def test_a_tokenizer_that_joins_the_prompt_to_the_text_is_refused():
    class Whole:
        def __call__(self, text, add_special_tokens=True):
            return {"input_ids": [len(text)]}

    with pytest.raises(UserError, match="joins"):
        word_tree(Whole(), READOUT, WORDS)
