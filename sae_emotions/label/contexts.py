"""Where in the general text a feature fires most: one streaming pass, a top-n a feature, one context a document.

Shapes: N rows of the store, B rows a batch, F features, K candidates, n contexts a feature, W tokens a context.
Candidates are gathered with their context while their batch is at hand, so nothing is encoded twice but the batch's
margin. A row enters if it beats its feature's weakest held document so far.

Corpora repeat themselves, so twice as many documents are held as are asked for: at the end, of those whose contexts end in
the same `ALIKE` tokens only the strongest stays.
"""

from collections.abc import Callable
from typing import NamedTuple

import numpy as np

from sae_emotions.label.means import BATCH, Encoder, Firing, RowStore, encoded

ALIKE = 8  # tokens up to the peak that make two contexts the same


class Contexts(NamedTuple):
    """The strongest contexts, by feature and then by rank."""

    feature_K: np.ndarray
    rank_K: np.ndarray
    document_K: np.ndarray
    position_K: np.ndarray
    value_K: np.ndarray
    values_KW: np.ndarray
    """activation at each token of the context; 0 where the store has no row"""
    before: int
    """how many of the W tokens stand before the peak"""
    density_F: np.ndarray
    """share of rows in which the feature is active"""


class _Found(NamedTuple):
    feature: np.ndarray
    row: np.ndarray
    document: np.ndarray
    value: np.ndarray
    values: np.ndarray


def top_contexts(
    rows: RowStore,
    dictionary: Encoder,
    n: int,
    tokens: int,
    advance: Callable[[int], None] = lambda rows: None,
) -> Contexts:
    """The `n` strongest contexts of `tokens` tokens of every feature, and how often it fires.

    Fewer where it fires in fewer documents, or where more than `n` of its strongest repeat one another.
    """
    before = tokens * 2 // 3
    margin = max(before, tokens - before)
    count, features = len(rows), dictionary.d_sae
    fired_F, floor_F = np.zeros(features, np.int64), np.zeros(features, np.float32)
    none = np.zeros(0, np.int64)
    best = _Found(none, none, none, np.zeros(0, np.float32), np.zeros((0, tokens), np.float32))
    for start in range(0, count, BATCH):
        stop = min(start + BATCH, count)
        low, high = max(start - margin, 0), min(stop + margin, count)
        firing = encoded(dictionary, rows.read(np.arange(low, high)))
        row_K, feature_K, value_K = (
            one[slice(*np.searchsorted(firing.row_P, [start - low, stop - low]))] for one in firing
        )
        fired_F += np.bincount(feature_K, minlength=features)
        better = value_K > floor_F[feature_K]
        new = _strongest(feature_K[better], row_K[better] + low, value_K[better], rows, 2 * n)
        values_KW = _context(firing, features, rows, new, (low, high), (before, tokens))
        best = _merged(best, _Found(*new, values_KW), 2 * n)
        full = _rank(best.feature) == 2 * n - 1
        floor_F[best.feature[full]] = best.value[full]
        advance(stop - start)
    kept = _unlike(best.feature, _endings(rows, best.row))
    best = _Found(*(column[kept] for column in best))
    best = _Found(*(column[_rank(best.feature) < n] for column in best))
    return Contexts(
        feature_K=best.feature,
        rank_K=_rank(best.feature),
        document_K=best.document,
        position_K=rows.position_N[best.row],
        value_K=best.value,
        values_KW=best.values,
        before=before,
        density_F=fired_F / max(count, 1),
    )


def _rank(feature_K: np.ndarray) -> np.ndarray:
    """Place of each entry within its feature, for entries sorted by feature."""
    _, first, count = np.unique(feature_K, return_index=True, return_counts=True)
    return np.arange(len(feature_K)) - np.repeat(first, count)


def _endings(rows: RowStore, row_K: np.ndarray) -> np.ndarray:
    """The last `ALIKE` tokens up to each row, within its document; K x ALIKE, -1 before it."""
    row_KA = row_K[:, None] - np.arange(ALIKE)
    same_KA = (row_KA >= 0) & (rows.document_N[row_KA] == rows.document_N[row_K][:, None])
    return np.where(same_KA, rows.token_N[row_KA], -1)


def _unlike(feature_K: np.ndarray, ending_KA: np.ndarray) -> np.ndarray:
    """Entries, sorted by feature and rank, whose feature has no stronger one with the same ending."""
    pair = np.concatenate([feature_K[:, None], ending_KA], axis=1)
    return np.sort(np.unique(pair, axis=0, return_index=True)[1])


def _order(feature_K: np.ndarray, document_K: np.ndarray, row_K: np.ndarray, value_K: np.ndarray, n: int) -> np.ndarray:
    """The entries that stay: each document's strongest (the earliest if tied), then the n strongest documents."""
    by_document = np.lexsort((row_K, -value_K, document_K, feature_K))
    pair = np.stack([feature_K[by_document], document_K[by_document]])
    first = np.ones(len(by_document), bool)
    first[1:] = (pair[:, 1:] != pair[:, :-1]).any(0)
    kept = by_document[first]
    by_value = kept[np.lexsort((row_K[kept], -value_K[kept], feature_K[kept]))]
    return by_value[_rank(feature_K[by_value]) < n]


def _strongest(
    feature_K: np.ndarray, row_K: np.ndarray, value_K: np.ndarray, rows: RowStore, n: int
) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    document_K = rows.document_N[row_K].astype(np.int64)
    kept = _order(feature_K, document_K, row_K, value_K, n)
    return feature_K[kept], row_K[kept], document_K[kept], value_K[kept]


def _merged(old: _Found, new: _Found, n: int) -> _Found:
    both = _Found(*(np.concatenate(pair) for pair in zip(old, new, strict=True)))
    kept = _order(both.feature, both.document, both.row, both.value, n)
    return _Found(*(column[kept] for column in both))


def _context(
    firing: Firing,
    features: int,
    rows: RowStore,
    new: tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray],
    span: tuple[int, int],
    shape: tuple[int, int],
) -> np.ndarray:
    """Activations around each candidate, placed by token position. Rows skip positions, so they reach no less far."""
    feature_K, row_K, document_K, _ = new
    (low, high), (before, tokens) = span, shape
    row_KW = row_K[:, None] + np.arange(-before, tokens - before)
    there_KW = (row_KW >= low) & (row_KW < high)
    row_KW = np.clip(row_KW, low, high - 1)
    place_KW = rows.position_N[row_KW] - rows.position_N[row_K][:, None] + before
    there_KW &= (rows.document_N[row_KW] == document_K[:, None]) & (place_KW >= 0) & (place_KW < tokens)
    k, w = np.nonzero(there_KW)
    wanted = (row_KW[k, w] - low) * features + feature_K[k]
    pair_P = firing.row_P * features + firing.feature_P
    at = np.minimum(np.searchsorted(pair_P, wanted), len(pair_P) - 1)
    values_KW = np.zeros((len(feature_K), tokens), np.float32)
    if len(pair_P):
        values_KW[k, place_KW[k, w]] = np.where(pair_P[at] == wanted, firing.value_P[at], 0)
    return values_KW
