"""How well a labelled table is read: by labels carried over from the concept texts, and by what its own training rows choose.

Every method sees the same rows, is chosen by cross-validation on the training rows, and is scored once on the test rows.
Shapes: T rows that were read (training and test), L labels, C concepts, D residual width, B bootstrap samples.
"""

from typing import Any, NamedTuple

import numpy as np

from sae_emotions.progress import say
from sae_emotions.tables.choosing import (
    Choice,
    Fit,
    best_dimension,
    choose,
    difference_of_means,
    regression,
    word_views,
)
from sae_emotions.tables.few import TARGETS, few, setting
from sae_emotions.tables.mapping import Words
from sae_emotions.tables.pooled import Pooled
from sae_emotions.tables.strength import CHANCE, bootstrap, strength, strengths

RESAMPLES = 500
DIRECTIONS = 20
BASELINE = "tfidf"
SIZES = {5: "five_features", 16: "sixteen_features"}
_ALL = regression((1e-5, 1e-4, 1e-3, 1e-2, 1e-1))
_WORDS = regression((1.0, 4.0, 16.0), scaled=False)


class Labels(NamedTuple):
    """What a dictionary's labels say of the concepts."""

    concepts: tuple[str, ...]
    feature_C: np.ndarray
    """the feature chosen for each concept on the concept texts"""
    dense_CD: np.ndarray
    """each concept's difference of means there"""


class Rows(NamedTuple):
    """Rows of a table that were read."""

    kind: str
    labels: tuple[str, ...]
    values_TL: np.ndarray
    test_T: np.ndarray
    group_T: np.ndarray
    texts: list[str]
    whole_texts: list[str]
    """the table's whole training split, read or not"""
    whole_TL: np.ndarray
    """its labels"""
    whole_group_T: np.ndarray
    """its groups"""


class Scored(NamedTuple):
    """A method's scores of the test rows."""

    scores_TL: np.ndarray
    label_L: np.ndarray
    """which of the labels they are for"""
    about: dict[str, Any]


def measure(rows: Rows, pooled: Pooled, labels: Labels, words: dict[str, Words], seed: int) -> dict[str, Any]:
    """All methods on one table, JSON-able. See `_as_figures` for a method's keys."""
    found = zero_shot(rows, pooled, labels, words)
    chosen, choices = _chosen(rows, pooled, seed)
    found |= chosen
    if len(rows.whole_texts) > (~rows.test_T).sum():
        found["tfidf_whole_training_split"] = _whole_split(rows, choices[BASELINE].view, seed)
    found |= _permuted(rows, pooled, choices, seed)
    values_TL = rows.values_TL[rows.test_T]
    resampled = {name: _resampled(rows, one, seed) for name, one in found.items()}
    figures = {name: _as_figures(rows, one, values_TL, resampled, name) for name, one in found.items()}
    return figures | {"random_direction": _random_directions(rows, pooled, choices["dense_difference_of_means"], seed)}


def zero_shot(rows: Rows, pooled: Pooled, labels: Labels, words: dict[str, Words]) -> dict[str, Scored]:
    """The concepts' chosen features and dense vectors on mapped labels; no row's label is looked at, nothing is chosen.

    Both read means over all tokens but the first. A label of several concepts is scored by the mean of its features' midranks
    among the test rows (a feature that stands for two of them counts once), or by the sum of their dense vectors, each of
    length one; concepts that it falls with count negatively.
    """
    from scipy.stats import rankdata

    number = {name: i for i, name in enumerate(labels.concepts)}
    mapped = [n for n, name in enumerate(rows.labels) if words.get(name, Words()) != Words()]
    if not mapped:
        return {}
    acts_TF, resid_TD = pooled.acts["mean", 1][np.flatnonzero(rows.test_T)], pooled.resid[1][rows.test_T]
    unit_CD = labels.dense_CD / np.maximum(np.linalg.norm(labels.dense_CD, axis=1, keepdims=True), 1e-12)
    by_feature, by_dense, features = [], [], {}
    for n in mapped:
        own = words[rows.labels[n]]
        sides = [(sign, [number[w] for w in side]) for sign, side in ((1, own.up), (-1, own.down)) if side]
        ranks = [
            sign * rankdata(acts_TF[:, np.unique(labels.feature_C[some])].toarray(), axis=0).mean(1)
            for sign, some in sides
        ]
        by_feature.append(np.sum(ranks, axis=0))
        by_dense.append(resid_TD @ np.sum([sign * unit_CD[some].sum(0) for sign, some in sides], axis=0))
        features[rows.labels[n]] = [int(f) for _, some in sides for f in np.unique(labels.feature_C[some])]
    label_L = np.array(mapped)
    return {
        "zero_shot_features": Scored(np.stack(by_feature, 1), label_L, {"features": features}),
        "zero_shot_dense": Scored(np.stack(by_dense, 1), label_L, {}),
    }


def _chosen(rows: Rows, pooled: Pooled, seed: int) -> tuple[dict[str, Scored], dict[str, Choice]]:
    """Every method that learns from the training rows."""
    acts, resid = _act_views(pooled), _resid_views(pooled)
    plans: list[tuple[str, dict[str, Any], Fit]] = [
        ("best_feature", acts, best_dimension),
        ("all_features", acts, _ALL),
        ("dense_difference_of_means", resid, difference_of_means),
        ("residual_regression", resid, _ALL),
        ("best_residual_dimension", resid, best_dimension),
        ("bag_of_embeddings", {"mean": pooled.embedding}, _ALL),
        (BASELINE, word_views(rows.texts, ~rows.test_T), _WORDS),
    ]
    found, choices = {}, {}
    for name, views, fit in plans:
        choices[name] = _best(_choices(rows, views, fit, seed))
        found[name] = _fitted(rows, views, fit, choices[name])
        _say(name, choices[name])
    # A few features take the view and penalty that were best for all of them.
    whole = choices["all_features"]
    fit = few(tuple(SIZES), float(whole.setting.removeprefix("C ")))
    views = {whole.view: acts[whole.view]}
    each = _choices(rows, views, fit, seed)
    for size, name in SIZES.items():
        choices[name] = _best({says: each[setting(size, says)] for says in TARGETS})
        found[name] = _fitted(rows, views, fit, choices[name])
        _say(name, choices[name])
    return found, choices


def _say(name: str, choice: Choice) -> None:
    say(f"  {name}: {choice.value:.3f} by cross-validation ({choice.view}; {choice.setting})")


def _act_views(pooled: Pooled) -> dict[str, Any]:
    return {f"{pool}, {_opening(skip)}": some for (pool, skip), some in pooled.acts.items()}


def _resid_views(pooled: Pooled) -> dict[str, Any]:
    return {_opening(skip): some for skip, some in pooled.resid.items()}


def _opening(skip: int) -> str:
    return f"without the first {skip} tokens" if skip > 1 else "without the first token"


def _best(choices: dict[str, Choice]) -> Choice:
    return max(choices.values(), key=lambda one: one.value)


def _choices(rows: Rows, views: dict[str, Any], fit: Fit, seed: int) -> dict[str, Choice]:
    train = np.flatnonzero(~rows.test_T)
    some = {name: view[train] for name, view in views.items()}
    return choose(rows.kind, some, fit, rows.values_TL[train], rows.group_T[train], seed)


def _fitted(rows: Rows, views: dict[str, Any], fit: Fit, choice: Choice) -> Scored:
    train, test = np.flatnonzero(~rows.test_T), np.flatnonzero(rows.test_T)
    values_TX = views[choice.view]
    scorer = fit(rows.kind, values_TX[train], rows.values_TL[train], choice.setting)[choice.setting]
    about = {"chosen": [choice.view, choice.setting], "cross_validated": round(choice.value, 4)}
    return Scored(scorer(values_TX[test]), np.arange(len(rows.labels)), about)


def _whole_split(rows: Rows, view: str, seed: int) -> Scored:
    """TF-IDF (the sample's view) on the table's whole training split, of which the other methods see a sample."""
    texts = [*rows.whole_texts, *(text for text, test in zip(rows.texts, rows.test_T, strict=True) if test)]
    test_T = np.arange(len(texts)) >= len(rows.whole_texts)
    values_TL = np.concatenate([rows.whole_TL, rows.values_TL[rows.test_T]])
    group_T = np.concatenate([rows.whole_group_T, rows.group_T[rows.test_T]])
    whole = rows._replace(texts=texts, test_T=test_T, values_TL=values_TL, group_T=group_T)
    views = {view: word_views(texts, ~test_T)[view]}
    found = _fitted(whole, views, _WORDS, _best(_choices(whole, views, _WORDS, seed)))
    return found._replace(about=found.about | {"train_rows": len(rows.whole_texts)})


def _permuted(rows: Rows, pooled: Pooled, choices: dict[str, Choice], seed: int) -> dict[str, Scored]:
    """Chance as it is: the training rows' labels are dealt out anew and everything fitted again, at the views and settings that
    the true labels chose."""
    train = np.flatnonzero(~rows.test_T)
    values_TL = rows.values_TL.copy()
    values_TL[train] = values_TL[np.random.default_rng([seed, 6]).permutation(train)]
    shuffled = rows._replace(values_TL=values_TL)
    acts, fits = _act_views(pooled), {"best_feature": best_dimension, "all_features": _ALL}
    return {
        f"permuted_{name}": _fitted(shuffled, acts, fit, choices[name])._replace(about={}) for name, fit in fits.items()
    }


def _random_directions(rows: Rows, pooled: Pooled, choice: Choice, seed: int) -> dict[str, Any]:
    """Directions of the residual stream drawn from a normal distribution, their sign as the training rows say."""
    resid_TD = _resid_views(pooled)[choice.view]
    directions_DR = np.random.default_rng([seed, 7]).standard_normal((resid_TD.shape[1], DIRECTIONS))
    read_TR = resid_TD @ directions_DR
    sign_LR = np.sign(strengths(rows.kind, read_TR[~rows.test_T], rows.values_TL[~rows.test_T]))
    test_TL = rows.values_TL[rows.test_T]
    macro_R = [
        float(strength(rows.kind, read_TR[rows.test_T][:, [r]] * sign_LR[:, r], test_TL).mean())
        for r in range(DIRECTIONS)
    ]
    low, high = np.quantile(macro_R, [0.025, 0.975])
    return {
        "macro": round(float(np.mean(macro_R)), 4),
        "spread_over_directions": [round(float(low), 4), round(float(high), 4)],
        "directions": DIRECTIONS,
        "labels_scored": len(rows.labels),
    }


def _resampled(rows: Rows, one: Scored, seed: int) -> np.ndarray:
    """The same groups of rows are drawn for every method, so that differences are of pairs."""
    values_TL, group_T = rows.values_TL[rows.test_T][:, one.label_L], rows.group_T[rows.test_T]
    rng = np.random.default_rng([seed, 8])
    return bootstrap(rows.kind, one.scores_TL, values_TL, RESAMPLES, rng, group_T)


def _as_figures(
    rows: Rows, one: Scored, values_TL: np.ndarray, resampled: dict[str, np.ndarray], name: str
) -> dict[str, Any]:
    """macro: mean strength over labels; interval: 95 %, over groups of rows; labels: each one's; minus_tfidf: likewise."""
    strength_L = strength(rows.kind, one.scores_TL, values_TL[:, one.label_L])
    figures: dict[str, Any] = {
        "macro": round(float(strength_L.mean()), 4),
        "interval": _interval(resampled[name]),
        "labels_scored": len(one.label_L),
        **one.about,
        "labels": {rows.labels[n]: round(float(s), 4) for n, s in zip(one.label_L, strength_L, strict=True)},
    }
    if len(one.label_L) == len(rows.labels) and name != BASELINE:
        figures["minus_tfidf_interval"] = _interval(resampled[name] - resampled[BASELINE])
    return figures


def _interval(values_B: np.ndarray) -> list[float]:
    return [round(float(end), 4) for end in np.quantile(values_B, [0.025, 0.975])]


def chance(kind: str) -> dict[str, Any]:
    """What strength is, and what it is without any relation."""
    return {"measure": "AUROC" if kind == "classes" else "Pearson r", "chance": CHANCE[kind]}
