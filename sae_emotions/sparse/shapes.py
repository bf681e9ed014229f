"""What the engines of the sparse step share: its parameters, the active values, the errors, the gradients.

B rows, D residual width, M latents, P active pairs of row and latent (in row order, then by latent), L nested levels.
"""

from collections.abc import Callable
from typing import NamedTuple, Protocol

import torch


class Weights(NamedTuple):
    """An SAE's parameters (or their gradients, or Adam's means), float32, rows contiguous."""

    We_MD: torch.Tensor
    be_M: torch.Tensor
    Wd_MD: torch.Tensor
    bd_D: torch.Tensor


class Active(NamedTuple):
    """The active latents of some rows."""

    start_B1: torch.Tensor
    """where each row's pairs begin, and their end; int64"""
    index_P: torch.Tensor
    """latents, int64"""
    value_P: torch.Tensor
    """pre-activations, at least 0"""
    unsure: int = 0
    """rows whose choice the fast screen could not prove, so that it was made in float32"""

    @staticmethod
    def of(acts_BM: torch.Tensor) -> "Active":
        """What is not zero in a matrix."""
        there = acts_BM.nonzero()
        start_B1 = torch.cat([there.new_zeros(1), (acts_BM != 0).sum(1).cumsum(0)])
        return Active(start_B1, there[:, 1], acts_BM[there[:, 0], there[:, 1]])

    def rows(self) -> torch.Tensor:
        """The row of each pair (P)."""
        count_B = self.start_B1.diff()
        return torch.arange(len(count_B), device=count_B.device).repeat_interleave(count_B)

    def dense(self, latents: int) -> torch.Tensor:
        """Values in a matrix B x M, zero elsewhere."""
        acts_BM = self.value_P.new_zeros(len(self.start_B1) - 1, latents)
        acts_BM.view(-1)[self.rows() * latents + self.index_P] = self.value_P
        return acts_BM


class Errors(NamedTuple):
    """How far the reconstruction is off, and what follows for each active value."""

    error_BLD: torch.Tensor
    """gradient of the loss by each level's reconstruction, summed over the level and all wider ones"""
    loss_L: torch.Tensor
    """mean squared error (summed over D) of each level"""
    grad_P: torch.Tensor
    """gradient of the loss by each pre-activation"""


class Engine(Protocol):
    """One way to compute the step."""

    def top(self, x_BD: torch.Tensor, weights: Weights, norm_M: torch.Tensor, k: int) -> Active:
        """The k latents a row with the largest scores: pre-activation times `norm_M`."""
        ...

    def top_of_batch(
        self, x_BD: torch.Tensor, weights: Weights, norm_M: torch.Tensor, k: int, guess: float | None
    ) -> Active:
        """The k x B largest positive scores of the whole batch; `guess`, if given, is about the smallest of them."""
        ...

    def above(self, x_BD: torch.Tensor, weights: Weights, threshold_M: torch.Tensor) -> Active:
        """The latents whose pre-activation is above their threshold."""
        ...

    def errors(self, x_BD: torch.Tensor, weights: Weights, active: Active, level_M: torch.Tensor) -> Errors:
        """Decode, and the gradients by what was decoded."""
        ...

    def gradients(
        self, x_BD: torch.Tensor, weights: Weights, active: Active, errors: Errors, level_M: torch.Tensor
    ) -> Weights:
        """Gradients of the mean squared error, all levels together."""
        ...

    def share(self, count: int, work: Callable[[slice], object]) -> None:
        """Have `work` done on all of `count` rows, in parts that may run at once."""
        ...

    def scaled(self, x_BD: torch.Tensor, scale: float) -> torch.Tensor:
        """Rows times a number."""
        ...

    def scores(self, active: Active, norm_M: torch.Tensor) -> torch.Tensor:
        """Each value times the norm of its latent (P)."""
        ...

    def fired(self, active: Active, latents: int) -> torch.Tensor:
        """In how many rows each latent is above zero (M), float32."""
        ...

    def norms(self, W_MD: torch.Tensor) -> torch.Tensor:
        """Norm of each row (M)."""
        ...

    def squared_norm(self, gradient: Weights) -> float | torch.Tensor:
        """Sum of squares of all entries; a tensor where reading a number would wait for the device."""
        ...

    def adam(self, weights: Weights, gradient: Weights, mean: Weights, square: Weights, rate: "AdamRate") -> None:
        """One step of Adam, in place."""
        ...


class AdamRate(NamedTuple):
    """The numbers of one Adam step."""

    lr: float
    beta1: float
    beta2: float
    eps: float
    step: int
    """counted from 1"""
    clip: float | torch.Tensor
    """what gradients are multiplied by first"""
