"""SAELens' TopK family trained by our sparse step: the same losses, gradients and files, from the active values alone.

The classes train under SAELens' own trainer as well (`training_forward_pass` gives a loss to call `backward` on);
`SparseTrainer` takes Adam's step in the same pass, which is faster.

B rows, D residual width, M latents.
"""

import functools
from dataclasses import dataclass
from typing import Any

import torch
from sae_lens import (
    BatchTopKTrainingSAE,
    BatchTopKTrainingSAEConfig,
    MatryoshkaBatchTopKTrainingSAE,
    MatryoshkaBatchTopKTrainingSAEConfig,
    SAETrainer,
    TopKTrainingSAE,
    TopKTrainingSAEConfig,
)
from sae_lens.registry import SAE_TRAINING_CLASS_REGISTRY, register_sae_training_class
from sae_lens.saes.sae import SAEConfig, TrainStepInput, TrainStepOutput
from sae_lens.saes.topk_sae import TopKSAEConfig

from sae_emotions.sparse.shapes import AdamRate, Engine, Weights
from sae_emotions.sparse.step import Loss, Rule, apply_adam, engine_for, loss_and_gradient

CLIP = 1.0
"""SAELens clips gradients to this norm."""


class _Total(torch.autograd.Function):
    """The loss as a function of the parameters, with the gradients that came with it."""

    @staticmethod
    def forward(ctx: Any, total: torch.Tensor, gradients: tuple[torch.Tensor, ...], *parameters: Any) -> torch.Tensor:
        ctx.save_for_backward(*gradients)
        return total.clone()

    @staticmethod
    def backward(ctx: Any, *upstream: Any) -> Any:
        return None, None, *(gradient * upstream[0] for gradient in ctx.saved_tensors)


class Output:
    """What SAELens' `TrainStepOutput` holds, worked out when it is asked for: before the next step, which uses its memory."""

    def __init__(self, sae_in: torch.Tensor, found: Loss, levels: list[int], loss: torch.Tensor) -> None:
        self.sae_in, self.loss, self.hidden_pre, self._found = sae_in, loss, found.active.value_P, found
        self.losses = {"mse_loss": found.level_L[-1], "auxiliary_reconstruction_loss": found.aux}
        self.losses |= {f"inner_mse_loss_{width}": found.level_L[level] for level, width in enumerate(levels)}
        self.metrics: dict[str, Any] = {}

    @functools.cached_property
    def sae_out(self) -> torch.Tensor:
        """The reconstruction, x_BD."""
        return self._found.output(self.sae_in)

    @functools.cached_property
    def feature_acts(self) -> torch.Tensor:
        """Activations, sparse (COO), as SAELens' own sparse option gives them."""
        where = torch.stack([self._found.active.rows(), self._found.active.index_P])
        shape = (len(self.sae_in), len(self._found.gradient.be_M))
        return torch.sparse_coo_tensor(where, self._found.score_P, shape, check_invariants=False, is_coalesced=True)


class Sparse:
    """What the three classes share. The encoder's rows lie in memory one latent after the other."""

    cfg: Any
    W_enc: Any
    b_enc: Any
    W_dec: Any
    b_dec: Any

    def _prepare(self, levels: list[int], of_batch: bool) -> None:
        if not self.cfg.apply_b_dec_to_input or self.cfg.normalize_activations not in (
            "none",
            "expected_average_only_in",
        ):
            raise ValueError(
                "the sparse step needs apply_b_dec_to_input, and normalize_activations 'none' or 'expected_average_only_in'"
            )
        self._of_batch, self._levels = of_batch, levels
        self._engine: Engine | None = None
        self._origin_D: torch.Tensor | None = None
        self._guess: float | None = None
        self._level_M: torch.Tensor | None = None
        self.unsure_rows = 0

    def stored_around(self, origin_D: torch.Tensor) -> None:
        """Tell the step what its rows were stored as int8 around: its screen then loses nothing of them."""
        self._origin_D = origin_D

    def weights(self) -> Weights:
        """The parameters, sharing their memory."""
        return Weights(self.W_enc.data.t(), self.b_enc.data, self.W_dec.data, self.b_dec.data)

    def engine(self, x_BD: torch.Tensor) -> Engine:
        """What computes the step on this device."""
        if self._engine is None:
            self._engine = engine_for(x_BD.device, self.W_enc.numel(), self._origin_D)
        return self._engine

    def loss(self, x_BD: torch.Tensor, dead_M: torch.Tensor | None) -> Loss:
        """Losses and gradients on scaled rows."""
        engine = self.engine(x_BD)
        if not self.W_enc.data.t().is_contiguous():
            self.W_enc.data = self.W_enc.data.t().contiguous().t()
        if self._level_M is None:
            self._level_M = torch.zeros(self.cfg.d_sae, dtype=torch.long, device=x_BD.device)
            for width in self._levels:
                self._level_M[width:] += 1
        rule = Rule(int(self.cfg.k), self._of_batch, self._level_M, self.cfg.aux_loss_coefficient)
        weights = self.weights()
        rescaled = self.cfg.rescale_acts_by_decoder_norm
        norm_M = engine.norms(weights.Wd_MD) if rescaled else torch.ones_like(weights.be_M)
        found = loss_and_gradient(engine, x_BD, weights, norm_M, rule, dead_M, self._guess)
        self.unsure_rows = found.active.unsure
        return found

    def heard(self, found: Loss) -> None:
        """Follow the smallest score of a batch, as SAELens does for the threshold."""
        if not self._of_batch:
            return
        if len(found.score_P):  # all of them are above zero
            self._guess = float(found.score_P.cpu().numpy().min())
            rate = self.cfg.topk_threshold_lr
            threshold: Any = self.topk_threshold  # type: ignore[has-type]
            self.topk_threshold = (1 - rate) * threshold + rate * self._guess

    def training_forward_pass(self, step_input: TrainStepInput) -> TrainStepOutput:
        """One forward pass, for SAELens' own trainer."""
        found = self.loss(step_input.sae_in, step_input.dead_neuron_mask)
        self.heard(found)
        g = found.gradient
        gradients = tuple(one.clone() for one in (g.We_MD.t(), g.be_M, g.Wd_MD, g.bd_D))
        total = found.level_L.sum() + found.aux
        total = _Total.apply(total, gradients, self.W_enc, self.b_enc, self.W_dec, self.b_dec)
        made = Output(step_input.sae_in, found, self._levels, total)
        acts = made.feature_acts
        return TrainStepOutput(made.sae_in, made.sae_out, acts, made.hidden_pre, made.loss, made.losses)

    def process_state_dict_for_saving(self, state_dict: dict[str, Any]) -> None:
        """Files hold encoder columns, as SAELens' do."""
        super().process_state_dict_for_saving(state_dict)  # type: ignore[misc]
        state_dict["W_enc"] = state_dict["W_enc"].contiguous()

    def process_state_dict_for_saving_inference(self, state_dict: dict[str, Any]) -> None:
        """The same for the inference form."""
        super().process_state_dict_for_saving_inference(state_dict)  # type: ignore[misc]
        state_dict["W_enc"] = state_dict["W_enc"].contiguous()


@dataclass
class SparseTopKTrainingSAEConfig(TopKTrainingSAEConfig):
    """SAELens' TopK settings."""

    @classmethod
    def architecture(cls) -> str:
        """Name in SAELens' registry."""
        return "sparse_topk"

    def get_inference_config_class(self) -> type[SAEConfig]:
        """Saved as SAELens' TopK."""
        return TopKSAEConfig


@dataclass
class SparseBatchTopKTrainingSAEConfig(BatchTopKTrainingSAEConfig):
    """SAELens' BatchTopK settings; saved as its JumpReLU."""

    @classmethod
    def architecture(cls) -> str:
        """Name in SAELens' registry."""
        return "sparse_batchtopk"


@dataclass
class SparseMatryoshkaTrainingSAEConfig(MatryoshkaBatchTopKTrainingSAEConfig):
    """SAELens' Matryoshka BatchTopK settings; saved as its JumpReLU."""

    @classmethod
    def architecture(cls) -> str:
        """Name in SAELens' registry."""
        return "sparse_matryoshka_batchtopk"


class SparseTopKTrainingSAE(Sparse, TopKTrainingSAE):
    """TopK."""

    def __init__(self, cfg: SparseTopKTrainingSAEConfig, use_error_term: bool = False) -> None:
        TopKTrainingSAE.__init__(self, cfg, use_error_term)
        self._prepare([], of_batch=False)


class SparseBatchTopKTrainingSAE(Sparse, BatchTopKTrainingSAE):
    """BatchTopK."""

    def __init__(self, cfg: SparseBatchTopKTrainingSAEConfig, use_error_term: bool = False) -> None:
        BatchTopKTrainingSAE.__init__(self, cfg, use_error_term)
        self._prepare([], of_batch=True)


class SparseMatryoshkaTrainingSAE(Sparse, MatryoshkaBatchTopKTrainingSAE):
    """Matryoshka BatchTopK, with AuxK over the whole dictionary (SAELens' default)."""

    def __init__(self, cfg: SparseMatryoshkaTrainingSAEConfig, use_error_term: bool = False) -> None:
        if cfg.use_matryoshka_aux_loss:
            raise ValueError("the sparse step has no use_matryoshka_aux_loss; use SAELens' own class for it")
        MatryoshkaBatchTopKTrainingSAE.__init__(self, cfg, use_error_term)
        self._prepare([width for width in cfg.matryoshka_widths if width < cfg.d_sae], of_batch=True)


for _class, _config in (
    (SparseTopKTrainingSAE, SparseTopKTrainingSAEConfig),
    (SparseBatchTopKTrainingSAE, SparseBatchTopKTrainingSAEConfig),
    (SparseMatryoshkaTrainingSAE, SparseMatryoshkaTrainingSAEConfig),
):
    if _config.architecture() not in SAE_TRAINING_CLASS_REGISTRY:
        register_sae_training_class(_config.architecture(), _class, _config)


class SparseTrainer(SAETrainer):
    """SAELens' trainer with its optimiser's step taken by our engine, on the optimiser's own state."""

    def step(self, batch: torch.Tensor) -> Any:
        """One training step on raw rows: SAELens', but for the copy that its scaler makes."""
        batch = batch.to(self.sae.device)
        self.n_training_samples += len(batch)
        scale = self.activation_scaler.scaling_factor
        return self._train_step(self.sae, batch if scale is None else self.sae.engine(batch).scaled(batch, scale))

    def _train_step(self, sae: Any, sae_in: torch.Tensor) -> Any:
        sae.train()
        with torch.no_grad():
            found: Loss = sae.loss(sae_in, self.dead_neurons)
            fired_M = sae.engine(sae_in).fired(found.active, sae.cfg.d_sae)
            self.n_forward_passes_since_fired += 1
            self.n_forward_passes_since_fired[fired_M > 0] = 0
            self.act_freq_scores += fired_M
            self.n_frac_active_samples += self.cfg.train_batch_size_samples
            sae.heard(found)
            output = Output(sae_in, found, sae._levels, found.level_L.sum() + found.aux)
            mean, square, step = self._moments(sae)
            group = self.optimizer.param_groups[0]
            beta1, beta2 = group["betas"]
            rate = AdamRate(group["lr"], beta1, beta2, group["eps"], step, clip=1.0)
            apply_adam(sae.engine(sae_in), sae.weights(), found.gradient, mean, square, rate, CLIP)
        self.optimizer._opt_called = True  # or the schedule warns that it runs before the optimiser
        self.lr_scheduler.step()
        for scheduler in self.coefficient_schedulers.values():
            scheduler.step()
        return output

    def _moments(self, sae: Any) -> tuple[Weights, Weights, int]:
        """Adam's means and squares in the optimiser's state, laid out like the parameters; and the step's number."""
        made: dict[str, list[torch.Tensor]] = {"exp_avg": [], "exp_avg_sq": []}
        for parameter in (sae.W_enc, sae.b_enc, sae.W_dec, sae.b_dec):
            state = self.optimizer.state[parameter]
            if not state:
                state["step"] = torch.zeros(())
                state.update({name: torch.zeros_like(parameter.data) for name in made})
            state["step"] += 1
            for name, tensors in made.items():
                if state[name].stride() != parameter.stride():
                    state[name] = torch.empty_like(parameter.data).copy_(state[name])
                tensors.append(state[name].t() if parameter is sae.W_enc else state[name])
        step = int(self.optimizer.state[sae.W_enc]["step"])
        return Weights(*made["exp_avg"]), Weights(*made["exp_avg_sq"]), step
