"""From effects to verdicts: the feature, not the text, is the unit of the null.

Any active feature moves any word a little, and the same way in every text, so a test over texts calls controls
significant. Here an effect is measured in units of what matched controls do to the same word on the same texts, and its
p is read from the distribution of that same quantity over controls that were held back.

Shapes: F features, K reference controls, H held-back controls of one feature, N all held-back controls.
"""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

DENSE_P = 0.05  # the positive control must reach this
FEWEST = 4  # reference controls without which a spread says nothing


def spread(reference_K: np.ndarray) -> float:
    """Root mean square of the reference controls' effects, about zero: the size of what just any such removal does.

    About zero rather than about their mean, so that a z keeps the sign of its effect and a common drift of all removals
    widens the unit instead of counting as an effect.
    """
    return float(np.sqrt(np.mean(np.square(reference_K))))


def moderated(spread_F: np.ndarray) -> np.ndarray:
    """Each feature's unit: the root mean square of its own spread and of the median feature's. NaN stays NaN.

    A spread of a few heavy-tailed effects is small by luck now and then, and such luck would rule the null. Borrowing as
    much again from all features is moderation as in Smyth (2004), with equal weights. It uses reference controls alone,
    so a feature and its held-back controls stay exchangeable.
    """
    known_F = spread_F[np.isfinite(spread_F)]
    return np.sqrt((spread_F**2 + np.median(known_F) ** 2) / 2) if len(known_F) else spread_F


def pooled_p(z: np.ndarray | float, null_N: np.ndarray) -> np.ndarray:
    """(1 + number of controls' z at least as low) / (1 + N), one-sided: removal lowers the word."""
    ordered = np.sort(null_N)
    return np.asarray((1 + np.searchsorted(ordered, z, side="right")) / (1 + len(ordered)))


def benjamini_hochberg(p_F: np.ndarray) -> np.ndarray:
    """q-values, same order."""
    from scipy.stats import false_discovery_control

    return np.asarray(false_discovery_control(p_F, method="bh")) if len(p_F) else np.zeros(0)


class Judged(NamedTuple):
    """All features and all stand-ins, judged by one rule."""

    unit_F: np.ndarray
    """moderated spread of each feature's reference controls, in the effects' unit"""
    z_F: np.ndarray
    """infinite where the screen kept a feature out"""
    p_F: np.ndarray
    q_F: np.ndarray
    """NaN where not tested"""
    confirmed_F: np.ndarray
    dense_z_F: np.ndarray
    dense_p_F: np.ndarray
    tested_F: np.ndarray
    """the positive control worked"""
    held_back: list[np.ndarray]
    """z of each feature's held-back controls; infinite where the screen kept one out"""
    controls_tested: int
    controls_confirmed: int
    random_tested: int
    random_confirmed: int


def stands_in(p_X: np.ndarray, others_F: np.ndarray, q: float) -> np.ndarray:
    """Which of these p would Benjamini-Hochberg confirm at rate `q`, each alone beside the p of the others? Bool, X.

    The same as running it once for each: a p is confirmed with its own rank, or below another that is confirmed.
    """
    ordered = np.sort(others_F)
    total = len(ordered) + 1
    carried = ordered[ordered <= q * np.arange(2, len(ordered) + 2) / total]  # ranks with one smaller p beside them
    rank_X = np.searchsorted(ordered, p_X, side="right") + 1
    return (p_X <= q * rank_X / total) | (p_X <= (carried.max() if len(carried) else -1.0))


def units(reference: Sequence[np.ndarray]) -> np.ndarray:
    """Each feature's unit; NaN where it has too few reference controls, or none of them does anything."""
    unit_F = moderated(np.array([spread(one) if len(one) >= FEWEST else np.nan for one in reference], dtype=float))
    return np.where(unit_F > 0, unit_F, np.nan)


def _each(effects: Sequence[np.ndarray], unit_F: np.ndarray) -> list[np.ndarray]:
    return [np.asarray(one, float) / unit for one, unit in zip(effects, unit_F, strict=True)]


def gated(
    dense_F: np.ndarray, reference: Sequence[np.ndarray], held_back: Sequence[np.ndarray]
) -> tuple[np.ndarray, np.ndarray]:
    """z and p of the dense vectors' effects, by the rule for features and in one unit with the controls'. NaN without a unit."""
    unit_F = units(reference)
    z_F = dense_F / unit_F
    null_N = _known(np.concatenate([*_each(held_back, unit_F), np.zeros(0)]))
    return z_F, np.where(np.isfinite(unit_F), pooled_p(np.nan_to_num(z_F), null_N), np.nan)


def judge(
    effect_F: np.ndarray,
    dense_F: np.ndarray,
    reference: Sequence[np.ndarray],
    held_back: Sequence[np.ndarray],
    random: Sequence[np.ndarray],
    q: float,
    gate: tuple[Sequence[np.ndarray], Sequence[np.ndarray]] | None = None,
) -> Judged:
    """Judge F features by their effects, each with reference and held-back controls and random directions.

    A feature is tested if its dense vector's removal has p <= `DENSE_P`, by the same rule; `gate` are the reference and the
    held-back controls' effects in `dense_F`'s unit, where that is another one. It is confirmed if its effect is negative and
    its Benjamini-Hochberg q over the tested features is <= `q`. Each held-back control takes its feature's place,
    against the held-back controls of the *other* features, and each random direction against all of them.

    Where a screen decides which removals are run, being let through is part of the test, for features, controls and random
    directions alike: the effect of one that it keeps out is given as infinite, so that it is never extreme, whatever its
    removal would do. It counts all the same, with p = 1, among the tested ones or in N of every p.
    """
    F = len(effect_F)
    unit_F = units(reference)
    z_F, z_held = effect_F / unit_F, _each(held_back, unit_F)
    known_F = np.isfinite(unit_F)
    null_N = _known(np.concatenate([*z_held, np.zeros(0)]))
    owner_N = np.repeat(np.arange(F), [len(_known(one)) for one in z_held])
    p_F = np.where(known_F, pooled_p(np.nan_to_num(z_F, posinf=np.inf), null_N), np.nan)
    dense_z_F, dense_p_F = gated(dense_F, *((reference, held_back) if gate is None else gate))
    tested_F = known_F & (np.nan_to_num(dense_p_F, nan=1.0) <= DENSE_P)
    q_F = np.full(F, np.nan)
    q_F[tested_F] = benjamini_hochberg(p_F[tested_F])
    confirmed = {"controls": 0, "random": 0}
    for f in map(int, np.flatnonzero(tested_F)):
        others_F = np.delete(p_F, f)[np.delete(tested_F, f)]
        z_R = np.array(random[f], dtype=float) / unit_F[f]
        for kind, z_K, null in (("controls", z_held[f], null_N[owner_N != f]), ("random", z_R, null_N)):
            confirmed[kind] += int((stands_in(pooled_p(z_K, null), others_F, q) & (z_K < 0)).sum())
    return Judged(
        unit_F,
        z_F,
        p_F,
        q_F,
        tested_F & (np.nan_to_num(q_F, nan=1.0) <= q) & (effect_F < 0),
        dense_z_F,
        dense_p_F,
        tested_F,
        z_held,
        sum(len(z_held[f]) for f in map(int, np.flatnonzero(tested_F))),
        confirmed["controls"],
        sum(len(random[f]) for f in map(int, np.flatnonzero(tested_F))),
        confirmed["random"],
    )


def _known(z_N: np.ndarray) -> np.ndarray:
    return z_N[~np.isnan(z_N)]
