"""Matched controls: unlabelled latents that remove about as much, about as often, on the very same texts.

Shapes: T texts, L latents, C candidates, K controls of one feature. A control that does not fire where the feature
fires proves nothing, so the match is made on each feature's own texts.
"""

import math
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from sae_emotions.causal.texts import Firing

SHARE_FACTOR, SIZE_FACTOR = 2.0, 1.5  # a match is within these factors of the feature
FIRES_IN = 0.75  # share of the feature's texts in which a control must fire
REFERENCE = 5  # controls that a feature's effect is measured against, at least
MOST = 32  # the same, at most
TESTABLE = 0.8  # share of features whose readout can be moved at all (seen: .81)
NEW = 1.0  # how much nearer, in tolerances, a control must be that no other feature uses yet


class Traits(NamedTuple):
    """What is matched."""

    share_L: np.ndarray
    """share of the texts' tokens at which a latent is active"""
    size_L: np.ndarray
    """mean norm that it adds where it is active, residual-stream units"""
    fires_L: np.ndarray
    """share of the texts in which it fires at all"""


class Matched(NamedTuple):
    """Controls of one feature: those within the tolerances first, then the nearest others."""

    controls_K: np.ndarray
    """places among the L latents"""
    within_K: np.ndarray
    """bool: inside the tolerances"""


def traits(firing: Firing, norms_L: np.ndarray, texts: Sequence[int] | np.ndarray) -> Traits:
    """Traits of every latent on these texts. `norms_L` are decoder norms."""
    active_TL, amount_TL = firing.active_TL[texts], firing.amount_TL[texts]
    active_L = active_TL.sum(0)
    size_L = norms_L * amount_TL.sum(0) / np.maximum(active_L, 1)
    return Traits(active_L / firing.tokens_T[texts].sum(), size_L, (active_TL > 0).mean(0))


def _distance(found: Traits, feature: int, candidates_C: np.ndarray) -> np.ndarray:
    """Distance of each candidate in tolerances: 1 is the edge in one trait; infinite where it never fires."""
    with np.errstate(divide="ignore"):
        share_C = np.abs(np.log(found.share_L[candidates_C] / found.share_L[feature])) / np.log(SHARE_FACTOR)
        size_C = np.abs(np.log(found.size_L[candidates_C] / found.size_L[feature])) / np.log(SIZE_FACTOR)
    rare_C = np.where(found.fires_L[candidates_C] < FIRES_IN, 1 + FIRES_IN - found.fires_L[candidates_C], 0)
    return np.maximum(np.maximum(share_C, size_C), rare_C)


def match(
    firing: Firing,
    norms_L: np.ndarray,
    features_F: np.ndarray,
    uses: Sequence[np.ndarray],
    candidates_C: np.ndarray,
    count: int,
    share: bool = True,
) -> list[Matched]:
    """Up to `count` controls for each feature, a place among the L latents, on its texts `uses[f]`.

    Features with the fewest matches choose first. With `share`, among near equals a control that another feature already
    uses comes first, since its runs are shared; without, no control is given to two features. Where too few lie within the
    tolerances the nearest others fill up, and `within_K` says so.
    """
    distances = [
        _distance(traits(firing, norms_L, texts), feature, candidates_C)
        for feature, texts in zip(features_F, uses, strict=True)
    ]
    used_C = np.zeros(len(candidates_C), bool)
    found: dict[int, Matched] = {}
    for f in sorted(range(len(uses)), key=lambda f: (int((distances[f] <= 1).sum()), f)):
        distance_C = distances[f]
        if share:
            # Sharing may reorder what lies within the tolerances, but never puts an outsider before a match.
            rank_C = np.where(distance_C <= 1, np.minimum(distance_C + NEW * ~used_C, 1), distance_C)
        else:
            rank_C = distance_C = np.where(used_C, np.inf, distance_C)
        order = np.lexsort((candidates_C, distance_C, rank_C))[:count]
        order = order[np.isfinite(distance_C[order])]
        used_C[order] = True
        found[f] = Matched(candidates_C[order], distance_C[order] <= 1)
    return [found[f] for f in range(len(uses))]


def controls_each(held_back: int, features: int) -> int:
    """Controls a feature so that `held_back` are judged in all, though some features will turn out not to be testable.

    An even number: half of them are the reference. At least `REFERENCE` are, and at most `MOST`, since the further ones are the
    less like the feature.
    """
    return 2 * min(max(math.ceil(held_back / (TESTABLE * max(features, 1))), REFERENCE), MOST)


def halves(count: int, rng: np.random.Generator) -> np.ndarray:
    """Which of `count` controls are held back to be judged like features; the others are the reference. Bool, shape K."""
    held_K = np.zeros(count, bool)
    held_K[rng.permutation(count)[: count // 2]] = True
    return held_K
