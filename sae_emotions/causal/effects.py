"""Effects of all removals on the common texts: which runs are needed, and what they say of each feature.

Shapes: F features, T texts, L latents, C concepts, W words, S positions of a text and its prompt, K controls, D
residual width.

One run of a control on a text gives the change of every word it was asked for, so it serves every feature that uses
that text and is matched with that control.
"""

from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import NamedTuple

import numpy as np
import torch

from sae_emotions.causal.controls import Matched
from sae_emotions.causal.readouts import WordTree
from sae_emotions.causal.runners import Runner
from sae_emotions.causal.runs import Removal, Text

ZEROS = 4  # texts on which a removal of nothing is run
WHOLE = 2  # texts a feature on which words of several tokens are followed through all of their tokens
Key = tuple[str, int]
"""kind, and the latent's place, feature or concept"""


class Words(NamedTuple):
    """What is compared with what, by number of the word."""

    own_F: np.ndarray
    outside: tuple[np.ndarray, ...]
    """per feature: the words outside its family that its own word is compared with"""


class Design(NamedTuple):
    """Everything that decides which removals are run."""

    texts: Sequence[Text]
    acts: Sequence[torch.Tensor]
    """per text: acts_SL, on the CPU"""
    features_F: np.ndarray
    """places of the features among the L latents"""
    uses: Sequence[np.ndarray]
    """per feature: its texts"""
    matches: Sequence[Matched]
    words: Words
    directions_LD: torch.Tensor
    dense_CD: torch.Tensor
    """unit vectors, one a concept"""
    random: Mapping[int, torch.Tensor]
    """feature -> unit vector that stands in for its direction; for some of the features"""
    usual_D: torch.Tensor
    """mean residual over the editable positions of all texts: what a projection on a dense vector leaves in its place"""


def words_of(tree: WordTree, families: Sequence[str | None], own_F: np.ndarray) -> Words:
    """Each feature's word is compared with the one-token words outside its family: they cost no nodes.

    Where a tokenizer leaves fewer than 20 words whole, with all words outside the family; and with all other words where
    the family is everything.
    """
    single_W = tree.single()
    base_W = single_W if single_W.sum() >= 20 else np.ones(len(families), bool)
    outside = []
    for own in own_F:
        kin_W = np.array([family is not None and family == families[own] for family in families])
        kin_W[own] = True
        chosen_W = base_W & ~kin_W
        if not chosen_W.any():
            chosen_W = np.arange(len(families)) != own
        outside.append(np.flatnonzero(chosen_W))
    return Words(np.asarray(own_F), tuple(outside))


def _removals(design: Design, tree: WordTree, t: int) -> Iterator[tuple[Key, Removal]]:
    """All removals to run on text t."""
    text, acts_SL = design.texts[t], design.acts[t]
    device = text.x_QD.device
    needed = [tree.nodes_of([own, *out]) for own, out in zip(*design.words, strict=True)]
    controls: dict[int, set[int]] = {}
    dense: dict[int, tuple[int, ...]] = {}

    def of_latent(place: int) -> tuple[torch.Tensor, torch.Tensor]:
        positions_P = torch.nonzero(acts_SL[:, place] > 0)[:, 0]
        return positions_P.to(device), acts_SL[positions_P, place].to(device)

    for f, place in enumerate(design.features_F):
        if t not in design.uses[f]:
            continue
        positions_P, amount_P = of_latent(int(place))
        direction_D = design.directions_LD[place].to(device)
        nodes = range(len(tree.tokens)) if t in design.uses[f][:WHOLE] else needed[f]
        yield ("feature", f), Removal(positions_P, amount_P, direction_D, tuple(nodes))
        if f in design.random:
            random_D = design.random[f].to(device)
            yield ("random", f), Removal(positions_P, amount_P * direction_D.norm(), random_D, needed[f])
        dense[int(design.words.own_F[f])] = needed[f]
        for control in design.matches[f].controls_K:
            controls.setdefault(int(control), set()).update(needed[f])
    for concept, nodes in dense.items():
        vector_D = design.dense_CD[concept].to(device)
        positions_P = torch.nonzero(text.keep_Q)[:, 0]
        amount_P = (text.x_QD[positions_P].float() - design.usual_D) @ vector_D
        yield ("dense", concept), Removal(positions_P, amount_P, vector_D, nodes)
    for place, wanted in controls.items():
        positions_P, amount_P = of_latent(place)
        if len(positions_P):
            direction_D = design.directions_LD[place].to(device)
            yield ("control", place), Removal(positions_P, amount_P, direction_D, tuple(sorted(wanted)))


class Amount(NamedTuple):
    """How much `measure` will run."""

    removals: int
    positions: float
    """of texts, prompts and nodes, all removals together, each from its first change on"""


def amount(design: Design, tree: WordTree) -> Amount:
    """Count what `measure` will run."""
    removals = positions = 0
    for t, text in enumerate(design.texts):
        for _, removal in _removals(design, tree, t):
            removals += 1
            positions += text.packed.stem - min(removal.first, text.packed.stem - 1) + len(removal.nodes)
    return Amount(removals, positions)


class Measured(NamedTuple):
    """Changes of the words, nats, and what it took."""

    changes: dict[Key, dict[int, tuple[np.ndarray, np.ndarray]]]
    """key -> text -> changes of the words' first tokens and of the whole words, NaN where not asked for, each W long; a
    control that is silent in a text has no entry there: it changes nothing"""
    nothing: float
    """largest change of any word by a removal of zero, run among the others on the first texts"""
    full_block_tokens: float
    """what one full forward pass a removal and text would have computed"""


def measure(runner: Runner, last: int, tree: WordTree, design: Design, done: Callable[[int], None]) -> Measured:
    """Run every removal of the design, text by text. `last`: the model's last block."""
    changes: dict[Key, dict[int, tuple[np.ndarray, np.ndarray]]] = {}
    nothing = full = 0.0
    running: deque[tuple[int, list[Key]]] = deque()

    def work() -> Iterator[tuple[Text, list[Removal]]]:
        for t, text in enumerate(design.texts):
            found = list(_removals(design, tree, t))
            if found:
                running.append((t, [key for key, _ in found]))
                # A removal of nothing runs among the others on the first texts: it shows how exact all this is.
                zero = [found[0][1]._replace(amount_P=torch.zeros_like(found[0][1].amount_P))] if t < ZEROS else []
                yield text, [removal for _, removal in found] + zero

    for change in runner.words(tree, work(), done):
        t, keys = running.popleft()
        for row, key in enumerate(keys):
            changes.setdefault(key, {})[t] = (change.first_JW[row], change.all_JW[row])
        if len(change.all_JW) > len(keys):
            nothing = max(nothing, float(np.nanmax(np.abs(change.all_JW[-1]))))
        full += len(keys) * len(design.texts[t].packed.ids_Q) * (last + 1)
    return Measured(changes, nothing, full)


class Effects(NamedTuple):
    """Effects on each feature's word, nats: change of its log P less the mean change of the words outside its family."""

    feature_F: np.ndarray
    rank_F: np.ndarray
    """rank of its own word among all words by the mean change; 1 is lowered most"""
    dense_F: np.ndarray
    controls: list[np.ndarray]
    random: list[np.ndarray]


def _effect(
    by_text: dict[int, tuple[np.ndarray, np.ndarray]], texts: np.ndarray, own: int, outside: np.ndarray
) -> float:
    rows = [by_text[int(t)][1] for t in texts if int(t) in by_text]
    return float(sum(row[own] - row[outside].mean() for row in rows) / len(texts))


def _rank(by_text: dict[int, tuple[np.ndarray, np.ndarray]], texts: np.ndarray, own: int) -> int:
    """Rank of the own word among all.

    A word's mean change is that of its first token on all texts, plus that of its further tokens, which change much
    less, on the texts where they were followed; the own word is followed on all.
    """
    rows = [by_text[int(t)] for t in texts]
    mean_W = np.mean([first_W for first_W, _ in rows], axis=0)
    mean_W += np.mean([all_W - first_W for first_W, all_W in rows[:WHOLE]], axis=0)
    own_change = np.mean([all_W[own] for _, all_W in rows])
    return 1 + int((np.delete(mean_W, own) < own_change).sum())


def effects(measured: Measured, design: Design) -> Effects:
    """Effects of each feature, its dense vector, its controls (in the order of its matches) and random directions."""
    changes, words = measured.changes, design.words
    feature, rank, dense, controls, random = [], [], [], [], []
    for f, texts in enumerate(design.uses):
        own, outside = int(words.own_F[f]), words.outside[f]

        def of(kind: str, number: int) -> float:
            return _effect(changes.get((kind, number), {}), texts, own, outside)  # noqa: B023 - called at once

        feature.append(of("feature", f))
        rank.append(_rank(changes["feature", f], texts, own))
        dense.append(of("dense", own))
        controls.append(np.array([of("control", int(place)) for place in design.matches[f].controls_K]))
        random.append(np.array([of("random", f)] if f in design.random else []))
    return Effects(np.array(feature), np.array(rank, dtype=int), np.array(dense), controls, random)
