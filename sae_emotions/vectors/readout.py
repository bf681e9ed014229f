"""A ridge read-out of word ratings from unit vectors, cross-validated over words.

Outer folds are dealt over the words; the penalty, and where several places are given the place too, is chosen inside the
other folds by leave-one-out error. The ratings permuted among the words go through all of it. Predictions pooled over
folds fall a little below zero where there is nothing to read, as each fold's mean leans away from what it leaves out: the
permuted figures show by how much.
Shapes: C words, D width, P ratings (column 0 the real ones, the others permuted).
"""

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from sae_emotions.vectors.geometry import correlations, p_value, permutations
from sae_emotions.vectors.recipe import unit

FOLDS = 10
PERMUTED = 100
PENALTIES = np.logspace(-3, 2, 11)
"""In units of the vectors' squared length."""


class Choice(NamedTuple):
    """Predictions from the place that each fold's other words chose."""

    guess_CP: np.ndarray
    times: dict[str, int]
    """in how many folds the real ratings chose each place"""


class Predicted(NamedTuple):
    """Ratings of words by read-outs that have not seen them."""

    of_CP: dict[str, np.ndarray]
    """place to predictions"""
    chosen: dict[str, Choice]
    """group of places to the choice among them"""


def predicted(
    places: dict[str, np.ndarray], rating_CP: np.ndarray, groups: Mapping[str, Sequence[str]], seed: int
) -> Predicted:
    """Cross-validated predictions of every column of ratings, from each place's vectors (C, D)."""
    from sklearn.linear_model import RidgeCV
    from sklearn.model_selection import KFold

    names, columns = list(places), np.arange(rating_CP.shape[1])
    of_CP = {name: np.zeros(rating_CP.shape) for name in names}
    chosen = {group: Choice(np.zeros(rating_CP.shape), dict.fromkeys(some, 0)) for group, some in groups.items()}
    rotated = {name: _rotated(x_CD) for name, x_CD in places.items()}
    for train, test in KFold(min(FOLDS, len(rating_CP)), shuffle=True, random_state=seed).split(rating_CP):
        score_P = {}
        for name in names:
            ridge = RidgeCV(PENALTIES, alpha_per_target=True).fit(rotated[name][train], rating_CP[train])
            of_CP[name][test] = ridge.predict(rotated[name][test]).reshape(len(test), -1)
            score_P[name] = np.atleast_1d(ridge.best_score_)
        for group, some in groups.items():
            best_P = np.stack([score_P[name] for name in some]).argmax(0)
            chosen[group].times[some[best_P[0]]] += 1
            chosen[group].guess_CP[test] = np.stack([of_CP[name][test] for name in some])[best_P, :, columns].T
    return Predicted(of_CP, chosen)


def _rotated(x_CD: np.ndarray) -> np.ndarray:
    """The unit vectors in a basis of their own span: ridge sees inner products alone."""
    u_CC, s_C, _ = np.linalg.svd(unit(x_CD), full_matrices=False)
    return np.asarray(u_CC * s_C)


def readouts(
    places: dict[str, np.ndarray],
    groups: Mapping[str, Sequence[str]],
    rating_C: np.ndarray,
    others: dict[str, np.ndarray],
    seed: int,
) -> dict[str, Any]:
    """Correlation of ratings (NaN: not rated) with cross-validated predictions.

    Of every place; of the place chosen within the folds, for each group of places; and, with the first group's choice,
    of other people's ratings of the same words. `fewer words`: the same read-out fitted on those words alone that the
    other ratings cover, which shows what the number of words costs.
    """
    rng = np.random.default_rng([seed, 24])
    rated_C, (main, *_) = ~np.isnan(rating_C), groups
    rating_CP = np.column_stack([rating_C[rated_C], permutations(rating_C[rated_C], rng, PERMUTED).T])
    seen = {name: x_CD[rated_C] for name, x_CD in places.items()}
    made = predicted(seen, rating_CP, groups, seed)
    found: dict[str, Any] = {
        "places": {name: scored(rating_CP, guess_CP) for name, guess_CP in made.of_CP.items()},
        "chosen_within_folds": {
            group: scored(rating_CP, one.guess_CP) | {"times_chosen": one.times} for group, one in made.chosen.items()
        },
        "against_other_ratings": {},
    }
    for name, other_C in others.items():
        both_C = ~np.isnan(other_C[rated_C])
        told_C = other_C[rated_C][both_C]
        one = scored(np.tile(told_C[:, None], rating_CP.shape[1]), made.chosen[main].guess_CP[both_C])
        one["agreement_of_the_ratings"] = _r(rating_CP[both_C, 0], told_C)
        if both_C.sum() < rated_C.sum():
            few = predicted(
                {key: x_CD[both_C] for key, x_CD in seen.items() if key in groups[main]},
                rating_CP[both_C, :1],
                {main: groups[main]},
                seed,
            )
            one["r_fitted_on_fewer_words"] = _r(rating_CP[both_C, 0], few.chosen[main].guess_CP[:, 0])
            one["r_fitted_on_all_words"] = _r(rating_CP[both_C, 0], made.chosen[main].guess_CP[both_C, 0])
        found["against_other_ratings"][name] = one
    return found


def _r(one_C: np.ndarray, other_C: np.ndarray) -> float:
    return float(correlations(one_C[:, None], other_C[:, None])[0, 0])


def scored(rating_CP: np.ndarray, guess_CP: np.ndarray) -> dict[str, Any]:
    """Correlation of column 0, and of the permuted ones beside it."""
    r_P = np.array([_r(a_C, b_C) for a_C, b_C in zip(rating_CP.T, guess_CP.T, strict=True)])
    return {
        "n": len(rating_CP),
        "r": float(r_P[0]),
        "permuted_mean": float(r_P[1:].mean()),
        "permuted_95th_percentile": float(np.quantile(r_P[1:], 0.95)),
        "p": p_value(float(r_P[0]), r_P[1:]),
    }
