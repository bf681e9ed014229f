"""AuxK (Gao et al. 2024, A.2): dead latents learn from what the living ones leave over.

B rows, D residual width, N dead latents.
"""

import torch

from sae_emotions.sparse.shapes import Engine, Weights


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
    centred_BD, off_BD = torch.empty_like(x_BD), torch.empty_like(x_BD)
    acts_BN, g_BN = x_BD.new_empty(rows, dead), x_BD.new_empty(rows, dead)
    losses: dict[int, torch.Tensor] = {}
    taken_back: dict[int, torch.Tensor] = {}

    def gather(part: slice) -> None:
        for into, column in ((We_ND, weights.We_MD), (Wd_ND, weights.Wd_MD), (be_N, weights.be_M), (norm_N, norm_M)):
            into[part] = column[dead_N[part]]

    def forward(part: slice) -> None:
        centred, acts, off, g = centred_BD[part], acts_BN[part], off_BD[part], g_BN[part]
        torch.sub(x_BD[part], weights.bd_D, out=centred)
        torch.addmm(be_N, centred, We_ND.t(), out=acts)
        keep = None
        if dead > most:
            top = (acts * norm_N).topk(most, -1, sorted=False).indices
            keep = torch.zeros_like(acts).scatter_(-1, top, 1.0)
            acts.mul_(keep)
        torch.mm(acts, Wd_ND, out=off)
        off.add_(error_BD[part], alpha=rows / 2)
        losses[part.stop] = off.pow(2).sum()
        off.mul_(2 * scale / rows)
        torch.mm(off, Wd_ND.t(), out=g)
        if keep is not None:
            g.mul_(keep)

    def backward(part: slice) -> None:
        some_N, g, acts = dead_N[part], g_BN[:, part], acts_BN[:, part]
        bias_N = g.sum(0)
        gradient.Wd_MD[some_N] += acts.t() @ off_BD
        gradient.We_MD[some_N] += g.t() @ centred_BD
        gradient.be_M[some_N] += bias_N
        taken_back[part.stop] = bias_N @ We_ND[part]

    engine.share(dead, gather)
    engine.share(rows, forward)
    engine.share(dead, backward)
    gradient.bd_D.sub_(torch.stack([taken_back[stop] for stop in sorted(taken_back)]).sum(0))
    return scale * torch.stack([losses[stop] for stop in sorted(losses)]).sum() / rows
