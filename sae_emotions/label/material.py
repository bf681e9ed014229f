"""What the methods of `methods.py` read, gathered from a run folder. T texts, M general documents, D residual width."""

from pathlib import Path

import numpy as np

from sae_emotions.concepts.concept_set import load_concepts
from sae_emotions.config import RunConfig
from sae_emotions.harvest.rows import mapped, open_rows, read_documents
from sae_emotions.label.means import StoryMeans, document_means, embedding_means
from sae_emotions.label.methods import Material

GENERAL = 1000
"""general documents, at most, whose leading components are taken as those of texts that show no concept"""


def material_of(config: RunConfig, run: Path, block: int, means: StoryMeans, ranks_TF: np.ndarray) -> Material:
    """Everything that is compared, of the run's concept texts. Raises `UserError` where the harvest is not whole.

    The stage loads no model, so that the components of texts that show no concept are taken from the run's general text:
    the mean of each document after its opening.
    """
    folder, skip = run / "activations" / "concepts", config.label.skip_tokens
    texts, embedding = load_concepts(config.concepts).texts, mapped(run / "embedding.safetensors")
    rows, keys = open_rows(folder, block), read_documents(folder)["key"].to_pylist()
    embedding_TD = embedding_means(rows, keys, [text.id for text in texts], skip, embedding["token"], embedding["W_E"])
    general_MD = document_means(open_rows(run / "activations" / "text", block), skip, GENERAL)
    return Material(ranks_TF, means.acts_TF, means.resid_TD, embedding_TD, general_MD, [text.text for text in texts])
