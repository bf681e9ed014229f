"""All baselines beside a dictionary's features, in every cell of training and reading (`sae_emotions.label.transfer`).

`make run` compares single features and a few of them with difference-of-means vectors and bags of words. Here come the full
logistic regression, the controls (best residual dimension, random directions, a dictionary of random directions), the neutral
texts read by the model itself, and L1 logistic regressions as another way to pick features.
"""

from typing import Any

import numpy as np

from eval.validity.asked import Asked
from sae_emotions.concepts.concept_set import load_concepts
from sae_emotions.config import RunConfig, config_hash
from sae_emotions.dictionary.encode import load_dictionary, randomised
from sae_emotions.harvest.harvest import stream
from sae_emotions.label.label import concept_means
from sae_emotions.label.layout import Layout, layout
from sae_emotions.label.ledger import note_look
from sae_emotions.label.material import material_of
from sae_emotions.label.means import StoryMeans
from sae_emotions.label.methods import Method, further_methods, run_methods, single
from sae_emotions.label.ranks import doubled_midranks
from sae_emotions.label.rule import choose
from sae_emotions.label.transfer import Pair, training_cells, transfer
from sae_emotions.progress import Progress
from sae_emotions.run_folder import config_of
from sae_emotions.sources.models import load_model
from sae_emotions.sources.text import Document


def choose_features(ranks_TF: np.ndarray, panels: Pair) -> np.ndarray:
    """Each concept's feature by the labelling rule."""
    return choose(ranks_TF, panels).feature_C


def of_other_means(means: StoryMeans, found: Layout) -> Method:
    """The single-feature method on the story means of any other model or dictionary."""
    return single(means.acts_TF, doubled_midranks(means.acts_TF, found.panels), choose_features)


def neutral_means(config: RunConfig, block: int) -> np.ndarray | None:
    """Mean residual stream of the concept set's neutral texts after their opening (M, D); None where it has none."""
    texts = load_concepts(config.concepts).neutral
    if not texts:
        return None
    settings = config.harvest.model_copy(update={"blocks": (block,)})
    documents = (Document(f"neutral/{n}", "neutral", text) for n, text in enumerate(texts))
    means = []
    for shard in stream(load_model(config.model), documents, settings):
        kept_N = shard.position >= config.label.skip_tokens
        x_ND, document_N = shard.rows[block].numpy()[kept_N], shard.document[kept_N]
        means += [x_ND[document_N == document].mean(0) for document in np.unique(document_N)]
    return np.stack(means)


def measured(asked: Asked, others: dict[str, StoryMeans] | None = None) -> dict[str, Any]:
    """Figures by training, held-out cell and method; `others` adds single features of other models' story means."""
    config = config_of(asked.run)
    concepts = load_concepts(config.concepts)
    found, dictionary = layout(concepts), load_dictionary(asked.run, asked.dictionary)
    means = concept_means(config, asked.run, dictionary)
    material = material_of(config, asked.run, dictionary.block, means, found)
    read = neutral_means(config, dictionary.block)
    random = randomised(dictionary, means.resid_TD.mean(0), config.seed)
    others = {"random_dictionary": concept_means(config, asked.run, random), **(others or {})}
    methods = {
        **run_methods(material, choose_features),
        **further_methods(material, read, found, choose_features, config.seed),
        **{name: of_other_means(one, found) for name, one in others.items()},
    }
    with Progress("validity: transfer", len(methods) * len(training_cells(found)), "fits") as progress:
        figures = transfer(found, methods, config.label.bootstraps, config.seed, progress.advance)
    note_look(
        asked.run / "ledger.jsonl",
        {
            "config_hash": config_hash(config),
            "dictionary": asked.dictionary,
            "cells": list(concepts.cells),
            "summary": {"section": "transfer", "methods": list(methods)},
        },
    )
    return {"methods": {name: DESCRIBED.get(name, "one feature on other story means") for name in methods}, "trained": figures}
