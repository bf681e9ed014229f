"""The planted model is what it claims to be: without this, no test that relies on it means anything.

Shapes: B texts, S positions, D residual width, F latents.
"""

from typing import Any

import numpy as np
import pytest
import torch

from tests import planted as p
from tests.conftest import Planted
from tests.planted_words import CONCEPTS, CROSSED, FIRST, HELD_OUT_FROM, KINDS, READOUT, cues, texts, vocabulary


class Loaded:
    """Model, tokenizer and SAE, read back from disk."""

    def __init__(self, planted: Planted) -> None:
        from sae_lens import SAE
        from transformers import AutoModelForCausalLM, AutoTokenizer

        self.model: Any = AutoModelForCausalLM.from_pretrained(planted.folder / "model")
        self.tokenizer: Any = AutoTokenizer.from_pretrained(planted.folder / "model")
        self.sae: Any = SAE.load_from_disk(str(planted.folder / "sae")).requires_grad_(False)

    def ids(self, text: str) -> torch.Tensor:
        return self.tokenizer(text, return_tensors="pt")["input_ids"]

    @torch.no_grad()
    def residual(self, text: str) -> torch.Tensor:
        """Stream after block `BLOCK`, x_SD."""
        return self.model(self.ids(text), output_hidden_states=True).hidden_states[p.BLOCK + 1][0]

    @torch.no_grad()
    def word_logit(self, text: str, concept: str, removed: torch.Tensor | None = None) -> float:
        """Logit of the concept's (first) word after the readout, less the mean of all concepts' words.

        `removed` (D, unit length) is projected out of the stream after block `BLOCK` at every position of the text.
        """

        def edit(module: Any, args: Any, output: Any) -> Any:
            x_BSD = output[0] if isinstance(output, tuple) else output
            assert removed is not None
            return x_BSD - (x_BSD @ removed)[..., None] * removed

        block = self.model.model.layers[p.BLOCK]
        handle = block.register_forward_hook(edit) if removed is not None else None
        try:
            logits = self.model(self.ids(text + READOUT)).logits[0, -1]
        finally:
            if handle:
                handle.remove()
        row = [vocabulary().index(name.split()[0]) for name in CONCEPTS]
        return float(logits[row[CONCEPTS.index(concept)]] - logits[row].mean())


@pytest.fixture(scope="module")
def loaded(planted: Planted) -> Loaded:
    return Loaded(planted)


def story(concept: str, cell: str = FIRST) -> str:
    held_out = {FIRST: f"{FIRST}-{HELD_OUT_FROM:02d}", CROSSED: f"{CROSSED}-00"}[cell]
    return next(text.text for text in texts() if text.concept == concept and text.topic == held_out)


def test_every_text_is_made_of_known_words(loaded: Loaded) -> None:
    for text in texts():
        ids = loaded.ids(text.text + READOUT)[0].tolist()
        assert loaded.tokenizer.unk_token_id not in ids
        assert len(ids) > 40
    assert loaded.ids(" rose quartz")[0].tolist() == [vocabulary().index("rose"), vocabulary().index("quartz")]


def test_the_sae_reads_each_direction_where_its_words_stand(loaded: Loaded) -> None:
    truth = p.truth()
    for concept, feature in truth.feature.items():
        words = set(cues(concept))
        for text in [text for text in texts() if text.concept == concept][::7]:
            ids = loaded.ids(text.text)[0].tolist()
            here = [vocabulary()[i] in words for i in ids]
            acts_S = loaded.sae.encode(loaded.residual(text.text))[:, feature]
            assert (acts_S > 0).tolist() == here


def test_the_sae_reconstructs_all_but_what_it_lacks(loaded: Loaded) -> None:
    x_SD = loaded.residual(story("amber"))
    gone = x_SD - loaded.sae.decode(loaded.sae.encode(x_SD))
    assert float((gone**2).sum() / ((x_SD - x_SD.mean(0)) ** 2).sum()) < 0.05
    cued = torch.tensor([vocabulary()[i] in cues("iolite") for i in loaded.ids(story("iolite"))[0].tolist()])
    x_SD = loaded.residual(story("iolite"))[cued]
    other = torch.from_numpy(p.directions().of["other iolite"]).float()
    assert float(((x_SD - loaded.sae.decode(loaded.sae.encode(x_SD))) @ other).min()) > 2.0


@pytest.mark.parametrize("concept", [*KINDS["causal"], *KINDS["bystander"], *KINDS["unread"]])
def test_the_output_reads_the_direction_of_causal_concepts_alone(loaded: Loaded, concept: str) -> None:
    direction = torch.from_numpy(p.directions().of[f"concept {concept}"]).float()
    for cell in (FIRST, CROSSED):
        text = story(concept, cell)
        moved = loaded.word_logit(text, concept, direction) - loaded.word_logit(text, concept)
        if concept in KINDS["causal"]:
            assert moved < -0.4
        else:
            assert abs(moved) < 0.1


@pytest.mark.parametrize("concept", KINDS["bystander"])
def test_the_output_reads_another_direction_of_bystanders(loaded: Loaded, concept: str) -> None:
    other = torch.from_numpy(p.directions().of[f"other {concept}"]).float()
    text = story(concept)
    assert loaded.word_logit(text, concept, other) - loaded.word_logit(text, concept) < -0.4


def test_controls_move_words_a_little(loaded: Loaded) -> None:
    text = story("amber")
    before = loaded.word_logit(text, "amber")
    moved = []
    for i in range(0, p.DISTRACTORS, 2):
        direction = torch.from_numpy(p.directions().of[f"distractor {i}"]).float()
        moved.append(loaded.word_logit(text, "amber", direction) - before)
    assert 0.01 < float(np.std(moved)) < 0.2


def test_controls_are_as_active_as_concepts() -> None:
    """Matched controls exist: share of tokens and norm of what is removed lie in one range."""
    of_words = dict(zip(vocabulary(), p.embeddings(), strict=True))
    directions = p.directions().of
    share: dict[str, list[float]] = {"concept amber": [], **{f"distractor {i}": [] for i in range(p.DISTRACTORS)}}
    for text in [text for text in texts() if text.concept == "amber" and text.split == "held_out"]:
        x_SD = np.stack([of_words[word] for word in text.text.split()])
        for name, shares in share.items():
            shares.append(float(((x_SD @ directions[name]) > 1.0).mean()))
    amber = np.mean(share.pop("concept amber"))
    close = [name for name, shares in share.items() if amber / 2 < np.mean(shares) < amber * 2]
    assert len(close) >= 30


def test_the_truth_is_complete() -> None:
    truth = p.truth()
    assert len(truth.labelled) == 14
    assert set(truth.feature) == set(CONCEPTS) - set(KINDS["silent"])
    parts = [set(truth.labelled), set(truth.status), truth.selection_only, truth.unscreened, truth.controls, truth.dead]
    assert sum(map(len, parts)) == len(set().union(*parts))
    assert len(p.latents()) == len(truth.feature) + p.DISTRACTORS + p.TOPIC_FEATURES + 1 + p.DEAD
    split = {text.topic: text.split for text in texts()}
    assert sum(s == "selection" for s in split.values()) == 20
