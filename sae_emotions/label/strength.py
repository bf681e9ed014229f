"""How strongly each feature reads each concept, with strength borrowed from neighbouring concepts: an empirical Bayes model.

Shapes: C concepts, F features, D residual width, 2: first and second register.
A feature that reads "terrified" is likely to read "scared". With few stories a concept that is worth knowing. Model, with
y_rfc the AUROC less .5 of feature f for concept c in register r, averaged over that register's topics:

    y_rfc = m_fc + d_rfc + e_rfc
    m_f. ~ N(0, t_f K)        what the feature reads, alike in neighbouring concepts
    d_rf. ~ N(0, w t_f K)     what it reads in one register alone
    e_rfc ~ N(0, v_rf)        which story happened to be written; v from the ranks' own variance

K = o I + (1 - o) S, where S holds the cosines of the concepts' difference-of-means vectors on the same texts. t_f is estimated
feature by feature from the product of its two registers, in which e has no part; o and w are settings, chosen by
cross-validation over selection topics. Where there is one register alone, t_f is what its squares leave beyond e. All concepts
have the same v, so that in the eigenvectors of K the posterior mean of m + (d_1 + d_2) / 2 is a weight for each register and
eigenvalue.
"""

from typing import NamedTuple

import numpy as np

_CHUNK = 2048
_LEAST = 1e-5
"""Floor of t_f: a feature without any agreement between registers keeps an order among its concepts."""


class Neighbours(NamedTuple):
    """Eigenvalues and eigenvectors of K."""

    eigen_C: np.ndarray
    basis_CC: np.ndarray


def neighbours(dense_CD: np.ndarray, own: float) -> Neighbours:
    """K of some concepts' vectors; with `own` = 1 no concept has neighbours."""
    unit_CD = dense_CD / np.maximum(np.linalg.norm(dense_CD, axis=1, keepdims=True), 1e-12)
    eigen_C, basis_CC = np.linalg.eigh(own * np.eye(len(dense_CD)) + (1 - own) * unit_CD @ unit_CD.T)
    return Neighbours(np.maximum(eigen_C, 0.0), basis_CC)


def strength(
    first_CF: np.ndarray, second_CF: np.ndarray | None, noise_2F: np.ndarray, near: Neighbours, apart: float
) -> np.ndarray:
    """Posterior mean of the AUROC less .5, mean of both registers. (C, F), float32.

    `first_CF`, `second_CF`: AUROC (None: there is one register alone); `noise_2F`: variance of one concept's AUROC if the
    feature read nothing; `apart`: w.
    """
    out_CF = np.empty_like(first_CF, np.float32)
    basis_CC, eigen_C1 = near.basis_CC.astype(np.float32), near.eigen_C[:, None].astype(np.float32)
    if second_CF is None:
        away_CF, noise_F = (first_CF - 0.5).astype(np.float32), (noise_2F[0] + 1e-9).astype(np.float32)
        shared_CF = eigen_C1 * np.maximum(((away_CF**2).mean(0) - noise_F) / np.float32(1 + apart), np.float32(_LEAST))
        weight_CF = shared_CF * np.float32(1 + apart / 2) / (shared_CF * np.float32(1 + apart) + noise_F)
        return np.asarray(basis_CC @ (weight_CF * (basis_CC.T @ away_CF)), np.float32)
    for start in range(0, out_CF.shape[1], _CHUNK):
        some = slice(start, start + _CHUNK)
        first, second = first_CF[:, some] - np.float32(0.5), second_CF[:, some] - np.float32(0.5)
        shared_CF = eigen_C1 * np.maximum((first * second).mean(0), np.float32(_LEAST))
        own_CF = shared_CF * np.float32(1 + apart)
        noise = (noise_2F[:, some] + 1e-9).astype(np.float32)
        a_CF, b_CF = own_CF + noise[0], own_CF + noise[1]
        wanted_CF = shared_CF * np.float32(1 + apart / 2) / (a_CF * b_CF - shared_CF**2)
        mixed_CF = (b_CF - shared_CF) * (basis_CC.T @ first) + (a_CF - shared_CF) * (basis_CC.T @ second)
        out_CF[:, some] = basis_CC @ (wanted_CF * mixed_CF)
    return out_CF
