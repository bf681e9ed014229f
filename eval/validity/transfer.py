"""All baselines beside a dictionary's features, in every cell of training and reading (`sae_emotions.label.transfer`).

`make run` compares single features and a few of them with difference-of-means vectors and bags of words. Here come the full
logistic regression, the controls (best residual dimension, random directions, a dictionary of random directions), the neutral
texts read by the model itself, and L1 logistic regressions as another way to pick features.
"""

from pathlib import Path
from typing import Any

import numpy as np
import torch

from eval.validity.asked import Asked
from sae_emotions.artefact import read_json
from sae_emotions.concepts.concept_set import load_concepts
from sae_emotions.config import LabelConfig, RunConfig, config_hash
from sae_emotions.dictionary.encode import load_dictionary, randomised
from sae_emotions.harvest.harvest import stream
from sae_emotions.harvest.rows import open_rows
from sae_emotions.label.choose import chosen
from sae_emotions.label.label import concept_means
from sae_emotions.label.layout import Layout, layout
from sae_emotions.label.ledger import note_look
from sae_emotions.label.material import material_of
from sae_emotions.label.means import StoryMeans
from sae_emotions.label.methods import DESCRIBED, Choose, further_methods, run_methods, single
from sae_emotions.label.ranks import doubled_midranks
from sae_emotions.label.transfer import Method, training_cells, transfer
from sae_emotions.progress import Progress
from sae_emotions.run_folder import config_of, is_done
from sae_emotions.sources.models import load_model
from sae_emotions.sources.text import Document


def chooser(means: StoryMeans, settings: LabelConfig) -> Choose:
    """Each concept's feature by the labelling rule, its neighbours by these means."""
    return lambda ranks_TF, panels: chosen(ranks_TF, panels, means.resid_TD, settings)


def of_other_means(means: StoryMeans, found: Layout, settings: LabelConfig) -> Method:
    """The single-feature method on the story means of any other model or dictionary."""
    return single(means.acts_TF, doubled_midranks(means.acts_TF, found.panels), chooser(means, settings))


def neutral_means(config: RunConfig, run: Path, block: int) -> np.ndarray | None:
    """Mean residual stream of the concept set's neutral texts after their opening (M, D); None where it has none.

    Read in the run's own data type.
    """
    texts = load_concepts(config.concepts).neutral
    if not texts:
        return None
    settings = config.harvest.model_copy(update={"blocks": (block,)})
    documents = (Document(f"neutral/{n}", "neutral", text) for n, text in enumerate(texts))
    means = []
    model = load_model(config.model, getattr(torch, read_json(run / "activations" / "concepts" / "plan.json")["dtype"]))
    for shard in stream(model, documents, settings):
        kept_N = shard.position >= config.label.skip_tokens
        x_ND, document_N = shard.rows[block].numpy()[kept_N], shard.document[kept_N]
        means += [x_ND[document_N == document].mean(0) for document in np.unique(document_N)]
    return np.stack(means)


def other_models(run: Path) -> dict[str, StoryMeans]:
    """Story means of the finished runs below RUN/validity/models, such as one of the model with permuted weights.

    Each is read through its own first dictionary; a folder that is no finished run is left out.
    """
    found = {}
    for folder in sorted((run / "validity" / "models").glob("*/run.json")):
        config = config_of(folder.parent)
        name = config.dictionaries[0].name
        if is_done(folder.parent, f"train:{name}"):
            found[folder.parent.name] = concept_means(config, folder.parent, load_dictionary(folder.parent, name))
    return found


def measured(asked: Asked) -> dict[str, Any]:
    """Figures by training, held-out cell and method. Notes the look at the held-out texts in the run's ledger."""
    config = config_of(asked.run)
    concepts = load_concepts(config.concepts)
    found, dictionary = layout(concepts), load_dictionary(asked.run, asked.dictionary)
    means = concept_means(config, asked.run, dictionary)
    material = material_of(config, asked.run, dictionary.block, means, doubled_midranks(means.acts_TF, found.panels))
    centre_D = open_rows(asked.run / "activations" / "concepts", dictionary.block).centre_D
    random = randomised(dictionary, centre_D, config.seed)
    others = {"random_dictionary": concept_means(config, asked.run, random), **other_models(asked.run)}
    neutral_MD = neutral_means(config, asked.run, dictionary.block)
    choose = chooser(means, config.label)
    methods = {
        **run_methods(material, choose),
        **further_methods(material, found, choose, config.seed, neutral_MD),
        **{name: of_other_means(one, found, config.label) for name, one in others.items()},
    }
    with Progress("validity: transfer", len(methods) * len(training_cells(found)), "fits") as progress:
        figures = transfer(found, methods, config.label.bootstraps, config.seed, progress.advance)
    look = {"config_hash": config_hash(config), "dictionary": asked.dictionary, "cells": list(concepts.cells)}
    note_look(asked.run / "ledger.jsonl", {**look, "summary": {"validity": "transfer", "methods": list(methods)}})
    described = {
        name: DESCRIBED.get(name, "one feature of another model's dictionary, by the labelling rule")
        for name in methods
    }
    return {"methods": described, "trained_on": figures}
