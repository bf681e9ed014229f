"""The smallest thing that explains a labelled feature: one concept, a family of them, or one end of a norm.

A nested test on the held-out texts, from the small to the wide, what the norms predict taken out of the ranks beforehand. The
label is the concept where its texts stand above all others and above those of its own family on the same topics; it is a family
where that as a whole passed and the concept cannot be told from its siblings, or too few such texts are there to tell; and it is
only the norm (say, low valence) where that passed and the family's texts do not stand above what the norm predicts. A feature
that passed for its concept alone keeps it, told from the others though not from its siblings (`told_P`).

A step claims two things at once, so its p is the larger of both; it is asked of every feature that was screened for it on the
selection texts, whatever the held-out texts said of the first, and put through Benjamini-Hochberg over these. Both registers
count together in the second: either may hold few siblings on a topic.
Shapes: F features, C concepts, T texts, P labelled features, N features asked.
"""

from typing import NamedTuple

import numpy as np

from sae_emotions.concepts.shape import Norm
from sae_emotions.label.confounds import residual_ranks
from sae_emotions.label.families import Families
from sae_emotions.label.labelling import Readings
from sae_emotions.label.layout import ABSENT, Layout, Panel, panel
from sae_emotions.label.linear import one_each, ranked, statistic, sums, upper_p
from sae_emotions.label.ranks import doubled_midranks
from sae_emotions.label.rule import Evidence, Outcome, norm_ends
from sae_emotions.label.uncertainty import false_discovery

CONCEPT, FAMILY, NORM = "concept", "family", "norm"


class Grain(NamedTuple):
    """What each labelled feature's label says."""

    feature_P: np.ndarray
    kind_P: tuple[str, ...]
    scope_P: tuple[str, ...]
    """the concept, the family's name, or the norm's end"""
    weights_PC: np.ndarray
    """the label as a weighting of the concepts"""
    p_within_P: np.ndarray
    """its concept against the rest of the family; NaN where not asked"""
    p_beyond_P: np.ndarray
    """its family against what the norms predict; NaN where not asked"""
    told_P: np.ndarray
    """bool; False where the label is a concept that was not told from its siblings"""


def grain(
    read: Readings, found: Layout, families: Families, norms: tuple[Norm, ...], outcome: Outcome, rate: float
) -> Grain:
    """The grain of every labelled feature."""
    concept, family, norm = outcome.concept, outcome.family, outcome.norm
    passes_F = [np.nan_to_num(one.q_F, nan=1.0) <= rate for one in (concept, family, norm)]
    alone_F = np.bincount(families.of_C)[families.of_C[concept.which_F]] == 1
    p_within_F, p_beyond_F = (np.full(len(outcome.labelled_F), np.nan) for _ in range(2))
    asked = np.flatnonzero(concept.screened_F & ~alone_F)
    p_within_F[asked] = _within(
        _less_norms(read.ranks_TF, found, norms, asked), found, families, concept.which_F[asked]
    )
    is_word_F = _both(concept, np.where(alone_F, 0.0, p_within_F), rate)
    asked = np.flatnonzero(family.screened_F & norm.screened_F)
    p_beyond_F[asked] = _beyond(
        _less_norms(read.ranks_TF, found, norms, asked), found, families, norms, family.which_F[asked]
    )
    is_beyond_F = _both(family, p_beyond_F, rate)
    is_norm_F = ~is_word_F & passes_F[2] & ~(passes_F[1] & is_beyond_F)
    is_family_F = ~is_word_F & ~is_norm_F & passes_F[1]
    ends, ends_LC = norm_ends(norms)
    inside_GC, concepts = families.inside_GC(), np.eye(len(found.concepts))
    feature_P = np.flatnonzero(outcome.labelled_F)
    kinds, scopes, weights = [], [], []
    for feature in feature_P:
        if is_family_F[feature]:
            group = family.which_F[feature]
            kind, scope, weight = FAMILY, families.names[group], inside_GC[group]
        elif is_norm_F[feature]:
            end = norm.which_F[feature]
            kind, scope, weight = NORM, ends[end], ends_LC[end]
        else:
            own = concept.which_F[feature]
            kind, scope, weight = CONCEPT, found.concepts[own], concepts[own]
        kinds.append(kind)
        scopes.append(scope)
        weights.append(weight)
    weights_PC = np.array(weights).reshape(len(feature_P), len(found.concepts))
    told_P = (is_word_F | is_family_F | is_norm_F)[feature_P]
    return Grain(
        feature_P, tuple(kinds), tuple(scopes), weights_PC, p_within_F[feature_P], p_beyond_F[feature_P], told_P
    )


def _both(first: Evidence, second_F: np.ndarray, rate: float) -> np.ndarray:
    """Which features pass the first claim and a second, among those that were screened for both. Bool, F."""
    asked = np.flatnonzero(first.screened_F & ~np.isnan(second_F))
    passes_F = np.zeros(len(second_F), bool)
    passes_F[asked] = false_discovery(np.maximum(first.p_F2[asked].max(1), second_F[asked])) <= rate
    return passes_F


def _less_norms(ranks_TF: np.ndarray, found: Layout, norms: tuple[Norm, ...], feature_N: np.ndarray) -> np.ndarray:
    """Features' ranks among the held-out texts, what the texts' norms predict taken out. (T, N)"""
    if not norms:
        return ranks_TF[:, feature_N]
    values_TX = np.array([norm.values for norm in norms]).T[_concept_of(found)]
    return residual_ranks(ranks_TF, found.held_out, feature_N, values_TX[:, None])


def _within(left_TN: np.ndarray, found: Layout, families: Families, concept_N: np.ndarray) -> np.ndarray:
    """p of each feature's concept among the held-out texts of its own family. (N,)"""
    p_N = np.ones(len(concept_N))
    for family in np.unique(families.of_C[concept_N]):
        here = np.flatnonzero(families.of_C[concept_N] == family)
        panels = [one for whole in found.held_out if (one := _only(whole, families.of_C == family)) is not None]
        if not panels:
            continue
        own_TF = doubled_midranks(left_TN[:, here], panels)
        identity = np.eye(len(found.concepts))
        parts = [statistic(sums(own_TF, one), identity, ranked(own_TF, one)) for one in panels]
        together = parts[0] if len(parts) == 1 else parts[0] + parts[1]
        p_N[here] = upper_p(one_each(together, concept_N[here]))
    return p_N


def _only(whole: Panel, inside_C: np.ndarray) -> Panel | None:
    """The strata that hold at least two of some concepts, with these alone."""
    columns = {}
    for s in range(len(whole.size_S)):
        column = np.where(inside_C, whole.rows_CS[:, s], ABSENT)
        if (column != ABSENT).sum() > 1:
            columns[whole.cells_S[s], whole.topics_S[s]] = column
    return panel(whole.register, whole.split, columns) if columns else None


def _beyond(
    left_TN: np.ndarray, found: Layout, families: Families, norms: tuple[Norm, ...], family_N: np.ndarray
) -> np.ndarray:
    """p of each feature's family on the held-out texts once the norms are taken out of ranks and family. (N,)"""
    if not len(family_N):
        return np.ones(0)
    values_CX, inside_GC = np.array([norm.values for norm in norms]).T, families.inside_GC()
    basis_CX = np.linalg.qr(np.column_stack([np.ones(len(values_CX)), values_CX]))[0]
    left_GC = inside_GC - (inside_GC @ basis_CX) @ basis_CX.T
    parts = [statistic(sums(left_TN, whole), left_GC, ranked(left_TN, whole)) for whole in found.held_out]
    return upper_p(one_each(parts[0] + parts[1], family_N))


def _concept_of(found: Layout) -> np.ndarray:
    """Number of the concept that each text shows. (T,)"""
    concept_T = np.zeros(len(found.text_ids), np.int64)
    for whole in found.panels:
        concept, s = np.nonzero(whole.rows_CS != ABSENT)
        concept_T[whole.rows_CS[concept, s]] = concept
    return concept_T
