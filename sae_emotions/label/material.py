"""What the methods of `methods.py` read, gathered from a run folder. T texts, M general documents, D residual width."""

from pathlib import Path
from typing import NamedTuple

import numpy as np

from sae_emotions.concepts.concept_set import load_concepts
from sae_emotions.config import RunConfig
from sae_emotions.errors import UserError
from sae_emotions.harvest.rows import open_rows, read_documents
from sae_emotions.label.means import StoryMeans, document_means, embedding_means
from sae_emotions.label.methods import Material

GENERAL = 1000
"""general documents, at most, whose leading components are taken as those of texts that show no concept"""


class Embedding(NamedTuple):
    """Input embeddings of the tokens that occur in the concept texts (n)."""

    token_n: np.ndarray
    W_E_nD: np.ndarray


def read_embedding(run: Path) -> Embedding:
    """RUN/embedding.safetensors. Raises `UserError` where it is missing or damaged."""
    from safetensors import SafetensorError
    from safetensors.numpy import load_file

    path = run / "embedding.safetensors"
    if not path.is_file():
        raise UserError(f"{path} is missing; run the harvest stage again to write it.")
    try:
        found = load_file(path)
        return Embedding(found["token"], found["W_E"])
    except (SafetensorError, KeyError, OSError):
        raise UserError(f"{path} is damaged; delete it and run the harvest stage again.") from None


def material_of(config: RunConfig, run: Path, block: int, means: StoryMeans, ranks_TF: np.ndarray) -> Material:
    """Everything that is compared, of the run's concept texts. Raises `UserError` where the harvest is not whole.

    The stage loads no model, so that the components of texts that show no concept are taken from the run's general text:
    the mean of each document after its opening.
    """
    folder, skip = run / "activations" / "concepts", config.label.skip_tokens
    texts, embedding = load_concepts(config.concepts).texts, read_embedding(run)
    rows, keys = open_rows(folder, block), read_documents(folder)["key"].to_pylist()
    embedding_TD = embedding_means(rows, keys, [text.id for text in texts], skip, *embedding)
    general_MD = document_means(open_rows(run / "activations" / "text", block), skip, GENERAL)
    return Material(ranks_TF, means.acts_TF, means.resid_TD, embedding_TD, general_MD, [text.text for text in texts])
