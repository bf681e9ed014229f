"""A labelled run made ready for steering. Shapes: F latents, C concepts, D residual width."""

from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch

from sae_emotions.artefact import read_json
from sae_emotions.causal.material import dense_vectors
from sae_emotions.causal.readouts import WordTree, word_tree
from sae_emotions.concepts.concept_set import ConceptSet, concept_named, load_concepts
from sae_emotions.config import RunConfig
from sae_emotions.dictionary.encode import Dictionary, load_dictionary
from sae_emotions.errors import UserError
from sae_emotions.harvest.plan import special_ids
from sae_emotions.run_folder import config_of
from sae_emotions.schema import read_table
from sae_emotions.sources.chat import render_chat
from sae_emotions.sources.models import Model, load_model
from sae_emotions.steering.directions import Scale, check_features, scale
from sae_emotions.upper import Upper


class Bench(NamedTuple):
    """The model above the hook, the dictionary, and what its labels say."""

    config: RunConfig
    model: Model
    upper: Upper
    dictionary: Dictionary
    scale: Scale
    concepts: ConceptSet
    labels: tuple[str | None, ...]
    """one a feature"""
    free: np.ndarray
    """features to which no concept lays claim: what a matched feature may be"""
    dense_CD: torch.Tensor
    """unit difference-of-means vectors"""
    special: list[int]
    """token ids that are never edited"""

    def tree(self, words: list[str] | None = None, readout: str | None = None) -> WordTree:
        """Words to read out after the readout prompt: the concepts', and the set's own prompt, unless given."""
        given = [one.word for one in self.concepts.concepts] if words is None else words
        return word_tree(self.model.tokenizer, self.concepts.readout if readout is None else readout, given)

    def number(self, concept: str) -> int:
        """Number of the concept of this name or word. Raises `UserError` where the set has none."""
        return self.concepts.concepts.index(concept_named(self.concepts, concept))


def bench(
    run: str | Path,
    dictionary: str | None = None,
    seed: int = 0,
    features: Sequence[int] = (),
    concept: str | None = None,
) -> Bench:
    """Load all that steering needs; `dictionary` is the run's first unless named.

    Raises `UserError` where a stage before this one is missing, where the model's blocks cannot be run on their own, and,
    before anything slow, where `features` or `concept` are not there.
    """
    run = Path(run)
    config = config_of(run)
    names = [one.name for one in config.dictionaries]
    name = names[0] if dictionary is None else dictionary
    if name not in names:
        raise UserError(f"There is no dictionary '{name}' in this run; it has {', '.join(names)}.")
    concepts, found = load_concepts(config.concepts), load_dictionary(run, name)
    if not (run / "labels" / name / "features.parquet").is_file():
        raise UserError(f"{run} has no labels for dictionary '{name}' yet; run the label stage first.")
    columns = ["feature", "label", "status", "screened"]
    rows = read_table(run / "labels" / name / "features.parquet").select(columns).to_pylist()
    if [row["feature"] for row in rows] != list(range(found.d_sae)):
        raise UserError(f"The labels of '{name}' belong to another dictionary; run the label stage again.")
    check_features(found, features)
    if concept is not None:
        concept_named(concepts, concept)
    dense_CD = dense_vectors(run, name, len(concepts.concepts), found.d_in)
    measured = scale(run, found, seed)
    model = load_model(config.model, torch.bfloat16 if config.model.dtype == "bfloat16" else torch.float32)
    return Bench(
        config,
        model,
        Upper(model.model, found.block),
        found,
        measured,
        concepts,
        tuple(row["label"] for row in rows),
        np.array([row["feature"] for row in rows if row["status"] == "none" and not row["screened"]], np.int64),
        dense_CD,
        [int(one) for one in read_json(run / "activations" / "concepts" / "plan.json")["special_ids"]],
    )


def prompt_ids(model: Model, prompt: str, raw: bool) -> list[int]:
    """Tokens of a prompt: as a user's turn up to where the answer begins, or as it is (`raw`, or no chat model).

    Raises `UserError` for a prompt without a token that may be steered.
    """
    if not prompt.strip():
        raise UserError("The prompt is empty; give a text to steer.")
    text = prompt
    if not raw and getattr(model.tokenizer, "chat_template", None):
        text = render_chat([{"role": "user", "content": prompt}], model.tokenizer, "The prompt", reply=True)
    ids: list[int] = model.tokenizer(text)["input_ids"]
    if not set(ids[1:]) - set(special_ids(model.tokenizer)):
        raise UserError("The prompt is shorter than two tokens, and the first is never steered; give a longer one.")
    return ids
