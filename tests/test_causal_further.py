"""Further readouts: where texts are cut, which part a token belongs to, and first-order effects against exact ones."""

from types import SimpleNamespace

import numpy as np
import pytest
import torch
from transformers import AutoTokenizer

from sae_emotions.causal.attribute import Attribution, attribution, slopes
from sae_emotions.causal.first_order import Seen, judged_of, numbers
from sae_emotions.causal.further import PARTS, continuation_asked, cut, exchange, reading_asked, removal_effect
from sae_emotions.concepts.probes import Dialogue
from sae_emotions.errors import UserError
from tests.planted_words import FILLER
from tests.test_causal_attribution import SPECIAL, D, dictionary, upper  # noqa: F401 - a fixture

TEMPLATE = (
    "{% for one in messages %}{{ '<eos>' if loop.first else '' }} {{ one.role }} . {{ one.content }}\n{% endfor %}"
)


def test_a_story_is_cut_where_a_sentence_ends_near_its_middle():
    ids = [1, 2, 9, 3, 4, 5, 9, 6, 7, 8]
    assert cut(ids, {9}) == 3  # as near as 7, and first
    assert cut([0, *ids], {9}) == 4
    assert cut([*ids, 0], {9}) == 7
    assert cut([1, 9, 2, 3, 4, 5, 6, 7, 8, 9], {9}) == 5  # ends near the edges do not count
    assert cut([1, 2, 3, 4], set()) == 2


@pytest.fixture(scope="module")
def tokenizer(planted):
    return AutoTokenizer.from_pretrained(planted.folder / "model")


def test_parts_of_an_exchange(tokenizer):
    one, two = FILLER[:5], FILLER[5:9]
    dialogue = Dialogue(f"Human: {' '.join(one)}\n\nAssistant: {' '.join(two)}\n\nHuman: {FILLER[9]}", "a", "b")
    with pytest.raises(UserError, match="no chat template"):
        exchange(tokenizer, dialogue)
    tokenizer.chat_template = TEMPLATE
    said = exchange(tokenizer, dialogue)
    words = tokenizer.convert_ids_to_tokens(said.ids)
    of = {name: [w for w, part in zip(words, said.part_S, strict=True) if part == n] for n, name in enumerate(PARTS)}
    assert of["user turn"] == one
    assert of["response"] == two
    assert of["assistant's opening"] == words[words.index(one[-1]) + 1 : words.index(two[0])] != []
    assert words[-1] == two[-1]  # nothing comes after the response


def test_first_order_effects_of_small_removals_are_exact(upper):  # noqa: F811
    found = dictionary(1e-4)
    ids, mine, other = [11, 12, 13, 14, 15, 16], (21, 22, 23), (31, 32)
    contrast_D = torch.randn(D, generator=torch.Generator().manual_seed(5))
    both = [continuation_asked(ids, mine, 1.0), continuation_asked(ids, other, -1.0)]
    for asked, reached in ((both, None), ([reading_asked(ids, mine, contrast_D)], 2)):
        grads = [slope for _, slope in slopes(upper, asked, SPECIAL, reached)]
        slope = grads[0]._replace(grad_SD=torch.stack([one.grad_SD for one in grads]).sum(0))
        seen = attribution(found, slope)
        late = attribution(found, slope.where(slope.at_S >= 3))
        keep_S = torch.arange(6) >= 3
        some = seen.latent_N[np.argsort(-np.abs(seen.effect_N))[:6]]
        exact = [removal_effect(upper, found, asked, int(n), SPECIAL, reached) for n in some]
        assert exact == pytest.approx([seen.effect_of(int(n)) for n in some], rel=0.05, abs=2e-6)
        some = late.latent_N[np.argsort(-np.abs(late.effect_N))[:6]]
        exact = [removal_effect(upper, found, asked, int(n), SPECIAL, reached, keep_S) for n in some]
        assert exact == pytest.approx([late.effect_of(int(n)) for n in some], rel=0.05, abs=2e-6)


def material(features, candidates):
    total = features + candidates
    return SimpleNamespace(
        dictionary=SimpleNamespace(d_sae=total),
        latents_L=np.arange(total),
        own_F=np.arange(features) % 5,
        norms_L=np.ones(total),
        candidates_C=np.arange(features, total),
    )


def seen(rng, features, candidates, shift):
    """Every latent fires everywhere, each with an effect of its own on each concept's readout."""
    total = features + candidates
    own_CL = rng.standard_normal((5, total))
    for f in range(features):
        own_CL[f % 5, f] += shift
    texts = []
    for concept in np.repeat(np.arange(5), 8):
        effect_L = own_CL[concept] + 0.3 * rng.standard_normal(total)
        texts.append(
            Seen(int(concept), Attribution(np.arange(total), effect_L, np.full(total, 4), np.ones(total)), 40, -9.0)
        )
    return texts


@pytest.mark.parametrize(("shift", "least", "most"), [(-6.0, 25, 30), (0.0, 0, 1)])
def test_the_rule_finds_what_is_there_and_nothing_else(shift, least, most):
    rng = np.random.default_rng(1)
    found = judged_of(material(30, 200), seen(rng, 30, 200, shift), 3, 20, 0.05, rng)
    figures = numbers(found)
    assert figures["features_that_fire"] == figures["tested"] == 30
    assert least <= figures["confirmed"] <= most
    assert figures["controls_confirmed"] <= 0.05 * figures["controls_tested"]


def test_a_feature_is_tested_on_its_own_concepts_texts_in_which_it_fires():
    rng = np.random.default_rng(2)
    texts = seen(rng, 10, 100, 0.0)
    silent = [one._replace(found=Attribution(*(column[1:] for column in one.found))) for one in texts]
    found = judged_of(material(10, 100), silent[:2] + texts[2:], 7, 10, 0.05, rng)
    assert 0 not in found.features_F  # it fires in six of its eight texts only
    assert found.features_F.tolist() == list(range(1, 10))
    assert all(texts[t].concept == f % 5 for f, used in zip(found.features_F, found.uses, strict=True) for t in used)
