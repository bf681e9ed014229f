"""AuxK (Gao et al. 2024, A.2): dead latents learn from what the living ones leave over.

Where all dead latents take part, loss and gradients need no row's new error: with the decoder rows' products Wd Wd^T and the
activations' A^T A they are four products of B x N x D and two of B x N x N. Where only the strongest take part (more than
D / 2 are dead), they are five of B x N x D.

B rows, D residual width, N dead latents.
"""

from typing import NamedTuple

import torch

from sae_emotions.sparse.shapes import Engine, Weights

CHUNK = 512
"""Rows at once: what lies between the products stays in the cache."""
LANES = 16
"""Few dead latents are rounded up to a multiple of this by some that are zero: such products are faster."""


class _Dead(NamedTuple):
    """Weights of the dead latents."""

    We_ND: torch.Tensor
    Wd_ND: torch.Tensor
    be_N: torch.Tensor
    norm_N: torch.Tensor
    bd_D: torch.Tensor


class _Sums(NamedTuple):
    """Gradients over some rows, and the loss."""

    We_ND: torch.Tensor
    Wd_ND: torch.Tensor
    be_N: torch.Tensor
    loss: torch.Tensor


def revive(
    engine: Engine,
    x_BD: torch.Tensor,
    error_BD: torch.Tensor,
    weights: Weights,
    norm_M: torch.Tensor,
    dead_N: torch.Tensor,
    coefficient: float,
    gradient: Weights,
) -> torch.Tensor:
    """Let the strongest dead latents predict what is left over; adds to `gradient`, and returns the loss, scaled as SAELens does.

    `error_BD`: gradient of the mean squared error by the reconstruction. Only the dead latents' columns are computed, each part
    of the rows on a thread of the engine's: a product that torch shares out would leave its threads spinning.
    """
    (rows, width), dead = x_BD.shape, len(dead_N)
    most = width // 2
    scale = coefficient * min(dead / most, 1.0)
    size = dead if dead > most else -(-dead // LANES) * LANES
    zeros = x_BD.new_zeros
    held = _Dead(zeros(size, width), zeros(size, width), zeros(size), zeros(size), weights.bd_D)
    sums: dict[tuple[int, int], _Sums] = {}

    def gather(part: slice) -> None:
        columns = weights.We_MD, weights.Wd_MD, weights.be_M, norm_M
        for into, column in zip(held[:4], columns, strict=True):
            into[part] = column[dead_N[part]]

    def learn(part: slice) -> None:
        some = x_BD[part], error_BD[part], held, scale, rows
        sums[part.start, part.stop] = _by_all(*some) if dead <= most else _by_the_strongest(*some, most)

    engine.share(dead, gather)
    engine.share(rows, learn)
    made = [sums[part] for part in sorted(sums)]
    bias_N = torch.stack([one.be_N for one in made]).sum(0)
    taken_back: dict[tuple[int, int], torch.Tensor] = {}

    def add(part: slice) -> None:
        for one in made:
            gradient.Wd_MD[dead_N[part]] += one.Wd_ND[part]
            gradient.We_MD[dead_N[part]] += one.We_ND[part]
        gradient.be_M[dead_N[part]] += bias_N[part]
        taken_back[part.start, part.stop] = bias_N[part] @ held.We_ND[part]

    engine.share(dead, add)
    gradient.bd_D.sub_(torch.stack([taken_back[part] for part in sorted(taken_back)]).sum(0))
    return torch.stack([one.loss for one in made]).sum()


def _nothing(held: _Dead) -> _Sums:
    zeros = torch.zeros_like
    return _Sums(zeros(held.We_ND), zeros(held.Wd_ND), zeros(held.be_N), held.be_N.new_zeros(()))


def _by_all(x_BD: torch.Tensor, error_BD: torch.Tensor, held: _Dead, scale: float, rows: int) -> _Sums:
    """All dead latents predict; `x_BD` are some of a batch's `rows`."""
    made = _nothing(held)
    overlap_NN = held.Wd_ND @ held.Wd_ND.t()
    acts_NN = torch.zeros_like(overlap_NN)
    for some_BD, left_BD in zip(x_BD.split(CHUNK), error_BD.split(CHUNK), strict=True):
        centred_BD = some_BD - held.bd_D
        acts_BN = torch.addmm(held.be_N, centred_BD, held.We_ND.t())
        g_BN = left_BD @ held.Wd_ND.t()
        made.loss.add_(torch.dot(acts_BN.view(-1), g_BN.view(-1)) + rows / 4 * left_BD.pow(2).sum())
        g_BN.addmm_(acts_BN, overlap_NN, alpha=2 / rows)
        made.Wd_ND.addmm_(acts_BN.t(), left_BD)
        acts_NN.addmm_(acts_BN.t(), acts_BN)
        made.We_ND.addmm_(g_BN.t(), centred_BD)
        made.be_N.add_(g_BN.sum(0))
    made.Wd_ND.addmm_(acts_NN, held.Wd_ND, alpha=2 / rows)
    made.loss.add_((acts_NN * overlap_NN).sum() / rows)
    for one in made:
        one.mul_(scale)
    return made


def _by_the_strongest(
    x_BD: torch.Tensor, error_BD: torch.Tensor, held: _Dead, scale: float, rows: int, most: int
) -> _Sums:
    """Of each row the `most` strongest dead latents predict; `x_BD` are some of a batch's `rows`."""
    made = _nothing(held)
    for some_BD, left_BD in zip(x_BD.split(CHUNK), error_BD.split(CHUNK), strict=True):
        centred_BD = some_BD - held.bd_D
        acts_BN = torch.addmm(held.be_N, centred_BD, held.We_ND.t())
        top = (acts_BN * held.norm_N).topk(most, -1, sorted=False).indices
        keep_BN = torch.zeros_like(acts_BN).scatter_(-1, top, 1.0)
        acts_BN *= keep_BN
        off_BD = torch.addmm(left_BD, acts_BN, held.Wd_ND, beta=rows / 2)
        made.loss.add_(scale / rows * off_BD.pow(2).sum())
        off_BD *= 2 * scale / rows
        g_BN = (off_BD @ held.Wd_ND.t()).mul_(keep_BN)
        made.Wd_ND.addmm_(acts_BN.t(), off_BD)
        made.We_ND.addmm_(g_BN.t(), centred_BD)
        made.be_N.add_(g_BN.sum(0))
    return made
