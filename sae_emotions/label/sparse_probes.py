"""Read-outs of a few features a concept, all concepts at once.

Shapes: N texts of the training panels, C concepts, F features, K picks, m candidates.
"""

from typing import NamedTuple

import numpy as np


class Picked(NamedTuple):
    """Some features a concept, and their weights on activations."""

    feature_CK: np.ndarray
    weight_CK: np.ndarray

    def scores(self, acts_TF: np.ndarray) -> np.ndarray:
        """Score of every text for every concept. (T, C)"""
        found = [acts_TF[:, f_K] @ w_K for f_K, w_K in zip(self.feature_CK, self.weight_CK, strict=True)]
        return np.stack(found, axis=1)


def stepwise(x_NF: np.ndarray, target_NC: np.ndarray, picks: int, ridge: float) -> Picked:
    """Forward stepwise regression of every concept's target, then a ridge regression on what was picked.

    That feature comes next which explains most of what is left once all weights are fitted anew (orthogonal least squares:
    Chen, Billings and Luo 1989). Its squared length beyond the picked ones' span is enlarged by `ridge` texts' worth of the
    mean squared length, so that a feature that fires in one text alone does not win by fitting that text.
    """
    texts, concepts = target_NC.shape
    length_F = (x_NF**2).sum(0)
    picks = min(picks, int((length_F > 0).sum()))
    extra = np.float32(ridge / texts * length_F[length_F > 0].mean())
    rest_NC = np.array(target_NC, np.float32)
    basis_CKN = np.zeros((concepts, picks, texts), np.float32)
    along_CF = np.zeros((concepts, len(length_F)), np.float32)  # squared length within the span of the picks
    feature_CK = np.zeros((concepts, picks), np.int64)
    for k in range(picks):
        left_CF = np.maximum(length_F - along_CF, 0)
        gain_CF = (rest_NC.T @ x_NF) ** 2 / np.maximum(left_CF + extra, 1e-12)
        gain_CF[left_CF <= 1e-4 * length_F] = -1
        np.put_along_axis(gain_CF, feature_CK[:, :k], -1, axis=1)
        feature_CK[:, k] = gain_CF.argmax(1)
        new_CN = x_NF[:, feature_CK[:, k]].T
        if k:
            done_CKN = basis_CKN[:, :k]
            new_CN = new_CN - np.einsum("ckn,ck->cn", done_CKN, np.einsum("ckn,cn->ck", done_CKN, new_CN))
        new_CN = new_CN / np.maximum(np.linalg.norm(new_CN, axis=1, keepdims=True), 1e-12)
        basis_CKN[:, k] = new_CN
        rest_NC -= (new_CN * (new_CN * rest_NC.T).sum(1, keepdims=True)).T
        along_CF += (new_CN @ x_NF) ** 2
    return Picked(feature_CK, ridge_weights(x_NF, target_NC, feature_CK, float(extra)))


def ridge_weights(x_NF: np.ndarray, target_NC: np.ndarray, feature_CK: np.ndarray, extra: float) -> np.ndarray:
    """Weights of a ridge regression of each concept's target on its picks. (C, K)"""
    picked_CNK = x_NF[:, feature_CK].transpose(1, 0, 2)
    gram_CKK = np.matmul(picked_CNK.transpose(0, 2, 1), picked_CNK) + extra * np.eye(
        feature_CK.shape[1], dtype=np.float32
    )
    moment_CK = np.einsum("cnk,nc->ck", picked_CNK, target_NC)
    return np.linalg.solve(gram_CKK, moment_CK[..., None])[..., 0]


def l1_logistic(x_NF: np.ndarray, y_NC: np.ndarray, picks: int, candidates: int = 64) -> Picked:
    """The features that an L1 logistic regression takes up first as its penalty falls, refitted without the L1 penalty.

    Per concept, on the `candidates` features that correlate best with it, in units of their standard deviation. The penalty
    is halved from where nothing is picked until at least `picks` weights are not zero; the largest of these are kept.
    """
    from sklearn.linear_model import LogisticRegression

    scale_F = np.maximum(x_NF.std(0), 1e-6)
    correlation_CF = np.abs((y_NC - y_NC.mean(0)).T @ (x_NF / scale_F))
    features, weights = [], []
    for correlation_F, y_N in zip(correlation_CF, y_NC.T, strict=True):
        some = np.argpartition(-correlation_F, min(candidates, len(correlation_F)) - 1)[:candidates]
        x_Nm = np.asarray(x_NF[:, some] / scale_F[some], np.float64)
        C = 1 / max(float(correlation_F[some].max()), 1e-6)
        path = LogisticRegression(solver="liblinear", l1_ratio=1.0, C=C, intercept_scaling=10.0, tol=1e-3, max_iter=300)
        weight_m = path.fit(x_Nm, y_N).coef_[0]
        while (weight_m != 0).sum() < min(picks, len(some)) and path.C < 1e4 * C:
            weight_m = path.set_params(C=2 * path.C).fit(x_Nm, y_N).coef_[0]
        top = np.argsort(-np.abs(weight_m), kind="stable")[:picks]
        refit = LogisticRegression(C=1.0, max_iter=300).fit(x_Nm[:, top], y_N)
        features.append(some[top])
        weights.append(refit.coef_[0] / scale_F[some[top]])
    return Picked(np.stack(features), np.stack(weights).astype(np.float32))
