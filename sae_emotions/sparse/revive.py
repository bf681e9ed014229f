"""AuxK (Gao et al. 2024, A.2): dead latents learn from what the living ones leave over.

B rows, D residual width, N dead latents.
"""

from typing import NamedTuple

import torch

from sae_emotions.sparse.shapes import Engine, Weights

CHUNK = 256
"""Rows at once: what lies between the five products stays in the cache."""


class _Sums(NamedTuple):
    """Gradients over some rows, and the sum of squares of what is still left."""

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

    `error_BD`: gradient of the mean squared error by the reconstruction. Only the dead latents' columns are computed, five
    products of B x N x D, each part on a thread of the engine's: one that torch shares out would leave its threads spinning.
    """
    (rows, width), dead = x_BD.shape, len(dead_N)
    most = width // 2
    scale = coefficient * min(dead / most, 1.0)
    We_ND, Wd_ND = x_BD.new_empty(dead, width), x_BD.new_empty(dead, width)
    be_N, norm_N = x_BD.new_empty(dead), x_BD.new_empty(dead)
    sums: dict[tuple[int, int], _Sums] = {}

    def gather(part: slice) -> None:
        for into, column in ((We_ND, weights.We_MD), (Wd_ND, weights.Wd_MD), (be_N, weights.be_M), (norm_N, norm_M)):
            into[part] = column[dead_N[part]]

    def learn(part: slice) -> None:
        total = sums[part.start, part.stop] = _Sums(
            torch.zeros_like(We_ND), torch.zeros_like(Wd_ND), torch.zeros_like(be_N), x_BD.new_zeros(())
        )
        for at in range(part.start, part.stop, CHUNK):
            some = slice(at, min(at + CHUNK, part.stop))
            centred_BD = x_BD[some] - weights.bd_D
            acts_BN = torch.addmm(be_N, centred_BD, We_ND.t())
            keep_BN = None
            if dead > most:
                top = (acts_BN * norm_N).topk(most, -1, sorted=False).indices
                keep_BN = torch.zeros_like(acts_BN).scatter_(-1, top, 1.0)
                acts_BN *= keep_BN
            off_BD = torch.addmm(error_BD[some], acts_BN, Wd_ND, beta=rows / 2)
            total.loss.add_(off_BD.pow(2).sum())
            off_BD *= 2 * scale / rows
            g_BN = off_BD @ Wd_ND.t()
            if keep_BN is not None:
                g_BN *= keep_BN
            total.Wd_ND.addmm_(acts_BN.t(), off_BD)
            total.We_ND.addmm_(g_BN.t(), centred_BD)
            total.be_N.add_(g_BN.sum(0))

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
        taken_back[part.start, part.stop] = bias_N[part] @ We_ND[part]

    engine.share(dead, add)
    gradient.bd_D.sub_(torch.stack([taken_back[part] for part in sorted(taken_back)]).sum(0))
    return scale * torch.stack([one.loss for one in made]).sum() / rows
