"""Joint removal: all labelled features of one concept at once, and matched control groups of the same size.

Where features are redundant, removing one changes little and removing all changes more than the sum of the parts.
Shapes: L latents, M members of a group, K control groups, T texts.
"""

from collections import Counter
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from sae_emotions.causal.controls import match
from sae_emotions.causal.texts import Firing

TEXTS = 6  # texts a concept: each joint removal is a run of its own, which no other concept shares
MOST = 40  # concepts, those with the most labelled features, for the same reason
CONTROLS = 8  # control groups a concept: half of them are the reference


class Group(NamedTuple):
    """The labelled features of one concept."""

    own: int
    """number of the concept, which is also its word's"""
    members_M: np.ndarray
    """places among the latents"""
    texts: np.ndarray
    """the `TEXTS` texts of the common pool in which they add most together"""
    controls_KM: np.ndarray
    """places of the control groups' members, each matched with the feature of its column; no latent is in two groups"""


def groups_of(
    firing: Firing,
    norms_L: np.ndarray,
    own_F: np.ndarray,
    candidates_C: np.ndarray,
) -> list[Group]:
    """One group for each concept with two or more labelled features that fire in the pool, the `MOST` with the most of them.

    There is none where they fire in fewer than `TEXTS` texts. A member is matched on those of them in which it fires.
    """
    counted = Counter(own_F[firing.active_TL[:, : len(own_F)].any(0)].tolist())
    found = []
    several = [concept for concept, count in sorted(counted.items(), key=lambda one: (-one[1], one[0])) if count > 1]
    for own in sorted(several[:MOST]):
        members_M = np.flatnonzero((own_F == own) & firing.active_TL[:, : len(own_F)].any(0))
        added_T = (firing.amount_TL[:, members_M] * norms_L[members_M]).sum(1)
        order = np.argsort(-added_T, kind="stable")[:TEXTS]
        chosen = np.sort(order[added_T[order] > 0])
        members_M = members_M[firing.active_TL[np.ix_(chosen, members_M)].any(0)]
        if len(chosen) == TEXTS and len(members_M) > 1:
            controls_KM = _controls(firing, norms_L, members_M, chosen, candidates_C)
            found.append(Group(own, members_M, chosen, controls_KM))
    return found


def _controls(
    firing: Firing, norms_L: np.ndarray, members_M: np.ndarray, texts: np.ndarray, candidates_C: np.ndarray
) -> np.ndarray:
    uses = [texts[firing.active_TL[texts, member] > 0] for member in members_M]
    most = min(CONTROLS, len(candidates_C) // len(members_M))
    matches = match(firing, norms_L, members_M, uses, candidates_C, most, share=False)
    count = min(len(one.controls_K) for one in matches)
    return np.stack([one.controls_K[:count] for one in matches], axis=1).astype(np.int64)


class Redundancy(NamedTuple):
    """Joint effects against the sums of single ones, over groups."""

    joint: float | None
    """median joint effect, nats"""
    single: float | None
    """median sum of single effects"""
    p: float | None
    """that joint effects differ from the sums: Wilcoxon's signed-rank test, two-sided"""


def redundancy(joint_G: Sequence[float] | np.ndarray, sum_G: Sequence[float] | np.ndarray) -> Redundancy:
    """Compare joint effects with sums of single ones. None where there is nothing to compare."""
    from scipy.stats import wilcoxon

    if not len(joint_G):
        return Redundancy(None, None, None)
    away_G = np.asarray(joint_G) - np.asarray(sum_G)
    p = float(wilcoxon(away_G).pvalue) if (away_G != 0).any() else 1.0
    return Redundancy(float(np.median(joint_G)), float(np.median(sum_G)), p)
