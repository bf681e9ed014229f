"""Are the same concepts found again by another dictionary? Two labellings of the same texts side by side.

Features of two dictionaries are matched by the cosine of their decoder directions, and concepts by name. Every share has
its chance level: what two labellings that know nothing of each other would agree on.

Shapes: F and G features of the first and second dictionary, C concepts, D residual width, L labelled features of the first.
"""

from typing import Any, NamedTuple

import numpy as np

SAME = 0.7
"""Cosine of decoder directions from which on two features count as one."""


class Labels(NamedTuple):
    """What one dictionary's labels say."""

    directions_FD: np.ndarray
    """decoder directions, of any norm"""
    concept_F: np.ndarray
    """number of the concept that a feature is labelled with, -1 where it is not labelled"""
    confirmed_C: np.ndarray
    """whether the concept's one chosen feature is confirmed"""
    auroc_C: np.ndarray
    """held-out AUROC of that feature; NaN where it was not read"""

    @property
    def labelled(self) -> np.ndarray:
        """Numbers of the labelled features."""
        return np.flatnonzero(self.concept_F >= 0)

    @property
    def concepts(self) -> np.ndarray:
        """Numbers of the concepts that a feature is labelled with."""
        return np.unique(self.concept_F[self.labelled])


def cosines(first_FD: np.ndarray, second_GD: np.ndarray) -> np.ndarray:
    """Cosine of every row of one with every row of the other; 0 for a row of zeros. (F, G), float32."""
    units = [
        one / np.maximum(np.linalg.norm(one, axis=1, keepdims=True), 1e-12).astype(np.float32)
        for one in (first_FD.astype(np.float32), second_GD.astype(np.float32))
    ]
    return np.asarray(units[0] @ units[1].T)


def agreement(first: Labels, second: Labels, seed: int, families_C: np.ndarray | None = None) -> dict[str, Any]:
    """How much of `first` is found again in `second`; both label the same concepts by the same texts.

    `families_C` (numbers, -1: none) adds how often a partner reads another concept of the same family. JSON-able; None
    stands for a share of nothing.
    """
    return {
        "concepts": len(first.confirmed_C),
        "labelled_concepts": _found_again(first.concepts, second.concepts, len(first.confirmed_C)),
        "confirmed_concepts": _found_again(
            np.flatnonzero(first.confirmed_C), np.flatnonzero(second.confirmed_C), len(first.confirmed_C)
        ),
        "concept_auroc": _rank_agreement(first.auroc_C, second.auroc_C),
        "features": _partners(first, second, seed),
        "partners_labels": _partners_labels(first, second, families_C),
    }


def _share(part: Any, whole: Any) -> float | None:
    return None if not whole else round(float(part) / float(whole), 4)


def _found_again(first: np.ndarray, second: np.ndarray, among: int) -> dict[str, Any]:
    """Overlap of two sets of concepts, against two sets of these sizes drawn blindly (Fisher's exact test)."""
    from scipy.stats import hypergeom

    both = len(np.intersect1d(first, second))
    return {
        "first": len(first),
        "second": len(second),
        "both": both,
        "share_found_again": _share(both, len(first)),
        "share_found_again_by_chance": _share(len(second), among),
        "p": float(hypergeom.sf(both - 1, among, len(first), len(second))),
    }


def _rank_agreement(first_C: np.ndarray, second_C: np.ndarray) -> dict[str, Any]:
    """Spearman's correlation of the concepts' AUROC; by chance it is 0."""
    from scipy.stats import spearmanr

    there_C = ~(np.isnan(first_C) | np.isnan(second_C))
    pair = first_C[there_C], second_C[there_C]
    told = there_C.sum() > 2 and all(len(np.unique(one)) > 1 for one in pair)
    found = spearmanr(*pair) if told else None
    return {
        "n": int(there_C.sum()),
        "spearman": None if found is None else round(float(found.statistic), 4),
        "spearman_by_chance": 0.0,
        "p": None if found is None else float(found.pvalue),
        "mean_absolute_difference": round(float(np.abs(pair[0] - pair[1]).mean()), 4) if there_C.any() else None,
    }


def _partners(first: Labels, second: Labels, seed: int) -> dict[str, Any]:
    """Has a labelled feature a partner of nearly the same direction? Beside it all features, and directions by chance.

    By chance: the second dictionary with every direction's entries dealt anew, which keeps each one's norm and tails.
    One to one: the assignment of labelled features to distinct partners with the highest sum of cosines.
    """
    from scipy.optimize import linear_sum_assignment

    labelled, silent = first.labelled, np.flatnonzero(first.concept_F < 0)
    rng = np.random.default_rng(seed)
    dealt_GD = rng.permuted(second.directions_FD, axis=1)
    cosine_LG = cosines(first.directions_FD[labelled], second.directions_FD)
    by_chance_LG = cosines(first.directions_FD[labelled], dealt_GD)
    some = np.sort(rng.choice(silent, min(len(silent), 1024), replace=False))
    other_NG = cosines(first.directions_FD[some], second.directions_FD)
    kinds = {"labelled": cosine_LG, "unlabelled": other_NG, "labelled_by_chance": by_chance_LG}
    found: dict[str, Any] = {"cosine_of_a_partner": SAME}
    for kind, cosine_NG in kinds.items():
        best_N = cosine_NG.max(1) if len(cosine_NG) else np.zeros(0)
        found[kind] = {
            "n": len(best_N),
            "share_with_partner": _share((best_N >= SAME).sum(), len(best_N)),
            "median_best_cosine": round(float(np.median(best_N)), 4) if len(best_N) else None,
        }
    pairs = cosine_LG[linear_sum_assignment(-cosine_LG)]
    found["labelled"]["share_with_partner_one_to_one"] = _share((pairs >= SAME).sum(), len(labelled))
    return found


def _partners_labels(first: Labels, second: Labels, families_C: np.ndarray | None) -> dict[str, Any]:
    """What the nearest partners of labelled features are labelled with; by chance: a labelled feature drawn blindly."""
    labelled = first.labelled
    cosine_LG = cosines(first.directions_FD[labelled], second.directions_FD)
    near_L = cosine_LG.max(1) >= SAME if len(labelled) else np.zeros(0, bool)
    own = first.concept_F[labelled][near_L]
    theirs = second.concept_F[cosine_LG[near_L].argmax(1)] if near_L.any() else np.zeros(0, int)
    concepts, count = np.unique(second.concept_F[second.labelled], return_counts=True)
    share_C = np.zeros(len(first.confirmed_C))
    share_C[concepts] = count / max(1, count.sum())
    found = {
        "n": len(own),
        "share_labelled": _share((theirs >= 0).sum(), len(own)),
        "share_labelled_by_chance": _share(len(second.labelled), len(second.concept_F)),
        "share_of_labelled_with_the_same_concept": _share((theirs == own).sum(), (theirs >= 0).sum()),
        "share_of_labelled_with_the_same_concept_by_chance": _share(share_C[own].sum(), len(own)),
    }
    if families_C is None:
        return found
    kin_LC = (families_C[own][:, None] == families_C) & (families_C[own][:, None] >= 0)
    kin_LC[np.arange(len(own)), own] = True
    kept = np.flatnonzero(theirs >= 0)
    return found | {
        "share_of_labelled_in_the_same_family": _share(kin_LC[kept, theirs[kept]].sum(), len(kept)),
        "share_of_labelled_in_the_same_family_by_chance": _share((kin_LC @ share_C).sum(), len(own)),
    }
