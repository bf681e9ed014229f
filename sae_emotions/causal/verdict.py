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


def pooled_p(z: np.ndarray | float, null_N: np.ndarray, more: int = 0) -> np.ndarray:
    """(1 + number of controls' z at least as low) / (1 + N), one-sided: removal lowers the word.

    `more` controls count in N that are not among the z: those that a screen kept out.
    """
    ordered = np.sort(null_N)
    return np.asarray((1 + np.searchsorted(ordered, z, side="right")) / (1 + len(ordered) + more))


def benjamini_hochberg(p_F: np.ndarray, more: int = 0) -> np.ndarray:
    """q-values, same order, beside `more` features of p = 1."""
    from scipy.stats import false_discovery_control

    if not len(p_F):
        return np.zeros(0)
    return np.asarray(false_discovery_control(np.concatenate([p_F, np.ones(more)]), method="bh"))[: len(p_F)]


class Screening(NamedTuple):
    """What a screen did to features and to controls, where not all features are tested."""

    let: Sequence[np.ndarray]
    """per feature: which of its held-back controls it lets through, bool"""
    further: Sequence[np.ndarray]
    """per feature: effects of further controls, all of them let through"""
    kept_out: Sequence[int]
    """per feature: further controls that it kept out"""
    left_out: int
    """features that it kept out"""


class Judged(NamedTuple):
    """All features and all stand-ins, judged by one rule."""

    unit_F: np.ndarray
    """moderated spread of each feature's reference controls, in the effects' unit"""
    z_F: np.ndarray
    p_F: np.ndarray
    q_F: np.ndarray
    """NaN where not tested"""
    confirmed_F: np.ndarray
    dense_z_F: np.ndarray
    dense_p_F: np.ndarray
    tested_F: np.ndarray
    """the positive control worked"""
    held_back: list[np.ndarray]
    """z of each feature's held-back controls"""
    stands: list[np.ndarray]
    """which of its held-back and then its further controls the rule would confirm in its place, bool; empty where the feature
    is not tested"""
    controls_tested: int
    controls_confirmed: int
    random_tested: int
    random_confirmed: int


def stands_in(p_X: np.ndarray, others_F: np.ndarray, q: float, more: int = 0) -> np.ndarray:
    """Which of these p would Benjamini-Hochberg confirm at rate `q`, each alone beside the p of the others? Bool, X.

    The same as running it once for each: a p is confirmed with its own rank, or below another that is confirmed. `more`
    features of p = 1 stand beside them.
    """
    ordered = np.sort(others_F)
    total = len(ordered) + 1 + more
    carried = ordered[ordered <= q * np.arange(2, len(ordered) + 2) / total]  # ranks with one smaller p beside them
    rank_X = np.searchsorted(ordered, p_X, side="right") + 1
    return (p_X <= q * rank_X / total) | (p_X <= (carried.max() if len(carried) else -1.0))


def _units(reference: Sequence[np.ndarray]) -> np.ndarray:
    """Each feature's unit; NaN where it has too few reference controls, or none of them does anything."""
    unit_F = moderated(np.array([spread(one) if len(one) >= FEWEST else np.nan for one in reference], dtype=float))
    return np.where(unit_F > 0, unit_F, np.nan)


def _each(effects: Sequence[np.ndarray], unit_F: np.ndarray) -> list[np.ndarray]:
    return [np.asarray(one, float) / unit for one, unit in zip(effects, unit_F, strict=True)]


def judge(
    effect_F: np.ndarray,
    dense_F: np.ndarray,
    reference: Sequence[np.ndarray],
    held_back: Sequence[np.ndarray],
    random: Sequence[np.ndarray],
    q: float,
    gate: tuple[Sequence[np.ndarray], Sequence[np.ndarray]] | None = None,
    screening: Screening | None = None,
) -> Judged:
    """Judge F features by their effects, each with reference and held-back controls and random directions.

    A feature is tested if its dense vector's removal has p <= `DENSE_P`, by the same rule; `gate` are the reference and the
    held-back controls' effects in `dense_F`'s unit, where that is another one. It is confirmed if its effect is negative and
    its Benjamini-Hochberg q over the tested features is <= `q`. Each held-back control takes its feature's place,
    against the held-back controls of the *other* features, and each random direction against all of them.

    Where a screen chose the features, being chosen is part of the test, for features and controls alike: what it keeps out
    is not extreme, whatever its removal would do. A feature that it kept out has p = 1 and counts among the tested ones, and
    a control that it kept out counts in N of every p. Random directions know no screen and are judged without.
    """
    F = len(effect_F)
    if screening is None:
        screening = Screening([np.ones(len(one), bool) for one in held_back], [np.zeros(0)] * F, [0] * F, 0)
    unit_F = _units(reference)
    z_F, z_held, z_further = effect_F / unit_F, _each(held_back, unit_F), _each(screening.further, unit_F)
    known_F = np.isfinite(z_F)
    null = [_finite(np.append(z[let], more)) for z, let, more in zip(z_held, screening.let, z_further, strict=True)]
    plain_N = _finite(np.concatenate([*z_held, np.zeros(0)]))
    null_N, owner_N = np.concatenate([*null, np.zeros(0)]), np.repeat(np.arange(F), [len(one) for one in null])
    out_F = np.array([n + int((~let).sum()) for n, let in zip(screening.kept_out, screening.let, strict=True)], int)
    out_F = np.where(known_F, out_F, 0)
    out = int(out_F.sum())
    p_F = np.where(known_F, pooled_p(np.nan_to_num(z_F), null_N, out), np.nan)
    dense_unit_F = unit_F if gate is None else _units(gate[0])
    dense_z_F = dense_F / dense_unit_F
    dense_null_N = plain_N if gate is None else _finite(np.concatenate([*_each(gate[1], dense_unit_F), np.zeros(0)]))
    dense_p_F = np.where(known_F, pooled_p(np.nan_to_num(dense_z_F), dense_null_N), np.nan)
    tested_F = known_F & (np.nan_to_num(dense_p_F, nan=1.0) <= DENSE_P)
    q_F = np.full(F, np.nan)
    q_F[tested_F] = benjamini_hochberg(p_F[tested_F], screening.left_out)
    stands = [np.zeros(0, bool) for _ in range(F)]
    random_tested = random_confirmed = 0
    for f in map(int, np.flatnonzero(tested_F)):
        others_F = np.delete(p_F, f)[np.delete(tested_F, f)]
        z_K = np.append(np.where(screening.let[f], z_held[f], np.inf), z_further[f])
        z_R = np.array(random[f], dtype=float) / unit_F[f]
        p_K = pooled_p(z_K, null_N[owner_N != f], out - int(out_F[f]))
        stands[f] = stands_in(p_K, others_F, q, screening.left_out) & (z_K < 0)
        random_tested += len(z_R)
        random_confirmed += int((stands_in(pooled_p(z_R, plain_N), others_F, q, screening.left_out) & (z_R < 0)).sum())
    confirmed_F = tested_F & (np.nan_to_num(q_F, nan=1.0) <= q) & (effect_F < 0)
    return Judged(
        unit_F,
        z_F,
        p_F,
        q_F,
        confirmed_F,
        dense_z_F,
        dense_p_F,
        tested_F,
        z_held,
        stands,
        sum(map(len, stands)) + int(np.array(screening.kept_out, int)[tested_F].sum()),
        int(sum(one.sum() for one in stands)),
        random_tested,
        random_confirmed,
    )


def _finite(z_N: np.ndarray) -> np.ndarray:
    return z_N[np.isfinite(z_N)]
