"""AuxK (Gao et al. 2024, A.2): dead latents learn from what the living ones leave over.

B rows, D residual width, N dead latents.
"""

import torch

from sae_emotions.sparse.shapes import Engine, Weights


def revive(
    engine: Engine,
    x_BD: torch.Tensor,
    left_BD: torch.Tensor,
    weights: Weights,
    norm_M: torch.Tensor,
    dead_N: torch.Tensor,
    coefficient: float,
    gradient: Weights,
) -> torch.Tensor:
    """Let the strongest dead latents predict `left_BD`; adds to `gradient`, and returns the loss, scaled as SAELens scales it.

    Only the dead latents' columns are computed: five products of B x N x D.
    """
    rows, width = x_BD.shape
    most = width // 2
    scale = coefficient * min(len(dead_N) / most, 1.0)
    We_ND, Wd_ND, be_N = weights.We_MD[dead_N], weights.Wd_MD[dead_N], weights.be_M[dead_N]
    norm_N = norm_M[dead_N]
    centred_BD, g_BD = torch.empty_like(x_BD), torch.empty_like(x_BD)
    acts_BN, g_BN = x_BD.new_empty(rows, len(dead_N)), x_BD.new_empty(rows, len(dead_N))
    losses: dict[int, torch.Tensor] = {}

    def forward(part: slice) -> None:
        centred, acts, off, g = centred_BD[part], acts_BN[part], g_BD[part], g_BN[part]
        torch.sub(x_BD[part], weights.bd_D, out=centred)
        torch.addmm(be_N, centred, We_ND.t(), out=acts)
        keep = None
        if len(dead_N) > most:
            top = (acts * norm_N).topk(most, -1, sorted=False).indices
            keep = torch.zeros_like(acts).scatter_(-1, top, 1.0)
            acts.mul_(keep)
        torch.mm(acts, Wd_ND, out=off)
        off.sub_(left_BD[part])
        losses[part.stop] = off.pow(2).sum()
        off.mul_(2 * scale / rows)
        torch.mm(off, Wd_ND.t(), out=g)
        if keep is not None:
            g.mul_(keep)

    def backward(part: slice) -> None:
        some_N, g, acts = dead_N[part], g_BN[:, part], acts_BN[:, part]
        gradient.Wd_MD[some_N] += acts.t() @ g_BD
        gradient.We_MD[some_N] += g.t() @ centred_BD
        gradient.be_M[some_N] += g.sum(0)

    engine.share(rows, forward)
    engine.share(len(dead_N), backward)
    gradient.bd_D.sub_(g_BN.sum(0) @ We_ND)
    return scale * torch.stack([losses[stop] for stop in sorted(losses)]).sum() / rows
