"""The methods that are put beside each other in `transfer`: single features, a few of them, dense read-outs, words, controls.

Shapes: T texts, F features, C concepts, D residual width, M texts that show no concept, N texts of the training panels.
"""

from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np

from sae_emotions.label.baselines import difference_of_means, tfidf_scores
from sae_emotions.label.layout import Layout
from sae_emotions.label.probes import centred, logistic_regression, own_label, sample, without_components
from sae_emotions.label.ranks import auroc, doubled_midranks
from sae_emotions.label.sparse_probes import few_features, l1_logistic
from sae_emotions.label.transfer import Method, Pair, Scored, cross_validated_auroc

FOLDS = 3
DIRECTIONS = 20
L2 = (10.0, 100.0, 1000.0, 10000.0)
"""of the residual logistic regression, in units of the residual's mean variance"""

Choose = Callable[[np.ndarray, Pair], np.ndarray]
"""Ranks (T, F) and training panels to one feature a concept (C)."""


class Material(NamedTuple):
    """What the methods read of every text."""

    ranks_TF: np.ndarray
    """`doubled_midranks` of the activations"""
    acts_TF: np.ndarray
    resid_TD: np.ndarray
    embedding_TD: np.ndarray
    """mean input embedding"""
    general_MD: np.ndarray
    """mean residual stream of general texts"""
    texts: Sequence[str]


def single(values_TF: np.ndarray, ranks_TF: np.ndarray, choose: Choose) -> Method:
    """Each concept's one feature, by the rule that labels are chosen by."""

    def fit(panels: Pair) -> Scored:
        feature_C = choose(ranks_TF, panels)
        return Scored((values_TF[:, feature_C],), feature_C[:, None])

    return fit


def difference(values_TX: np.ndarray) -> Method:
    """Difference of means."""
    return lambda panels: Scored((values_TX @ difference_of_means(values_TX, panels).T.astype(np.float32),))


def denoised(resid_TD: np.ndarray, neutral_MD: np.ndarray) -> Method:
    """Difference of means in the residual stream, centred, without the neutral texts' leading components."""

    def fit(panels: Pair) -> Scored:
        dense_CD = without_components(difference_of_means(resid_TD, panels), neutral_MD)
        return Scored((resid_TD @ dense_CD.T.astype(np.float32),))

    return fit


def logistic(resid_TD: np.ndarray) -> Method:
    """Logistic regression on the whole residual stream, its penalty by cross-validation over the training topics."""

    def weights(panels: Pair, l2: float) -> np.ndarray:
        rows = sample(panels)
        x_ND = centred(resid_TD[rows.text_N], rows)
        return logistic_regression(x_ND, own_label(rows, len(panels[0].rows_CS)), l2 * float((x_ND**2).mean()))

    def fit(panels: Pair) -> Scored:
        found = {
            l2: cross_validated_auroc(panels, FOLDS, lambda rest, l2=l2: Scored((resid_TD @ weights(rest, l2),)))  # type: ignore[misc]
            for l2 in L2
        }
        best = max(found, key=lambda l2: float(np.mean(found[l2])))
        return Scored((resid_TD @ weights(panels, best),))

    return fit


def best_dimension(resid_TD: np.ndarray, found: Layout, choose: Choose) -> Method:
    """Each concept's one residual dimension, of either sign, by the rule that features are chosen by."""
    either_TX = np.concatenate([resid_TD, -resid_TD], axis=1)
    fit = single(either_TX, doubled_midranks(either_TX, found.panels), choose)
    return lambda panels: fit(panels)._replace(feature_CK=None)


def random_directions(resid_TD: np.ndarray, found: Layout, seed: int, draws: int = DIRECTIONS) -> Method:
    """A random direction a concept, of the sign that reads it better in training; `draws` of them are averaged."""
    direction_KD = np.random.default_rng([seed, 3]).standard_normal((draws, resid_TD.shape[1])).astype(np.float32)
    along_TK = resid_TD @ direction_KD.T
    ranks_TK = doubled_midranks(along_TK, found.panels)

    def fit(panels: Pair) -> Scored:
        sign_CK = np.sign(auroc(ranks_TK, panels[0]) + auroc(ranks_TK, panels[1]) - 1)
        return Scored([along_TK[:, [k]] * sign_CK[:, k] for k in range(draws)])

    return fit


def bag_of_words(texts: Sequence[str]) -> Method:
    """TF-IDF, difference of means."""
    return lambda panels: Scored((tfidf_scores(texts, panels),))


def few(values_TF: np.ndarray, picks: int) -> Method:
    """`picks` features a concept, chosen and weighted together (`few_features`)."""

    def fit(panels: Pair) -> Scored:
        rows = sample(panels)
        picked = few_features(values_TF[rows.text_N], rows, len(panels[0].rows_CS), picks)
        return Scored((picked.scores(values_TF),), picked.feature_CK)

    return fit


def picked_by_l1(values_TF: np.ndarray, picks: int) -> Method:
    """`picks` features a concept as an L1 logistic regression takes them up."""

    def fit(panels: Pair) -> Scored:
        rows = sample(panels)
        picked = l1_logistic(centred(values_TF[rows.text_N], rows), own_label(rows, len(panels[0].rows_CS)), picks)
        return Scored((picked.scores(values_TF),), picked.feature_CK)

    return fit


def run_methods(material: Material, choose: Choose) -> dict[str, Method]:
    """What every run compares. Several features together are read by the square roots of their activations: a loud feature
    does not drown the others."""
    root_TF = np.sqrt(material.acts_TF)
    return {
        "single": single(material.acts_TF, material.ranks_TF, choose),
        "five": few(root_TF, 5),
        "sixteen": few(root_TF, 16),
        "all_features": difference(root_TF),
        "dense": difference(material.resid_TD),
        "dense_denoised": denoised(material.resid_TD, material.general_MD),
        "tfidf": bag_of_words(material.texts),
        "embeddings": difference(material.embedding_TD),
    }


def further_methods(
    material: Material, found: Layout, choose: Choose, seed: int, neutral_MD: np.ndarray | None = None
) -> dict[str, Method]:
    """What takes longer, and the controls. `neutral_MD`: mean residual stream of texts written to show no concept."""
    root_TF = np.sqrt(material.acts_TF)
    methods = {
        "five_l1": picked_by_l1(root_TF, 5),
        "sixteen_l1": picked_by_l1(root_TF, 16),
        "logistic": logistic(material.resid_TD),
        "best_dimension": best_dimension(material.resid_TD, found, choose),
        "random_direction": random_directions(material.resid_TD, found, seed),
    }
    if neutral_MD is not None:
        methods["dense_denoised_neutral"] = denoised(material.resid_TD, neutral_MD)
    return methods


DESCRIBED = {
    "single": "one feature a concept, by the labelling rule on the training texts",
    "five": "five features a concept, by stepwise regression on square roots of activations",
    "sixteen": "sixteen features a concept, by stepwise regression on square roots of activations",
    "all_features": "difference of means of the square roots of all features' activations",
    "five_l1": "five features as an L1 logistic regression takes them up, refitted without the L1 penalty",
    "sixteen_l1": "sixteen features as an L1 logistic regression takes them up, refitted without the L1 penalty",
    "dense": "difference of means in the residual stream",
    "dense_denoised": "the same, centred, without the general text's leading components (half of its variance)",
    "dense_denoised_neutral": "the same, centred, without the leading components of texts written to show no concept",
    "logistic": "logistic regression on the whole residual stream; penalty by cross-validation over training topics",
    "tfidf": "difference of means of TF-IDF",
    "embeddings": "difference of means of the model's mean input embeddings: a bag of words",
    "best_dimension": "one dimension of the residual stream, of either sign, by the labelling rule",
    "random_direction": "a random direction of the better sign; mean over draws",
    "random_dictionary": "one feature of a dictionary of the same shape with random directions, by the labelling rule",
}
"""What each method is, for people."""
