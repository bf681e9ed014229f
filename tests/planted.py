"""The planted model: a small Llama whose residual stream carries known directions, and all that a run needs around it.

It is the measure of every statistic and every verdict: which feature reads which concept, and which of them the output
uses, is known because it was put there. How it works:

* A cue word's embedding is a base vector, a little noise and the direction of its concept. Blocks 0 and 1 hardly touch
  the residual, so the stream after block `BLOCK` carries the direction at the cue's position.
* Block 2 attends uniformly (queries and keys are zero) and copies the mean of the *carried* directions to every
  position, where the unembedding rows of the concepts' words read them. Block 3 hardly does anything.
* Filler words carry three of `DISTRACTORS` directions each. These are carried too and nudge every concept's word a
  little: they are the controls. Topic words and the second register's style words follow no concept.
* The SAE has one latent a direction, with decoder norms from 0.5 to 2, in shuffled order, and some dead latents.

| kind           | cue words in                         | carried to the output          | what must come out          |
|----------------|--------------------------------------|--------------------------------|-----------------------------|
| causal         | every text of the concept            | the feature's direction        | labelled, causal            |
| bystander      | every text of the concept            | another one that the SAE lacks | labelled, not shown         |
| unread         | every text of the concept            | nothing                        | labelled, not testable      |
| first_only     | all but held-out second-register ones | nothing                       | `first only`                |
| second_only    | all but held-out first-register ones | nothing                        | `second only`               |
| selection_only | those of the selection topics        | nothing                        | screened, but not confirmed |
| register_bound | those of the first register          | nothing                        | not even screened           |
| silent         | none                                 | nothing                        | no feature                  |

One text in four also holds one cue of another concept. Shapes: V words, D residual width, F latents.
"""

from functools import cache
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from tests.planted_words import (
    CONCEPTS,
    CUED,
    FILLER,
    FIRST,
    KINDS,
    SECOND,
    SEED,
    STYLE,
    build_concepts,
    build_corpus,
    cues,
    filler_weights,
    kind_of,
    topic_words,
    topics,
    vocabulary,
)

D, BLOCKS, BLOCK = 128, 4, 1
DISTRACTORS, TOPIC_FEATURES, DEAD = 60, 6, 4
BASE, STRENGTH, DISTRACTOR_STRENGTH, NOISE = 12.0, 4.0, 3.0, 0.04
CARRY, WORD_GAIN, DISTRACTOR_GAIN = 3.5, 1.6, 0.18


class Truth(NamedTuple):
    """What a run on the planted model must find."""

    feature: dict[str, int]
    """Concept to the one latent that reads it; silent concepts have none."""
    labelled: dict[int, str]
    """Latent to concept: exactly these must be labelled."""
    causal: frozenset[int]
    """Exactly these must have the verdict causal."""
    not_shown: frozenset[int]
    """These must have the verdict not shown."""
    status: dict[int, str]
    """Latents that pass the screen and hold in one register's held-out topics alone, and what they must be called."""
    selection_only: frozenset[int]
    """These survive the screen and must fail the confirmation."""
    unscreened: frozenset[int]
    """These read their concept in one register alone, and must not survive the screen."""
    controls: frozenset[int]
    """Latents of the distractors: never labelled, active in every text."""
    dead: frozenset[int]
    """Latents that never fire."""


class Directions(NamedTuple):
    """Orthonormal directions, each of length D, by name; `carried` are those that block 2 copies."""

    base: np.ndarray
    of: dict[str, np.ndarray]
    carried: tuple[str, ...]


@cache
def directions() -> Directions:
    names = [f"concept {name}" for name in CUED]
    names += [f"other {name}" for name in KINDS["bystander"]]
    names += [f"distractor {i}" for i in range(DISTRACTORS)]
    names += [f"topic {topic}" for topic in featured_topics()] + ["style"]
    names += [f"dead {i}" for i in range(DEAD)]
    square = np.linalg.qr(np.random.default_rng(SEED).standard_normal((D, D)))[0]
    assert len(names) < D
    of = {name: square[i + 1] for i, name in enumerate(names)}
    carried = [f"concept {name}" for name in KINDS["causal"]]
    carried += [f"other {name}" for name in KINDS["bystander"]]
    carried += [f"distractor {i}" for i in range(DISTRACTORS)]
    return Directions(square[0], of, tuple(carried))


def featured_topics() -> list[str]:
    """Topics that have a latent of their own."""
    return topics()[:: len(topics()) // TOPIC_FEATURES][:TOPIC_FEATURES]


@cache
def latents() -> list[str]:
    """Name of the direction that each latent reads; the order is shuffled so that no number can be guessed."""
    names = [name for name in directions().of if not name.startswith("other ")]
    return [names[i] for i in np.random.default_rng(SEED + 1).permutation(len(names))]


@cache
def embeddings() -> np.ndarray:
    """Token embeddings, vocabulary × D."""
    rng = np.random.default_rng(SEED + 2)
    words, of = vocabulary(), directions().of
    x_VD = NOISE * rng.standard_normal((len(words), D)) + BASE * directions().base
    row = {word: i for i, word in enumerate(words)}
    for word in FILLER:
        for i in rng.choice(DISTRACTORS, 3, replace=False):
            x_VD[row[word]] += DISTRACTOR_STRENGTH * rng.uniform(0.8, 1.2) * of[f"distractor {i}"]
    for concept in CUED:
        for word in cues(concept):
            strength = STRENGTH * rng.uniform(0.8, 1.2)
            x_VD[row[word]] += strength * of[f"concept {concept}"]
            if kind_of(concept) == "bystander":
                x_VD[row[word]] += strength * of[f"other {concept}"]
    for topic in featured_topics():
        for word in topic_words(topic):
            x_VD[row[word]] += STRENGTH * of[f"topic {topic}"]
    for word in STYLE:
        x_VD[row[word]] += STRENGTH * of["style"]
    return x_VD


def unembedding() -> np.ndarray:
    """Rows of lm_head, vocabulary × D: word frequencies through the base direction, concepts' words through theirs."""
    rng = np.random.default_rng(SEED + 3)
    words, (base, of, _) = vocabulary(), directions()
    share = dict(zip(FILLER, filler_weights(), strict=True))
    base_after_norm = 0.9 * D**0.5
    w_VD = 0.01 * rng.standard_normal((len(words), D))
    w_VD += np.log([share.get(word, 1e-3) for word in words])[:, None] / base_after_norm * base
    for concept in CONCEPTS:
        row = words.index(concept.split()[0])
        w_VD[row] += sum(DISTRACTOR_GAIN * rng.standard_normal() * of[f"distractor {i}"] for i in range(DISTRACTORS))
        used = {"causal": "concept", "bystander": "other"}.get(kind_of(concept))
        if used:
            w_VD[row] += WORD_GAIN * of[f"{used} {concept}"]
    return w_VD


def build_model(folder: Path) -> Path:
    """Write the model and its word-level tokenizer as a transformers folder."""
    import torch
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

    words = vocabulary()
    torch.manual_seed(SEED)
    model = LlamaForCausalLM(
        LlamaConfig(
            vocab_size=len(words), hidden_size=D, intermediate_size=64, num_hidden_layers=BLOCKS, num_attention_heads=4,
            num_key_value_heads=4, max_position_embeddings=512, tie_word_embeddings=False, initializer_range=0.02,
            pad_token_id=0, bos_token_id=None, eos_token_id=2, dtype="float32",
        )
    )  # fmt: skip
    carried = np.stack([directions().of[name] for name in directions().carried])
    with torch.no_grad():
        model.model.embed_tokens.weight.copy_(torch.from_numpy(embeddings()))
        model.lm_head.weight.copy_(torch.from_numpy(unembedding()))
        for layer in model.model.layers:
            layer.self_attn.o_proj.weight.mul_(0.2)
            layer.mlp.down_proj.weight.mul_(0.2)
        copying = model.model.layers[BLOCK + 1].self_attn
        copying.q_proj.weight.zero_()
        copying.k_proj.weight.zero_()
        copying.v_proj.weight.copy_(torch.from_numpy(carried.T @ carried))
        copying.o_proj.weight.copy_(CARRY * torch.eye(D))
    model.eval().save_pretrained(folder)
    bare = Tokenizer(models.WordLevel({word: i for i, word in enumerate(words)}, unk_token="<unk>"))
    bare.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=bare,
        pad_token="<pad>",
        unk_token="<unk>",
        eos_token="<eos>",
        clean_up_tokenization_spaces=False,
    )
    tokenizer.save_pretrained(folder)
    return folder


def build_sae(folder: Path) -> Path:
    """Write the SAE of known features as a SAELens folder (JumpReLU, the inference form)."""
    import torch
    from sae_lens import JumpReLUSAE, JumpReLUSAEConfig
    from sae_lens.saes.sae import SAEMetadata

    rng = np.random.default_rng(SEED + 4)
    direction_FD = np.stack([directions().of[name] for name in latents()])
    norm_F = rng.uniform(0.5, 2.0, len(latents()))
    metadata = SAEMetadata(model_name="planted", hook_name=f"model.layers.{BLOCK}", context_size=256, prepend_bos=False)
    sae = JumpReLUSAE(JumpReLUSAEConfig(d_in=D, d_sae=len(latents()), apply_b_dec_to_input=True, metadata=metadata))
    with torch.no_grad():
        sae.W_dec.copy_(torch.from_numpy(direction_FD * norm_F[:, None]))
        sae.W_enc.copy_(torch.from_numpy((direction_FD / norm_F[:, None]).T))
        sae.b_enc.zero_()
        sae.b_dec.copy_(torch.from_numpy(BASE * directions().base))
        sae.threshold.copy_(torch.from_numpy(1.0 / norm_F))
    sae.save_model(str(folder))
    return folder


def truth() -> Truth:
    number = {name: i for i, name in enumerate(latents())}
    feature = {concept: number[f"concept {concept}"] for concept in CUED}

    def of(*kinds: str) -> list[int]:
        return [feature[concept] for kind in kinds for concept in KINDS[kind]]

    return Truth(
        feature=feature,
        labelled={feature[c]: c for kind in ("causal", "bystander", "unread") for c in KINDS[kind]},
        causal=frozenset(of("causal")),
        not_shown=frozenset(of("bystander")),
        status=dict.fromkeys(of("first_only"), f"{FIRST} only") | dict.fromkeys(of("second_only"), f"{SECOND} only"),
        selection_only=frozenset(of("selection_only")),
        unscreened=frozenset(of("register_bound")),
        controls=frozenset(i for name, i in number.items() if name.startswith("distractor ")),
        dead=frozenset(i for name, i in number.items() if name.startswith("dead ")),
    )


def config(folder: Path) -> dict[str, Any]:
    """A `RunConfig` as plain data for what `build` wrote to `folder`."""
    return {
        "name": "planted",
        "seed": 3,
        "model": {"source": str(folder / "model"), "dtype": "float32"},
        "text": {"tokens": 6000, "sources": [{"source": str(folder / "corpus.jsonl")}]},
        "concepts": str(folder / "concepts"),
        "harvest": {"blocks": [BLOCK], "context": 128, "shard_tokens": 4096, "centre_tokens": 1024, "threads": 1},
        "dictionaries": [{"name": "planted", "block": BLOCK, "pretrained": {"path": str(folder / "sae")}}],
        "label": {"bootstraps": 50, "examples": 4, "example_tokens": 12},
        "ablate": {"controls": 200, "neutral_texts": 8},
    }


def build(folder: Path) -> Path:
    """Write everything that `config` names."""
    build_model(folder / "model")
    build_sae(folder / "sae")
    build_concepts(folder / "concepts")
    build_corpus(folder / "corpus.jsonl")
    return folder
