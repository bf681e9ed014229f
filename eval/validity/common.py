"""What sections on nulls, stability and power share: a labelling in numbers, and runs that are derived from a run."""

from pathlib import Path
from typing import Any

import numpy as np

from sae_emotions.config import LabelConfig, RunConfig, config_hash, parse_config
from sae_emotions.dictionary.encode import Dictionary
from sae_emotions.label.agreement import Labels
from sae_emotions.label.ledger import note_look
from sae_emotions.label.measure import Measured, cell_auroc, held_out_means
from sae_emotions.label.rule import Outcome


def derived(config: RunConfig, **changes: Any) -> RunConfig:
    """A run's config with some fields changed; a mapping changes the fields of that part."""
    data = config.model_dump(mode="json")
    for key, value in changes.items():
        data[key] = data[key] | value if isinstance(value, dict) else value
    return parse_config(data, "the derived config")


def linked(folder: Path, activations: Path) -> Path:
    """A folder for dictionaries that are trained on a finished harvest; returns it."""
    folder.mkdir(parents=True, exist_ok=True)
    link = folder / "activations"
    if not link.is_symlink():
        link.symlink_to(activations.resolve(), target_is_directory=True)
    return folder


def few_permutations(config: RunConfig) -> LabelConfig:
    """The run's rule with twenty permutations: the run itself tells what hundreds find."""
    return config.label.model_copy(update={"permutations": min(20, config.label.permutations)})


def look(run: Path, config: RunConfig, what: str, outcome: Outcome) -> None:
    """Note in the run's ledger that a labelling looked at the held-out texts."""
    entry = {"config_hash": config_hash(config), "dictionary": what}
    note_look(run / "ledger.jsonl", {**entry, "labelled_features": int(outcome.labelled_F.sum())})


def labels_of(measured: Measured, dictionary: Dictionary, rate: float) -> Labels:
    """A labelling as `label.agreement` compares it: the features that passed for a concept."""
    outcome, choice = measured.outcome, measured.outcome.choice
    cells = cell_auroc(measured, np.arange(len(choice.feature_C)), choice.feature_C)
    concept_F = np.full(len(outcome.labelled_F), -1)
    passed = outcome.with_concept(rate)
    concept_F[passed] = choice.concept_F[passed]
    auroc_C = np.nanmean(np.stack(list(cells.values())), axis=0)
    return Labels(dictionary.W_dec_FD.cpu().numpy(), concept_F, outcome.confirmed_C, auroc_C)


def figures(measured: Measured, config: RunConfig) -> dict[str, Any]:
    """What the rule found and what the baselines read, with the mean over permuted labels beside the counts."""
    outcome, labelled = measured.outcome, np.flatnonzero(measured.outcome.labelled_F)
    return {
        "features": len(outcome.labelled_F),
        "concepts": len(outcome.confirmed_C),
        "screened_features": int(outcome.screened_F.sum()),
        "labelled_features": len(labelled),
        "labelled_features_with_permuted_labels": measured.null["mean_labelled_features"],
        "labelled_concepts": len(np.unique(outcome.choice.concept_F[outcome.with_concept(config.label.q)])),
        "confirmed_concepts": int(outcome.confirmed_C.sum()),
        "confirmed_concepts_with_permuted_labels": measured.null["mean_confirmed_concepts"],
        "held_out": held_out_means(measured, config.label, config.seed) | {"auroc_by_chance": 0.5},
    }
