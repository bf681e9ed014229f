"""Read-outs of a table's labels, fitted on training rows; which view and penalty they use, chosen by cross-validation.

A view is one way to write the texts as rows of numbers, such as mean activations without the opening. A fit takes the
training rows of a view and gives what scores other rows. Shapes: T rows, X dimensions of a view, L labels.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from sae_emotions.tables.fits import few_features, linear
from sae_emotions.tables.strength import strength, strengths

FOLDS = 3
Scorer = Callable[[Any], np.ndarray]
"""rows of a view -> scores (T, L)"""
Fit = Callable[[str, Any, np.ndarray], Scorer]
"""kind, training rows of a view, their labels -> scorer"""


class Choice(NamedTuple):
    """What cross-validation chose."""

    view: str
    fit: str
    value: float
    """mean strength over labels of the rows outside each fold's training rows"""


def best_dimension(kind: str, values_TX: Any, labels_TL: np.ndarray) -> Scorer:
    """The one dimension that follows each label best, of either sign."""
    strength_LX = strengths(kind, values_TX, labels_TL)
    best_L = np.abs(strength_LX).argmax(1)
    sign_L = np.sign(np.take_along_axis(strength_LX, best_L[:, None], 1))[:, 0]
    return lambda some_TX: _dense(some_TX[:, best_L]) * sign_L


def difference_of_means(kind: str, values_TX: Any, labels_TL: np.ndarray) -> Scorer:
    """Mean of the rows with a label less that of those without; for numbers their covariance with each dimension."""
    away_TL = labels_TL - labels_TL.mean(0)
    direction_XL = _dense(values_TX.T @ (away_TL / np.maximum((away_TL**2).sum(0), 1e-12)))
    return lambda some_TX: _dense(some_TX @ direction_XL)


def regression(C: float, scaled: bool = True) -> Fit:
    """L2 regression on all dimensions, each divided by its standard deviation if `scaled`."""

    def fit(kind: str, values_TX: Any, labels_TL: np.ndarray) -> Scorer:
        if not scaled:
            return linear(kind, values_TX, labels_TL, C).scores
        scale = _Scale(values_TX)
        readout = linear(kind, scale(values_TX), labels_TL, C)
        return lambda some_TX: readout.scores(scale(some_TX))

    return fit


def few(size: int) -> Fit:
    """Regression on the `size` dimensions that L1 chooses for each label."""

    def fit(kind: str, values_TX: Any, labels_TL: np.ndarray) -> Scorer:
        chosen = few_features(kind, values_TX, labels_TL, strengths(kind, values_TX, labels_TL), (size,))[size]
        one = regression(1.0)
        scorers = [one(kind, _dense(values_TX[:, some]), labels_TL[:, [n]]) for n, some in enumerate(chosen)]

        def scores(some_TX: Any) -> np.ndarray:
            pairs = zip(chosen, scorers, strict=True)
            return np.concatenate([scorer(_dense(some_TX[:, some])) for some, scorer in pairs], axis=1)

        return scores

    return fit


class _Scale:
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


def _dense(values: Any) -> np.ndarray:
    return np.asarray(values.toarray() if hasattr(values, "toarray") else values)


def choose(
    kind: str, views: Mapping[str, Any], fits: Mapping[str, Fit], labels_TL: np.ndarray, group_T: np.ndarray, seed: int
) -> Choice:
    """The best view and fit by mean strength over labels, cross-validated; rows of one group stay in one fold."""
    best = Choice(next(iter(views)), next(iter(fits)), -np.inf)
    folds = list(_folds(group_T, seed))
    for view, values_TX in views.items():
        for name, fit in fits.items():
            values = []
            for out_T in folds:
                scores_TL = fit(kind, values_TX[~out_T], labels_TL[~out_T])(values_TX[out_T])
                values.append(_mean_strength(kind, scores_TL, labels_TL[out_T]))
            if np.mean(values) > best.value:
                best = Choice(view, name, float(np.mean(values)))
    return best


def _folds(group_T: np.ndarray, seed: int) -> Iterator[np.ndarray]:
    groups, group_T = np.unique(group_T, return_inverse=True)
    fold_G = np.random.default_rng([seed, 5]).permutation(len(groups)) % FOLDS
    yield from (fold_G[group_T.reshape(-1)] == fold for fold in range(FOLDS))


def _mean_strength(kind: str, scores_TL: np.ndarray, labels_TL: np.ndarray) -> float:
    """Over the labels that differ among the rows."""
    there = np.flatnonzero(np.ptp(labels_TL, axis=0) > 0)
    return float(strength(kind, scores_TL[:, there], labels_TL[:, there]).mean())


def word_views(texts: Sequence[str], train_T: np.ndarray) -> dict[str, Any]:
    """TF-IDF of single words, and of words and pairs of them, as the training texts weigh them."""
    from sklearn.feature_extraction.text import TfidfVectorizer

    some = [text for text, train in zip(texts, train_T, strict=True) if train]
    views = {"words": (1, 1), "words and pairs": (1, 2)}
    return {
        name: TfidfVectorizer(sublinear_tf=True, ngram_range=span, dtype=np.float32).fit(some).transform(texts).tocsr()
        for name, span in views.items()
    }
