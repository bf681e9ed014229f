"""Power: the smallest AUROC that this number of stories can detect with a probability of 80 %.

`one_pair`: exact, at the held-out p that Benjamini and Hochberg asked for in this run (in each register), and at the
selection's screen; for features that nobody labelled, for labelled ones, and for a feature without ties.

`whole_rule`: a reading of one concept is planted in features that nobody labelled, with the same AUROC in both registers and
splits, and the whole rule must find it. `alone`: no other concept is raised, against which a rule that borrows strength from
neighbours is slow to believe. `with_neighbours`: the others are raised as the rule's model expects of a feature that reads the
concept. At .5 nothing is planted with neighbours (the values are dealt blindly), and nothing of the concept alone: the share
there is the rule's error, or what the host showed before.
"""

from typing import Any

import numpy as np

from eval.validity.asked import Asked
from eval.validity.common import look
from sae_emotions.concepts.concept_set import load_concepts
from sae_emotions.dictionary.encode import load_dictionary
from sae_emotions.label.label import concept_means
from sae_emotions.label.labelling import labelling, readings, whitening
from sae_emotions.label.layout import Panel, layout
from sae_emotions.label.power import (
    POWER,
    Found,
    least_aurocs,
    least_untied,
    planted,
    planted_with_neighbours,
    rule_power,
)
from sae_emotions.label.ranks import doubled_midranks
from sae_emotions.label.rule import Outcome, decide, tested_and_passed
from sae_emotions.label.uncertainty import critical_p
from sae_emotions.progress import Progress
from sae_emotions.run_folder import config_of

LEVELS = (0.5, 0.65, 0.7, 0.75, 0.8, 0.85, 0.9, 0.95)
EACH, ROUNDS = 40, 2
SAMPLE = 200


def measured(asked: Asked) -> dict[str, Any]:
    """See the module's docstring."""
    config = config_of(asked.run)
    concepts, settings = load_concepts(config.concepts), config.label
    found, means = layout(concepts), concept_means(config, asked.run, load_dictionary(asked.run, asked.dictionary))

    real = labelling(found, means.resid_TD, whitening(means.resid_TD, found.selection), settings)

    def judged(ranks_TF: np.ndarray) -> Outcome:
        return decide(readings(ranks_TF, found), [real], concepts.norms, settings)[0]

    def rule(acts_TF: np.ndarray) -> Found:
        told = judged(doubled_midranks(acts_TF, found.panels))
        passes_F = told.concept.q_F <= settings.q
        return Found(told.concept.screened_F, passes_F, told.labelled_F, told.choice.concept_F)

    near_CC = (real.near.basis_CC * real.near.eigen_C) @ real.near.basis_CC.T
    values_FT = means.acts_TF.T

    def alone(feature: int, concept: int, auroc: float, rng: np.random.Generator) -> np.ndarray | None:
        return planted(values_FT[feature], ranks_TF[:, feature], found, concept, auroc, rng)

    def with_neighbours(feature: int, concept: int, auroc: float, rng: np.random.Generator) -> np.ndarray | None:
        return planted_with_neighbours(values_FT[feature], found, concept, near_CC[concept], auroc, rng)

    ranks_TF = doubled_midranks(means.acts_TF, found.panels)
    outcome, rng = judged(ranks_TF), np.random.default_rng([config.seed, 11])
    look(asked.run, config, f"power: {asked.dictionary}", outcome)
    screened, passed = tested_and_passed(outcome, settings.q)
    needed = critical_p(screened, passed, settings.q)
    alive_F = (means.acts_TF > 0).any(0)
    # What is labelled was screened.
    labelled, hosts = np.flatnonzero(outcome.labelled_F), np.flatnonzero(alive_F & ~outcome.screened_F)
    unlabelled = np.sort(rng.choice(hosts, min(SAMPLE, len(hosts)), replace=False))
    some = np.sort(rng.choice(labelled, min(SAMPLE, len(labelled)), replace=False))
    pairs = {
        "unlabelled_features": (rng.integers(len(found.concepts), size=len(unlabelled)), unlabelled),
        "labelled_features": (outcome.choice.concept_F[some], some),
    }
    panels = [("held_out", needed, one) for one in found.held_out]
    panels += [("selection", settings.screen_p, one) for one in found.selection]
    one_pair = {f"{split}_{one.register}": _one_pair(ranks_TF, one, p, pairs) for split, p, one in panels}
    given = means.acts_TF, ranks_TF, found, hosts, LEVELS, EACH, ROUNDS
    with Progress("power: the whole rule", 2 * ROUNDS, "rounds") as progress:
        whole = {
            name: rule_power(*given, plant, rule, config.seed, progress.advance)
            for name, plant in (("alone", alone), ("with_neighbours", with_neighbours))
        }
    counts = {"screened": screened, "passed": passed, "labelled_features": len(labelled)}
    return {"power": POWER, "rate": settings.q, "p_needed": needed, **counts, "one_pair": one_pair, "whole_rule": whole}


def _one_pair(
    ranks_TF: np.ndarray, whole: Panel, p: float, pairs: dict[str, tuple[np.ndarray, np.ndarray]]
) -> dict[str, Any]:
    """The least AUROC in one panel, as quantiles over features."""
    told: dict[str, Any] = {
        "p": p,
        "topics_a_concept": float(np.mean([len(strata) for strata in whole.groups])),
        "without_ties": _number(least_untied(whole, p)),
    }
    for kind, (concept_P, feature_P) in pairs.items():
        least_P = least_aurocs(ranks_TF, whole, concept_P, feature_P, p)
        there_P = least_P[~np.isnan(least_P)]
        quantiles = np.quantile(there_P, (0.1, 0.5, 0.9)) if len(there_P) else (np.nan,) * 3
        named = dict(zip(("tenth", "median", "ninetieth"), map(_number, quantiles), strict=True))
        told[kind] = {"n": len(least_P), "n_too_sparse": int(np.isnan(least_P).sum()), **named}
    return told


def _number(value: float) -> float | None:
    return None if np.isnan(value) else round(float(value), 4)
