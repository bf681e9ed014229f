"""Encode: one function for every SAE, trained here or loaded. B: rows, D: residual width, F: latents."""

from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch

from sae_emotions.adapters import saelens
from sae_emotions.artefact import read_json
from sae_emotions.errors import UserError


class Dictionary(NamedTuple):
    """A dictionary of `d_sae` directions for one block."""

    name: str
    block: int
    d_in: int
    d_sae: int
    W_dec_FD: torch.Tensor
    b_dec_D: torch.Tensor
    sae: Any
    """the SAELens object"""

    def features(self, x_BD: torch.Tensor) -> torch.Tensor:
        """acts_BF, float32, zero where a latent does not fire."""
        with torch.inference_mode():
            acts_BF = self.sae.encode(x_BD)
            return (acts_BF.to_dense() if acts_BF.is_sparse else acts_BF).float()

    def reconstruction(self, x_BD: torch.Tensor) -> torch.Tensor:
        """The rows as the dictionary spells them, x_BD."""
        with torch.inference_mode():
            return self.sae.decode(self.sae.encode(x_BD)).float()

    def direction(self, feature: int) -> np.ndarray:
        """Decoder direction of a latent (D), in residual-stream units an activation of one adds."""
        return self.W_dec_FD[feature].numpy()


def wrapped(sae: Any, name: str, block: int) -> Dictionary:
    """A SAELens object as a `Dictionary`."""
    W_dec_FD, b_dec_D = sae.W_dec.detach().float(), sae.b_dec.detach().float()
    return Dictionary(name, block, int(sae.cfg.d_in), int(sae.cfg.d_sae), W_dec_FD, b_dec_D, sae)


def load_dictionary(run: Path, name: str) -> Dictionary:
    """The dictionary `name` of a run. Raises `UserError` where it is missing or damaged."""
    folder = run / "dictionaries" / name
    if not (folder / "quality.json").is_file():
        raise UserError(f"{run} has no dictionary '{name}' yet; run the train stage first.")
    return wrapped(saelens.load(folder), name, int(read_json(folder / "quality.json")["block"]))
