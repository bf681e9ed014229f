"""How vectors are arranged: clusters against given ones, principal components, and likeness of two arrangements.

Every figure has its null beside it, made by permuting the concepts. Shapes: C concepts, D width, P permutations,
K components.
"""

from typing import Any, NamedTuple

import numpy as np

from sae_emotions.vectors.recipe import unit

PERMUTATIONS = 1000
COMPONENTS = 5
"""Leading components that are looked at."""


class Components(NamedTuple):
    """Leading principal components of the vectors."""

    explained_K: np.ndarray
    """share of the variance that each carries"""
    scores_CK: np.ndarray
    """each concept's score"""


def p_value(found: float, null_P: np.ndarray) -> float:
    """Share of the null that is at least as large, the observed value counted in."""
    return float((1 + (null_P >= found - 1e-12).sum()) / (1 + len(null_P)))


def clusters(x_CD: np.ndarray, cluster_C: np.ndarray, seed: int) -> dict[str, Any]:
    """Adjusted Rand index of k-means on the unit vectors against `cluster_C` (numbers), k as many as there are there.

    Its null: the clusters permuted among the concepts.
    """
    from sklearn.cluster import KMeans

    k = len(np.unique(cluster_C))
    found_C = KMeans(k, n_init=20, random_state=seed).fit_predict(unit(x_CD))
    null_P = adjusted_rand(permutations(cluster_C, np.random.default_rng([seed, 20])), found_C)
    score = float(adjusted_rand(cluster_C[None], found_C)[0])
    return {
        "n": len(cluster_C),
        "k": k,
        "adjusted_rand_index": score,
        "permuted_mean": float(null_P.mean()),
        "permuted_95th_percentile": float(np.quantile(null_P, 0.95)),
        "p": p_value(score, null_P),
    }


def adjusted_rand(cluster_PC: np.ndarray, found_C: np.ndarray) -> np.ndarray:
    """Adjusted Rand index (Hubert and Arabie 1985) of many partitions with one, as scikit-learn's for each. (P,)"""
    _, one_C = np.unique(found_C, return_inverse=True)
    one_hot_Cf = np.eye(one_C.max() + 1)[one_C.reshape(-1)]
    table_Pcf = np.stack([(cluster_PC == value) @ one_hot_Cf for value in np.unique(cluster_PC)], axis=1)

    def pairs(counts: np.ndarray) -> np.ndarray:
        return counts * (counts - 1) / 2

    both_P = pairs(table_Pcf).sum((1, 2))
    given_P, ours_P = pairs(table_Pcf.sum(2)).sum(1), pairs(table_Pcf.sum(1)).sum(1)
    expected_P = given_P * ours_P / pairs(np.array(len(found_C)))
    return np.asarray((both_P - expected_P) / ((given_P + ours_P) / 2 - expected_P))


def components(x_CD: np.ndarray) -> Components:
    """Leading principal components over the concepts, by the singular values of the centred vectors."""
    u_CK, s_K, _ = np.linalg.svd(x_CD - x_CD.mean(0), full_matrices=False)
    variance_K = s_K**2
    return Components((variance_K / variance_K.sum())[:COMPONENTS], (u_CK * s_K)[:, :COMPONENTS])


def correlations(x_CK: np.ndarray, y_CP: np.ndarray) -> np.ndarray:
    """Pearson correlation of every column of `x_CK` with every one of `y_CP`. (K, P); 0 where one does not vary."""

    def standard(z_CX: np.ndarray) -> np.ndarray:
        centred_CX = z_CX - z_CX.mean(0)
        return np.asarray(centred_CX / np.maximum(np.linalg.norm(centred_CX, axis=0), 1e-12))

    return np.asarray(standard(x_CK).T @ standard(y_CP))


def against(scores_CK: np.ndarray, rating_C: np.ndarray, seed: int) -> dict[str, Any]:
    """Correlation of each component with ratings of the same concepts; a component's sign means nothing.

    p of each component is two-sided; that of the best one is of the largest among as many, by the same permutations.
    """
    rng = np.random.default_rng([seed, 21])
    r_K = correlations(scores_CK, rating_C[:, None])[:, 0]
    null_PK = np.abs(correlations(scores_CK, permutations(rating_C, rng).T)).T
    best = int(np.abs(r_K).argmax())
    return {
        "components": [
            {"component": k + 1, "r": float(r), "p": p_value(abs(float(r)), null_PK[:, k])} for k, r in enumerate(r_K)
        ],
        "best_component": best + 1,
        "best_abs_r": float(abs(r_K[best])),
        "best_abs_r_permuted_mean": float(null_PK.max(1).mean()),
        "best_p": p_value(float(abs(r_K[best])), null_PK.max(1)),
    }


def permutations(rating_C: np.ndarray, rng: np.random.Generator, count: int = PERMUTATIONS) -> np.ndarray:
    """Ratings permuted among the concepts, (P, C)."""
    return rng.permuted(np.tile(rating_C, (count, 1)), axis=1)


def explained_by_groups(scores_CK: np.ndarray, group_C: np.ndarray, seed: int) -> list[dict[str, float]]:
    """Share of each component's variance that lies between groups of concepts (eta squared), with its permuted mean."""
    rng = np.random.default_rng([seed, 22])
    one_hot_CG = np.eye(group_C.max() + 1)[group_C]
    share_CG = one_hot_CG / np.maximum(one_hot_CG.sum(0), 1)

    def between(z_CX: np.ndarray) -> np.ndarray:
        centred_CX = z_CX - z_CX.mean(0)
        means_GX = share_CG.T @ centred_CX
        total_X = np.maximum((centred_CX**2).sum(0), 1e-24)
        return np.asarray((one_hot_CG.sum(0) @ means_GX**2) / total_X)

    found = []
    for k, share in enumerate(between(scores_CK)):
        null_P = between(permutations(scores_CK[:, k], rng).T)
        found.append(
            {
                "component": k + 1,
                "share": float(share),
                "permuted_mean": float(null_P.mean()),
                "p": p_value(float(share), null_P),
            }
        )
    return found


def likeness(one_CD: np.ndarray, other_CD: np.ndarray, seed: int) -> dict[str, float]:
    """Correlation of two arrangements' pairwise cosines, with a permutation test of the concepts (Mantel 1967)."""
    upper = np.triu_indices(len(one_CD), 1)
    a_CC, b_CC = (unit(x) @ unit(x).T for x in (one_CD, other_CD))
    rng = np.random.default_rng([seed, 23])
    null = []
    for _ in range(PERMUTATIONS // 5):
        order = rng.permutation(len(a_CC))
        null.append(correlations(a_CC[np.ix_(order, order)][upper][:, None], b_CC[upper][:, None])[0, 0])
    r = float(correlations(a_CC[upper][:, None], b_CC[upper][:, None])[0, 0])
    return {"r": r, "p": p_value(r, np.array(null))}
