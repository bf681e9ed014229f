"""The paper's recipe for one vector a concept, and what stands beside it.

The paper is the one that the README names (Anthropic, 2026): a concept's mean over its stories, less
the mean over all concepts, less what lies along the leading principal components of neutral text, as many as carry half
of its variance. There the first 50 tokens of a story are left out; here `skip_tokens`, for our stories are short.
Shapes: T texts, C concepts, D residual width, N components.
"""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np


class Vectors(NamedTuple):
    """One vector a concept, residual-stream units."""

    vectors_CD: np.ndarray
    """grand mean and neutral components taken out"""
    raw_CD: np.ndarray
    """grand mean alone taken out"""
    grand_D: np.ndarray
    """mean over concepts"""
    neutral_ND: np.ndarray
    """the components projected out, orthonormal, strongest first"""

    def unit(self) -> np.ndarray:
        """The vectors at length one, (C, D)."""
        return unit(self.vectors_CD)


def unit(x_XD: np.ndarray) -> np.ndarray:
    """Rows at length one; a row of zeros stays."""
    return np.asarray(x_XD / np.maximum(np.linalg.norm(x_XD, axis=1, keepdims=True), 1e-12))


def without(x_XD: np.ndarray, axes_ND: np.ndarray) -> np.ndarray:
    """Rows with their parts along orthonormal `axes_ND` taken out."""
    return np.asarray(x_XD - (x_XD @ axes_ND.T) @ axes_ND)


def concept_vectors(means_TD: np.ndarray, concept_T: np.ndarray, concepts: int, neutral_ND: np.ndarray) -> Vectors:
    """The recipe, from one mean a story. Every story of a concept, and every concept, counts the same.

    Raises ValueError where a concept has no story.
    """
    count_C = np.bincount(concept_T, minlength=concepts)
    if (count_C == 0).any():
        raise ValueError(f"concept {int(np.flatnonzero(count_C == 0)[0])} has no story")
    total_CD = np.zeros((concepts, means_TD.shape[1]))
    np.add.at(total_CD, concept_T, means_TD)
    mean_CD = total_CD / count_C[:, None]
    grand_D = mean_CD.mean(0)
    raw_CD = mean_CD - grand_D
    return Vectors(without(raw_CD, neutral_ND), raw_CD, grand_D, neutral_ND)


def within_topic(means_TD: np.ndarray, topic_T: Sequence[str]) -> np.ndarray:
    """Story means less the mean of their topic's stories, (T, D): what a topic shares is gone before the recipe."""
    _, number_T = np.unique(np.asarray(topic_T), return_inverse=True)
    number_T = number_T.reshape(-1)
    total_SD = np.zeros((number_T.max() + 1, means_TD.shape[1]))
    np.add.at(total_SD, number_T, means_TD)
    return np.asarray(means_TD - (total_SD / np.bincount(number_T)[:, None])[number_T])
