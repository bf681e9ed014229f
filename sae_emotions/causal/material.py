"""What the causal test reads: labels, the dictionary, the dense vectors, and the held-out texts as token ids.

Shapes: F labelled features, L latents (features first, then candidates for controls), C concepts, D residual width.
"""

from collections import Counter
from collections.abc import Sequence
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

_COLUMNS = ("feature", "label", "status", "screened", "auroc_selection")
CANDIDATES = 4096  # unlabelled latents that are considered as controls, at most


class HeldOut(NamedTuple):
    """A held-out text."""

    document: int
    cell: str
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
    held_out: list[HeldOut]
    """in a seeded order"""
    special: list[int]
    """token ids that are never edited"""
    rows: Rows
    left_out: int
    """labelled features that are not tested"""
    dtype: str
    """type that the model was harvested in: what this machine is fast at"""


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


def _texts(config: RunConfig, folder: Path, concepts: ConceptSet, rng: np.random.Generator) -> list[HeldOut]:
    cells = {text.id: text.cell for text in concepts.texts if text.split == "held_out"}
    table = read_documents(folder)
    found = [
        HeldOut(int(document), cells[key], ids[: config.harvest.context])
        for document, key, ids in zip(
            *(table[name].to_pylist() for name in ("document", "key", "token_ids")), strict=True
        )
        if key in cells
    ]
    if not found:
        raise UserError(f"{folder} holds no held-out text of the concept set; run the harvest again.")
    return [found[n] for n in rng.permutation(len(found))]


def first_of_each(labels: Sequence[str], auroc_X: np.ndarray, most: int | None) -> np.ndarray:
    """Numbers of the features to test: each concept's best first, then each one's second, by selection-set AUROC."""
    order = np.argsort(-auroc_X, kind="stable")
    seen: Counter[str] = Counter()
    turn_X = np.zeros(len(auroc_X), np.int64)
    for x in order:
        turn_X[x] = seen[labels[x]]
        seen[labels[x]] += 1
    return np.sort(np.lexsort((np.arange(len(auroc_X)), -auroc_X, turn_X))[:most])


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
    best = first_of_each(
        labels["label"][tested_X].tolist(), labels["auroc_selection"][tested_X], config.ablate.features
    )
    tested_X = tested_X[best]
    free = np.sort(labels["feature"][(labels["status"] == "none") & ~labels["screened"].astype(bool)])
    candidates = np.sort(rng.permutation(free)[:CANDIDATES])
    latents_L = np.concatenate([labels["feature"][tested_X], candidates]).astype(np.int64)
    folder = run / "activations" / "concepts"
    plan: dict[str, Any] = read_json(folder / "plan.json")
    return Material(
        concepts,
        dictionary,
        latents_L,
        np.array([number[label] for label in labels["label"][tested_X]], dtype=np.int64),
        dictionary.W_dec_FD[torch.from_numpy(latents_L)].norm(dim=1).numpy(),
        dense_vectors(run, name, len(concepts.concepts), dictionary.d_in),
        _texts(config, folder, concepts, rng),
        [int(i) for i in plan["special_ids"]],
        open_rows(folder, dictionary.block),
        int(labelled_X.sum()) - len(tested_X),
        plan["dtype"],
    )
