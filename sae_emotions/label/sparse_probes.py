"""Read-outs of a few features a concept, all concepts at once.

A concept has a dozen texts among thousands, and a regression on these labels alone picks features that fit those texts
and do not carry over to another register. So each text's target says more than whether it shows the concept: also how close
its own concept is to it, and how a read-out of all features scores it (`targets`). Chosen by cross-validation (three folds)
over the topics of the built-in selection set, sixteen features on square roots of SmolLM2-135M's story means at block 22,
AUROC on the other folds' topics, trained > read:

                            both > plain  both > literary  plain > literary  literary > plain
    labels alone                    .988             .847              .760              .846
    all features' score alone       .984             .903              .871              .909
    as it stands                    .990             .917              .872              .922
    dense vector                    .986             .917              .893              .930
    all features                    .998             .941              .915              .950

Shapes: N texts of the training panels, C concepts, F features, K picks, m candidates.
"""

from typing import NamedTuple

import numpy as np

from sae_emotions.label.probes import Sample, centred, own_label

OWN, NEAR = 0.4, 0.3
"""shares of the label and of its concept's closeness in a text's target; the rest is all features' score"""
RIDGE = 100.0
CANDIDATES = 1024


class Picked(NamedTuple):
    """Some features a concept, and their weights on activations."""

    feature_CK: np.ndarray
    weight_CK: np.ndarray

    def scores(self, acts_TF: np.ndarray) -> np.ndarray:
        """Score of every text for every concept. (T, C)"""
        found = [acts_TF[:, f_K] @ w_K for f_K, w_K in zip(self.feature_CK, self.weight_CK, strict=True)]
        return np.stack(found, axis=1)


def candidates(x_NF: np.ndarray, y_NC: np.ndarray, count: int = CANDIDATES) -> np.ndarray:
    """The `count` features that vary most between concepts, as a share of how they vary at all; in rising order.

    A twentieth of the mean feature's variation is added to each one's: a feature of two texts does not come first.
    """
    all_F = (x_NF**2).sum(0)
    between_F = ((y_NC.T @ x_NF) ** 2 / np.maximum(y_NC.sum(0), 1)[:, None]).sum(0)
    share_F = between_F / np.maximum(all_F + 0.05 * all_F.mean(), 1e-12)
    return np.sort(np.argsort(-share_F, kind="stable")[:count])


def targets(x_NF: np.ndarray, rows: Sample, concepts: int) -> np.ndarray:
    """What a few features are to reproduce: label, closeness of the text's concept, score by the difference of means. (N, C)

    Each part is centred within topic and has length one before they are mixed. Closeness of two concepts is the cosine of
    their differences of means, negative ones counted as none.
    """
    y_NC = own_label(rows, concepts)
    mean_CF = (y_NC.T @ x_NF) / np.maximum(y_NC.sum(0), 1)[:, None]
    unit_CF = mean_CF / np.maximum(np.linalg.norm(mean_CF, axis=1, keepdims=True), 1e-12)
    close_CC = np.maximum(unit_CF @ unit_CF.T, 0)
    np.fill_diagonal(close_CC, 0)
    parts = ((OWN, y_NC), (NEAR, close_CC[rows.concept_N]), (1 - OWN - NEAR, x_NF @ mean_CF.T))
    total_NC = np.zeros_like(y_NC)
    for share, part_NC in parts:
        around_NC = centred(part_NC, rows)
        total_NC += np.float32(share) * around_NC / np.maximum(np.linalg.norm(around_NC, axis=0), 1e-12)
    return total_NC


def few_features(values_NF: np.ndarray, rows: Sample, concepts: int, picks: int) -> Picked:
    """`picks` features a concept by `stepwise` regression of `targets`, among the `candidates`."""
    x_NF = centred(values_NF, rows)
    some = candidates(x_NF, own_label(rows, concepts))
    x_Nm = np.ascontiguousarray(x_NF[:, some])
    found = stepwise(x_Nm, targets(x_Nm, rows, concepts), picks, RIDGE)
    return found._replace(feature_CK=some[found.feature_CK])


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


def l1_logistic(x_NF: np.ndarray, y_NC: np.ndarray, picks: int, count: int = 64) -> Picked:
    """The features that an L1 logistic regression takes up first as its penalty falls, refitted without the L1 penalty.

    Per concept, on the `count` features that correlate best with it, in units of their standard deviation. The penalty
    is halved from where nothing is picked until at least `picks` weights are not zero; the largest of these are kept.
    """
    from sklearn.linear_model import LogisticRegression

    scale_F = np.maximum(x_NF.std(0), 1e-6)
    correlation_CF = np.abs((y_NC - y_NC.mean(0)).T @ (x_NF / scale_F))
    features, weights = [], []
    for correlation_F, y_N in zip(correlation_CF, y_NC.T, strict=True):
        some = np.argpartition(-correlation_F, min(count, len(correlation_F)) - 1)[:count]
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
