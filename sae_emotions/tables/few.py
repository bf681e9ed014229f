"""Read-outs of a table's labels by a few features each, all labels at once.

Features are taken one after the other (`label.sparse_probes.stepwise`), each the one that explains most of what is left of a
label's target, and weighted by a regression on them. Labels are coarse, and rare ones say little: a target may also be what a
regression on all features makes of the label (`TARGETS`). Which target serves is chosen by cross-validation with all else.
Shapes: T texts, X dimensions, S screened ones, L labels.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np

from sae_emotions.label.sparse_probes import RIDGE, stepwise
from sae_emotions.tables.choosing import Fit, Scale, Scorer, after, dense, regression
from sae_emotions.tables.strength import strengths

SCREENED = 300
"""dimensions of each label, by their own strength, that are looked at: on their own the others say too little"""
TARGETS = {"labels": 1.0, "labels and all dimensions' scores": 0.5, "all dimensions' scores": 0.0}
"""the label's share in the target; the rest is the score of a regression on all dimensions"""


def few(sizes: Sequence[int], C: float) -> Fit:
    """Regression on as many dimensions as each of `sizes` says, taken by each of `TARGETS`; `C` is that of all dimensions."""

    def fit(kind: str, values_TX: Any, labels_TL: np.ndarray, only: str | None = None) -> dict[str, Scorer]:
        score_TL = next(iter(regression((C,))(kind, values_TX, labels_TL).values()))(values_TX)
        screened = _screened(strengths(kind, values_TX, labels_TL))
        some_TS = dense(values_TX[:, screened])
        some_TS = Scale(some_TS)(some_TS)
        found: dict[str, Scorer] = {}
        for says, share in TARGETS.items():
            wanted = [size for size in sizes if only in (None, setting(size, says))]
            if wanted:
                target_TL = share * _unit(labels_TL) + (1 - share) * _unit(score_TL)
                picked = stepwise(some_TS, target_TL, max(wanted), RIDGE).feature_CK
                for size in wanted:
                    sets = [np.unique(screened[one[:size]]) for one in picked]
                    found[setting(size, says)] = _readout(kind, values_TX, labels_TL, sets)
        return found

    return fit


def setting(size: int, target: str) -> str:
    """How a choice of `size` dimensions by one of `TARGETS` is called."""
    return f"{size} dimensions by {target}"


def _screened(strength_LX: np.ndarray) -> np.ndarray:
    """The dimensions that are among the strongest of a label, ascending."""
    count = min(SCREENED, strength_LX.shape[1])
    return np.unique(np.argpartition(-np.abs(strength_LX), count - 1, axis=1)[:, :count])


def _unit(values_TL: np.ndarray) -> np.ndarray:
    away_TL = values_TL - values_TL.mean(0)
    return np.asarray(away_TL / np.maximum(np.linalg.norm(away_TL, axis=0), 1e-12), np.float32)


def _readout(kind: str, values_TX: Any, labels_TL: np.ndarray, sets: Sequence[np.ndarray]) -> Scorer:
    one = regression((1.0,))
    each = [
        after(_Columns(some), one(kind, dense(values_TX[:, some]), labels_TL[:, [n]])["C 1"])
        for n, some in enumerate(sets)
    ]
    return lambda some_TX: np.concatenate([scorer(some_TX) for scorer in each], axis=1)


class _Columns:
    """Some columns, written out."""

    def __init__(self, some: np.ndarray) -> None:
        self.some = some

    def __call__(self, values_TX: Any) -> np.ndarray:
        return dense(values_TX[:, self.some])
