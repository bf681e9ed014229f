"""One training step of TopK, BatchTopK and nested (Matryoshka) SAEs: loss and gradients, from the active values alone.

Losses are SAELens': mean over rows of the squared error summed over D, of each nested level, and AuxK. With
`rescale_acts_by_decoder_norm` a latent competes with its pre-activation times its decoder row's norm; the reconstruction, and
with it the gradients, do not change, for the norm cancels.

B rows, D residual width, M latents, N dead latents, L nested levels.
"""

from importlib.util import find_spec
from typing import NamedTuple

import torch

from sae_emotions.sparse.plain import Plain
from sae_emotions.sparse.revive import revive
from sae_emotions.sparse.shapes import Active, AdamRate, Engine, Errors, Weights

WORTH = 2**20
"""Encoder weights from which on compiling pays; smaller dictionaries train in PyTorch alone."""


class Rule(NamedTuple):
    """What kind of SAE this is."""

    k: int
    of_batch: bool
    """k a row on average over the batch, instead of k in every row"""
    level_M: torch.Tensor
    """nested level of each latent, ascending from 0; all 0 where nothing is nested"""
    aux_coefficient: float


class Loss(NamedTuple):
    """A step's losses and gradients."""

    level_L: torch.Tensor
    """mean squared error of each level; the last is that of the whole dictionary"""
    aux: torch.Tensor
    gradient: Weights
    active: Active
    score_P: torch.Tensor
    """activations as SAELens gives them: pre-activations times the norms that they compete with"""
    errors: Errors

    def output(self, x_BD: torch.Tensor) -> torch.Tensor:
        """The reconstruction, x_BD."""
        return x_BD + self.errors.error_BLD[:, -1] * (len(x_BD) / 2)


def engine_for(device: torch.device, weights: int, origin_D: torch.Tensor | None = None, fixed: bool = False) -> Engine:
    """The fastest engine for a device and this many encoder weights: see `sparse.compiled` for the rest."""
    compiler = _compiler(device)
    if weights < WORTH or compiler is None:
        return Plain()
    if compiler == "triton":
        from sae_emotions.sparse.triton_engine import Triton

        return Triton(fixed)
    from sae_emotions.sparse.compiled import Compiled

    return Compiled(origin_D, fixed=fixed)


def _compiler(device: torch.device) -> str | None:
    """The library that compiles the step for a device, where it is installed."""
    library = {"cpu": "numba", "cuda": "triton"}.get(device.type)
    return library if library and find_spec(library) else None


def spoken(device: torch.device) -> str:
    """How the TopK family trains and encodes on a device, in words."""
    compiler = _compiler(device)
    if compiler is None:
        return f"TopK family: sparse, in PyTorch on the {device.type}"
    if compiler == "triton":
        return "TopK family: sparse, in Triton, screened in float16, settled in float32"
    from sae_emotions.sparse.screen import fastest

    kind = fastest()
    screen = "int8 on VNNI" if kind == "vnni" else kind
    return f"TopK family: sparse, compiled by numba, screened in {screen}, settled in float32"


def loss_and_gradient(
    engine: Engine,
    x_BD: torch.Tensor,
    weights: Weights,
    norm_M: torch.Tensor,
    rule: Rule,
    dead_M: torch.Tensor | None = None,
    guess: float | None = None,
) -> Loss:
    """`norm_M` multiplies pre-activations where latents compete; `guess`: about the smallest score of the last batch."""
    if rule.of_batch:
        active = engine.top_of_batch(x_BD, weights, norm_M, rule.k, guess)
    else:
        active = engine.top(x_BD, weights, norm_M, rule.k)
    errors = engine.errors(x_BD, weights, active, rule.level_M)
    gradient = engine.gradients(x_BD, weights, active, errors, rule.level_M)
    aux = errors.loss_L.new_zeros(())
    if dead_M is not None and rule.aux_coefficient and bool(dead_M.any()):
        error_BD = errors.error_BLD[:, -1]
        aux = revive(engine, x_BD, error_BD, weights, norm_M, dead_M.nonzero()[:, 0], rule.aux_coefficient, gradient)
    return Loss(errors.loss_L, aux, gradient, active, engine.scores(active, norm_M), errors)


def apply_adam(
    engine: Engine, weights: Weights, gradient: Weights, mean: Weights, square: Weights, rate: AdamRate, most: float
) -> None:
    """Clip the gradient to a norm of `most`, as torch does, and take one step of Adam."""
    share = most / (engine.squared_norm(gradient) ** 0.5 + 1e-6)
    least = share.clamp(max=1.0) if isinstance(share, torch.Tensor) else min(1.0, share)
    engine.adam(weights, gradient, mean, square, rate._replace(clip=rate.clip * least))
