"""The sparse step in plain PyTorch, for any device: what small shapes and machines without numba run, and what tests hold
the compiled step against.

B rows, D residual width, M latents, K active latents a row, P active pairs, L nested levels.
"""

import warnings
from collections.abc import Callable

import torch

from sae_emotions.sparse.shapes import Active, AdamRate, Errors, Weights

CHUNK = 512
"""Rows a product: its pre-activations stay in the cache that the selection reads them from."""
GROUP = 16


def largest(score_BM: torch.Tensor, k: int) -> torch.Tensor:
    """Indices (B, K) of each row's k largest entries, ascending: exact, for the k groups with the largest maxima hold them."""
    rows, latents = score_BM.shape
    if latents % GROUP or latents // GROUP < 2 * k:
        return score_BM.topk(k, -1, sorted=False).indices.sort(-1).values
    groups_BGM = score_BM.view(rows, latents // GROUP, GROUP)
    group_BK = groups_BGM.amax(-1).topk(k, -1, sorted=False).indices
    held_BC = groups_BGM.gather(1, group_BK[..., None].expand(-1, -1, GROUP)).reshape(rows, k * GROUP)
    at_BK = held_BC.topk(k, -1, sorted=False).indices
    return (group_BK.gather(1, at_BK // GROUP) * GROUP + at_BK % GROUP).sort(-1).values


def _csr(start: torch.Tensor, column: torch.Tensor, value: torch.Tensor, shape: tuple[int, int]) -> torch.Tensor:
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Sparse CSR tensor support is in beta")
        return torch.sparse_csr_tensor(start, column, value, shape, check_invariants=False)


def _dots(e_BD: torch.Tensor, W_MD: torch.Tensor, active: Active) -> torch.Tensor:
    """e[row] . W[latent] of each pair (P)."""
    return torch.ops.aten._embedding_bag_per_sample_weights_backward(
        e_BD.contiguous(), W_MD, active.index_P, active.start_B1[:-1], active.rows(), 0
    )


class Plain:
    """The engine in PyTorch. It holds no state."""

    def top(self, x_BD: torch.Tensor, weights: Weights, norm_M: torch.Tensor, k: int) -> Active:
        """See `Engine`."""
        centred_BD = x_BD - weights.bd_D
        index, value = [], []
        for part_BD in centred_BD.split(CHUNK):
            pre_BM = torch.addmm(weights.be_M, part_BD, weights.We_MD.t())
            index.append(largest(pre_BM * norm_M, k))
            value.append(pre_BM.gather(1, index[-1]).relu_())
        start_B1 = torch.arange(0, len(x_BD) * k + 1, k, device=x_BD.device)
        return Active(start_B1, torch.cat(index).reshape(-1), torch.cat(value).reshape(-1))

    def top_of_batch(
        self, x_BD: torch.Tensor, weights: Weights, norm_M: torch.Tensor, k: int, guess: float | None
    ) -> Active:
        """See `Engine`."""
        centred_BD, wanted = x_BD - weights.bd_D, k * len(x_BD)
        scores, flat, values = [], [], []
        for number, part_BD in enumerate(centred_BD.split(CHUNK)):
            pre_BM = torch.addmm(weights.be_M, part_BD, weights.We_MD.t())
            score_BM = pre_BM * norm_M
            at = (score_BM > 0).reshape(-1).nonzero()[:, 0]
            if len(at) > wanted:
                at = at[score_BM.reshape(-1)[at].topk(wanted, sorted=False).indices]
            scores.append(score_BM.reshape(-1)[at])
            values.append(pre_BM.reshape(-1)[at])
            flat.append(at + number * CHUNK * len(norm_M))
        score, pairs, value = torch.cat(scores), torch.cat(flat), torch.cat(values)
        if len(score) > wanted:
            best = score.topk(wanted, sorted=False).indices
            pairs, value = pairs[best], value[best]
        pairs, order = pairs.sort()
        count_B = torch.bincount(pairs // len(norm_M), minlength=len(x_BD))
        start_B1 = torch.cat([count_B.new_zeros(1), count_B.cumsum(0)])
        return Active(start_B1, pairs % len(norm_M), value[order])

    def above(self, x_BD: torch.Tensor, weights: Weights, threshold_M: torch.Tensor) -> Active:
        """See `Engine`."""
        count, index, value = [], [], []
        for part_BD in (x_BD - weights.bd_D).split(CHUNK):
            pre_BM = torch.addmm(weights.be_M, part_BD, weights.We_MD.t())
            there_BM = pre_BM > threshold_M
            count.append(there_BM.sum(1))
            index.append(there_BM.nonzero()[:, 1])
            value.append(pre_BM[there_BM])
        start_B1 = torch.cat([index[0].new_zeros(1), torch.cat(count).cumsum(0)])
        return Active(start_B1, torch.cat(index), torch.cat(value))

    def errors(self, x_BD: torch.Tensor, weights: Weights, active: Active, level_M: torch.Tensor) -> Errors:
        """See `Engine`."""
        rows, levels = len(x_BD), int(level_M[-1]) + 1
        level_P = level_M[active.index_P]
        out_BD = weights.bd_D - x_BD
        error_BLD = x_BD.new_empty(rows, levels, x_BD.shape[1])
        for level in range(levels):
            value_P = torch.where(level_P == level, active.value_P, 0)
            acts = _csr(active.start_B1, active.index_P, value_P, (rows, len(level_M)))
            out_BD = out_BD + acts @ weights.Wd_MD
            error_BLD[:, level] = out_BD
        loss_L = error_BLD.pow(2).sum(-1).mean(0)
        error_BLD = error_BLD.mul_(2 / rows).flip(1).cumsum(1).flip(1)
        grad_P = torch.zeros_like(active.value_P)
        for level in range(levels):
            dots_P = _dots(error_BLD[:, level], weights.Wd_MD, active)
            grad_P = torch.where((level_P == level) & (active.value_P > 0), dots_P, grad_P)
        return Errors(error_BLD, loss_L, grad_P)

    def gradients(
        self, x_BD: torch.Tensor, weights: Weights, active: Active, errors: Errors, level_M: torch.Tensor
    ) -> Weights:
        """See `Engine`."""
        latents = len(level_M)
        order = torch.argsort(active.index_P, stable=True)
        row_P, level_P = active.rows()[order], level_M[active.index_P][order]
        count_M = torch.bincount(active.index_P, minlength=latents)
        start_M1 = torch.cat([count_M.new_zeros(1), count_M.cumsum(0)])
        shape = (latents, len(x_BD))
        gWe_MD = _csr(start_M1, row_P, errors.grad_P[order], shape) @ (x_BD - weights.bd_D)
        gWd_MD = torch.zeros_like(weights.Wd_MD)
        for level in range(errors.error_BLD.shape[1]):
            value_P = torch.where(level_P == level, active.value_P[order], 0)
            gWd_MD += _csr(start_M1, row_P, value_P, shape) @ errors.error_BLD[:, level].contiguous()
        gbe_M = torch.zeros_like(weights.be_M).index_add_(0, active.index_P, errors.grad_P)
        return Weights(gWe_MD, gbe_M, gWd_MD, errors.error_BLD[:, 0].sum(0) - gbe_M @ weights.We_MD)

    def share(self, count: int, work: Callable[[slice], object]) -> None:
        """See `Engine`."""
        work(slice(0, count))

    def scaled(self, x_BD: torch.Tensor, scale: float) -> torch.Tensor:
        """See `Engine`."""
        return x_BD * scale

    def scores(self, active: Active, norm_M: torch.Tensor) -> torch.Tensor:
        """See `Engine`."""
        return active.value_P * norm_M[active.index_P]

    def fired(self, active: Active, latents: int) -> torch.Tensor:
        """See `Engine`."""
        return torch.bincount(active.index_P, active.value_P > 0, minlength=latents).float()

    def norms(self, W_MD: torch.Tensor) -> torch.Tensor:
        """See `Engine`."""
        return W_MD.norm(dim=-1)

    def squared_norm(self, gradient: Weights) -> float | torch.Tensor:
        """See `Engine`."""
        return float(torch.stack([tensor.pow(2).sum() for tensor in gradient]).sum())

    def adam(self, weights: Weights, gradient: Weights, mean: Weights, square: Weights, rate: AdamRate) -> None:
        """See `Engine`."""
        root = (1 - rate.beta2**rate.step) ** 0.5
        for w, g, m, s in zip(weights, gradient, mean, square, strict=True):
            g = g * rate.clip
            m.lerp_(g, 1 - rate.beta1)
            s.mul_(rate.beta2).addcmul_(g, g, value=1 - rate.beta2)
            w.addcdiv_(m, (s.sqrt() / root).add_(rate.eps), value=-rate.lr / (1 - rate.beta1**rate.step))
