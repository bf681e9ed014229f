"""How many concepts are read well, with noise taken into account: empirical-Bayes shrinkage of AUROC. C concepts, S topics.

A concept's mean over a handful of topics is above a mark now and then by luck alone, so a plain count of "at least .9"
flatters. On the scale g = arcsin(sqrt(AUROC)) a value between 0 and 1 whose variance is kappa mu (1 - mu) has the variance
kappa / 4 whatever its mean (Efron and Morris 1975, who shrank batting averages so). With concept c read on n_c topics:

    kappa = sum of squared deviations from the concepts' means / sum_c (n_c - 1) m_c (1 - m_c)   (topics' own means removed)
    v_c   = kappa / (4 n_c)                                 sampling variance of g_c
    tau^2 = max(0, variance of g_c over concepts - mean v_c)
    shrunken g_c = mean g + tau^2 / (tau^2 + v_c) (g_c - mean g),   AUROC = sin(g)^2

The count of shrunken values above a mark errs to the other side where they are shrunk strongly: shrunken values vary less
than true ones. The expected count is that of the posterior normal(shrunken g_c, v_c tau^2 / (tau^2 + v_c)) above the mark.
"""

from typing import NamedTuple

import numpy as np

from sae_emotions.label.ranks import topic_mean


class Shrunken(NamedTuple):
    """AUROC of every concept that was read, moved towards their mean."""

    concept_C: np.ndarray
    """numbers of those concepts"""
    raw_C: np.ndarray
    auroc_C: np.ndarray
    """the shrunken value"""
    kept: float
    """mean share of the distance to the mean that is kept: 0 where all differences look like noise"""
    mean_g_C: np.ndarray
    sd_g_C: np.ndarray
    """posterior mean and standard deviation on the scale of g"""


def shrunken(auroc_CS: np.ndarray) -> Shrunken:
    """Shrink each concept's mean AUROC over topics (NaN: not written on that topic)."""
    there_CS = ~np.isnan(auroc_CS)
    some = np.flatnonzero(there_CS.any(1))
    there_CS, raw_C = there_CS[some], topic_mean(auroc_CS[some])
    n_C = there_CS.sum(1)
    g_C = np.arcsin(np.sqrt(raw_C))
    v_C = _kappa(auroc_CS[some], there_CS, raw_C) / (4 * n_C)
    tau2 = max(0.0, float(g_C.var(ddof=1) - v_C.mean())) if len(g_C) > 1 else 0.0
    keep_C = tau2 / np.maximum(tau2 + v_C, 1e-12)
    mean_g_C = g_C.mean() + keep_C * (g_C - g_C.mean())
    return Shrunken(some, raw_C, np.sin(mean_g_C) ** 2, float(keep_C.mean()), mean_g_C, np.sqrt(v_C * keep_C))


def _kappa(auroc_CS: np.ndarray, there_CS: np.ndarray, mean_C: np.ndarray) -> float:
    """Variance of an AUROC on one topic, in units of mu (1 - mu); harder and easier topics do not count as noise."""
    off_CS = np.where(there_CS, auroc_CS - mean_C[:, None], 0)
    topic_S = off_CS.sum(0) / np.maximum(there_CS.sum(0), 1)
    off_CS = np.where(there_CS, off_CS - topic_S, 0)
    degrees = ((there_CS.sum(1) - 1) * mean_C * (1 - mean_C)).sum()
    return float((off_CS**2).sum() / degrees) if degrees > 0 else 0.0


def counts_at_least(auroc_CS: np.ndarray, mark: float) -> dict[str, float]:
    """How many concepts reach `mark`: raw, by their shrunken value, and expected under the posterior; of how many."""
    from scipy.stats import norm

    found = shrunken(auroc_CS)
    above_C = norm.sf(np.arcsin(np.sqrt(mark)), found.mean_g_C, np.maximum(found.sd_g_C, 1e-9))
    return {
        "raw": int((found.raw_C >= mark).sum()),
        "shrunken": int((found.auroc_C >= mark).sum()),
        "expected": round(float(above_C.sum()), 1),
        "of": len(found.concept_C),
    }
