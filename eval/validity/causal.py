"""Section `causal`: what labelled features do beyond their word: to the rest of a story, further up, and part by part.

All by first-order attribution (`causal.attribute`) on held-out stories and on the dialogues of the probe sets, so that every
labelled feature and every matched control is measured by the same two passes; a sample is removed exactly beside it.
Shapes: C concepts, D residual width.
"""

from collections import Counter
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
import torch

from eval.validity.asked import Asked as Section
from sae_emotions.causal.attribute import Asked, Slope, attribution, projection_effect, slopes, words_asked
from sae_emotions.causal.first_order import FirstOrder, Seen, judged_of, numbers
from sae_emotions.causal.further import (
    PARTS,
    Exchange,
    continuation_asked,
    cut,
    exchange,
    reading_asked,
    removal_effect,
    sentence_ends,
)
from sae_emotions.causal.higher import higher_dense
from sae_emotions.causal.material import Material, Story, gather, in_turn
from sae_emotions.causal.profile import outside_of, profile_of
from sae_emotions.causal.readouts import WordTree, word_tree
from sae_emotions.causal.screen import agreement
from sae_emotions.concepts.probes import load_probes
from sae_emotions.config import RunConfig
from sae_emotions.progress import Progress
from sae_emotions.run_folder import config_of
from sae_emotions.sources.models import load_model
from sae_emotions.upper import Upper

CONCEPTS = 40  # concepts tested on stories: those with the most labelled features
TEXTS = 6  # held-out stories a concept
FEWEST = 3  # texts in which a feature must fire
CONTROLS = 14  # matched controls a feature, half of them held back
EXACT = 40  # pairs of feature and text that are removed exactly too


class Bench(NamedTuple):
    """What all three tests need."""

    config: RunConfig
    material: Material
    upper: Upper
    tree: WordTree
    tokenizer: Any
    stories: dict[int, list[Story]]
    """concept -> its held-out stories that are read, by concept's number"""


class Text(NamedTuple):
    """One text of one concept."""

    concept: int
    asked: list[Asked]
    """readouts that are summed; all have the same text"""


def measured(asked: Section) -> dict[str, Any]:
    """All three tests, each with matched controls and a false discovery rate of its own."""
    bench = _bench(asked)
    if not len(bench.material.own_F):
        return {"skipped": "there is no labelled feature"}
    return {
        "concepts_on_stories": len(bench.stories),
        "stories_a_concept": TEXTS,
        "continuation": _continuation(bench),
        "reading_further_up": _further_up(bench, asked),
        "position": _position(bench),
    }


def _bench(asked: Section) -> Bench:
    config = config_of(asked.run)
    material = gather(config, asked.run, asked.dictionary)
    model = load_model(config.model, torch.float32)
    concepts = material.concepts
    tree = word_tree(model.tokenizer, concepts.readout, [one.word for one in concepts.concepts])
    most = [concept for concept, _ in Counter(material.own_F.tolist()).most_common(CONCEPTS)]
    turns = in_turn(material.held_out, np.random.default_rng([config.seed, 6]))
    stories = {concept: turns[concept][:TEXTS] for concept in sorted(most) if concept in turns}
    return Bench(config, material, Upper(model.model, material.dictionary.block), tree, model.tokenizer, stories)


def _slopes(bench: Bench, texts: Sequence[Text], what: str, reached: int | None = None) -> list[Slope]:
    """Each text's gradient, summed over its readouts."""
    asked = [(t, one) for t, text in enumerate(texts) for one in text.asked]
    found: dict[int, Slope] = {}
    with Progress(what, len(asked), "passes") as bar:
        for n, slope in slopes(bench.upper, [one for _, one in asked], bench.material.special, reached):
            t = asked[n][0]
            found[t] = slope._replace(grad_SD=slope.grad_SD + found[t].grad_SD) if t in found else slope
            bar.advance(1)
    return [found[t] for t in range(len(texts))]


def _tested(
    bench: Bench, texts: Sequence[Text], found: Sequence[Slope], usual_D: torch.Tensor
) -> tuple[dict[str, Any], list[Seen], FirstOrder]:
    """Figures of one test, of which `usual_D` is the mean residual, and what they come from."""
    material, seed = bench.material, bench.config.seed
    seen = [
        Seen(
            text.concept,
            attribution(material.dictionary, slope),
            len(slope.at_S),
            projection_effect(slope, material.dense_CD[text.concept], usual_D),
        )
        for text, slope in zip(texts, found, strict=True)
    ]
    judged = judged_of(material, seen, FEWEST, CONTROLS, bench.config.ablate.q, np.random.default_rng([seed, 7]))
    return {"texts": len(texts), **numbers(judged)}, seen, judged


def _with_exact(bench: Bench, texts: Sequence[Text], what: str, reached: int | None = None) -> dict[str, Any]:
    """Figures of one test, and how first-order effects rank against exact ones on a sample of features and texts."""
    found = _slopes(bench, texts, what, reached)
    figures, seen, judged = _tested(bench, texts, found, _usual(found))
    pairs = [(int(f), int(t)) for f, used in zip(judged.features_F, judged.uses, strict=True) for t in used]
    some = [pairs[n] for n in np.random.default_rng([bench.config.seed, 8]).permutation(len(pairs))[:EXACT]]
    first, removed = [], []
    with Progress("remove exactly", len(some), "removals") as bar:
        for f, t in some:
            number, material = int(bench.material.latents_L[f]), bench.material
            first.append(seen[t].found.effect_of(number))
            removed.append(
                removal_effect(bench.upper, material.dictionary, texts[t].asked, number, material.special, reached)
            )
            bar.advance(1)
    return figures | {"first_order_against_exact": agreement(np.array(first), np.array(removed))._asdict()}


def _usual(found: Sequence[Slope]) -> torch.Tensor:
    return torch.cat([slope.x_SD for slope in found]).mean(0)


def _continuation(bench: Bench) -> dict[str, Any]:
    """The second half of a story against another concept's second half on its topic; features removed in the first half."""
    rng = np.random.default_rng([bench.config.seed, 9])
    ends = sentence_ends(bench.tokenizer, bench.material.held_out)
    families = [one.family for one in bench.material.concepts.concepts]
    beside: dict[tuple[str, str], list[Story]] = {}
    for story in bench.material.held_out:
        beside.setdefault((story.cell, story.topic), []).append(story)
    texts = []
    for concept, stories in bench.stories.items():
        for story in stories:
            others = [
                one
                for one in beside[story.cell, story.topic]
                if one.concept != concept and (families[concept] is None or families[one.concept] != families[concept])
            ]
            if others:
                other = others[int(rng.integers(len(others)))]
                at, second = cut(story.ids, ends), cut(other.ids, ends)
                mine = continuation_asked(story.ids[:at], story.ids[at:], 1.0)
                texts.append(Text(concept, [mine, continuation_asked(story.ids[:at], other.ids[second:], -1.0)]))
    return {
        "unit": "nats a token: log P of the story's second half less that of another concept's (other family, same topic)",
        **_with_exact(bench, texts, "continuations"),
    }


def _further_up(bench: Bench, asked: Section) -> dict[str, Any]:
    """The dense vector's reading at a higher block, at the last position of the readout prompt, which is not changed."""
    if bench.upper.block + 1 >= bench.upper.last:
        return {"skipped": "no block lies between the hook and the last one"}
    reached, dense_CD, source = higher_dense(bench.config, asked.run, bench.material, bench.upper)
    families = [one.family for one in bench.material.concepts.concepts]
    texts = []
    for concept, stories in bench.stories.items():
        outside = outside_of(bench.tree, families, concept)
        contrast_D = dense_CD[concept] - dense_CD[torch.from_numpy(outside)].mean(0)
        texts += [Text(concept, [reading_asked(story.ids, bench.tree.prompt, contrast_D)]) for story in stories]
    return {
        "unit": "residual-stream units along the concept's unit vector, less the mean along those outside its family",
        "block": reached,
        "dense_vectors_from": source,
        **_with_exact(bench, texts, "further up", reached),
    }


def _position(bench: Bench) -> dict[str, Any]:
    """The words' readout after a conversation's first exchange; features removed in one of its parts at a time."""
    dialogues = load_probes(bench.config.concepts).dialogues
    if not dialogues or not getattr(bench.tokenizer, "chat_template", None):
        return {"skipped": "no dialogues among the probe sets, or no chat template"}
    number = {one.name: n for n, one in enumerate(bench.material.concepts.concepts)}
    labelled = set(bench.material.own_F.tolist())
    families = [one.family for one in bench.material.concepts.concepts]
    texts: dict[str, list[Text]] = {"of the user's concept": [], "of the assistant's concept": []}
    parts: dict[str, list[Exchange]] = {whose: [] for whose in texts}
    for dialogue in dialogues:
        said = exchange(bench.tokenizer, dialogue)
        for whose, name in zip(texts, (dialogue.human, dialogue.assistant), strict=True):
            if (concept := number[name]) in labelled:
                profile = profile_of(bench.tree, families, bench.material.dense_CD, concept)
                texts[whose].append(Text(concept, [words_asked(bench.tree, said.ids, profile)]))
                parts[whose].append(said)
    figures: dict[str, Any] = {
        "unit": "nats: log P of all words after the exchange and the readout prompt, weighted by the concept's profile"
    }
    for whose, asked in texts.items():
        if not asked:
            continue
        found = _slopes(bench, asked, whose)
        for part, name in enumerate(PARTS):
            only = [
                slope.where(said.part_S[slope.at_S] == part) for slope, said in zip(found, parts[whose], strict=True)
            ]
            figures[f"{whose}, {name}"] = _tested(bench, asked, only, _usual(found))[0]
    return figures
