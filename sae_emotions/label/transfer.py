"""Every method beside every other: fitted on some registers' selection texts, scored on held-out texts of other kinds.

Trained on both registers, every held-out cell is read. Trained on one register alone, the cells of the other register are
read, and those that no selection text belongs to. What is compared is the AUROC of each concept's own score within topic.
Shapes: T texts, C concepts, S topics of a cell, K features of a method.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from sae_emotions.label.baselines import own_auroc
from sae_emotions.label.choose import topic_folds
from sae_emotions.label.layout import ABSENT, Layout, Panel, cell_panels, part
from sae_emotions.label.shrink import counts_at_least
from sae_emotions.label.uncertainty import mean_over_concepts, two_way_bootstrap

MARK = 0.9
SINGLY = 6
"""topics of a cell up to which each is also told on its own"""
REFERENCE = "dense"
"""the method whose scores every other's are compared with, concept by concept"""

Pair = tuple[Panel, Panel]


class Scored(NamedTuple):
    """What a method makes of its training panels."""

    scores: Sequence[np.ndarray]
    """score of every text for every concept (T, C); the AUROC of several (random draws) are averaged"""
    feature_CK: np.ndarray | None = None
    """the features that it reads"""


Method = Callable[[Pair], Scored]


class Trained(NamedTuple):
    """One kind of training, and what is read after it."""

    name: str
    """"both", or the register"""
    panels: Pair
    """a register alone stands there twice"""
    cells: dict[str, Panel]
    """held-out cells"""


def training_cells(found: Layout) -> list[Trained]:
    """Both registers together, then each alone."""
    held_out, first = cell_panels(found, "held_out"), cell_panels(found, "selection")
    trained = [Trained("both", found.selection, held_out)]
    for whole in found.selection:
        cells = {cell: one for cell, one in held_out.items() if one.register != whole.register or cell not in first}
        trained.append(Trained(whole.register, (whole, whole), cells))
    return trained


def method_auroc(scored: Scored, whole: Panel) -> np.ndarray:
    """AUROC in every topic of each concept's own score, averaged over the method's draws. (C, S)"""
    return np.asarray(np.mean([own_auroc(scores_TC, whole) for scores_TC in scored.scores], axis=0))


def cross_validated_auroc(panels: Pair, folds: int, fit: Method) -> list[float]:
    """Mean AUROC in each distinct panel of a method that is fitted on the other folds' topics.

    The folds are those of `topic_folds`, the same for every method. Raises `UserError` where the topics are too few.
    """
    distinct = list({id(whole): whole for whole in panels}.values())
    tables = [np.full(whole.rows_CS.shape, np.nan) for whole in distinct]
    for rest, outside in folded(panels, folds):
        scored = fit(rest)
        for whole, keep_S, table in zip(distinct, outside, tables, strict=False):
            table[:, ~keep_S] = method_auroc(scored, part(whole, ~keep_S))
    return [mean_over_concepts(table) for table in tables]


def folded(panels: Pair, folds: int) -> Iterator[tuple[Pair, list[np.ndarray]]]:
    """Per fold: the panels of the other folds' topics, and for either panel which of its strata (bool) these are."""
    fold_of = topic_folds(panels, folds)
    for fold in range(folds):
        outside = [np.array([fold_of[topic] != fold for topic in whole.topics_S]) for whole in panels]
        first = part(panels[0], outside[0])
        second = first if panels[1] is panels[0] else part(panels[1], outside[1])
        yield (first, second), outside


def transfer(
    found: Layout, methods: Mapping[str, Method], bootstraps: int, seed: int, advance: Callable[[int], None]
) -> dict[str, Any]:
    """Figures of every method after every training in every held-out cell: `figures` by training, cell and method.

    `advance` is told of every fit. Looks at the held-out texts.
    """
    told: dict[str, Any] = {}
    for trained in training_cells(found):
        tables: dict[str, dict[str, np.ndarray]] = {cell: {} for cell in trained.cells}
        features: dict[str, np.ndarray] = {}
        for name, method in methods.items():
            scored = method(trained.panels)
            for cell, whole in trained.cells.items():
                tables[cell][name] = method_auroc(scored, whole)
            if scored.feature_CK is not None:
                features[name] = scored.feature_CK
            advance(1)
        told[trained.name] = {
            cell: {
                "topics": len(whole.size_S),
                "concepts": int((whole.rows_CS != ABSENT).any(1).sum()),
                "chance": 0.5,
                "methods": {
                    name: figures(table, tables[cell].get(REFERENCE), features.get(name), whole, bootstraps, seed)
                    for name, table in tables[cell].items()
                },
            }
            for cell, whole in trained.cells.items()
        }
    return told


def figures(
    auroc_CS: np.ndarray,
    reference_CS: np.ndarray | None,
    feature_CK: np.ndarray | None,
    whole: Panel,
    bootstraps: int,
    seed: int,
) -> dict[str, Any]:
    """One method in one cell: `auroc` and its `interval` (two-way bootstrap over concepts and topics), the number of
    concepts `at_least_90` (raw, shrunken, expected), `less_dense` (the difference to the dense vector, concept by concept
    and topic by topic, and its interval), `features` and `features_at_least_90` (distinct ones that all concepts, and
    those at .9 or more, read), and in cells of few topics `by_topic`, whose intervals are over concepts alone."""
    mean, interval = _mean(auroc_CS, bootstraps, seed)
    told: dict[str, Any] = {"auroc": mean, "interval": interval, "at_least_90": counts_at_least(auroc_CS, MARK)}
    if reference_CS is not None and reference_CS is not auroc_CS:
        difference, between = _mean(auroc_CS - reference_CS, bootstraps, seed)
        told["less_dense"] = {"difference": difference, "interval": between}
    if feature_CK is not None:
        there_C = ~np.isnan(auroc_CS).all(1)
        high_C = np.zeros(len(there_C), bool)
        high_C[there_C] = np.nanmean(auroc_CS[there_C], axis=1) >= MARK
        told["features"] = len(np.unique(feature_CK))
        told["features_at_least_90"] = len(np.unique(feature_CK[high_C]))
    if len(whole.size_S) <= SINGLY:
        told["by_topic"] = {}
        for s, topic in enumerate(whole.topics_S):
            one, around = _mean(auroc_CS[:, [s]], bootstraps, seed)
            told["by_topic"][topic] = {"auroc": one, "interval": around}
    return told


def _mean(auroc_CS: np.ndarray, bootstraps: int, seed: int) -> tuple[float, list[float]]:
    low, high = two_way_bootstrap(auroc_CS, bootstraps, np.random.default_rng([seed, 2]))
    return round(mean_over_concepts(auroc_CS), 4), [round(low, 4), round(high, 4)]
