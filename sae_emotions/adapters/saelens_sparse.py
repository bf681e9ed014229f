"""SAELens' TopK training SAE with sparse gradients, in plain PyTorch.

With k of M latents active, all of a step but the encoder's product can be done on B x k values: the decoder and both weight
gradients are sparse products, and dL/db_dec follows from dL/db_enc without a dense product. Selection is exact: the
k groups with the largest maxima hold the k largest values. Loss, gradients and saved files are those of SAELens' class.

B: rows, D: residual width, M: latents, K: active latents a row, G: latents a group.
"""

import warnings
from typing import Any

import torch
from sae_lens import TopKTrainingSAE
from sae_lens.saes.sae import TrainStepInput, TrainStepOutput

CHUNK = 512
"""Rows a product: its pre-activations stay in the cache that the selection reads them from."""
GROUP = 16


def largest(pre_BM: torch.Tensor, k: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Values and indices (B, K) of each row's k largest entries, in no order: exact, by group maxima."""
    rows, latents = pre_BM.shape
    if latents % GROUP or latents // GROUP < 2 * k:
        found = pre_BM.topk(k, -1, sorted=False)
        return found.values, found.indices
    groups_BGM = pre_BM.view(rows, latents // GROUP, GROUP)
    group_BK = groups_BGM.amax(-1).topk(k, -1, sorted=False).indices
    held_BC = groups_BGM.gather(1, group_BK[..., None].expand(-1, -1, GROUP)).reshape(rows, k * GROUP)
    values_BK, at_BK = held_BC.topk(k, -1, sorted=False)
    return values_BK, group_BK.gather(1, at_BK // GROUP) * GROUP + at_BK % GROUP


def _csr(start: torch.Tensor, column: torch.Tensor, value: torch.Tensor, shape: tuple[int, int]) -> torch.Tensor:
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Sparse CSR tensor support is in beta")
        return torch.sparse_csr_tensor(start, column, value, shape, check_invariants=False)


def _dots(e_BD: torch.Tensor, W_MD: torch.Tensor, index_BK: torch.Tensor) -> torch.Tensor:
    """e[b] . W[index[b, k]], (B, K)."""
    rows, k = index_BK.shape
    offsets = torch.arange(0, rows * k, k, device=e_BD.device)
    bag = torch.arange(rows, device=e_BD.device).repeat_interleave(k)
    found = torch.ops.aten._embedding_bag_per_sample_weights_backward(e_BD, W_MD, index_BK.reshape(-1), offsets, bag, 0)
    return found.view(rows, k)


class _Reconstruct(torch.autograd.Function):
    """x_BD to its TopK reconstruction, with sparse gradients for the four parameters and none for x."""

    @staticmethod
    def forward(
        ctx: Any,
        x_BD: torch.Tensor,
        W_enc_DM: torch.Tensor,
        b_enc_M: torch.Tensor,
        W_dec_MD: torch.Tensor,
        b_dec_D: torch.Tensor,
        k: int,
    ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        centred_BD = x_BD - b_dec_D
        parts = [largest(torch.addmm(b_enc_M, part, W_enc_DM), k) for part in centred_BD.split(CHUNK)]
        values_BK = torch.cat([values for values, _ in parts]).relu_()
        index_BK, order_BK = torch.cat([index for _, index in parts]).sort(-1)
        values_BK = values_BK.gather(1, order_BK)
        start = torch.arange(0, values_BK.numel() + 1, k, device=x_BD.device)
        acts = _csr(start, index_BK.reshape(-1), values_BK.reshape(-1), (len(x_BD), len(b_enc_M)))
        ctx.save_for_backward(centred_BD, W_enc_DM, W_dec_MD, values_BK, index_BK)
        ctx.mark_non_differentiable(values_BK, index_BK)
        return acts @ W_dec_MD + b_dec_D, values_BK, index_BK

    @staticmethod
    def backward(ctx: Any, *gradients: Any) -> Any:
        centred_BD, W_enc_DM, W_dec_MD, values_BK, index_BK = ctx.saved_tensors
        e_BD = gradients[0].contiguous()
        rows, k = index_BK.shape
        latents = W_dec_MD.shape[0]
        g_BK = _dots(e_BD, W_dec_MD, index_BK) * (values_BK > 0)
        flat = index_BK.reshape(-1)
        order = torch.argsort(flat, stable=True)
        start_M = torch.zeros(latents + 1, dtype=torch.long, device=flat.device)
        torch.cumsum(torch.bincount(flat, minlength=latents), 0, out=start_M[1:])
        row = order // k
        shape = (latents, rows)
        g_b_enc_M = torch.zeros_like(W_dec_MD[:, 0]).index_add_(0, flat, g_BK.reshape(-1))
        g_W_dec_MD = _csr(start_M, row, values_BK.reshape(-1)[order], shape) @ e_BD
        g_W_enc_MD = _csr(start_M, row, g_BK.reshape(-1)[order], shape) @ centred_BD
        g_b_dec_D = e_BD.sum(0) - W_enc_DM @ g_b_enc_M
        return None, g_W_enc_MD.t().contiguous(), g_b_enc_M, g_W_dec_MD, g_b_dec_D, None


class SparseTopKTrainingSAE(TopKTrainingSAE):
    """SAELens' TopK, `rescale_acts_by_decoder_norm=False`: same loss, sparse gradients, AuxK over dead latents alone."""

    def training_forward_pass(self, step_input: TrainStepInput) -> TrainStepOutput:
        """One forward pass; `feature_acts` comes back sparse (COO), as SAELens' own sparse option gives it."""
        x_BD = step_input.sae_in
        out_BD, values_BK, index_BK = _Reconstruct.apply(
            x_BD, self.W_enc, self.b_enc, self.W_dec, self.b_dec, int(self.cfg.k)
        )
        mse = (out_BD - x_BD).pow(2).sum(-1).mean()
        aux = self._revival(x_BD, out_BD, step_input.dead_neuron_mask)
        row_BK = torch.arange(len(x_BD), device=x_BD.device)[:, None].expand_as(index_BK)
        where = torch.stack([row_BK.reshape(-1), index_BK.reshape(-1)])
        acts = torch.sparse_coo_tensor(
            where, values_BK.reshape(-1), (len(x_BD), self.cfg.d_sae), check_invariants=False, is_coalesced=True
        )
        losses = {"mse_loss": mse, "auxiliary_reconstruction_loss": aux}
        return TrainStepOutput(
            sae_in=x_BD, sae_out=out_BD, feature_acts=acts, hidden_pre=values_BK, loss=mse + aux, losses=losses
        )

    def _revival(self, x_BD: torch.Tensor, out_BD: torch.Tensor, dead_M: torch.Tensor | None) -> torch.Tensor:
        """AuxK (Gao et al. 2024, A.2), as SAELens scales it: the strongest dead latents predict what is left over."""
        if dead_M is None or not dead_M.any():
            return out_BD.new_zeros(())
        dead = dead_M.nonzero()[:, 0]
        most = x_BD.shape[-1] // 2
        scale = min(len(dead) / most, 1.0)
        pre_BN = (x_BD - self.b_dec) @ self.W_enc[:, dead] + self.b_enc[dead]
        top = pre_BN.topk(min(most, len(dead)), -1, sorted=False)
        acts_BN = torch.zeros_like(pre_BN).scatter(-1, top.indices, top.values)
        left_BD = (x_BD - out_BD).detach()
        lost = (acts_BN @ self.W_dec[dead] - left_BD).pow(2).sum(-1).mean()
        return self.cfg.aux_loss_coefficient * scale * lost
