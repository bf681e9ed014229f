"""One labelling of the concept texts, real or permuted, and all that is made from it alone: vectors, neighbours, families.

A permuted labelling has permuted vectors, neighbours and families, so that nothing of the real one leaks into its null.
Shapes: C concepts, D residual width, T texts, F features, n texts of a stratum.
"""

from typing import NamedTuple

import numpy as np

from sae_emotions.config import LabelConfig
from sae_emotions.label.baselines import difference_of_means
from sae_emotions.label.families import Families, found_families
from sae_emotions.label.layout import ABSENT, Layout, Panel
from sae_emotions.label.linear import Ranked, ranked
from sae_emotions.label.strength import Neighbours, neighbours


class Readings(NamedTuple):
    """Every feature's ranks among the texts of a topic, and their moments. The same under every labelling."""

    ranks_TF: np.ndarray
    selection: tuple[Ranked, Ranked]
    held_out: tuple[Ranked, Ranked]


class Labelling(NamedTuple):
    """Which text shows which concept, and what the selection texts then say of the concepts."""

    found: Layout
    dense_CD: np.ndarray
    """difference of means, residual-stream units"""
    near: Neighbours
    families: Families


def readings(ranks_TF: np.ndarray, found: Layout) -> Readings:
    """Moments of `ranks.doubled_midranks` in all panels."""
    first, second = found.selection
    third, fourth = found.held_out
    return Readings(
        ranks_TF,
        (ranked(ranks_TF, first), ranked(ranks_TF, second)),
        (ranked(ranks_TF, third), ranked(ranks_TF, fourth)),
    )


def labelling(found: Layout, resid_TD: np.ndarray, whiten_DD: np.ndarray, settings: LabelConfig) -> Labelling:
    """Vectors, neighbours and families by the selection texts of `found`."""
    dense_CD = difference_of_means(resid_TD, found.selection)
    families = found_families(found.concepts, dense_CD @ whiten_DD, settings.families)
    return Labelling(found, dense_CD, neighbours(dense_CD, settings.own), families)


def whitening(resid_TD: np.ndarray, panels: tuple[Panel, Panel], shrink: float = 0.5) -> np.ndarray:
    """Matrix after which the texts, each less its topic's mean, spread about equally in all directions. (D, D)

    Their covariance is drawn half-way towards a sphere. Which text shows which concept plays no part.
    """
    away = [_less_topic(resid_TD, whole, s) for whole in panels for s in range(len(whole.size_S))]
    away_TD = np.concatenate(away).astype(np.float64)
    covariance_DD = away_TD.T @ away_TD / len(away_TD)
    mean = np.trace(covariance_DD) / len(covariance_DD)
    eigen_D, basis_DD = np.linalg.eigh((1 - shrink) * covariance_DD + shrink * mean * np.eye(len(covariance_DD)))
    scale_D = 1 / np.sqrt(np.maximum(eigen_D, 1e-12 * max(mean, 1e-300)))
    return np.asarray((basis_DD * scale_D) @ basis_DD.T)


def _less_topic(resid_TD: np.ndarray, whole: Panel, s: int) -> np.ndarray:
    rows_C = whole.rows_CS[:, s]
    texts_nD = resid_TD[rows_C[rows_C != ABSENT]]
    return np.asarray(texts_nD - texts_nD.mean(0))
