"""What the causal test reads: labels, the dictionary, the dense vectors, and the concept texts as token ids.

Shapes: F labelled features, L latents (features first, then candidates for controls), C concepts, D residual width.
"""

from collections import defaultdict
from collections.abc import Sequence
from itertools import zip_longest
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch

from sae_emotions.artefact import read_json
from sae_emotions.concepts.concept_set import ConceptSet, load_concepts
from sae_emotions.config import RunConfig
from sae_emotions.dictionary.encode import Dictionary, load_dictionary
from sae_emotions.errors import UserError
from sae_emotions.harvest.rows import Rows, mapped, open_rows, read_documents
from sae_emotions.schema import read_table

_COLUMNS = ("feature", "label", "status", "screened")
CANDIDATES = 4096  # unlabelled latents that are considered as controls, at most


class Story(NamedTuple):
    """A concept text."""

    document: int
    concept: int
    cell: str
    topic: str
    ids: list[int]


class Material(NamedTuple):
    """All inputs of the stage, the model apart."""

    concepts: ConceptSet
    dictionary: Dictionary
    latents_L: np.ndarray
    """numbers of the labelled features, then of the candidates"""
    own_F: np.ndarray
    """number of each labelled feature's concept, which is also its word's"""
    norms_L: np.ndarray
    """norms of the decoder directions"""
    dense_CD: torch.Tensor
    """unit difference-of-means vectors"""
    held_out: list[Story]
    """in a seeded order"""
    selection: dict[int, list[Story]]
    """concept -> its selection texts in a seeded order, the cells in turn"""
    special: list[int]
    """token ids that are never edited"""
    rows: Rows
    dtype: str
    """type that the model was harvested in: what this machine is fast at"""

    @property
    def candidates_C(self) -> np.ndarray:
        """Places of the candidates for controls among the latents."""
        return np.arange(len(self.own_F), len(self.latents_L))


def _labels(run: Path, name: str) -> dict[str, np.ndarray]:
    path = run / "labels" / name / "features.parquet"
    if not path.is_file():
        raise UserError(f"{run} has no labels for dictionary '{name}' yet; run the label stage first.")
    table = read_table(path)
    return {column: np.array(table[column].to_pylist()) for column in _COLUMNS}


def dense_vectors(run: Path, name: str, count: int, width: int) -> torch.Tensor:
    """Each concept's difference of means on the selection texts, as unit vectors. Raises `UserError` where they do not fit."""
    tensors = mapped(run / "labels" / name / "dense.safetensors")
    if "dense_CD" not in tensors or tensors["dense_CD"].shape != (count, width):
        raise UserError(f"The dense vectors of {run / 'labels' / name} do not fit; run the label stage again.")
    return torch.nn.functional.normalize(torch.from_numpy(np.array(tensors["dense_CD"])).float(), dim=1)


def _stories(config: RunConfig, folder: Path, split: str, concepts: ConceptSet) -> list[Story]:
    """Texts of one split, in the harvest's order. Raises `UserError` where there are none."""
    number = {concept.name: n for n, concept in enumerate(concepts.concepts)}
    of = {text.id: text for text in concepts.texts if text.split == split}
    table = read_documents(folder)
    columns = (table[name].to_pylist() for name in ("document", "key", "token_ids"))
    found = [
        Story(int(document), number[one.concept], one.cell, one.topic, ids[: config.harvest.context])
        for document, key, ids in zip(*columns, strict=True)
        if (one := of.get(key)) is not None
    ]
    if not found:
        raise UserError(f"{folder} holds no {split.replace('_', '-')} text of the concept set; run the harvest again.")
    return found


def in_turn(stories: Sequence[Story], rng: np.random.Generator) -> dict[int, list[Story]]:
    """Each concept's texts in a seeded order, the cells in turn."""
    found: dict[int, dict[str, list[Story]]] = defaultdict(lambda: defaultdict(list))
    for n in rng.permutation(len(stories)):
        found[stories[n].concept][stories[n].cell].append(stories[n])
    return {
        concept: [story for turn in zip_longest(*cells.values()) for story in turn if story is not None]
        for concept, cells in sorted(found.items())
    }


def gather(config: RunConfig, run: Path, name: str) -> Material:
    """Read all inputs. Raises `UserError` where a stage before this one is missing or its files do not fit."""
    rng = np.random.default_rng(config.seed)
    concepts = load_concepts(config.concepts)
    dictionary = load_dictionary(run, name)
    labels = _labels(run, name)
    if len(labels["feature"]) and labels["feature"].max() >= dictionary.d_sae:
        raise UserError(f"The labels of '{name}' belong to another dictionary; run the label stage again.")
    labelled_X = labels["status"] == "labelled"
    number = {concept.name: n for n, concept in enumerate(concepts.concepts)}
    missing = sorted(set(labels["label"][labelled_X]) - set(number))
    if missing:
        raise UserError(
            f"The concept set has no concept '{missing[0]}', which a label names; run the label stage again."
        )
    tested_X = np.flatnonzero(labelled_X)
    free = np.sort(labels["feature"][(labels["status"] == "none") & ~labels["screened"].astype(bool)])
    candidates = np.sort(rng.permutation(free)[:CANDIDATES])
    latents_L = np.concatenate([labels["feature"][tested_X], candidates]).astype(np.int64)
    folder = run / "activations" / "concepts"
    plan: dict[str, Any] = read_json(folder / "plan.json")
    held_out = _stories(config, folder, "held_out", concepts)
    selection = _stories(config, folder, "selection", concepts)
    return Material(
        concepts,
        dictionary,
        latents_L,
        np.array([number[label] for label in labels["label"][tested_X]], dtype=np.int64),
        dictionary.W_dec_FD[torch.from_numpy(latents_L)].norm(dim=1).numpy(),
        dense_vectors(run, name, len(concepts.concepts), dictionary.d_in),
        [held_out[n] for n in rng.permutation(len(held_out))],
        in_turn(selection, np.random.default_rng([config.seed, 4])),
        [int(i) for i in plan["special_ids"]],
        open_rows(folder, dictionary.block),
        plan["dtype"],
    )
