"""Read-outs of a table's labels, fitted on training rows; which view and penalty they use, chosen by cross-validation.

A view is one way to write the texts as rows of numbers, such as mean activations without the opening. A fit takes the
training rows of a view and gives what scores other rows. Shapes: T rows, X dimensions of a view, L labels.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple, Protocol

import numpy as np

from sae_emotions.errors import UserError
from sae_emotions.tables.fits import linear
from sae_emotions.tables.strength import strength, strengths

FOLDS = 3
Scorer = Callable[[Any], np.ndarray]
"""rows of a view -> scores (T, L)"""


class Fit(Protocol):
    """One way to learn from training rows, at each of its settings."""

    def __call__(self, kind: str, values_TX: Any, labels_TL: np.ndarray, only: str | None = None) -> dict[str, Scorer]:
        """Setting -> scorer; with `only`, that setting alone."""


class Choice(NamedTuple):
    """What cross-validation chose."""

    view: str
    setting: str
    value: float
    """mean strength over labels of the rows outside each fold's training rows"""


def best_dimension(kind: str, values_TX: Any, labels_TL: np.ndarray, only: str | None = None) -> dict[str, Scorer]:
    """The one dimension that follows each label best, of either sign."""
    strength_LX = strengths(kind, values_TX, labels_TL)
    best_L = np.abs(strength_LX).argmax(1)
    sign_L = np.sign(np.take_along_axis(strength_LX, best_L[:, None], 1))[:, 0]
    return {"one dimension": lambda some_TX: dense(some_TX[:, best_L]) * sign_L}


def difference_of_means(kind: str, values_TX: Any, labels_TL: np.ndarray, only: str | None = None) -> dict[str, Scorer]:
    """Mean of the rows with a label less that of those without; for numbers their covariance with each dimension."""
    away_TL = labels_TL - labels_TL.mean(0)
    direction_XL = dense(values_TX.T @ (away_TL / np.maximum((away_TL**2).sum(0), 1e-12)))
    return {"one direction": lambda some_TX: dense(some_TX @ direction_XL)}


def regression(penalties: Sequence[float], scaled: bool = True) -> Fit:
    """L2 regression on all dimensions at each C of `penalties`; each dimension divided by its standard deviation if `scaled`."""

    def fit(kind: str, values_TX: Any, labels_TL: np.ndarray, only: str | None = None) -> dict[str, Scorer]:
        wanted = [C for C in penalties if only in (None, f"C {C:g}")]
        scale = Scale(values_TX) if scaled else _same
        found = linear(kind, scale(values_TX), labels_TL, wanted)
        return {f"C {C:g}": after(scale, readout.scores) for C, readout in found.items()}

    return fit


def _same(values_TX: Any) -> Any:
    return values_TX


def after(scale: Callable[[Any], Any], scorer: Scorer) -> Scorer:
    """Score rows that went through `scale`."""
    return lambda some_TX: scorer(scale(some_TX))


class Scale:
    """Divides each dimension by its standard deviation in some rows, and dense ones are centred as well."""

    def __init__(self, values_TX: Any) -> None:
        self.sparse = hasattr(values_TX, "tocsr")
        mean_X = np.asarray(values_TX.mean(0), np.float64)
        squares_X = np.asarray(
            (values_TX.multiply(values_TX) if self.sparse else np.square(values_TX)).mean(0), np.float64
        )
        spread_X = np.sqrt(np.maximum(squares_X - mean_X**2, 0))
        self.mean_X = mean_X.astype(np.float32)
        self.factor_X = np.where(spread_X > 1e-9, 1 / np.maximum(spread_X, 1e-9), 0).astype(np.float32)

    def __call__(self, values_TX: Any) -> Any:
        if self.sparse:
            return values_TX.multiply(self.factor_X).tocsr()
        return ((values_TX - self.mean_X) * self.factor_X).astype(np.float32)


def dense(values: Any) -> np.ndarray:
    """An array of numbers, written out if it is sparse."""
    return np.asarray(values.toarray() if hasattr(values, "toarray") else values)


def choose(
    kind: str, views: Mapping[str, Any], fit: Fit, labels_TL: np.ndarray, group_T: np.ndarray, seed: int
) -> dict[str, Choice]:
    """Setting of `fit` -> its best view, by mean strength over labels, cross-validated; rows of a group stay in one fold."""
    found: dict[str, Choice] = {}
    folds = folds_of(labels_TL, group_T, seed)
    for view, values_TX in views.items():
        values: dict[str, list[float]] = {}
        for out_T in folds:
            rest, out = np.flatnonzero(~out_T), np.flatnonzero(out_T)
            for setting, scorer in fit(kind, values_TX[rest], labels_TL[rest]).items():
                values.setdefault(setting, []).append(_mean_strength(kind, scorer(values_TX[out]), labels_TL[out]))
        for setting, some in values.items():
            if setting not in found or np.mean(some) > found[setting].value:
                found[setting] = Choice(view, setting, float(np.mean(some)))
    return found


def folds_of(labels_TL: np.ndarray, group_T: np.ndarray, seed: int) -> list[np.ndarray]:
    """The rows that each fold leaves out, bool T; a fold in or outside which no label differs is none.

    Raises `UserError` where none is left: all rows with a label are of too few groups.
    """
    groups, group_T = np.unique(group_T, return_inverse=True)
    fold_G = np.random.default_rng([seed, 5]).permutation(len(groups)) % FOLDS
    folds = [fold_G[group_T.reshape(-1)] == fold for fold in range(FOLDS)]
    kept = [
        out_T for out_T in folds if all(side.any() and np.ptp(labels_TL[side], 0).any() for side in (out_T, ~out_T))
    ]
    if not kept:
        raise UserError(
            f"The training rows are of {len(groups)} groups, too few to choose by cross-validation; split by another column, "
            "or read more rows (`rows`)."
        )
    return kept


def _mean_strength(kind: str, scores_TL: np.ndarray, labels_TL: np.ndarray) -> float:
    """Over the labels that differ among the rows."""
    there = np.flatnonzero(np.ptp(labels_TL, axis=0) > 0)
    return float(strength(kind, scores_TL[:, there], labels_TL[:, there]).mean())


def word_views(texts: Sequence[str], train_T: np.ndarray) -> dict[str, Any]:
    """TF-IDF of single words, and of words and pairs of them, that stand in at least two training texts, as these weigh them."""
    from sklearn.feature_extraction.text import TfidfVectorizer

    some = [text for text, train in zip(texts, train_T, strict=True) if train]
    views = {"words": (1, 1), "words and pairs": (1, 2)}
    return {
        name: TfidfVectorizer(sublinear_tf=True, min_df=2, ngram_range=span, dtype=np.float32)
        .fit(some)
        .transform(texts)
        .tocsr()
        for name, span in views.items()
    }
