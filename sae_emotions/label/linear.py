"""Stratified linear rank statistics: does a feature follow a weighting of the concepts, topic by topic?

Shapes: T texts, F features, C concepts, S strata, L weightings, n texts of a stratum.
A weighting gives each concept a number: 1 inside a family and 0 outside, or a norm such as valence. The statistic is the
sum over strata of (weight less the stratum's mean weight) x rank, ranks on the scale of an AUROC, 0 to 1. With two values
it is van Elteren's stratified Wilcoxon test, with one text inside it is that of `exact.py`, with a norm a stratified
Spearman correlation. Null: within every stratum the texts' concepts are permuted. The null's first three moments are
exact, ties included (the cumulants of a linear permutation statistic), and the tail is that of the Pearson type III
distribution with these moments, as Berry and Mielke (1983) propose.
"""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from sae_emotions.label.layout import ABSENT, Panel


class Ranked(NamedTuple):
    """What the null of every statistic needs to know of the ranks in one panel; labels play no part."""

    square_SF: np.ndarray
    """sum of squared deviations of the rank within the stratum"""
    cube_SF: np.ndarray
    """sum of cubed deviations"""


class Statistic(NamedTuple):
    """A statistic and its null's moments; those of independent panels add up."""

    total_LF: np.ndarray
    variance_LF: np.ndarray
    third_LF: np.ndarray

    def __add__(self, other: object) -> "Statistic":
        if not isinstance(other, Statistic):
            return NotImplemented
        return Statistic(*(a + b for a, b in zip(self[:3], other[:3], strict=True)))


def ranked(ranks_TF: np.ndarray, whole: Panel) -> Ranked:
    """Moments of the ranks (`ranks.doubled_midranks`) within the strata of a panel."""
    shape = (len(whole.size_S), ranks_TF.shape[1])
    square_SF, cube_SF = np.zeros(shape), np.zeros(shape)
    for s, size in enumerate(whole.size_S):
        rows_C = whole.rows_CS[:, s]
        away_nF = _unit(ranks_TF[rows_C[rows_C != ABSENT]], size) - 0.5
        squared_nF = away_nF * away_nF
        square_SF[s], cube_SF[s] = squared_nF.sum(0), (squared_nF * away_nF).sum(0)
    return Ranked(square_SF, cube_SF)


def _unit(doubled: np.ndarray, size: int) -> np.ndarray:
    return np.asarray((doubled - np.float32(2)) / np.float32(2 * (size - 1)))


class Sums(NamedTuple):
    """Ranks, 0 to 1, summed over all strata that hold the same concepts, under one labelling."""

    concepts: tuple[np.ndarray, ...]
    """concepts of each such pattern"""
    strata: tuple[np.ndarray, ...]
    total_nF: tuple[np.ndarray, ...]
    """float32, in the order of the pattern's concepts"""


def patterns(whole: Panel) -> list[tuple[np.ndarray, np.ndarray]]:
    """(concepts, strata) of every distinct set of concepts that strata hold."""
    there_SC = (whole.rows_CS != ABSENT).T
    distinct, which_S = np.unique(there_SC, axis=0, return_inverse=True)
    return [(np.flatnonzero(row), np.flatnonzero(which_S.reshape(-1) == i)) for i, row in enumerate(distinct)]


def sums(ranks_TF: np.ndarray, whole: Panel) -> Sums:
    """All that statistics and AUROC need of a panel's ranks."""
    found = patterns(whole)
    totals = []
    for there, strata in found:
        doubled_nF = np.zeros((len(there), ranks_TF.shape[1]), np.int32)
        for s in strata:
            doubled_nF += ranks_TF[whole.rows_CS[there, s]]
        scale = max(len(there) - 1, 1)
        totals.append((doubled_nF - np.float32(2 * len(strata))) / np.float32(2 * scale))
    concepts, strata = zip(*found, strict=True)
    return Sums(concepts, strata, tuple(totals))


def mean_auroc(found: Sums, concepts: int) -> np.ndarray:
    """AUROC within topic, averaged over topics, of every feature for every concept, as `ranks.auroc`. (C, F), float32."""
    total_CF = np.zeros((concepts, found.total_nF[0].shape[1]), np.float32)
    topics_C = np.zeros(concepts, np.float32)
    for there, strata, total_nF in zip(*found, strict=True):
        total_CF[there] += total_nF
        topics_C[there] += len(strata)
    with np.errstate(invalid="ignore"):
        return total_CF / topics_C[:, None]


def statistic(found: Sums, weights_LC: np.ndarray, moments: Ranked) -> Statistic:
    """Every feature's statistic for every weighting. A stratum in which a weighting is constant tells nothing of it."""
    shape = (len(weights_LC), found.total_nF[0].shape[1])
    total_LF, variance_LF, third_LF = (np.zeros(shape) for _ in range(3))
    for there, strata, sum_nF in zip(*found, strict=True):
        n = len(there)
        if n < 2:
            continue
        away_Ln = weights_LC[:, there] - weights_LC[:, there].mean(1, keepdims=True)
        total_LF += away_Ln.astype(np.float32) @ (sum_nF - np.float32(0.5 * len(strata)))
        square_L, cube_L = (away_Ln**2).sum(1), (away_Ln**3).sum(1)
        variance_LF += square_L[:, None] * moments.square_SF[strata].sum(0) / (n - 1)
        if n > 2:
            third_LF += cube_L[:, None] * moments.cube_SF[strata].sum(0) * n / ((n - 1) * (n - 2))
    return Statistic(total_LF, variance_LF, third_LF)


def one_each(found: Statistic, which_F: np.ndarray) -> Statistic:
    """Every feature's statistic for its own weighting alone: arrays of (F,)."""
    return Statistic(*(np.take_along_axis(one_LF, which_F[None], 0)[0] for one_LF in found[:3]))


def upper_p(found: Statistic) -> np.ndarray:
    """One-sided p, large values being evidence. 1 where the null has no spread. In the statistic's shape."""
    from scipy.stats import pearson3

    p_LF = np.ones(found.total_LF.shape)
    there = found.variance_LF > 1e-12
    spread = np.sqrt(found.variance_LF[there])
    p_LF[there] = pearson3.sf(found.total_LF[there] / spread, found.third_LF[there] / spread**3)
    return np.clip(p_LF, 0.0, 1.0)


def standardised(found: Statistic) -> np.ndarray:
    """Statistic over its null's standard deviation; 0 where the null has no spread. (L, F)."""
    spread_LF = np.sqrt(found.variance_LF)
    return np.divide(found.total_LF, spread_LF, out=np.zeros_like(spread_LF), where=spread_LF > 1e-6)


def set_auroc(ranks_TF: np.ndarray, panels: Sequence[Panel], inside_C: np.ndarray, features: np.ndarray) -> np.ndarray:
    """AUROC of the texts of a set of concepts against the others of their topic, averaged over strata with both. (F,)"""
    total_F, strata = np.zeros(len(features)), 0
    for whole in panels:
        for s, size in enumerate(whole.size_S):
            rows_C = whole.rows_CS[:, s]
            rows = rows_C[inside_C & (rows_C != ABSENT)]
            if 0 < len(rows) < size:
                mean_F = ranks_TF[np.ix_(rows, features)].mean(0) / 2
                total_F += (mean_F - (len(rows) + 1) / 2) / (size - len(rows))
                strata += 1
    return total_F / strata if strata else np.full(len(features), np.nan)
