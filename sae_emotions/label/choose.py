"""Choosing a block, a width or a rule by cross-validation over topics of the selection set. C concepts, S topics."""

from collections import Counter, defaultdict

import numpy as np

from sae_emotions.config import LabelConfig
from sae_emotions.errors import UserError
from sae_emotions.label.baselines import difference_of_means
from sae_emotions.label.layout import ABSENT, Layout, Panel, part
from sae_emotions.label.linear import ranked, sums
from sae_emotions.label.means import StoryMeans
from sae_emotions.label.ranks import doubled_midranks, pair_auroc
from sae_emotions.label.rule import choose
from sae_emotions.label.strength import neighbours
from sae_emotions.label.uncertainty import mean_over_concepts


def topic_folds(panels: tuple[Panel, Panel], folds: int) -> dict[str, int]:
    """Deal the topics to folds so that every group of concepts meets each fold about equally often.

    A topic lies in the same fold in both registers. Topics that more texts share are dealt first.
    """
    groups: dict[str, set[tuple[int, int]]] = defaultdict(set)
    texts: Counter[str] = Counter()
    for register, whole in enumerate(panels):
        for group, strata in enumerate(whole.groups):
            for s in strata:
                groups[whole.topics_S[s]].add((register, group))
        for s, topic in enumerate(whole.topics_S):
            texts[topic] += int(whole.size_S[s])
    if len(texts) < folds or folds < 2:
        raise UserError(f"{folds} folds cannot be made of {len(texts)} selection topics; take 2 to {len(texts)}.")
    load: Counter[tuple[tuple[int, int], int]] = Counter()
    dealt: dict[str, int] = {}
    for topic in sorted(texts, key=lambda name: (-texts[name], name)):
        costs = [sum(load[key, fold] for key in groups[topic]) for fold in range(folds)]
        totals = [sum(f == fold for f in dealt.values()) for fold in range(folds)]
        fold = min(range(folds), key=lambda f: (costs[f], totals[f], f))
        dealt[topic] = fold
        for key in groups[topic]:
            load[key, fold] += 1
    return dealt


def chosen(
    ranks_TF: np.ndarray, panels: tuple[Panel, Panel], resid_TD: np.ndarray, settings: LabelConfig
) -> np.ndarray:
    """Each concept's feature, by the labelling rule on these panels alone; a register alone may stand there twice. (C,)"""
    near = neighbours(difference_of_means(resid_TD, panels), settings.own)
    some = panels[:1] if panels[0] is panels[1] else panels
    totals, moments = zip(*((sums(ranks_TF, whole), ranked(ranks_TF, whole)) for whole in some), strict=True)
    return choose(totals, moments, near, settings.apart).feature_C


def cross_validated(means: StoryMeans, found: Layout, folds: int, settings: LabelConfig) -> dict[str, float]:
    """Mean AUROC, per register, of each concept's feature chosen on the other folds. The held-out set is not touched.

    Vectors and neighbours are made of the other folds, too.

    Raises `UserError` where the selection topics are too few for `folds`.
    """
    first, second = found.selection
    fold_of = topic_folds(found.selection, folds)
    ranks_TF = doubled_midranks(means.acts_TF, found.selection)
    auroc_CS = [np.full(whole.rows_CS.shape, np.nan) for whole in found.selection]
    concept_C = np.arange(len(found.concepts))
    for fold in range(folds):
        outside = [np.array([fold_of[topic] != fold for topic in whole.topics_S]) for whole in found.selection]
        rest = (part(first, outside[0]), part(second, outside[1]))
        if any((whole.rows_CS == ABSENT).all(1).any() for whole in rest):
            raise UserError(f"With {folds} folds a concept would have no topic left to choose on; take fewer folds.")
        feature_C = chosen(ranks_TF, rest, means.resid_TD, settings)
        for whole, keep, table in zip(found.selection, outside, auroc_CS, strict=True):
            table[:, ~keep] = pair_auroc(ranks_TF, whole, concept_C, feature_C)[:, ~keep]
    return {whole.register: mean_over_concepts(t) for whole, t in zip(found.selection, auroc_CS, strict=True)}
