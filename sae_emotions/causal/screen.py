"""The screen: which removals are worth an exact run, by what they do to first order on the very texts of the test.

First-order effects are judged as exact ones are, and those that are not extreme are not run. This choice is part of the test
(`verdict.judge`): controls and random directions go through the same screen.
Shapes: F features, K controls of one feature, N removals, R directions among the words, L latents.
"""

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np

from sae_emotions.causal.controls import Matched
from sae_emotions.causal.linear import Linear
from sae_emotions.causal.profile import Profile, Readings, halved, in_nats, joined
from sae_emotions.causal.verdict import DENSE_P, gated, units

FEWEST = 8  # pairs, below which a rank correlation says nothing


class Screened(NamedTuple):
    """What all removals of the test do to first order, and which are let through to a run."""

    feature: Readings
    dense: Readings
    controls: list[Readings]
    """of each feature's controls, in the order of its matches"""
    unit_F: np.ndarray
    """spread of each feature's reference controls; NaN where there are too few"""
    limit: float
    """a removal is let through where its z is lower; infinite where nothing is kept out"""
    feature_F: np.ndarray
    """let through, bool"""
    held: list[np.ndarray]
    """per feature: which of its controls are held back and let through, bool, K"""
    random: frozenset[int]
    """features whose random direction is let through"""

    @property
    def z_F(self) -> np.ndarray:
        """First-order z of the features."""
        return np.asarray(self.feature.specific_N / self.unit_F)


def screen(
    found: Linear,
    places_F: np.ndarray,
    own_F: np.ndarray,
    profiles: Mapping[int, Profile],
    uses: Sequence[np.ndarray],
    matches: Sequence[Matched],
    held: Sequence[np.ndarray],
    most: int | None,
) -> Screened:
    """Let through the `most` features of lowest first-order z (None: all), and held-back controls and random directions as low.

    The limit is the z of the first feature that is kept out, so for those let through it is set by others, as it is for controls.
    Only features that can be tested count, and are let through. `held` says which controls are held back; the others are the
    reference.
    """
    feature, dense, controls, random = [], [], [], {}
    for f, (place, own, texts) in enumerate(zip(places_F, own_F, uses, strict=True)):
        profile, mean_RL = profiles[int(own)], found.latents_TRL[texts].mean(0, dtype=np.float64)
        feature.append(found.read(mean_RL[:, [int(place)]], profile))
        controls.append(found.read(mean_RL[:, matches[f].controls_K], profile))
        dense.append(found.read(found.dense_TRC[texts][:, :, [int(own)]].mean(0, dtype=np.float64), profile))
        if f in found.random:
            random[f] = float(found.read(found.random[f][:, None], profile).specific_N[0])
    halves = halved(controls, held)
    unit_F = units([one.specific_N for one in halves[0]])
    all_features, all_dense = joined(feature), joined(dense)
    z_F = all_features.specific_N / unit_F
    _, dense_p_F = gated(all_dense.profile_N, *in_nats(halves))
    can_F = np.isfinite(unit_F) & (dense_p_F <= DENSE_P)
    known = np.sort(z_F[can_F])
    limit = float(known[most]) if most is not None and most < len(known) else np.inf
    let = [held_K & (one.specific_N / unit < limit) for one, held_K, unit in zip(controls, held, unit_F, strict=True)]
    through = frozenset(f for f, specific in random.items() if specific / unit_F[f] < limit)
    return Screened(all_features, all_dense, controls, unit_F, limit, can_F & (z_F < limit), let, through)


class Agreement(NamedTuple):
    """Spearman's rank correlation with its 95 % interval."""

    rho: float | None
    low: float | None
    high: float | None
    pairs: int


def agreement(first_N: np.ndarray, exact_N: np.ndarray) -> Agreement:
    """Rank agreement of first-order effects with exact ones; None where there are too few or all are alike.

    The interval is Fisher's with the variance of Bonett and Wright (2000), (1 + rho²/2) / (n - 3).
    """
    from scipy.stats import norm, spearmanr

    count = len(first_N)
    if min(len(set(first_N)), len(set(exact_N))) < FEWEST:
        return Agreement(None, None, None, count)
    rho = float(spearmanr(first_N, exact_N).statistic)
    if abs(rho) == 1:
        return Agreement(rho, rho, rho, count)
    away = float(norm.ppf(0.975)) * np.sqrt((1 + rho**2 / 2) / (count - 3))
    return Agreement(rho, float(np.tanh(np.arctanh(rho) - away)), float(np.tanh(np.arctanh(rho) + away)), count)
