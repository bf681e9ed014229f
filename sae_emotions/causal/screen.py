"""The screen: which labelled features are worth an exact test, by first-order attribution on selection texts.

The exact test is made on held-out texts, but what a latent does by chance it does on all texts, so those chosen here are ahead
there as well. The choice is therefore part of the test (`verdict.Screening`): matched controls go through the same screen.
Shapes: C concepts that have a label, L latents of the dictionary, X labelled features.
"""

from collections.abc import Mapping
from typing import NamedTuple

import numpy as np

from sae_emotions.causal.attribute import attribution, slopes, words_asked
from sae_emotions.causal.material import Material
from sae_emotions.causal.profile import Profile
from sae_emotions.causal.readouts import WordTree
from sae_emotions.progress import Progress
from sae_emotions.upper import Upper


class Screened(NamedTuple):
    """First-order effects on the profiles of the concepts that have a label, on those concepts' own selection texts."""

    concepts_C: np.ndarray
    """numbers of the concepts"""
    texts_C: np.ndarray
    """texts of each"""
    effect_CL: np.ndarray
    """mean first-order effect of removing each latent, nats; 0 where it is silent"""
    fires_CL: np.ndarray
    """texts in which it fires"""
    score_CL: np.ndarray
    """the effect in units of what the candidates for controls do for as much that they add; 0 where it is silent"""

    def of(self, concept_X: np.ndarray, latent_X: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Effects and scores of latents, each on the profile of one of the concepts."""
        row_X = np.searchsorted(self.concepts_C, concept_X)
        return self.effect_CL[row_X, latent_X], self.score_CL[row_X, latent_X]


def screen(upper: Upper, tree: WordTree, material: Material, profiles: Mapping[int, Profile], texts: int) -> Screened:
    """Attribute the profiles of all labelled concepts to all latents, on up to `texts` selection texts a concept."""
    concepts_C = np.unique(material.own_F)
    asked, row_T = [], []
    for row, concept in enumerate(concepts_C):
        for story in material.selection.get(int(concept), [])[:texts]:
            asked.append(words_asked(tree, story.ids, profiles[int(concept)]))
            row_T.append(row)
    shape = (len(concepts_C), material.dictionary.d_sae)
    effect_CL, removed_CL, fires_CL = np.zeros(shape), np.zeros(shape), np.zeros(shape, np.int64)
    norm_L = material.dictionary.W_dec_FD.norm(dim=1).numpy()
    with Progress("screen", len(asked), "texts") as bar:
        for n, slope in slopes(upper, asked, material.special):
            found = attribution(material.dictionary, slope)
            effect_CL[row_T[n], found.latent_N] += found.effect_N
            removed_CL[row_T[n], found.latent_N] += found.amount_N * norm_L[found.latent_N]
            fires_CL[row_T[n], found.latent_N] += 1
            bar.advance(1)
    texts_C = np.bincount(row_T, minlength=len(concepts_C))
    free_K = material.latents_L[material.candidates_C]
    return Screened(
        concepts_C,
        texts_C,
        effect_CL / np.maximum(texts_C, 1)[:, None],
        fires_CL,
        _scores(effect_CL, removed_CL, free_K),
    )


def _scores(effect_CL: np.ndarray, removed_CL: np.ndarray, free_K: np.ndarray) -> np.ndarray:
    """Effect per removed norm, in units of the root mean square of the same over the latents `free_K` that fire."""
    rate_CL = np.divide(effect_CL, removed_CL, out=np.zeros_like(effect_CL), where=removed_CL > 0)
    there_CK = removed_CL[:, free_K] > 0
    square_C = (rate_CL[:, free_K] ** 2 * there_CK).sum(1) / np.maximum(there_CK.sum(1), 1)
    unit_C1 = np.sqrt(square_C)[:, None]
    return np.divide(rate_CL, unit_C1, out=np.zeros_like(rate_CL), where=unit_C1 > 0)


def chosen(score_X: np.ndarray, most: int | None) -> np.ndarray:
    """The labelled features in the order in which they are tested, lowest score first; all keep their order if all are.

    The first `most` are to be tested.
    """
    if most is None or most >= len(score_X):
        return np.arange(len(score_X))
    order_X = np.argsort(score_X, kind="stable")
    return np.concatenate([np.sort(order_X[:most]), np.sort(order_X[most:])])


class Agreement(NamedTuple):
    """Spearman's rank correlation with its 95 % interval."""

    rho: float | None
    low: float | None
    high: float | None
    pairs: int


FEWEST = 8  # pairs, below which a rank correlation says nothing


def agreement(first_N: np.ndarray, exact_N: np.ndarray) -> Agreement:
    """Rank agreement of first-order effects with exact ones; None where there are too few or all are alike.

    The interval is Fisher's with the variance of Bonett and Wright (2000), (1 + rho²/2) / (n - 3).
    """
    from scipy.stats import norm, spearmanr

    count = len(first_N)
    if min(len(set(first_N)), len(set(exact_N))) < FEWEST:
        return Agreement(None, None, None, count)
    rho = float(spearmanr(first_N, exact_N).statistic)
    if abs(rho) == 1:
        return Agreement(rho, rho, rho, count)
    away = float(norm.ppf(0.975)) * np.sqrt((1 + rho**2 / 2) / (count - 3))
    return Agreement(rho, float(np.tanh(np.arctanh(rho) - away)), float(np.tanh(np.arctanh(rho) + away)), count)
