"""The labelling rule: screen on the selection set, confirm on the held-out set, the same for every permutation.

Shapes: F features, C concepts, P pairs, K labellings (0 is the real one), 2: first and second register.

1. A feature's concept is the one with the highest sum of both registers' AUROC on the selection set. It is screened if
   both registers' selection p are below `screen_p` and their product is below `screen_product`.
2. Its held-out p is the larger of the two registers' held-out p for that concept. Benjamini-Hochberg over the screened
   features gives q; a screened feature with q at most the configured rate is labelled.
3. A screened feature that is not labelled is "<register> only" if, with Benjamini-Hochberg over the screened features
   within each register alone, its q is at most the rate in that register and above it in the other.
4. A concept's feature is the one with the highest sum of both registers' AUROC on the selection set. It gets the same
   held-out p; Benjamini-Hochberg over all concepts gives the confirmed concepts.
"""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from sae_emotions.config import LabelConfig
from sae_emotions.label.exact import exact_p
from sae_emotions.label.layout import Layout, Panel
from sae_emotions.label.ranks import CHUNK, auroc, pair_sums
from sae_emotions.label.uncertainty import false_discovery


class Choice(NamedTuple):
    """What the selection set alone says."""

    concept_F: np.ndarray
    """the feature's concept"""
    auroc_F: np.ndarray
    """mean over registers of its AUROC"""
    feature_C: np.ndarray
    """the concept's feature"""
    auroc_C: np.ndarray


class Outcome(NamedTuple):
    """The whole rule under one labelling."""

    choice: Choice
    p_selection_F2: np.ndarray
    screened_F: np.ndarray
    p_F2: np.ndarray
    """held-out p of each register; NaN where it was not asked for"""
    q_F: np.ndarray
    """NaN where not screened"""
    labelled_F: np.ndarray
    only_F: np.ndarray
    """register in which alone there is evidence: 0, 1, or -1"""
    p_C2: np.ndarray
    q_C: np.ndarray
    confirmed_C: np.ndarray


def choose(ranks_TF: np.ndarray, panels: tuple[Panel, Panel]) -> Choice:
    """Each feature's concept and each concept's feature, by the sum of both panels' AUROC."""
    concepts, features = len(panels[0].rows_CS), ranks_TF.shape[1]
    concept_F, auroc_F = np.zeros(features, np.int64), np.zeros(features)
    feature_C, auroc_C = np.zeros(concepts, np.int64), np.full(concepts, -1.0)
    for start in range(0, features, CHUNK):
        some = slice(start, start + CHUNK)
        mean_CF = (auroc(ranks_TF[:, some], panels[0]) + auroc(ranks_TF[:, some], panels[1])) / 2
        concept_F[some], auroc_F[some] = mean_CF.argmax(0), mean_CF.max(0)
        better = mean_CF.max(1) > auroc_C
        feature_C[better] = start + mean_CF.argmax(1)[better]
        auroc_C = np.maximum(auroc_C, mean_CF.max(1))
    return Choice(concept_F, auroc_F, feature_C, auroc_C)


def pair_p(
    ranks_TF: np.ndarray, panels: Sequence[Panel], pairs: Sequence[tuple[np.ndarray, np.ndarray]]
) -> list[np.ndarray]:
    """Exact p of (concepts, features) `pairs` under each labelling's panel; null distributions are made once."""
    sums = [pair_sums(ranks_TF, whole, *pair) for whole, pair in zip(panels, pairs, strict=True)]
    groups = [whole.group_C[concept_P] for whole, (concept_P, _) in zip(panels, pairs, strict=True)]
    features = np.concatenate([feature_P for _, feature_P in pairs])
    p_P = exact_p(ranks_TF, panels[0], np.concatenate(groups), features, np.concatenate(sums))
    return np.split(p_P, np.cumsum([len(feature_P) for _, feature_P in pairs])[:-1])


def decide(ranks_TF: np.ndarray, labellings: Sequence[Layout], settings: LabelConfig) -> list[Outcome]:
    """Put every labelling through the rule. Held-out p are computed for all features of the first labelling only."""
    choices = [choose(ranks_TF, found.selection) for found in labellings]
    all_F = np.arange(ranks_TF.shape[1])
    pairs = [(choice.concept_F, all_F) for choice in choices]
    first, second = (pair_p(ranks_TF, [found.selection[r] for found in labellings], pairs) for r in (0, 1))
    screens = [_screened(p, q, settings) for p, q in zip(first, second, strict=True)]
    asked = [all_F, *(np.flatnonzero(screened_F) for screened_F in screens[1:])]
    held_out = [
        (np.append(choice.concept_F[some], np.arange(len(choice.feature_C))), np.append(some, choice.feature_C))
        for choice, some in zip(choices, asked, strict=True)
    ]
    p_first, p_second = (pair_p(ranks_TF, [found.held_out[r] for found in labellings], held_out) for r in (0, 1))
    outcomes = []
    for k, choice in enumerate(choices):
        p_P2 = np.stack([p_first[k], p_second[k]], axis=1)
        p_F2 = np.full((len(all_F), 2), np.nan)
        p_F2[asked[k]] = p_P2[: len(asked[k])]
        selection_F2 = np.stack([first[k], second[k]], axis=1)
        outcomes.append(_confirmed(choice, selection_F2, screens[k], p_F2, p_P2[len(asked[k]) :], settings.q))
    return outcomes


def _screened(p_first: np.ndarray, p_second: np.ndarray, settings: LabelConfig) -> np.ndarray:
    below = np.maximum(p_first, p_second) < settings.screen_p
    return np.asarray(below & (p_first * p_second < settings.screen_product))


def _confirmed(
    choice: Choice, selection_F2: np.ndarray, screened_F: np.ndarray, p_F2: np.ndarray, p_C2: np.ndarray, rate: float
) -> Outcome:
    some = np.flatnonzero(screened_F)
    q_F, only_F = np.full(len(screened_F), np.nan), np.full(len(screened_F), -1)
    q_F[some] = false_discovery(p_F2[some].max(1))
    labelled_F = np.nan_to_num(q_F, nan=1.0) <= rate
    alone = np.stack([false_discovery(p_F2[some, register]) for register in (0, 1)], axis=1) <= rate
    for register in (0, 1):
        only_F[some[alone[:, register] & ~alone[:, 1 - register]]] = register
    only_F[labelled_F] = -1
    q_C = false_discovery(p_C2.max(1))
    return Outcome(choice, selection_F2, screened_F, p_F2, q_F, labelled_F, only_F, p_C2, q_C, q_C <= rate)


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
