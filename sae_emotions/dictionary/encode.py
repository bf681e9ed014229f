"""Encode: one function for every SAE, trained here or loaded. B: rows, D: residual width, F: latents."""

import copy
import functools
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch

from sae_emotions.adapters import saelens
from sae_emotions.artefact import read_json
from sae_emotions.errors import UserError
from sae_emotions.harvest.rows import mapped
from sae_emotions.sparse.plain import Plain
from sae_emotions.sparse.shapes import Active, Engine, Weights
from sae_emotions.sparse.step import engine_for

MANY = 1024
"""Rows from which on it pays to compile the encoder, which takes some seconds."""


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
    active: Callable[[torch.Tensor], Active]
    """x_BD to the latents that fire, and their activations"""

    def features(self, x_BD: torch.Tensor) -> torch.Tensor:
        """acts_BF, float32, zero where a latent does not fire."""
        return self.active(x_BD).dense(self.d_sae)

    def decoded(self, acts_BF: torch.Tensor) -> torch.Tensor:
        """The rows that activations spell, x_BD."""
        with torch.inference_mode():
            return self.sae.decode(acts_BF).float()

    def direction(self, feature: int) -> np.ndarray:
        """Decoder direction of a latent (D), in residual-stream units an activation of one adds."""
        return self.W_dec_FD[feature].numpy()


def wrapped(sae: Any, name: str, block: int, centre_D: np.ndarray | None = None) -> Dictionary:
    """A SAELens object as a `Dictionary`; `centre_D`, if known, is what its rows were stored around."""
    W_dec_FD, b_dec_D = sae.W_dec.detach().float(), sae.b_dec.detach().float()
    return Dictionary(
        name, block, int(sae.cfg.d_in), int(sae.cfg.d_sae), W_dec_FD, b_dec_D, sae, _encoder(sae, centre_D)
    )


def randomised(dictionary: Dictionary, centre_D: np.ndarray, seed: int) -> Dictionary:
    """A dictionary of the same shape and architecture with random directions, tied, around `centre_D`: nothing is learnt.

    Rows keep their lengths; biases of the latents are zero, thresholds stay.
    """
    sae = copy.deepcopy(dictionary.sae)
    # Not torch's generator: under the same seed it would draw what the dictionary was initialised with.
    draw_FD = np.random.default_rng([seed, 4]).standard_normal(tuple(sae.W_dec.shape)).astype(np.float32)
    with torch.no_grad():
        direction_FD = torch.nn.functional.normalize(torch.from_numpy(draw_FD).to(sae.W_dec.device), dim=1)
        sae.W_dec.copy_(direction_FD * sae.W_dec.norm(dim=1, keepdim=True))
        sae.W_enc.copy_(direction_FD.T * sae.W_enc.norm(dim=0, keepdim=True))
        sae.b_dec.copy_(torch.from_numpy(np.array(centre_D)))
        if hasattr(sae, "b_enc"):
            sae.b_enc.zero_()
    return wrapped(sae, f"{dictionary.name}-random", dictionary.block, centre_D)


def _encoder(sae: Any, centre_D: np.ndarray | None) -> Callable[[torch.Tensor], Active]:
    """The sparse step's own selection where it follows the SAE's architecture, SAELens' encoder where it does not."""
    kind = sae.cfg.architecture()
    plain = sae.cfg.normalize_activations == "none" and sae.cfg.apply_b_dec_to_input
    if not plain or sae.cfg.reshape_activations != "none" or kind not in ("topk", "jumprelu"):
        return lambda x_BD: _from_dense(sae, x_BD)
    tensors = (sae.W_enc.t().contiguous(), sae.b_enc, sae.W_dec, sae.b_dec)
    weights = Weights(*(tensor.detach().float() for tensor in tensors))
    origin_D = None if centre_D is None else torch.from_numpy(np.array(centre_D))
    few = Plain()

    @functools.cache
    def many() -> Engine:
        return engine_for(weights.We_MD.device, weights.We_MD.numel(), origin_D, fixed=True)

    def engine(x_BD: torch.Tensor) -> Engine:
        return many() if len(x_BD) >= MANY or many.cache_info().currsize else few

    if kind == "jumprelu":
        threshold_M = sae.threshold.detach().float().clamp_min(0)
        return lambda x_BD: engine(x_BD).above(x_BD, weights, threshold_M)
    norm_M = torch.ones_like(weights.be_M)
    if sae.cfg.rescale_acts_by_decoder_norm:
        norm_M = weights.Wd_MD.norm(dim=1)

    def top(x_BD: torch.Tensor) -> Active:
        found = engine(x_BD).top(x_BD, weights, norm_M, int(sae.cfg.k))
        return found._replace(value_P=found.value_P * norm_M[found.index_P])

    return top


def _from_dense(sae: Any, x_BD: torch.Tensor) -> Active:
    with torch.inference_mode():
        acts_BF = sae.encode(x_BD)
        return Active.of((acts_BF.to_dense() if acts_BF.is_sparse else acts_BF).float())


def load_dictionary(run: Path, name: str) -> Dictionary:
    """The dictionary `name` of a run. Raises `UserError` where it is missing or damaged."""
    folder = run / "dictionaries" / name
    if not (folder / "quality.json").is_file():
        raise UserError(f"{run} has no dictionary '{name}' yet; run the train stage first.")
    block = int(read_json(folder / "quality.json")["block"])
    centre = run / "activations" / "text" / "centre.safetensors"
    centre_D = mapped(centre).get(f"block{block}.centre") if centre.is_file() else None
    return wrapped(saelens.load(folder), name, block, centre_D)
