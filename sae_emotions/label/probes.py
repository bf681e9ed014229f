"""Linear read-outs of every concept at once, fitted on one set of panels: what a single feature is compared with.

All methods see the same rows: values of the panels' texts less the mean of their stratum (topic), since AUROC compares
texts of one topic alone. A score may thus be off by a constant a topic, and held-out texts need no centring.
Shapes: T texts, N texts of the panels, S strata, C concepts, X dimensions (features, residual width or words), K picks.
"""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from sae_emotions.label.layout import ABSENT, Panel

NEUTRAL_SHARE = 0.5
"""Share of the neutral text's variance that is projected out."""


class Sample(NamedTuple):
    """The texts of some panels, stratum by stratum."""

    text_N: np.ndarray
    stratum_N: np.ndarray
    """numbered through all panels"""
    concept_N: np.ndarray


def sample(panels: Sequence[Panel]) -> Sample:
    """Every text of `panels` once; a panel that is given twice counts once."""
    parts: list[np.ndarray] = []
    distinct = {id(whole): whole for whole in panels}.values()
    for whole in distinct:
        for s in range(len(whole.size_S)):
            concept = np.flatnonzero(whole.rows_CS[:, s] != ABSENT)
            parts.append(np.stack([whole.rows_CS[concept, s], np.full(len(concept), len(parts)), concept]))
    return Sample(*np.concatenate(parts, axis=1).astype(np.int64))


def centred(values_NX: np.ndarray, rows: Sample) -> np.ndarray:
    """Values of the sample's texts less their stratum's mean. (N, X), float32."""
    x_NX = np.array(values_NX, np.float32)
    for s in range(int(rows.stratum_N.max()) + 1):
        here = rows.stratum_N == s
        x_NX[here] -= x_NX[here].mean(0)
    return x_NX


def own_label(rows: Sample, concepts: int) -> np.ndarray:
    """1 where the text shows the concept, else 0. (N, C), float32."""
    y_NC = np.zeros((len(rows.concept_N), concepts), np.float32)
    y_NC[np.arange(len(y_NC)), rows.concept_N] = 1
    return y_NC


def leading_components(covariance_DD: np.ndarray, share: float = NEUTRAL_SHARE) -> np.ndarray:
    """The fewest principal components that together carry at least `share` of the variance. (N, D), orthonormal."""
    values_D, axes_DD = np.linalg.eigh(covariance_DD)
    values_D, axes_DD = np.maximum(values_D[::-1], 0), axes_DD[:, ::-1]
    if values_D.sum() <= 0:
        return np.zeros((0, len(values_D)))
    carried_D = np.cumsum(values_D) / values_D.sum()
    return np.ascontiguousarray(axes_DD[:, : int(np.searchsorted(carried_D, share - 1e-12)) + 1].T)


def without_components(vector_CX: np.ndarray, neutral_NX: np.ndarray) -> np.ndarray:
    """`vector_CX` less its mean over concepts, without the leading components of texts that show no concept.

    As many components are projected out as carry `NEUTRAL_SHARE` of the variance of `neutral_NX` around its mean: the recipe
    of the paper that the README names, section 1.1.
    """
    around_NX = np.asarray(neutral_NX, np.float64) - neutral_NX.mean(0)
    leading_KX = leading_components(around_NX.T @ around_NX / len(around_NX))
    rest_CX = vector_CX - vector_CX.mean(0)
    return np.asarray(rest_CX - (rest_CX @ leading_KX.T) @ leading_KX)


def logistic_regression(x_NX: np.ndarray, y_NC: np.ndarray, l2: float, steps: int = 200) -> np.ndarray:
    """Weights of one-vs-rest logistic regressions, all concepts in one L-BFGS; the intercepts are free. (X, C), float32.

    Minimises the summed log loss + l2 / 2 |w|^2, as scikit-learn does with C = 1 / l2.
    """
    import torch

    from sae_emotions.machine import device

    x, y = torch.from_numpy(x_NX).to(device()), torch.from_numpy(y_NC).to(device())
    weight = torch.zeros(x.shape[1], y.shape[1], device=x.device, requires_grad=True)
    start = torch.logit(y.mean(0).clamp(1e-4, 1 - 1e-4))
    bias = start.clone().requires_grad_()
    solver = torch.optim.LBFGS([weight, bias], max_iter=steps, history_size=20, line_search_fn="strong_wolfe")

    def loss() -> torch.Tensor:
        solver.zero_grad()
        logits_NC = x @ weight + bias
        value = torch.nn.functional.binary_cross_entropy_with_logits(logits_NC, y, reduction="sum")
        value = (value + l2 / 2 * (weight**2).sum()) / len(x)
        value.backward()
        return value

    solver.step(loss)
    return np.asarray(weight.detach().cpu().numpy())
