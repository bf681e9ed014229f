"""Linear read-outs of many labels at once: logistic regression and ridge.

scikit-learn fits one label after the other; here one L-BFGS does all of them, in coordinates that it takes in few steps: the
texts' principal axes, each divided by the curvature that the loss has along it where no weight is given yet. On 4,000 texts,
2,048 features and 27 labels the plain coordinates take hundreds of steps. Where there are more dimensions than texts there are
only as many axes as texts, and no solution is lost. Held against scikit-learn by tests. Shapes: T texts, X dimensions,
L labels, Z principal axes.
"""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import numpy as np

SPARSE = 50
"""Numbers of a dense product that take as long as one of a sparse one, roughly"""
CHUNK = 4096
"""dimensions written out at once"""
SMALLEST = 1e-6
"""Axes along which texts vary by less than this share of the first one are rounding"""


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
    signs_TL = np.where(labels_TL > 0, 1.0, -1.0).astype(np.float32)
    turned_XT = values_TX.T.tocsr() if hasattr(values_TX, "tocsr") else values_TX.T
    share_L = np.clip(labels_TL.mean(0), 1e-3, 1 - 1e-3)
    curvature_XL = np.outer(_mean_squares(values_TX), share_L * (1 - share_L)) + 1 / (C * texts)
    scale = np.sqrt(np.vstack([curvature_XL, share_L * (1 - share_L)]))

    def loss(flat: np.ndarray) -> tuple[float, np.ndarray]:
        both = flat.reshape(scale.shape) / scale
        weights_XL = both[:width].astype(np.float32)
        margin_TL = signs_TL * (values_TX @ weights_XL + both[width].astype(np.float32))
        pull_TL = -signs_TL * expit(-margin_TL)
        total = np.logaddexp(0, -margin_TL).sum(dtype=np.float64) / texts
        slope = np.empty_like(both)
        slope[:width] = turned_XT @ pull_TL / texts + both[:width] / (C * texts)
        slope[width] = pull_TL.sum(0, dtype=np.float64) / texts
        return total + (both[:width] ** 2).sum() / (2 * C * texts), (slope / scale).ravel()

    first = np.zeros_like(scale)
    if start is None:
        first[width] = np.log(share_L / (1 - share_L))
    else:
        first[:width], first[width] = start
    options = {"maxiter": iterations, "ftol": 1e-7, "gtol": 1e-6}
    found = minimize(loss, (first * scale).ravel(), jac=True, method="L-BFGS-B", options=options).x
    both = found.reshape(scale.shape) / scale
    return Readout(both[:width].astype(np.float32), both[width].astype(np.float32))


def _mean_squares(values_TX: Any) -> np.ndarray:
    if hasattr(values_TX, "tocsr"):
        return np.asarray(values_TX.multiply(values_TX).mean(0), np.float64).reshape(-1)
    return np.asarray(np.einsum("tx,tx->x", values_TX, values_TX), np.float64) / len(values_TX)


def ridge(values_TX: Any, numbers_TL: np.ndarray, C: float) -> Readout:
    """Ridge regression with penalty 1 / C."""
    from sklearn.linear_model import Ridge

    solver = "sparse_cg" if hasattr(values_TX, "tocsr") else "cholesky"
    found = Ridge(alpha=1 / C, solver=solver, tol=1e-4).fit(values_TX, numbers_TL)
    weights_XL = np.asarray(found.coef_).reshape(numbers_TL.shape[1], -1).T
    return Readout(weights_XL, np.atleast_1d(found.intercept_))


def linear(kind: str, values_TX: Any, labels_TL: np.ndarray, penalties: Sequence[float]) -> dict[float, Readout]:
    """Read-outs at each of `penalties` (C, rising): logistic regression for classes, ridge for numbers."""
    along_TZ, back = turned(values_TX)
    found: dict[float, Readout] = {}
    last = None
    for C in penalties:
        last = ridge(along_TZ, labels_TL, C) if kind == "numbers" else logistic(along_TZ, labels_TL, C, last)
        found[C] = back(last)
    return found


def turned(values_TX: Any) -> tuple[Any, Callable[[Readout], Readout]]:
    """Texts along their principal axes (T, Z), and what turns a read-out of these into one of the dimensions.

    An L2-penalised solution is a sum of the texts, so that it is found there as well. Sparse texts of which products are
    quicker as they are stay so.
    """
    texts, width = values_TX.shape
    if hasattr(values_TX, "tocsr"):
        if values_TX.nnz * SPARSE < texts * min(texts, width):
            return values_TX, lambda found: found
        if width <= texts:
            values_TX = values_TX.toarray()
    mean_X = np.asarray(values_TX.mean(0), np.float32).reshape(-1)
    if width <= texts:
        away_TX = (values_TX - mean_X).astype(np.float32)
        axes_XZ, _ = _axes(away_TX.T @ away_TX)
        return away_TX @ axes_XZ, lambda found: _moved(axes_XZ @ found.weights_XL, found.offset_L, mean_X)
    sides_TZ, length_Z = _axes(_products(values_TX, mean_X))

    def back(found: Readout) -> Readout:
        share_TL = (sides_TZ / length_Z) @ found.weights_XL
        weights_XL = np.asarray(values_TX.T @ share_TL) - np.outer(mean_X, share_TL.sum(0))
        return _moved(weights_XL, found.offset_L, mean_X)

    return sides_TZ * length_Z, back


def _axes(products: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Eigenvectors of a matrix of products, as columns, and the roots of their eigenvalues; rounding is left out."""
    from scipy.linalg import eigh

    values, vectors = eigh(products, driver="evd", overwrite_a=True, check_finite=False)
    kept = values > SMALLEST * max(float(values[-1]), 1e-30)
    return np.ascontiguousarray(vectors[:, kept]), np.sqrt(values[kept])


def _products(values_TX: Any, mean_X: np.ndarray) -> np.ndarray:
    """Inner products of all texts less their mean, (T, T)."""
    texts, width = values_TX.shape
    products_TT = np.zeros((texts, texts), np.float32)
    for at in range(0, width, CHUNK):
        some = values_TX[:, at : at + CHUNK]
        some_TX = np.asarray(some.toarray() if hasattr(some, "toarray") else some, np.float32)
        away_TX = some_TX - mean_X[at : at + CHUNK]
        products_TT += away_TX @ away_TX.T
    return products_TT


def _moved(weights_XL: np.ndarray, offset_L: np.ndarray, mean_X: np.ndarray) -> Readout:
    """The read-out of texts as they are, from that of texts less their mean."""
    return Readout(weights_XL, offset_L - mean_X @ weights_XL)
