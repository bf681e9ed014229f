"""One dictionary in training: its SAE, trainer, curve and checkpoint, and the folder that it ends in.

Shapes: B rows of a batch, D residual width. What a member becomes depends on its settings and its rows alone, not on those
that train beside it: steps draw no random numbers, and nothing that a step writes is shared.
"""

import math
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch

from sae_emotions.adapters import saelens
from sae_emotions.artefact import written_folder
from sae_emotions.config import DictionaryConfig, config_hash
from sae_emotions.dictionary.checkpoint import drop_checkpoint, load_checkpoint, save_checkpoint
from sae_emotions.dictionary.data import TrainingRows
from sae_emotions.dictionary.encode import wrapped
from sae_emotions.dictionary.quality import calibrate, check_reload, measure, write_quality
from sae_emotions.errors import UserError
from sae_emotions.machine import device
from sae_emotions.schema import write_table

_CURVE = ("step", "rows", "loss", "fvu", "l0", "dead", "lr", "unsure")


class Member(NamedTuple):
    """A dictionary in training."""

    settings: DictionaryConfig
    rows: TrainingRows
    sae: Any
    """SAELens' training SAE; its rows are scaled"""
    trainer: Any
    steps: int
    """all that it takes"""
    curve: dict[str, list[float]]
    checkpoint: Path
    identity: str
    """what a checkpoint must belong to"""

    @property
    def name(self) -> str:
        """The dictionary's."""
        return self.settings.name

    @property
    def step(self) -> int:
        """Steps taken."""
        return int(self.trainer.n_training_steps)

    def save(self) -> None:
        """Replace the checkpoint."""
        save_checkpoint(self.checkpoint, self.trainer, self.identity, self.curve)

    def note(self, output: Any) -> dict[str, float]:
        """Append the last step's numbers to the curve, and return them."""
        with torch.no_grad():
            x_BD, y_BD = output.sae_in.float(), output.sae_out.float()
            acts_BF = output.feature_acts
            active = float((acts_BF.coalesce().values() if acts_BF.is_sparse else acts_BF).gt(0).sum())
            variance = float((x_BD - x_BD.mean(0)).pow(2).sum())
            values = {
                "step": self.step,
                "rows": self.trainer.n_training_samples,
                "loss": output.loss.item(),
                "fvu": float((x_BD - y_BD).pow(2).sum()) / max(variance, 1e-30),
                "l0": active / len(x_BD),
                "dead": float(self.trainer.dead_neurons.float().mean()),
                "lr": self.trainer.optimizer.param_groups[0]["lr"],
                "unsure": getattr(self.sae, "unsure_rows", 0) / len(x_BD),
            }
        for name, value in values.items():
            self.curve[name].append(value)
        return values


def member(settings: DictionaryConfig, rows: TrainingRows, plan: dict[str, Any], seed: int, folder: Path) -> Member:
    """A dictionary at its start, or where its checkpoint left it. `seed`: the run's; `folder`: where it will lie."""
    sample_ND = torch.from_numpy(rows.read(rows.train[:: max(1, len(rows.train) // 16_384)]))
    scale = plan["d_in"] ** 0.5 / float(sample_ND.norm(dim=1).mean())
    metadata = {"model_name": plan["model"]["source"], "hook_name": _hook(settings, plan)}
    origin_D = torch.from_numpy(rows.stored.centre_D * np.float32(scale))
    own = seed if settings.seed is None else settings.seed
    sae = saelens.training_sae(settings, plan["d_in"], metadata, own, origin_D)
    sae.b_dec.data.copy_(sample_ND.mean(0) * scale)
    steps = max(1, int(len(rows.train) * settings.epochs) // settings.batch) if settings.epochs else 0
    trainer = saelens.trainer(settings, sae, steps * settings.batch, scale, str(device()))
    identity, kept = config_hash(settings) + plan["identity"], folder.with_name(f".{folder.name}.checkpoint")
    curve = load_checkpoint(kept, trainer, identity) or {name: [] for name in _CURVE}
    return Member(settings, rows, sae, trainer, steps, curve, kept, identity)


def check_finite(output: Any) -> None:
    """Raise `UserError` where the loss is no longer a number, before that reaches the disk."""
    if not math.isfinite(output.loss.item()):
        raise UserError(
            "The training diverged: its loss is not a finite number. Lower the dictionary's lr and train again."
        )


def finish(one: Member, plan: dict[str, Any], folder: Path) -> None:
    """Write a trained member's folder, with its quality on held-out rows, and drop its checkpoint."""
    settings, sae, trainer = one.settings, one.sae, one.trainer
    with written_folder(folder) as beside:
        notes: dict[str, Any] = {"steps": trainer.n_training_steps, "rows": trainer.n_training_samples}
        notes["dead"] = float(trainer.dead_neurons.float().mean())
        notes["dead_rows"] = saelens.DEAD_ROWS
        notes["unsure_share"] = float(np.mean(one.curve["unsure"] or [0.0]))
        sae.eval()
        sae.fold_activation_norm_scaling_factor(trainer.activation_scaler.scaling_factor)
        if hasattr(sae, "topk_threshold"):
            notes["threshold"] = calibrate(sae, one.rows, settings.k)
        saelens.save(sae, beside, {"l0": None, "hook_name": _hook(settings, plan)})
        reloaded = wrapped(saelens.load(beside), settings.name, settings.block)
        notes["reload_difference"] = check_reload(sae, reloaded, one.rows)
        write_table(beside / "training.parquet", "training", one.curve)
        write_quality(beside, settings, plan, measure(reloaded, one.rows) | notes)
    drop_checkpoint(one.checkpoint)


def _hook(settings: DictionaryConfig, plan: dict[str, Any]) -> str:
    return f"block {settings.block} {plan['hook']}"
