"""What else could explain a label: the words a text names, who tells it, how long it is, and all its words together.

Topic needs no control here: every comparison is within it. Shapes: T texts, C concepts, P labels (a feature and a
weighting of the concepts, such as one concept or a family), n texts of a stratum, X covariates.

Within every stratum a feature's ranks are regressed on the covariate, and the label is tested on the residuals' ranks (the
scheme of Freedman and Lane 1983: residuals, not raw values, are exchangeable once the covariate is accounted for). A label
whose evidence is gone then is said to be explained by it. That says less than it seems: a covariate that goes with the
concept, as length may, takes true signal with it.
"""

import re
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from sae_emotions.label.layout import ABSENT, Panel
from sae_emotions.label.linear import Ranked, Sums, ranked, set_auroc, statistic, sums, upper_p

_QUOTED = re.compile(r"[\"“][^\"“”]*[\"”]")
_FIRST = re.compile(r"\b(?:I|(?i:me|my|mine|myself|we|us|our|ours))\b")
_TOKEN = re.compile(r"[a-z]+")
_ENDINGS = ("", "ly", "ness", "ed", "ing", "s")


class Controlled(NamedTuple):
    """What is left of each label once one covariate is taken out."""

    auroc_P: np.ndarray
    """held-out AUROC of the label's concepts against the others, on residual ranks, mean over strata"""
    p_PR: np.ndarray
    """held-out p in each register"""


def covariates(
    texts: Sequence[str], words: Sequence[str], tokens_T: np.ndarray, bag_TC: np.ndarray, weights_PC: np.ndarray
) -> dict[str, np.ndarray]:
    """What could explain a label instead: control -> covariates_TPX (P is 1 where all labels share them).

    "named": how many words of the label's concepts, and of all concepts, the text names; "person": whether it is told in the
    first person; "length": the logarithm of its tokens; "bag": a bag of words' score for the label's concepts.
    """
    named_TC = names_word(texts, words).astype(np.float32)
    positive_PC = np.maximum(weights_PC, 0).astype(np.float32)
    own_TP = named_TC @ positive_PC.T
    all_TP = np.broadcast_to(named_TC.sum(1, keepdims=True), own_TP.shape)
    return {
        "named": np.stack([own_TP, all_TP], axis=2),
        "person": told_in_first_person(texts)[:, None, None],
        "length": np.log(np.maximum(tokens_T, 1))[:, None, None],
        "bag": (bag_TC @ positive_PC.T)[:, :, None],
    }


def controlled(
    ranks_TF: np.ndarray,
    panels: Sequence[Panel],
    feature_P: np.ndarray,
    weights_PC: np.ndarray,
    covariates_TPX: np.ndarray,
) -> Controlled:
    """Test labels again, the covariates taken out of the features' ranks."""
    left_TP = residual_ranks(ranks_TF, panels, feature_P, covariates_TPX)
    auroc_P, p_PR = np.full(len(feature_P), np.nan), np.ones((len(feature_P), len(panels)))
    totals, moments = [sums(left_TP, whole) for whole in panels], [ranked(left_TP, whole) for whole in panels]
    for weights_C in np.unique(weights_PC, axis=0):
        here = np.flatnonzero((weights_PC == weights_C).all(1))
        for r, (total, moment) in enumerate(zip(totals, moments, strict=True)):
            some = Sums(total.concepts, total.strata, tuple(total_nF[:, here] for total_nF in total.total_nF))
            few = Ranked(moment.square_SF[:, here], moment.cube_SF[:, here])
            p_PR[here, r] = upper_p(statistic(some, weights_C[None], few))[0]
        auroc_P[here] = set_auroc(left_TP, panels, weights_C > 0, here)
    return Controlled(auroc_P, p_PR)


def names_word(texts: Sequence[str], words: Sequence[str]) -> np.ndarray:
    """Whether a text names each word, as it stands or with an English ending (-ly, -ness, -ed, -ing, -s). (T, C), bool."""
    named_TC = np.zeros((len(texts), len(words)), bool)
    columns = {word.lower() + ending: c for c, word in enumerate(words) for ending in _ENDINGS}
    longer = [(form, c) for form, c in columns.items() if not form.isalpha()]
    for row, text in zip(named_TC, (text.lower() for text in texts), strict=True):
        row[[columns[token] for token in set(_TOKEN.findall(text)) if token in columns]] = True
        row[[c for form, c in longer if form in text and re.search(rf"\b{re.escape(form)}\b", text)]] = True
    return named_TC


def told_in_first_person(texts: Sequence[str]) -> np.ndarray:
    """Whether the narration, what is quoted left out, speaks of itself as I or we. English alone. (T,), bool."""
    return np.array([_FIRST.search(_QUOTED.sub(" ", text)) is not None for text in texts])


def residual_ranks(
    ranks_TF: np.ndarray, panels: Sequence[Panel], feature_P: np.ndarray, covariates_TPX: np.ndarray
) -> np.ndarray:
    """Doubled midranks of what a feature's ranks within each stratum leave when a label's covariates are taken out. (T, P)

    `covariates_TPX` may have one label (P = 1) where all share their covariates. A constant covariate takes nothing out.
    """
    from scipy.stats import rankdata

    out_TP = np.zeros((len(ranks_TF), len(feature_P)), np.int32)
    shared = covariates_TPX.shape[1] == 1
    for whole in panels:
        for s in range(len(whole.size_S)):
            rows = whole.rows_CS[:, s]
            rows = rows[rows != ABSENT]
            ranks_nP = ranks_TF[np.ix_(rows, feature_P)].astype(np.float64)
            ranks_nP -= ranks_nP.mean(0)
            x_PnX = np.moveaxis(covariates_TPX[rows].astype(np.float64), 1, 0)
            x_PnX = x_PnX - x_PnX.mean(1, keepdims=True)
            basis_PnX = _basis(x_PnX)
            if shared:
                left_nP = ranks_nP - basis_PnX[0] @ (basis_PnX[0].T @ ranks_nP)
            else:
                weight_PX = np.einsum("pnx,np->px", basis_PnX, ranks_nP)
                left_nP = ranks_nP - np.einsum("pnx,px->np", basis_PnX, weight_PX)
            out_TP[rows] = 2 * rankdata(np.round(left_nP, 6), axis=0)
    return out_TP


def _basis(x_PnX: np.ndarray) -> np.ndarray:
    """Orthonormal columns that span each label's covariates; what is constant or a repetition becomes zero."""
    u_PnX, size_PX, _ = np.linalg.svd(x_PnX, full_matrices=False)
    return np.where((size_PX > 1e-8 * np.maximum(size_PX[:, :1], 1e-300))[:, None, :], u_PnX, 0.0)
