"""The smallest thing that explains a labelled feature: one concept, a family of them, or one end of a norm.

A nested test on the held-out texts, from the small to the wide, what the norms predict taken out of the ranks beforehand. The
label is the concept where its texts stand above those of its own family on the same topics; it stays at the family where they do
not, or too few such texts are there to tell; and it is only the norm (say, low valence) where the family's texts do not stand
above the others either. Each step's p is put through Benjamini-Hochberg over the features that come to it. Both registers count
together here: either may hold few siblings on a topic.
Shapes: F features, C concepts, T texts, P labelled features.
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
from sae_emotions.label.rule import Outcome, norm_ends
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


def grain(
    read: Readings, found: Layout, families: Families, norms: tuple[Norm, ...], outcome: Outcome, rate: float
) -> Grain:
    """The grain of every labelled feature."""
    feature_P = np.flatnonzero(outcome.labelled_F)
    left_TP = _less_norms(read.ranks_TF, found, norms, feature_P)
    concept_P = outcome.concept.which_F[feature_P]
    word_P, wide_P, norm_P = (
        np.nan_to_num(one.q_F[feature_P], nan=1.0) <= rate for one in (outcome.concept, outcome.family, outcome.norm)
    )
    family_P = np.where(word_P, families.of_C[concept_P], outcome.family.which_F[feature_P])
    alone_P = np.bincount(families.of_C)[family_P] == 1
    p_within_P, p_beyond_P = (np.full(len(feature_P), np.nan) for _ in range(2))
    asked = np.flatnonzero(word_P & ~alone_P)
    p_within_P[asked] = _within(left_TP[:, asked], found, families, concept_P[asked])
    is_word_P = (word_P & alone_P) | _passes(p_within_P, rate)
    asked = np.flatnonzero(norm_P & (word_P | wide_P) & ~is_word_P)
    p_beyond_P[asked] = _beyond(left_TP[:, asked], found, families, norms, family_P[asked])
    is_norm_P = ~is_word_P & norm_P & ~((word_P | wide_P) & _passes(p_beyond_P, rate))
    ends, ends_LC = norm_ends(norms)
    inside_GC, concepts = families.inside_GC(), np.eye(len(found.concepts))
    kinds, scopes, weights = [], [], []
    for i, feature in enumerate(feature_P):
        if is_word_P[i]:
            kind, scope, weight = CONCEPT, found.concepts[concept_P[i]], concepts[concept_P[i]]
        elif is_norm_P[i]:
            end = outcome.norm.which_F[feature]
            kind, scope, weight = NORM, ends[end], ends_LC[end]
        else:
            kind, scope, weight = FAMILY, families.names[family_P[i]], inside_GC[family_P[i]]
        kinds.append(kind)
        scopes.append(scope)
        weights.append(weight)
    weights_PC = np.array(weights).reshape(len(feature_P), len(found.concepts))
    return Grain(feature_P, tuple(kinds), tuple(scopes), weights_PC, p_within_P, p_beyond_P)


def _passes(p_P: np.ndarray, rate: float) -> np.ndarray:
    passes_P, asked = np.zeros(len(p_P), bool), np.flatnonzero(~np.isnan(p_P))
    passes_P[asked] = false_discovery(p_P[asked]) <= rate
    return passes_P


def _less_norms(ranks_TF: np.ndarray, found: Layout, norms: tuple[Norm, ...], feature_P: np.ndarray) -> np.ndarray:
    """The labelled features' ranks among the held-out texts, what the texts' norms predict taken out. (T, P)"""
    if not norms:
        return ranks_TF[:, feature_P]
    values_TX = np.array([norm.values for norm in norms]).T[_concept_of(found)]
    return residual_ranks(ranks_TF, found.held_out, feature_P, values_TX[:, None])


def _within(left_TP: np.ndarray, found: Layout, families: Families, concept_P: np.ndarray) -> np.ndarray:
    """p of each feature's concept among the held-out texts of its own family. (P,)"""
    p_P = np.ones(len(concept_P))
    for family in np.unique(families.of_C[concept_P]):
        here = np.flatnonzero(families.of_C[concept_P] == family)
        panels = [one for whole in found.held_out if (one := _only(whole, families.of_C == family)) is not None]
        if not panels:
            continue
        own_TF = doubled_midranks(left_TP[:, here], panels)
        identity = np.eye(len(found.concepts))
        parts = [statistic(sums(own_TF, one), identity, ranked(own_TF, one)) for one in panels]
        together = parts[0] if len(parts) == 1 else parts[0] + parts[1]
        p_P[here] = upper_p(one_each(together, concept_P[here]))
    return p_P


def _only(whole: Panel, inside_C: np.ndarray) -> Panel | None:
    """The strata that hold at least two of some concepts, with these alone."""
    columns = {}
    for s in range(len(whole.size_S)):
        column = np.where(inside_C, whole.rows_CS[:, s], ABSENT)
        if (column != ABSENT).sum() > 1:
            columns[whole.cells_S[s], whole.topics_S[s]] = column
    return panel(whole.register, whole.split, columns) if columns else None


def _beyond(
    left_TP: np.ndarray, found: Layout, families: Families, norms: tuple[Norm, ...], family_P: np.ndarray
) -> np.ndarray:
    """p of each feature's family on the held-out texts once the norms are taken out of ranks and family. (P,)"""
    if not len(family_P):
        return np.ones(0)
    values_CX, inside_GC = np.array([norm.values for norm in norms]).T, families.inside_GC()
    basis_CX = np.linalg.qr(np.column_stack([np.ones(len(values_CX)), values_CX]))[0]
    left_GC = inside_GC - (inside_GC @ basis_CX) @ basis_CX.T
    parts = [statistic(sums(left_TP, whole), left_GC, ranked(left_TP, whole)) for whole in found.held_out]
    return upper_p(one_each(parts[0] + parts[1], family_P))


def _concept_of(found: Layout) -> np.ndarray:
    """Number of the concept that each text shows. (T,)"""
    concept_T = np.zeros(len(found.text_ids), np.int64)
    for whole in found.panels:
        concept, s = np.nonzero(whole.rows_CS != ABSENT)
        concept_T[whole.rows_CS[concept, s]] = concept
    return concept_T
