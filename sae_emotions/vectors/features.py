"""A dictionary's side of the comparison: decoder directions of labelled features, and activations of chosen ones.

Shapes: C concepts, L labelled concepts, D residual width, N rows, U distinct chosen features.
"""

from pathlib import Path
from typing import NamedTuple

import numpy as np

from sae_emotions.dictionary.encode import Dictionary, load_dictionary
from sae_emotions.errors import UserError
from sae_emotions.harvest.harvest import ShardRows
from sae_emotions.label.means import encoded
from sae_emotions.schema import read_table
from sae_emotions.vectors.reading import View
from sae_emotions.vectors.recipe import unit

CHUNK = 2048
"""Rows encoded at once."""


class Labelled(NamedTuple):
    """A labelled dictionary as this room reads it."""

    dictionary: Dictionary
    features: int
    """labelled features"""
    chosen_C: np.ndarray
    """the one feature chosen for each concept on the selection set, labelled or not"""
    concept_L: np.ndarray
    """concepts with labelled features"""
    directions_LD: np.ndarray
    """mean of the unit decoder directions of each one's labelled features"""

    @property
    def chosen_CD(self) -> np.ndarray:
        """Decoder directions of the chosen features."""
        return self.dictionary.W_dec_FD.float().cpu().numpy()[self.chosen_C]

    def view(self) -> View:
        """Activation of each concept's chosen feature in each row, x_NC."""
        chosen_U, column_C = np.unique(self.chosen_C, return_inverse=True)
        place_F = np.full(self.dictionary.d_sae, -1)
        place_F[chosen_U] = np.arange(len(chosen_U))

        def acts(rows: ShardRows) -> np.ndarray:
            x_ND = rows.rows[self.dictionary.block].numpy()
            acts_NU = np.zeros((len(x_ND), len(chosen_U)), np.float32)
            for start in range(0, len(x_ND), CHUNK):
                firing = encoded(self.dictionary, x_ND[start : start + CHUNK])
                at_P = place_F[firing.feature_P]
                acts_NU[start + firing.row_P[at_P >= 0], at_P[at_P >= 0]] = firing.value_P[at_P >= 0]
            return acts_NU[:, column_C.reshape(-1)]

        return acts


def read_labelled(run: Path, name: str, concepts: list[str]) -> Labelled:
    """The dictionary `name` and its labels. Raises `UserError` where either is missing or does not fit the concepts."""
    dictionary = load_dictionary(run, name)
    table = read_table(run / "labels" / name / "concepts.parquet")
    if table["concept"].to_pylist() != concepts:
        raise UserError(f"The labels of '{name}' are of another concept set; run the label stage again.")
    features = table["labelled_features"].to_pylist()
    concept_L = np.array([c for c, some in enumerate(features) if some], np.int64)
    W_dec_FD = dictionary.W_dec_FD.float().cpu().numpy()
    directions_LD = np.zeros((len(concept_L), dictionary.d_in), np.float32)
    for row, c in enumerate(concept_L):
        directions_LD[row] = unit(W_dec_FD[features[c]]).mean(0)
    chosen_C = table["feature"].to_numpy().astype(np.int64)
    return Labelled(dictionary, sum(map(len, features)), chosen_C, concept_L, directions_LD)
