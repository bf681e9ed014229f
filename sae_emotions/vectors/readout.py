"""A ridge read-out of word ratings from vectors, cross-validated over words.

Outer folds are dealt over the words; the penalty, and where several places are given the place too, is chosen inside the
other folds by leave-one-out error. The ratings permuted among the words go through all of it.
Shapes: C words, D width, P permutations (column 0 the real ratings).
"""

from typing import Any, NamedTuple

import numpy as np

from sae_emotions.vectors.geometry import correlations, p_value, permutations

FOLDS = 10
PERMUTED = 200
PENALTIES = np.logspace(-3, 2, 11)
"""In units of the vectors' mean squared length."""


class Predicted(NamedTuple):
    """Ratings of words by read-outs that have not seen them."""

    of_CP: dict[str, np.ndarray]
    """place to predictions"""
    chosen_CP: np.ndarray
    """predictions from the place chosen inside the other folds"""
    times_chosen: dict[str, int]
    """in how many folds the real ratings chose each place"""


def predicted(places: dict[str, np.ndarray], rating_CP: np.ndarray, seed: int) -> Predicted:
    """Cross-validated predictions of every column of ratings, from each place's vectors (C, D)."""
    from sklearn.linear_model import RidgeCV
    from sklearn.model_selection import KFold

    of_CP = {name: np.zeros(rating_CP.shape) for name in places}
    chosen_CP, times = np.zeros(rating_CP.shape), dict.fromkeys(places, 0)
    names = list(places)
    scaled = {name: _rotated(x_CD) for name, x_CD in places.items()}
    for train, test in KFold(min(FOLDS, len(rating_CP)), shuffle=True, random_state=seed).split(rating_CP):
        score_XP = np.zeros((len(names), rating_CP.shape[1]))
        for x, name in enumerate(names):
            ridge = RidgeCV(PENALTIES, alpha_per_target=True).fit(scaled[name][train], rating_CP[train])
            of_CP[name][test] = ridge.predict(scaled[name][test]).reshape(len(test), -1)
            score_XP[x] = ridge.best_score_
        best_P = score_XP.argmax(0)
        times[names[best_P[0]]] += 1
        chosen_CP[test] = np.stack([of_CP[name][test] for name in names])[best_P, :, np.arange(len(best_P))].T
    return Predicted(of_CP, chosen_CP, times)


def _rotated(x_CD: np.ndarray) -> np.ndarray:
    """The vectors in a basis of their own span, at a mean squared length of one: ridge sees inner products alone."""
    u_CC, s_C, _ = np.linalg.svd(x_CD, full_matrices=False)
    return np.asarray(u_CC * s_C / max(np.sqrt((s_C**2).sum() / len(x_CD)), 1e-12))


def readouts(places: dict[str, np.ndarray], rating_C: np.ndarray, seed: int) -> dict[str, Any]:
    """Correlation of ratings with cross-validated predictions: of every place, and of the place chosen within the folds."""
    rng = np.random.default_rng([seed, 24])
    rating_CP = np.column_stack([rating_C, permutations(rating_C, rng, PERMUTED).T])
    found = predicted(places, rating_CP, seed)
    return {
        "places": {name: _scored(rating_CP, guess_CP) for name, guess_CP in found.of_CP.items()},
        "place_chosen_within_folds": _scored(rating_CP, found.chosen_CP) | {"times_chosen": found.times_chosen},
    }


def _scored(rating_CP: np.ndarray, guess_CP: np.ndarray) -> dict[str, Any]:
    r_P = np.array([correlations(a[:, None], b[:, None])[0, 0] for a, b in zip(rating_CP.T, guess_CP.T, strict=True)])
    return {
        "n": len(rating_CP),
        "r": float(r_P[0]),
        "permuted_mean": float(r_P[1:].mean()),
        "permuted_95th_percentile": float(np.quantile(r_P[1:], 0.95)),
        "p": p_value(float(r_P[0]), r_P[1:]),
    }
