"""Linear read-outs of many labels at once: logistic regression, ridge, and the few features that L1 chooses.

scikit-learn fits one label after the other; here one L-BFGS does all of them. Where there are more dimensions than texts, the
texts are first written in as many dimensions as there are of them, which changes no inner product and so no solution: on
6,000 texts, 8,192 features and 27 labels products of sparse rows would take ten times as long. Both are held against
scikit-learn by tests. Shapes: T texts, X dimensions, L labels, Z dimensions of the shorter form.
"""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import numpy as np

SPARSE = 50
"""Numbers of a dense product that take as long as one of a sparse one, roughly"""
CHUNK = 4096
"""dimensions written out at once"""


class Readout(NamedTuple):
    """Weights and offset of every label."""

    weights_XL: np.ndarray
    offset_L: np.ndarray

    def scores(self, values_TX: Any) -> np.ndarray:
        """Scores of texts, (T, L)."""
        return np.asarray(values_TX @ self.weights_XL + self.offset_L)


def logistic(
    values_TX: Any, labels_TL: np.ndarray, C: float, start: Readout | None = None, iterations: int = 200
) -> Readout:
    """L2 logistic regression, one label against the rest: minimises C x summed log-loss + half the squared weights.

    `values_TX` may be dense or sparse. `start`: another C's solution, from which this one is reached sooner.
    """
    from scipy.optimize import minimize
    from scipy.special import expit

    texts, width = values_TX.shape
    labels = labels_TL.shape[1]
    signs_TL = np.where(labels_TL > 0, 1.0, -1.0).astype(np.float32)
    turned_XT = values_TX.T.tocsr() if hasattr(values_TX, "tocsr") else values_TX.T

    def loss(flat: np.ndarray) -> tuple[float, np.ndarray]:
        both = flat.reshape(width + 1, labels)
        weights_XL = both[:width].astype(np.float32)
        margin_TL = signs_TL * (values_TX @ weights_XL + both[width].astype(np.float32))
        pull_TL = -signs_TL * expit(-margin_TL)
        total = np.logaddexp(0, -margin_TL).sum(dtype=np.float64) / texts
        slope = np.empty_like(both)
        slope[:width] = turned_XT @ pull_TL / texts + both[:width] / (C * texts)
        slope[width] = pull_TL.sum(0, dtype=np.float64) / texts
        return total + (both[:width] ** 2).sum() / (2 * C * texts), slope.ravel()

    first = np.zeros((width + 1, labels))
    if start is None:
        share_L = np.clip(labels_TL.mean(0), 1e-3, 1 - 1e-3)
        first[width] = np.log(share_L / (1 - share_L))
    else:
        first[:width], first[width] = start
    options = {"maxiter": iterations, "ftol": 1e-7, "gtol": 1e-6}
    both = minimize(loss, first.ravel(), jac=True, method="L-BFGS-B", options=options).x.reshape(width + 1, labels)
    return Readout(both[:width].astype(np.float32), both[width].astype(np.float32))


def ridge(values_TX: Any, numbers_TL: np.ndarray, C: float) -> Readout:
    """Ridge regression with penalty 1 / C."""
    from sklearn.linear_model import Ridge

    solver = "sparse_cg" if hasattr(values_TX, "tocsr") else "cholesky"
    found = Ridge(alpha=1 / C, solver=solver, tol=1e-4).fit(values_TX, numbers_TL)
    weights_XL = np.asarray(found.coef_).reshape(numbers_TL.shape[1], -1).T
    return Readout(weights_XL, np.atleast_1d(found.intercept_))


def linear(kind: str, values_TX: Any, labels_TL: np.ndarray, penalties: Sequence[float]) -> dict[float, Readout]:
    """Read-outs at each of `penalties` (C, rising): logistic regression for classes, ridge for numbers."""
    narrow_TZ, wide = narrowed(values_TX)
    found: dict[float, Readout] = {}
    last = None
    for C in penalties:
        last = ridge(narrow_TZ, labels_TL, C) if kind == "numbers" else logistic(narrow_TZ, labels_TL, C, last)
        found[C] = Readout(wide(last.weights_XL), last.offset_L)
    return found


def narrowed(values_TX: Any) -> tuple[Any, Callable[[np.ndarray], np.ndarray]]:
    """Rows with the same inner products in T dimensions, and what turns weights for them into weights for X.

    An L2-penalised solution is a sum of the rows, so that it is found there as well. Rows that gain nothing stay as they are.
    """
    from scipy.linalg import cholesky, solve_triangular

    texts, width = values_TX.shape
    held = values_TX.nnz * SPARSE if hasattr(values_TX, "tocsr") else values_TX.size
    if width <= texts or held < texts**2:
        return values_TX, lambda weights_XL: weights_XL
    products_TT = np.zeros((texts, texts), np.float32)
    for at in range(0, width, CHUNK):
        some = values_TX[:, at : at + CHUNK]
        some_TX = np.asarray(some.toarray() if hasattr(some, "toarray") else some, np.float32)
        products_TT += some_TX @ some_TX.T
    # Rows that say the same would leave no triangle; what this adds to a row's length is lost in its rounding.
    products_TT[np.diag_indices(texts)] += 1e-5 * np.trace(products_TT) / texts
    lower_TT = cholesky(products_TT.astype(np.float64), lower=True)

    def wide(weights_ZL: np.ndarray) -> np.ndarray:
        return np.asarray(values_TX.T @ solve_triangular(lower_TT, weights_ZL, lower=True, trans="T"), np.float32)

    return lower_TT.astype(np.float32), wide


SCREENED = 300
"""Features, by their own strength, that L1 chooses among: on their own the others say too little."""
_STEPS = 1.3 ** np.arange(1, 24)


def few_features(
    kind: str, values_TF: Any, labels_TL: np.ndarray, strength_LF: np.ndarray, sizes: Sequence[int]
) -> dict[int, list[np.ndarray]]:
    """For each of `sizes`, every label's features by L1-penalised regression (logistic; the lasso for numbers).

    The penalty is lowered until as many features have a weight; of those the largest are taken (unit variance). `strength_LF`
    screens (see `strength.strengths`); only the `SCREENED` strongest are looked at.
    """
    found: dict[int, list[np.ndarray]] = {size: [] for size in sizes}
    for label, strength_F in enumerate(strength_LF):
        pool = np.sort(np.argsort(-np.abs(strength_F), kind="stable")[:SCREENED])
        pool = pool[np.abs(strength_F[pool]) > 0]
        some = values_TF[:, pool]
        some_TS = np.asarray(some.toarray() if hasattr(some, "toarray") else some, np.float64)
        weights = list(_path(kind, standardised(some_TS), labels_TL[:, label], max(sizes)))
        for size in sizes:
            weight_S = next((w for w in weights if (w != 0).sum() >= size), weights[-1])
            best = np.argsort(-np.abs(weight_S), kind="stable")[:size]
            found[size].append(pool[best[weight_S[best] != 0]])
    return found


def standardised(values_TX: np.ndarray) -> np.ndarray:
    """Columns of mean 0 and variance 1; constant ones stay 0."""
    away_TX = values_TX - values_TX.mean(0)
    spread_X = away_TX.std(0)
    return np.asarray(away_TX / np.where(spread_X > 1e-9, spread_X, 1))


def _path(kind: str, values_TS: np.ndarray, labels_T: np.ndarray, wanted: int) -> Any:
    """Weights (S) at falling penalties, to the first that leaves at least `wanted` of them."""
    if kind == "numbers":
        from sklearn.linear_model import lasso_path

        away_T = labels_T - labels_T.mean()
        highest = np.abs(values_TS.T @ away_T).max() / len(away_T)
        _, weights_SA, _ = lasso_path(values_TS, away_T, alphas=highest * np.geomspace(0.99, 1e-3, 100))
        counts = (weights_SA != 0).sum(0)
        last = int(np.argmax(counts >= wanted)) if (counts >= wanted).any() else len(counts) - 1
        yield from weights_SA.T[: last + 1]
        return
    from sklearn.linear_model import LogisticRegression
    from sklearn.svm import l1_min_c

    lowest = l1_min_c(values_TS, labels_T > 0, loss="log")
    for step in _STEPS:
        fitted = LogisticRegression(
            C=lowest * step, l1_ratio=1, solver="liblinear", tol=1e-3, max_iter=1000, intercept_scaling=10
        ).fit(values_TS, labels_T > 0)
        weight_S = fitted.coef_[0]
        yield weight_S
        if (weight_S != 0).sum() >= wanted:
            return
