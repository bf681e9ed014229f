"""Exact one-sided p of a summed midrank.

Shapes: F features, P pairs of a feature and a concept, L values of a doubled midrank from the lowest (2) up.

Null: in every topic the concept's text is any one of the topic's texts, each with the same probability, topics
independent. The statistic is the sum over topics of the midrank, so where topics differ in size the larger ones weigh
more (a topic of 171 texts three times one of 57), unlike in the AUROC; where all have the same size the two agree.
Its null distribution is the convolution over topics of the distribution of a randomly drawn midrank, ties included;
p = P(sum >= observed). It depends on the feature and on the set of topics, never on the labels. It is a stratified
Wilcoxon test with one text a stratum and no normal approximation, which fails for sparse features.

Convolutions of many features go through FFTs, whose error in a tail is about 1e-13 whatever the tail's size. So every p
below `DIRECT` is computed again by direct convolution: there all terms are positive and the relative error stays near
1e-14 however small p is. Relative error above `DIRECT` is thus below 1e-6.
"""

from functools import reduce

import numpy as np

from sae_emotions.label.layout import Panel
from sae_emotions.label.ranks import stratum_rows

DIRECT = 1e-6
_CHUNK = 256


def midrank_counts(ranks_TF: np.ndarray, whole: Panel, s: int, features: np.ndarray) -> np.ndarray:
    """How many texts of stratum `s` have each doubled midrank, from 2 up. (F, L = 2 n - 1), float64."""
    rows = stratum_rows(whole, s)
    width = 2 * len(rows) - 1
    index_nF = ranks_TF[rows[:, None], features].astype(np.int64) - 2 + width * np.arange(len(features))
    return np.bincount(index_nF.ravel(), minlength=width * len(features)).reshape(-1, width).astype(np.float64)


def topic_distributions(ranks_TF: np.ndarray, whole: Panel, group: int, feature: int) -> list[np.ndarray]:
    """Null distribution of the doubled midrank less 2 in each topic of a group, for one feature."""
    strata = whole.groups[group]
    one = np.array([feature])
    return [midrank_counts(ranks_TF, whole, int(s), one)[0] / whole.size_S[s] for s in strata]


def convolved(distributions: list[np.ndarray]) -> np.ndarray:
    """Distribution of the sum, by direct convolution: relative precision in the far tails."""
    return reduce(np.convolve, sorted(distributions, key=len))


def exact_p(
    ranks_TF: np.ndarray, whole: Panel, group_P: np.ndarray, feature_P: np.ndarray, sum_P: np.ndarray
) -> np.ndarray:
    """P(sum of doubled midranks >= `sum_P`) for pairs given by their group and feature. (P,), float64, in (0, 1]."""
    lowest = np.array([2 * len(strata) for strata in whole.groups])
    at_P = sum_P - lowest[group_P]
    p_P = np.ones(len(at_P))
    order = np.argsort(feature_P, kind="stable")
    features, starts = np.unique(feature_P[order], return_index=True)
    ends = np.append(starts[1:], len(order))
    for start in range(0, len(features), _CHUNK):
        chunk = features[start : start + _CHUNK]
        pairs = order[starts[start] : ends[start + len(chunk) - 1]]
        _bulk(ranks_TF, whole, chunk, pairs, (group_P, feature_P, at_P), p_P)
    small = np.flatnonzero((p_P < DIRECT) & (at_P > 0))
    key_p = feature_P[small].astype(np.int64) * len(whole.groups) + group_P[small]
    for key in np.unique(key_p):
        pairs = small[key_p == key]
        feature, group = divmod(int(key), len(whole.groups))
        null = convolved(topic_distributions(ranks_TF, whole, group, feature))
        p_P[pairs] = np.cumsum(null[::-1])[::-1][at_P[pairs]]
    return np.clip(p_P, 0.0, 1.0)


def _bulk(
    ranks_TF: np.ndarray,
    whole: Panel,
    chunk: np.ndarray,
    pairs: np.ndarray,
    given: tuple[np.ndarray, np.ndarray, np.ndarray],
    p_P: np.ndarray,
) -> None:
    """Fill `p_P[pairs]` by FFT for the features in `chunk`. Topics common to all groups are transformed once."""
    from scipy.fft import irfft, next_fast_len, rfft

    group_P, feature_P, at_P = given
    longest = max(int((2 * whole.size_S[strata] - 2).sum()) for strata in whole.groups) + 1
    length = next_fast_len(longest, real=True)
    shared = reduce(np.intersect1d, whole.groups)
    common_FL = np.ones((len(chunk), length // 2 + 1), np.complex128)
    for s in shared:
        common_FL *= rfft(midrank_counts(ranks_TF, whole, int(s), chunk) / whole.size_S[s], length)
    for group in np.unique(group_P[pairs]):
        here = pairs[group_P[pairs] == group]
        needed, index_P = np.unique(np.searchsorted(chunk, feature_P[here]), return_inverse=True)
        spectrum_FL = common_FL[needed]
        for s in np.setdiff1d(whole.groups[group], shared):
            spectrum_FL *= rfft(midrank_counts(ranks_TF, whole, int(s), chunk[needed]) / whole.size_S[s], length)
        null_FL = irfft(spectrum_FL, length)[:, :longest]
        tail_FL = np.cumsum(null_FL[:, ::-1], axis=1)[:, ::-1]
        p_P[here] = np.where(at_P[here] > 0, tail_FL[index_P, at_P[here]], 1.0)
