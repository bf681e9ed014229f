"""Midranks within topics, and the AUROC of every feature for every concept in one pass.

Shapes: T texts, F features, C concepts, S strata (topics), P pairs of a feature and a concept.
A concept has one text a topic. With midrank r among the topic's n texts, its AUROC there, ties counted half, is
(r - 1) / (n - 1) (Mann and Whitney 1947); a concept's AUROC is the mean over its topics, each with the same weight.
Midranks are kept doubled: doubled midranks are whole numbers even where values are tied.
"""

from collections.abc import Sequence

import numpy as np

from sae_emotions.label.layout import ABSENT, Panel

CHUNK = 1024
"""features a pass, so that intermediate arrays stay in megabytes"""


def doubled_midranks(values_TF: np.ndarray, panels: Sequence[Panel]) -> np.ndarray:
    """Twice the midrank of every text among the texts of its stratum, per feature; 2 is the lowest. (T, F), int16.

    Texts outside `panels` have rank 0. Labels play no part, so one table serves every permutation of them.
    """
    from scipy.stats import rankdata

    largest = max(int(whole.size_S.max()) for whole in panels)
    ranks_TF = np.zeros(values_TF.shape, np.int16 if 2 * largest < 2**15 else np.int32)
    for whole in panels:
        for s in range(len(whole.size_S)):
            rows = stratum_rows(whole, s)
            for start in range(0, values_TF.shape[1], CHUNK):
                some = slice(start, start + CHUNK)
                ranks_TF[rows, some] = 2 * rankdata(values_TF[rows, some], axis=0)
    return ranks_TF


def stratum_rows(whole: Panel, s: int) -> np.ndarray:
    """Numbers of the texts of stratum `s`."""
    rows_C = whole.rows_CS[:, s]
    return rows_C[rows_C != ABSENT]


def auroc(ranks_TF: np.ndarray, whole: Panel) -> np.ndarray:
    """AUROC within topic, averaged over topics, of every feature for every concept. (C, F), float32.

    NaN for a concept that was written on none of the panel's topics.
    """
    total_CF = np.zeros((len(whole.rows_CS), ranks_TF.shape[1]), np.float32)
    for s, size in enumerate(whole.size_S):
        there = np.flatnonzero(whole.rows_CS[:, s] != ABSENT)
        total_CF[there] += (ranks_TF[whole.rows_CS[there, s]] - np.float32(2)) / np.float32(2 * (size - 1))
    topics_C = (whole.rows_CS != ABSENT).sum(1)
    with np.errstate(invalid="ignore"):
        return total_CF / topics_C[:, None].astype(np.float32)


def pair_auroc(ranks_TF: np.ndarray, whole: Panel, concept_P: np.ndarray, feature_P: np.ndarray) -> np.ndarray:
    """AUROC in every topic for some pairs. (P, S), float64, NaN where the concept was not written on the topic."""
    rows_PS = whole.rows_CS[concept_P]
    auroc_PS = (ranks_TF[rows_PS, feature_P[:, None]] - 2.0) / (2.0 * (whole.size_S - 1.0))
    auroc_PS[rows_PS == ABSENT] = np.nan
    return auroc_PS


def pair_sums(ranks_TF: np.ndarray, whole: Panel, concept_P: np.ndarray, feature_P: np.ndarray) -> np.ndarray:
    """Sum over topics of the doubled midrank for some pairs. (P,), int64."""
    rows_PS = whole.rows_CS[concept_P]
    ranks_PS = ranks_TF[rows_PS, feature_P[:, None]].astype(np.int64)
    return np.where(rows_PS == ABSENT, 0, ranks_PS).sum(1)


def topic_mean(auroc_PS: np.ndarray) -> np.ndarray:
    """Mean over the topics that are there; NaN where none is. (P,)"""
    there_PS = ~np.isnan(auroc_PS)
    with np.errstate(invalid="ignore"):
        return np.where(there_PS, auroc_PS, 0).sum(1) / there_PS.sum(1)
