"""Everything the concept texts say about a dictionary: the rule's outcome, its null, and the baselines beside it.

Works on story means alone, so that it can be tried without a model, a store or a disk.
Shapes: T texts, F features, C concepts, D residual width, P pairs of a feature and a concept.
"""

from typing import NamedTuple

import numpy as np

from sae_emotions.concepts.concept_set import ConceptSet
from sae_emotions.config import LabelConfig
from sae_emotions.label.baselines import own_auroc, tfidf_scores
from sae_emotions.label.confounds import Controlled, controlled, covariates
from sae_emotions.label.exact import exact_p
from sae_emotions.label.families import given_families
from sae_emotions.label.grain import Grain, grain
from sae_emotions.label.interval import interval
from sae_emotions.label.labelling import Labelling, Readings, labelling, readings, whitening
from sae_emotions.label.layout import ABSENT, Layout, cell_panels, permuted
from sae_emotions.label.means import StoryMeans
from sae_emotions.label.ranks import doubled_midranks, pair_auroc, pair_sums, topic_mean
from sae_emotions.label.rule import Outcome, decide, null_summary
from sae_emotions.label.uncertainty import mean_over_concepts, two_way_bootstrap
from sae_emotions.progress import Progress


class Measured(NamedTuple):
    """What the label stage writes down."""

    found: Layout
    ranks_TF: np.ndarray
    outcome: Outcome
    grain: Grain
    """by the families that the texts show"""
    given_grain: Grain
    """by the concept set's own families"""
    controls: dict[str, Controlled]
    """"named", "person", "length" and "bag": what is left of each of `grain`'s labels without it"""
    null: dict[str, object]
    dense_CD: np.ndarray
    """difference of means on the selection texts, residual-stream units"""
    baselines: dict[str, dict[str, np.ndarray]]
    """"dense" and "tfidf": held-out cell -> AUROC of the concept's own score (C, topics of the cell)"""


def measure(concepts: ConceptSet, found: Layout, means: StoryMeans, settings: LabelConfig, seed: int) -> Measured:
    """Apply the rule to the real labels and to `settings.permutations` permutations of them; score the baselines."""
    read = readings(doubled_midranks(means.acts_TF, found.panels), found)
    whiten_DD, rng = whitening(means.resid_TD, found.selection), np.random.default_rng([seed, 1])
    real = labelling(found, means.resid_TD, whiten_DD, settings)
    others = [
        labelling(permuted(found, rng), means.resid_TD, whiten_DD, settings) for _ in range(settings.permutations)
    ]
    given = given_families(concepts.concepts)
    outcomes = decide(read, [real, *others, real._replace(families=given)], concepts.norms, settings)
    null = null_summary(outcomes[1:-1]) | {"chosen_auroc": _chosen_under_null(read.ranks_TF, others, outcomes[1:-1])}
    fine = grain(read, found, real.families, concepts.norms, outcomes[0], settings.q)
    scores = {
        "dense": means.resid_TD @ real.dense_CD.T,
        "tfidf": tfidf_scores([text.text for text in concepts.texts], found.selection),
    }
    cells = cell_panels(found, "held_out")
    return Measured(
        found,
        read.ranks_TF,
        outcomes[0],
        fine,
        grain(read, found, given, concepts.norms, outcomes[-1], settings.q),
        _controls(concepts, read, found, means.tokens_T, scores["tfidf"], fine),
        null,
        real.dense_CD,
        {n: {cell: own_auroc(scores_TC, whole) for cell, whole in cells.items()} for n, scores_TC in scores.items()},
    )


def _controls(
    concepts: ConceptSet, read: Readings, found: Layout, tokens_T: np.ndarray, bag_TC: np.ndarray, fine: Grain
) -> dict[str, Controlled]:
    """What is left of each label without each of the things that could explain it."""
    texts, words = [text.text for text in concepts.texts], [concept.word for concept in concepts.concepts]
    return {
        name: controlled(read.ranks_TF, found.held_out, fine.feature_P, fine.weights_PC, covariates_TPX)
        for name, covariates_TPX in covariates(texts, words, tokens_T, bag_TC, fine.weights_PC).items()
    }


def _chosen_under_null(
    ranks_TF: np.ndarray, labellings: list[Labelling], outcomes: list[Outcome]
) -> dict[str, list[float | None]]:
    """Held-out AUROC, cell by cell, of the feature that each permutation chose for each concept; None where unread."""
    found: dict[str, list[float | None]] = {}
    for one, outcome in zip(labellings, outcomes, strict=True):
        feature_C = outcome.choice.feature_C
        for cell, whole in cell_panels(one.found, "held_out").items():
            auroc_C = topic_mean(pair_auroc(ranks_TF, whole, np.arange(len(feature_C)), feature_C))
            found.setdefault(cell, []).extend(None if np.isnan(a) else round(float(a), 4) for a in auroc_C)
    return found


def cell_auroc(measured: Measured, concept_P: np.ndarray, feature_P: np.ndarray) -> dict[str, np.ndarray]:
    """Held-out AUROC of some pairs in every cell; NaN where the cell lacks the concept."""
    cells = cell_panels(measured.found, "held_out")
    return {
        cell: topic_mean(pair_auroc(measured.ranks_TF, whole, concept_P, feature_P)) for cell, whole in cells.items()
    }


def pair_scores(measured: Measured, concept_P: np.ndarray, feature_P: np.ndarray) -> dict[str, list[object]]:
    """Columns of the `scores` table: AUROC, exact interval and p of some pairs in every cell of both splits."""
    names = ("feature", "concept", "cell", "split", "auroc", "low", "high", "p")
    columns: dict[str, list[object]] = {name: [] for name in names}
    cells = {split: cell_panels(measured.found, split) for split in ("selection", "held_out")}
    panels = [(split, cell, whole) for split, found in cells.items() for cell, whole in found.items()]
    with Progress("label: intervals", len(panels) * len(feature_P), "scores") as progress:
        for split, cell, whole in panels:
            there = (whole.rows_CS[concept_P] != ABSENT).any(1)
            concept, feature, group = concept_P[there], feature_P[there], whole.group_C[concept_P[there]]
            total = pair_sums(measured.ranks_TF, whole, concept, feature)
            p = exact_p(measured.ranks_TF, whole, group, feature, total)
            auroc = topic_mean(pair_auroc(measured.ranks_TF, whole, concept, feature))
            for i in range(len(feature)):
                low, high = interval(measured.ranks_TF, whole, int(group[i]), int(feature[i]), int(total[i]))
                name = measured.found.concepts[concept[i]]
                row = (int(feature[i]), name, cell, split, float(auroc[i]), low, high, float(p[i]))
                for column, value in zip(names, row, strict=True):
                    columns[column].append(value)
                progress.advance(1)
    return columns


def held_out_means(measured: Measured, settings: LabelConfig, seed: int) -> dict[str, object]:
    """Mean held-out AUROC over concepts in every cell, with two-way bootstrap intervals.

    "auroc_<cell>" is that of the feature chosen on the selection set, labelled or not; "dense_auroc_<cell>" and
    "tfidf_auroc_<cell>" are the baselines' in the same texts. "<key>_interval" is [low, high].
    """
    found, feature_C = measured.found, measured.outcome.choice.feature_C
    concept_C = np.arange(len(feature_C))
    summary: dict[str, object] = {}
    for cell, whole in cell_panels(found, "held_out").items():
        tables = {
            f"auroc_{cell}": pair_auroc(measured.ranks_TF, whole, concept_C, feature_C),
            **{f"{name}_auroc_{cell}": cells[cell] for name, cells in measured.baselines.items()},
        }
        for key, auroc_CS in tables.items():
            rng = np.random.default_rng([seed, 2])
            summary[key] = mean_over_concepts(auroc_CS)
            summary[f"{key}_interval"] = list(two_way_bootstrap(auroc_CS, settings.bootstraps, rng))
    return summary
