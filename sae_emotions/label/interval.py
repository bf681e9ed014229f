"""The 95 % interval of one AUROC, by inverting the exact distribution of the summed midrank.

Model: in every topic the concept's text is drawn with a probability proportional to exp(theta x midrank), the same
theta in all topics; theta = 0 is the null. The summed midrank is sufficient for theta and its distribution is the null
distribution times exp(theta x sum), normalised: exact, ties included. The interval holds every theta that neither
one-sided test at 2.5 % refuses (Clopper and Pearson's construction), told as the mean AUROC that its ends imply.
It is conservative within this family of alternatives; it is not distribution-free, and takes topics as independent.
"""

import numpy as np

from sae_emotions.label.exact import convolved, topic_distributions
from sae_emotions.label.layout import Panel


def interval(
    ranks_TF: np.ndarray, whole: Panel, group: int, feature: int, total: int, level: float = 0.95
) -> tuple[float, float]:
    """Interval of the AUROC of a pair whose doubled midranks sum to `total` over the topics of `group`."""
    topics = topic_distributions(ranks_TF, whole, group, feature)
    return inverted(topics, total - 2 * len(topics), level)


def inverted(topics: list[np.ndarray], at: int, level: float = 0.95) -> tuple[float, float]:
    """The same from each topic's null distribution of the doubled midrank less 2, and the observed sum of these."""
    null = convolved(topics)
    support = np.flatnonzero(null)
    log_null, alpha = np.log(null[support]), (1 - level) / 2
    low = high = None
    if at > support[0]:
        low = tilt(log_null, support, support >= at, alpha)
    if at < support[-1]:
        high = tilt(log_null, support, support <= at, alpha)
    return mean_auroc(topics, low, -1), mean_auroc(topics, high, 1)


def tilt(log_null: np.ndarray, support: np.ndarray, tail: np.ndarray, alpha: float) -> float:
    """The theta at which the probability of `tail` is `alpha`; tail is a mask of `support`, not all of it and not empty."""
    from scipy.optimize import brentq

    centred = support - support.mean()

    def excess(theta: float) -> float:
        log_weight = log_null + theta * centred
        weight = np.exp(log_weight - log_weight.max())
        return float(weight[tail].sum() / weight.sum()) - alpha

    step = 1.0 / (float(support[-1] - support[0]) or 1.0)
    low, high = -step, step
    while excess(low) * excess(high) > 0:
        low, high = 2 * low, 2 * high
    return float(brentq(excess, low, high, xtol=step * 1e-6))


def mean_auroc(topics: list[np.ndarray], theta: float | None, end: int) -> float:
    """Mean AUROC at `theta`; None stands for minus or plus infinity, as `end` says."""
    found = []
    for distribution in topics:
        values = np.flatnonzero(distribution)
        if theta is None:
            mean = float(values[0] if end < 0 else values[-1])
        else:
            log_weight = np.log(distribution[values]) + theta * values
            weight = np.exp(log_weight - log_weight.max())
            mean = float((weight * values).sum() / weight.sum())
        found.append(mean / (len(distribution) - 1))
    return float(np.mean(found))
