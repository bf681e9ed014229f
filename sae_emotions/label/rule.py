"""The labelling rule: screen on the selection set, confirm on the held-out set, the same for every permutation.

Shapes: F features, C concepts, P pairs, L weightings of the concepts, K labellings (0 is the real one), 2: registers.

1. For every feature the selection set names one concept (the highest sum of both registers' AUROC), one family and one end of a
   norm (the greatest sum of both registers' standardised statistic, see linear.py). Each of the three is screened: both
   registers' selection p below `screen_p`, their product below `screen_product`.
2. The held-out p of what was screened is the larger of the two registers'. Benjamini-Hochberg over all that was screened,
   concepts, families and norms together, gives q; a feature with any q at most the configured rate is labelled. What its label
   says is decided by grain.py.
3. A feature that was screened for a concept and is not labelled is "<register> only" if, with Benjamini-Hochberg over the
   screened within each register alone, its q is at most the rate in that register and above it in the other.
4. A concept's feature is the one of greatest strength (see strength.py). It gets the same held-out p; Benjamini-Hochberg over all
   concepts gives the confirmed concepts.
"""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from sae_emotions.concepts.shape import Norm
from sae_emotions.config import LabelConfig
from sae_emotions.label.exact import exact_p
from sae_emotions.label.labelling import Labelling, Readings
from sae_emotions.label.layout import Panel
from sae_emotions.label.linear import Ranked, Sums, mean_auroc, one_each, standardised, statistic, sums, upper_p
from sae_emotions.label.ranks import pair_sums
from sae_emotions.label.strength import Neighbours, strength
from sae_emotions.label.uncertainty import false_discovery
from sae_emotions.progress import Progress


class Choice(NamedTuple):
    """What the selection set alone says."""

    concept_F: np.ndarray
    """the feature's concept"""
    auroc_F: np.ndarray
    """mean over registers of its AUROC"""
    feature_C: np.ndarray
    """the concept's feature"""
    auroc_C: np.ndarray


class Evidence(NamedTuple):
    """What supports one kind of label, feature by feature."""

    which_F: np.ndarray
    """number of the concept, family or end of a norm"""
    p_selection_F2: np.ndarray
    screened_F: np.ndarray
    p_F2: np.ndarray
    """held-out p of each register; NaN where it was not asked for"""
    q_F: np.ndarray
    """NaN where not screened"""


class Outcome(NamedTuple):
    """The whole rule under one labelling."""

    choice: Choice
    concept: Evidence
    family: Evidence
    norm: Evidence
    labelled_F: np.ndarray
    only_F: np.ndarray
    """register in which alone there is evidence: 0, 1, or -1"""
    p_C2: np.ndarray
    q_C: np.ndarray
    confirmed_C: np.ndarray

    @property
    def screened_F(self) -> np.ndarray:
        """Which features were screened for a concept, a family or a norm."""
        return np.asarray(self.concept.screened_F | self.family.screened_F | self.norm.screened_F)

    def with_concept(self, rate: float) -> np.ndarray:
        """Numbers of the features that pass for their concept itself, not for a family or norm alone."""
        return np.flatnonzero(np.nan_to_num(self.concept.q_F, nan=1.0) <= rate)


def choose(totals: Sequence[Sums], moments: Sequence[Ranked], near: Neighbours, apart: float) -> Choice:
    """Each feature's concept by AUROC, and each concept's feature by strength, in the panels of one or two registers."""
    auroc = [mean_auroc(total, len(near.eigen_C)) for total in totals]
    noise_2F = np.stack([_noise(total, moment) for total, moment in zip(totals, moments, strict=True)])
    strength_CF = strength(auroc[0], auroc[1] if len(auroc) > 1 else None, noise_2F, near, apart)
    mean_CF = np.mean(auroc, axis=0)
    # By cross-validation neighbours help to find a concept's feature. A feature's concept they do not: they hide one that reads
    # a single word.
    concept_F, feature_C = mean_CF.argmax(0), strength_CF.argmax(1)
    all_F, all_C = np.arange(len(concept_F)), np.arange(len(feature_C))
    return Choice(concept_F, mean_CF[concept_F, all_F], feature_C, mean_CF[all_C, feature_C])


def _noise(total: Sums, moment: Ranked) -> np.ndarray:
    """Variance, without any signal, of a concept's mean AUROC, for a concept of the usual number of topics. (F,)"""
    size_S = np.zeros(len(moment.square_SF))
    topics: dict[int, int] = {}
    for concepts, strata in zip(total.concepts, total.strata, strict=True):
        size_S[strata] = len(concepts)
        for concept in concepts:
            topics[int(concept)] = topics.get(int(concept), 0) + len(strata)
    return np.asarray((moment.square_SF / size_S[:, None]).mean(0) / np.median(list(topics.values())))


def norm_ends(norms: Sequence[Norm]) -> tuple[tuple[str, ...], np.ndarray]:
    """Names and weightings of every norm's two ends. (L, C)"""
    names = tuple(f"{end} {norm.name}" for norm in norms for end in ("high", "low"))
    values = [np.array(norm.values) - np.mean(norm.values) for norm in norms]
    return names, np.array([sign * value for value in values for sign in (1, -1)])


def pair_p(
    ranks_TF: np.ndarray, panels: Sequence[Panel], pairs: Sequence[tuple[np.ndarray, np.ndarray]]
) -> list[np.ndarray]:
    """Exact p of (concepts, features) `pairs` under each labelling's panel; null distributions are made once."""
    totals = [pair_sums(ranks_TF, whole, *pair) for whole, pair in zip(panels, pairs, strict=True)]
    groups = [whole.group_C[concept_P] for whole, (concept_P, _) in zip(panels, pairs, strict=True)]
    features = np.concatenate([feature_P for _, feature_P in pairs])
    p_P = exact_p(ranks_TF, panels[0], np.concatenate(groups), features, np.concatenate(totals))
    return np.split(p_P, np.cumsum([len(feature_P) for _, feature_P in pairs])[:-1])


class _Chosen(NamedTuple):
    """A labelling's choice, and the candidates and selection p of its families and norms."""

    choice: Choice
    family: tuple[np.ndarray, np.ndarray]
    norm: tuple[np.ndarray, np.ndarray]


def decide(
    read: Readings, labellings: Sequence[Labelling], norms: Sequence[Norm], settings: LabelConfig
) -> list[Outcome]:
    """Put every labelling through the rule. Held-out p are computed for all features of the first labelling only."""
    ends_LC = norm_ends(norms)[1]
    chosen = []
    with Progress("label: rule", len(labellings), "labellings") as progress:
        for given in labellings:
            chosen.append(_chosen(read, given, ends_LC, settings))
            progress.advance(1)
    all_F = np.arange(read.ranks_TF.shape[1])
    pairs = [(one.choice.concept_F, all_F) for one in chosen]
    selected = [pair_p(read.ranks_TF, [one.found.selection[r] for one in labellings], pairs) for r in (0, 1)]
    p_selection = [np.stack([selected[0][k], selected[1][k]], axis=1) for k in range(len(chosen))]
    screens = [_screened(p_F2, settings) for p_F2 in p_selection]
    asked = [all_F, *(np.flatnonzero(screened_F) for screened_F in screens[1:])]
    held_out = [
        (
            np.append(one.choice.concept_F[some], np.arange(len(one.choice.feature_C))),
            np.append(some, one.choice.feature_C),
        )
        for one, some in zip(chosen, asked, strict=True)
    ]
    confirmed = [pair_p(read.ranks_TF, [one.found.held_out[r] for one in labellings], held_out) for r in (0, 1)]
    outcomes = []
    for k, one in enumerate(chosen):
        p_P2 = np.stack([confirmed[0][k], confirmed[1][k]], axis=1)
        p_F2 = np.full((len(all_F), 2), np.nan)
        p_F2[asked[k]] = p_P2[: len(asked[k])]
        concept = Evidence(one.choice.concept_F, p_selection[k], screens[k], p_F2, np.full(len(all_F), np.nan))
        family = _wider(read, labellings[k], one.family, labellings[k].families.inside_GC(), settings)
        norm = _wider(read, labellings[k], one.norm, ends_LC, settings)
        outcomes.append(judged(one.choice, (concept, family, norm), p_P2[len(asked[k]) :], settings.q))
    return outcomes


def _chosen(read: Readings, one: Labelling, ends_LC: np.ndarray, settings: LabelConfig) -> _Chosen:
    totals = [sums(read.ranks_TF, whole) for whole in one.found.selection]
    choice = choose(totals, read.selection, one.near, settings.apart)
    candidates = [_candidates(totals, read.selection, w) for w in (one.families.inside_GC(), ends_LC)]
    return _Chosen(choice, candidates[0], candidates[1])


def _candidates(
    totals: Sequence[Sums], moments: Sequence[Ranked], weights_LC: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """Each feature's best weighting on the selection set, and both registers' p of it (1 where there is none)."""
    features = totals[0].total_nF[0].shape[1]
    if not len(weights_LC):
        return np.zeros(features, np.int64), np.ones((features, 2))
    found = [statistic(total, weights_LC, moment) for total, moment in zip(totals, moments, strict=True)]
    which_F = (standardised(found[0]) + standardised(found[1])).argmax(0)
    return which_F, np.stack([upper_p(one_each(one, which_F)) for one in found], axis=1)


def _wider(
    read: Readings,
    one: Labelling,
    candidates: tuple[np.ndarray, np.ndarray],
    weights_LC: np.ndarray,
    settings: LabelConfig,
) -> Evidence:
    """Screen and held-out p of what is wider than a concept."""
    which_F, p_selection_F2 = candidates
    screened_F = _screened(p_selection_F2, settings)
    some, p_F2 = np.flatnonzero(screened_F), np.full(p_selection_F2.shape, np.nan)
    if len(some):
        ranks_TF = read.ranks_TF[:, some]
        for r, whole in enumerate(one.found.held_out):
            moments = Ranked(*(moment[:, some] for moment in read.held_out[r]))
            p_F2[some, r] = upper_p(one_each(statistic(sums(ranks_TF, whole), weights_LC, moments), which_F[some]))
    return Evidence(which_F, p_selection_F2, screened_F, p_F2, np.full(len(which_F), np.nan))


def _screened(p_F2: np.ndarray, settings: LabelConfig) -> np.ndarray:
    return np.asarray((p_F2.max(1) < settings.screen_p) & (p_F2.prod(1) < settings.screen_product))


def judged(choice: Choice, evidence: tuple[Evidence, Evidence, Evidence], p_C2: np.ndarray, rate: float) -> Outcome:
    """Steps 2 to 4, from p to labels."""
    some = [np.flatnonzero(one.screened_F) for one in evidence]
    q_P = false_discovery(np.concatenate([one.p_F2[at].max(1) for one, at in zip(evidence, some, strict=True)]))
    each = np.split(q_P, np.cumsum([len(at) for at in some])[:-1])
    concept, family, norm = (_with_q(*one) for one in zip(evidence, some, each, strict=True))
    labelled_F = np.any([np.nan_to_num(one.q_F, nan=1.0) <= rate for one in (concept, family, norm)], axis=0)
    only_F, p_P2 = np.full(len(labelled_F), -1), evidence[0].p_F2[some[0]]
    alone = np.stack([false_discovery(p_P2[:, register]) for register in (0, 1)], axis=1) <= rate
    for register in (0, 1):
        only_F[some[0][alone[:, register] & ~alone[:, 1 - register]]] = register
    only_F[labelled_F] = -1
    q_C = false_discovery(p_C2.max(1))
    return Outcome(choice, concept, family, norm, labelled_F, only_F, p_C2, q_C, q_C <= rate)


def _with_q(one: Evidence, at: np.ndarray, q_P: np.ndarray) -> Evidence:
    q_F = np.full(len(one.which_F), np.nan)
    q_F[at] = q_P
    return one._replace(q_F=q_F)


def tested_and_passed(outcome: Outcome, rate: float) -> tuple[int, int]:
    """How many concepts, families and norms were screened for all features together, and how many passed."""
    kinds = (outcome.concept, outcome.family, outcome.norm)
    screened = sum(int(one.screened_F.sum()) for one in kinds)
    return screened, sum(int((one.q_F[one.screened_F] <= rate).sum()) for one in kinds)


def null_summary(outcomes: Sequence[Outcome]) -> dict[str, object]:
    """What the rule finds under permuted labels: every permutation's counts and their means."""
    counts = {
        "screened_features": [int(o.screened_F.sum()) for o in outcomes],
        "labelled_features": [int(o.labelled_F.sum()) for o in outcomes],
        "confirmed_concepts": [int(o.confirmed_C.sum()) for o in outcomes],
    }
    means = {f"mean_{name}": float(np.mean(found)) for name, found in counts.items()}
    with_any = sum(n > 0 for n in counts["labelled_features"])
    return {"permutations": len(outcomes), **counts, **means, "permutations_with_any_label": with_any}
