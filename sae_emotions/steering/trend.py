"""Does a word rise with the dose? Shapes: T texts, P doses (in ascending order), K controls."""

from typing import NamedTuple

import numpy as np


class Trend(NamedTuple):
    """A one-sided test of a rise over the doses, and the rise beside that of the controls."""

    test: str
    """which test, in words"""
    p: float | None
    """None where there are fewer than three doses, the unsteered one included"""
    slope: float
    """least-squares slope of the mean effect, nats a dose"""
    p_controls: float | None
    """share of slopes at least as steep among the controls' and its own; None without controls"""


def share_as_high(own: float, controls_K: np.ndarray) -> float | None:
    """Rank of one number among its controls as a p: (1 + those at least as high) / (1 + all); None without controls."""
    return float((1 + (controls_K >= own).sum()) / (1 + len(controls_K))) if len(controls_K) else None


def slope(doses_P: np.ndarray, effect_P: np.ndarray) -> float:
    """Least-squares slope through all points."""
    away_P = doses_P - doses_P.mean()
    return float(away_P @ effect_P / (away_P @ away_P))


def trend(doses_P: np.ndarray, effect_TP: np.ndarray, controls_KP: np.ndarray) -> Trend:
    """Page's trend test with texts as blocks, or for a single text Kendall's tau, exact where there are no ties.

    `doses_P` ascend and hold the unsteered 0; `controls_KP` are the controls' effects, averaged over the same texts.
    """
    from scipy.stats import kendalltau, page_trend_test

    texts, doses = effect_TP.shape
    steep = slope(doses_P, effect_TP.mean(0))
    steep_K = np.array([slope(doses_P, effect_P) for effect_P in controls_KP])
    test = "Page's trend test, texts as blocks" if texts > 1 else "Kendall's tau, one text"
    p = None
    if doses > 2:
        if texts > 1:
            # Equal in every text and dose (an addition that does nothing): no trend, which Page's exact test cannot say.
            flat = bool((effect_TP == effect_TP[:, :1]).all())
            p = 1.0 if flat else float(page_trend_test(effect_TP).pvalue)
        else:
            tau = kendalltau(doses_P, effect_TP[0], alternative="greater").pvalue
            p = 1.0 if np.isnan(tau) else float(tau)
    return Trend(test, p, steep, share_as_high(steep, steep_K))
