"""False discovery rates, and intervals of means over concepts and topics. C: concepts, S: topics, B: resamples."""

import numpy as np


def false_discovery(p_N: np.ndarray) -> np.ndarray:
    """Benjamini-Hochberg q of each p. (N,), float64."""
    from scipy.stats import false_discovery_control

    return np.asarray(false_discovery_control(p_N)) if len(p_N) else np.zeros(0)


def critical_p(tested: int, passed: int, rate: float) -> float:
    """The largest p that Benjamini and Hochberg let pass where `passed` of `tested` did."""
    return rate * max(1, passed) / max(1, tested)


def mean_over_concepts(auroc_CS: np.ndarray) -> float:
    """Mean over concepts of the mean over their topics (NaN: the concept was not written on that topic)."""
    there_CS = ~np.isnan(auroc_CS)
    some_C = there_CS.any(1)
    return float(np.mean(np.nansum(auroc_CS[some_C], axis=1) / there_CS[some_C].sum(1)))


def two_way_bootstrap(
    auroc_CS: np.ndarray, resamples: int, rng: np.random.Generator, level: float = 0.95
) -> tuple[float, float]:
    """Percentile interval of `mean_over_concepts`, concepts and topics both drawn again with replacement.

    A concept none of whose topics was drawn is left out of that resample. With few topics (built in: three held-out
    plain ones) such an interval is rough, and rather too narrow.
    """
    concepts, topics = auroc_CS.shape
    there_CS = ~np.isnan(auroc_CS)
    topics_BS = rng.multinomial(topics, np.full(topics, 1 / topics), resamples).astype(np.float64)
    concepts_BC = rng.multinomial(concepts, np.full(concepts, 1 / concepts), resamples).astype(np.float64)
    weight_BC = topics_BS @ there_CS.T
    total_BC = topics_BS @ np.where(there_CS, auroc_CS, 0.0).T
    concepts_BC[weight_BC == 0] = 0
    mean_BC = total_BC / np.maximum(weight_BC, 1)
    mean_B = (concepts_BC * mean_BC).sum(1) / np.maximum(concepts_BC.sum(1), 1)
    low, high = np.quantile(mean_B[concepts_BC.sum(1) > 0], [(1 - level) / 2, (1 + level) / 2])
    return float(low), float(high)
