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

import numpy as np

from sae_emotions.label.layout import ABSENT, Panel

_QUOTED = re.compile(r"[\"“][^\"“”]*[\"”]")
_FIRST = re.compile(r"\b(?:I|(?i:me|my|mine|myself|we|us|our|ours))\b")


def names_word(texts: Sequence[str], words: Sequence[str]) -> np.ndarray:
    """Whether a text names each word, as it stands or with an English ending (-ly, -ness, -ed, -ing, -s). (T, C), bool."""
    forms = [re.compile(rf"\b{re.escape(word.lower())}(?:ly|ness|ed|ing|s)?\b") for word in words]
    lowered = [text.lower() for text in texts]
    return np.array([[form.search(text) is not None for form in forms] for text in lowered]).reshape(-1, len(words))


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
