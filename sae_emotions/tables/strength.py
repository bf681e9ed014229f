"""How strongly a score follows a label: AUROC for classes, Pearson's r for numbers; for all features of a table at once.

Shapes: T texts, F features (or scores), L labels, B bootstrap samples. `chance` of a strength is .5 and 0.
"""

from collections.abc import Callable
from typing import Any

import numpy as np

CHANCE = {"classes": 0.5, "numbers": 0.0}


def strength(kind: str, scores_TL: np.ndarray, values_TL: np.ndarray) -> np.ndarray:
    """Each label's own score against it (L): AUROC, ties counted half, or Pearson's r (0 for a constant score)."""
    if kind == "numbers":
        return _pearson(scores_TL, values_TL)
    from sklearn.metrics import roc_auc_score

    pairs = zip(values_TL.T, scores_TL.T, strict=True)
    return np.array([roc_auc_score(values_T > 0, scores_T) for values_T, scores_T in pairs])


def _pearson(scores_TL: np.ndarray, values_TL: np.ndarray) -> np.ndarray:
    a_TL, b_TL = scores_TL - scores_TL.mean(0), values_TL - values_TL.mean(0)
    scale_L = np.sqrt((a_TL**2).sum(0) * (b_TL**2).sum(0))
    return np.where(scale_L > 1e-12, (a_TL * b_TL).sum(0) / np.maximum(scale_L, 1e-12), 0.0)


def strengths(kind: str, values_TF: Any, labels_TL: np.ndarray) -> np.ndarray:
    """Every feature against every label, (L, F), less chance: AUROC - .5 or r. `values_TF`: dense, or CSR without negatives."""
    sparse = hasattr(values_TF, "tocsc")
    if kind == "classes":
        values_TF = sparse_ranks(values_TF) if sparse else _ranks(values_TF)
        positive_L = labels_TL.sum(0)
        # A rank's mean is (T + 1) / 2 in either form, so that what is left is U less its expectation.
        sums_LF = np.asarray((values_TF.T @ labels_TL).T)
        sums_LF = sums_LF - positive_L[:, None] * np.asarray(values_TF.mean(0))
        pairs_L = positive_L * (len(labels_TL) - positive_L)
        return np.asarray(sums_LF / np.maximum(pairs_L, 1)[:, None])
    away_TL = labels_TL - labels_TL.mean(0)
    mean_F = np.asarray(values_TF.mean(0))
    squares_F = np.asarray((values_TF.multiply(values_TF) if sparse else values_TF * values_TF).mean(0))
    spread_F = np.sqrt(np.maximum(squares_F - mean_F**2, 0))
    scale_LF = len(labels_TL) * spread_F * labels_TL.std(0)[:, None]
    products_LF = np.asarray((values_TF.T @ away_TL).T)
    return np.where(scale_LF > 1e-9, products_LF / np.maximum(scale_LF, 1e-9), 0.0)


def _ranks(values_TF: np.ndarray) -> np.ndarray:
    from scipy.stats import rankdata

    return np.asarray(rankdata(values_TF, axis=0))


def sparse_ranks(values_TF: Any) -> Any:
    """Midranks within each column, less the midrank of its zeros: as sparse as the values, which must not be negative."""
    from scipy.sparse import csc_array

    columns = csc_array(values_TF)
    columns.eliminate_zeros()
    texts, features = columns.shape
    count_F = np.diff(columns.indptr)
    column_P = np.repeat(np.arange(features), count_F)
    order = np.lexsort((columns.data, column_P))
    column, value = column_P[order], columns.data[order]
    place_P = np.arange(len(order)) - columns.indptr[column]
    # Ties share the mean of their places.
    first = np.flatnonzero(np.append(True, (np.diff(column) > 0) | (np.diff(value) > 0))[: len(order)])
    size = np.diff(np.append(first, len(order)))
    place_P = np.repeat(place_P[first] + (size - 1) / 2, size) if len(order) else place_P
    zeros_P = texts - count_F[column]
    ranks_P = np.empty(len(order))
    ranks_P[order] = zeros_P + 1 + place_P - (zeros_P + 1) / 2
    return csc_array((ranks_P, columns.indices, columns.indptr), shape=(texts, features))


def bootstrap(
    kind: str,
    scores_TL: np.ndarray,
    values_TL: np.ndarray,
    resamples: int,
    rng: np.random.Generator,
    group_T: np.ndarray | None = None,
) -> np.ndarray:
    """Mean strength over labels in resamples of the rows (B), or of the groups of rows that belong together.

    A label of which a resample lacks a class is left out there.
    """
    group_T = np.arange(len(scores_TL)) if group_T is None else np.unique(group_T, return_inverse=True)[1].reshape(-1)
    groups = int(group_T.max()) + 1
    times_BT = rng.multinomial(groups, np.full(groups, 1 / groups), resamples).astype(np.float64)[:, group_T]
    one: Callable[[np.ndarray, np.ndarray, np.ndarray], np.ndarray] = (
        weighted_auroc if kind == "classes" else _weighted_pearson
    )
    found_BL = np.stack([one(times_BT, s, v) for s, v in zip(scores_TL.T, values_TL.T, strict=True)], axis=1)
    there_BL = ~np.isnan(found_BL)
    return np.asarray(np.where(there_BL, found_BL, 0).sum(1) / np.maximum(there_BL.sum(1), 1))


def weighted_auroc(times_BT: np.ndarray, scores_T: np.ndarray, values_T: np.ndarray) -> np.ndarray:
    """AUROC of one score in samples that hold row t `times_BT` times (B); NaN where a class is missing."""
    order = np.argsort(scores_T, kind="stable")
    ranked = scores_T[order]
    first = np.flatnonzero(np.append(True, np.diff(ranked) > 0))
    positive_T = values_T[order] > 0
    times_BT = times_BT[:, order]
    positive_BG = np.add.reduceat(times_BT * positive_T, first, axis=1)
    negative_BG = np.add.reduceat(times_BT * ~positive_T, first, axis=1)
    below_BG = negative_BG.cumsum(1) - negative_BG / 2
    pairs_B = positive_BG.sum(1) * negative_BG.sum(1)
    return np.where(pairs_B > 0, (positive_BG * below_BG).sum(1) / np.maximum(pairs_B, 1), np.nan)


def _weighted_pearson(times_BT: np.ndarray, scores_T: np.ndarray, values_T: np.ndarray) -> np.ndarray:
    share_BT = times_BT / times_BT.sum(1, keepdims=True)
    a_T, b_T = scores_T - scores_T.mean(), values_T - values_T.mean()
    mean_a, mean_b = share_BT @ a_T, share_BT @ b_T
    spread_B = np.sqrt(np.maximum(share_BT @ a_T**2 - mean_a**2, 0) * np.maximum(share_BT @ b_T**2 - mean_b**2, 0))
    return np.where(spread_B > 1e-12, (share_BT @ (a_T * b_T) - mean_a * mean_b) / np.maximum(spread_B, 1e-12), 0.0)
