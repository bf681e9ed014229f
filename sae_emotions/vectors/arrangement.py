"""One arrangement of vectors beside all that the concepts are known to be like: clusters, ratings, and nuisances.

Shapes: C concepts, L some of them, D width.
"""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from sae_emotions.concepts.concept_set import ConceptSet, ConceptText
from sae_emotions.concepts.norms import Norms
from sae_emotions.errors import UserError
from sae_emotions.vectors.geometry import against, clusters, components, explained_by_groups
from sae_emotions.vectors.readout import readouts

FEWEST = 20
"""Concepts that must be rated, or lie in clusters, for a figure to be given."""
_FEW = f"fewer than {FEWEST} concepts are rated"


class Known(NamedTuple):
    """What is known of the concepts, none of it from the model."""

    cluster_C: np.ndarray
    """number of each concept's cluster; -1 for none"""
    ratings: dict[str, dict[str, np.ndarray]]
    """norms, then valence or arousal: rating (C), NaN where a concept has none"""
    length_C: np.ndarray
    """mean length of its stories, characters"""
    topics_C: np.ndarray
    """which concepts were written on the same topics"""

    def of(self, some_L: np.ndarray) -> "Known":
        """The same of some concepts alone."""
        ratings = {n: {d: rating_C[some_L] for d, rating_C in one.items()} for n, one in self.ratings.items()}
        return Known(self.cluster_C[some_L], ratings, self.length_C[some_L], self.topics_C[some_L])


def known(
    concepts: ConceptSet, texts: Sequence[ConceptText], norms: Sequence[Norms], named: dict[str, list[str]] | None
) -> Known:
    """Gather what is known; clusters are `named` or else the concepts' families."""
    length: dict[str, list[int]] = {one.name: [] for one in concepts.concepts}
    topics: dict[str, set[str]] = {one.name: set() for one in concepts.concepts}
    for text in texts:
        length[text.concept].append(len(text.text))
        topics[text.concept].add(text.topic)
    of = (
        {one: name for name, members in named.items() for one in members}
        if named is not None
        else {one.name: one.family for one in concepts.concepts if one.family}
    )
    return Known(
        _numbered([of.get(name) for name in length]),
        {
            one.name: {d: np.array([np.nan if v is None else v for v in one.of(concepts, d)]) for d in one.ratings}
            for one in norms
        },
        np.array([np.mean(some) for some in length.values()]),
        _numbered([", ".join(sorted(some)) for some in topics.values()]),
    )


def _numbered(names: Sequence[str | None]) -> np.ndarray:
    number = {name: n for n, name in enumerate(sorted({name for name in names if name is not None}))}
    return np.array([-1 if name is None else number[name] for name in names])


def read_clusters(path: Path, concepts: ConceptSet) -> dict[str, list[str]]:
    """Clusters from JSON, {name: [concept, ...]}; concepts that stand in none are left out of the comparison.

    Raises `UserError` for a file of another shape, an unknown concept, or one that stands in two clusters.
    """
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except (FileNotFoundError, IsADirectoryError):
        raise UserError(f"There is no file of clusters {path}; give a JSON of {{name: [concept, ...]}}.") from None
    except (json.JSONDecodeError, UnicodeDecodeError):
        raise UserError(f"{path} is no valid JSON; give {{name: [concept, ...]}}.") from None
    shaped = isinstance(found, dict) and all(isinstance(members, list) for members in found.values())
    if not shaped or not all(isinstance(member, str) for members in found.values() for member in members):
        raise UserError(f"{path} is not of the shape {{name: [concept, ...]}}; correct it.")
    names, seen = {one.name for one in concepts.concepts}, set()
    for member in (one for members in found.values() for one in members):
        if member not in names or member in seen:
            what = "names twice" if member in seen else "names the unknown concept"
            raise UserError(f"{path} {what} '{member}'; correct it.")
        seen.add(member)
    return {str(name): members for name, members in found.items()}


def described(x_CD: np.ndarray, what: Known, seed: int) -> dict[str, Any]:
    """Clusters, explained variance, and what the leading components go with; each beside its permuted null."""
    found: dict[str, Any] = {"n": len(x_CD)}
    if len(x_CD) < FEWEST:
        return found | {"left_out": f"fewer than {FEWEST} concepts"}
    there_C = what.cluster_C >= 0
    if there_C.sum() >= FEWEST and len(np.unique(what.cluster_C[there_C])) > 1:
        found["clusters"] = clusters(x_CD[there_C], what.cluster_C[there_C], seed)
    leading = components(x_CD)
    found["explained_variance"] = leading.explained_K.tolist()
    found["components_against_ratings"] = {
        name: {dimension: _against(leading.scores_CK, rating_C, seed) for dimension, rating_C in rated.items()}
        for name, rated in what.ratings.items()
    }
    found["components_against_story_length"] = against(leading.scores_CK, what.length_C, seed)
    if 1 < len(np.unique(what.topics_C)) < len(x_CD):
        _, group_C = np.unique(what.topics_C, return_inverse=True)
        found["components_explained_by_shared_topics"] = explained_by_groups(leading.scores_CK, group_C, seed)
    return found


def _against(scores_CK: np.ndarray, rating_C: np.ndarray, seed: int) -> dict[str, Any]:
    rated_C = ~np.isnan(rating_C)
    n = {"n": int(rated_C.sum())}
    if n["n"] < FEWEST:
        return n | {"left_out": _FEW}
    return n | against(scores_CK[rated_C], rating_C[rated_C], seed)


def read_out(
    places: dict[str, np.ndarray], groups: Mapping[str, Sequence[str]], what: Known, seed: int
) -> dict[str, dict[str, Any]]:
    """Ridge read-outs of every rating from each place's vectors: norms -> dimension -> figures."""
    found: dict[str, dict[str, Any]] = {}
    for name, rated in what.ratings.items():
        for dimension, rating_C in rated.items():
            n = int((~np.isnan(rating_C)).sum())
            if n < FEWEST:
                figures: dict[str, Any] = {"n": n, "left_out": _FEW}
            else:
                others = {
                    other: one[dimension]
                    for other, one in what.ratings.items()
                    if other != name
                    and dimension in one
                    and (~np.isnan(one[dimension]) & ~np.isnan(rating_C)).sum() >= FEWEST
                }
                figures = readouts(places, groups, rating_C, others, seed)
            found.setdefault(name, {})[dimension] = figures
    return found
