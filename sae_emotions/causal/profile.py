"""What is read of a removal: how far a concept's word and those of concepts like it fall, against the scatter of all others.

One word moves for many reasons. Words of like concepts move together when what they share is removed, so all words are weighted
by the cosine of their concepts' dense vectors with the concept's own. And some removals move every word more than others do, so
that sum is taken in units of how far the words outside the concept's family scatter under the same removal.
Shapes: C concepts (and their words), N removals.
"""

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np
import torch

from sae_emotions.causal.readouts import WordTree

FEWEST = 8  # words outside the family, below which their scatter is no unit
Changes = Mapping[int, tuple[np.ndarray, np.ndarray]]
"""text -> changes of the words' first tokens and of the whole words, nats, NaN where not followed"""


class Profile(NamedTuple):
    """A concept as a weighting of the words."""

    own: int
    """number of the concept, which is also its word's"""
    outside: np.ndarray
    """words outside its family"""
    weight_C: np.ndarray
    """of every word; they sum to 0 and their squares to 1, and 0 is a word that is not read"""

    @property
    def words(self) -> np.ndarray:
        """All words that are read."""
        return np.union1d(np.union1d(np.flatnonzero(self.weight_C), self.outside), [self.own])


def whole_words(tree: WordTree) -> np.ndarray:
    """Which words are read beside the own one: those of one token, which cost no nodes; all where they are fewer than 20."""
    single_C = tree.single()
    return single_C if single_C.sum() >= 20 else np.ones(len(single_C), bool)


def outside_of(tree: WordTree, families: Sequence[str | None], own: int) -> np.ndarray:
    """The words outside a concept's family that its word is compared with; all others where the family is everything."""
    base_C = whole_words(tree)
    kin_C = np.array([family is not None and family == families[own] for family in families])
    kin_C[own] = True
    chosen_C = base_C & ~kin_C
    return np.flatnonzero(chosen_C if chosen_C.any() else np.arange(len(families)) != own)


def profile_of(tree: WordTree, families: Sequence[str | None], dense_CD: torch.Tensor, own: int) -> Profile:
    """The profile of concept `own`; `dense_CD` are unit vectors."""
    read_C = whole_words(tree).copy()
    read_C[own] = True
    cosine_C = (dense_CD @ dense_CD[own]).double().numpy()
    weight_C = np.where(read_C, cosine_C - cosine_C[read_C].mean(), 0.0)
    length = np.linalg.norm(weight_C)
    return Profile(own, outside_of(tree, families, own), weight_C / length if length > 0 else weight_C)


class Readings(NamedTuple):
    """Of N removals."""

    word_N: np.ndarray
    """change of log P of the own word less the mean change of the words outside, nats"""
    profile_N: np.ndarray
    """the words' changes weighted by the profile, nats"""
    scatter_N: np.ndarray
    """standard deviation of the changes of the words outside, nats"""

    @property
    def specific_N(self) -> np.ndarray:
        """The profile's change in units of the scatter: what is judged. 0 where nothing changes, NaN where nothing was run."""
        none_N = np.zeros_like(self.profile_N)
        return np.divide(self.profile_N, self.scatter_N, out=none_N, where=self.scatter_N != 0)

    def some(self, which_N: np.ndarray) -> "Readings":
        """Some of the removals."""
        return Readings(self.word_N[which_N], self.profile_N[which_N], self.scatter_N[which_N])


def read(removals: Sequence[Changes], texts: Sequence[int] | np.ndarray, profile: Profile) -> Readings:
    """Read removals by their mean changes over `texts`; a text in which nothing was run counts as no change."""
    mean_NC = np.zeros((len(removals), len(profile.weight_C)))
    words = profile.words
    for n, by_text in enumerate(removals):
        for t in texts:
            if int(t) in by_text:
                mean_NC[n, words] += by_text[int(t)][1][words]
    return readings(mean_NC / max(len(texts), 1), profile)


def readings(change_NC: np.ndarray, profile: Profile) -> Readings:
    """Read removals by their mean changes of all words, nats."""
    out_NX = change_NC[:, profile.outside]
    scatter_N = out_NX.std(1) if len(profile.outside) >= FEWEST else np.ones(len(change_NC))
    return Readings(change_NC[:, profile.own] - out_NX.mean(1), change_NC @ profile.weight_C, scatter_N)


NONE = Readings(np.zeros(0), np.zeros(0), np.zeros(0))


def joined(some: Sequence[Readings]) -> Readings:
    """Readings of all removals, one after the other."""
    return Readings(*(np.concatenate(column) for column in zip(NONE, *some, strict=True)))


def halved(controls: Sequence[Readings], held: Sequence[np.ndarray]) -> tuple[list[Readings], list[Readings]]:
    """Of each feature's controls the reference, and those that are held back (bool)."""
    both = list(zip(controls, held, strict=True))
    return [one.some(~held_K) for one, held_K in both], [one.some(held_K) for one, held_K in both]


def in_nats(halves: tuple[list[Readings], list[Readings]]) -> tuple[list[np.ndarray], list[np.ndarray]]:
    """Profiles of both halves: a dense vector moves all words far, so it is judged in nats, beside controls in nats."""
    reference, held_back = halves
    return [one.profile_N for one in reference], [one.profile_N for one in held_back]
