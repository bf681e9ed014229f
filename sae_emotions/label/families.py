"""Families of concepts: those that the concept set gives, and those that its texts show. C concepts, G families."""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from sae_emotions.concepts.shape import Concept


class Families(NamedTuple):
    """A partition of the concepts; a concept of no family stands alone."""

    names: tuple[str, ...]
    of_C: np.ndarray
    """number of each concept's family"""

    def inside_GC(self) -> np.ndarray:
        """1 where a concept belongs to a family, else 0. (G, C), float64."""
        return (self.of_C == np.arange(len(self.names))[:, None]).astype(np.float64)


def given_families(concepts: Sequence[Concept]) -> Families:
    """The concept set's own families."""
    keys = [(one.family is None, one.name if one.family is None else one.family) for one in concepts]
    number = {key: g for g, key in enumerate(dict.fromkeys(keys))}
    return Families(tuple(name for _, name in number), np.array([number[key] for key in keys]))


def found_families(concepts: Sequence[str], vectors_CD: np.ndarray, count: int) -> Families:
    """Hierarchical clustering of concept vectors: average linkage of cosines, cut into `count` families.

    A family is named by the three members nearest to its mean direction.
    """
    from scipy.cluster.hierarchy import fcluster, linkage

    unit_CD = vectors_CD / np.maximum(np.linalg.norm(vectors_CD, axis=1, keepdims=True), 1e-12)
    tree = linkage(np.clip(1 - (unit_CD @ unit_CD.T)[np.triu_indices(len(unit_CD), 1)], 0, 2), "average")
    of_C = fcluster(tree, min(count, len(concepts)), "maxclust") - 1
    names = []
    for family in range(of_C.max() + 1):
        members = np.flatnonzero(of_C == family)
        nearest = members[np.argsort(-(unit_CD[members] @ unit_CD[members].mean(0)), kind="stable")]
        names.append(", ".join(concepts[c] for c in nearest[:3]) + (" …" if len(nearest) > 3 else ""))
    return Families(tuple(names), of_C)
