"""The dictionary stage: train an SAE on the rows of a harvest, or take one made elsewhere.

Shapes: B rows of a batch, D residual width. The step lies behind one call, SAELens' `trainer.step(x_BD)`; the loop, the
order of rows, the checkpoints and the file format do not know what it does inside.
"""

import math
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch

from sae_emotions.adapters import saelens
from sae_emotions.artefact import read_json, versions, write_json, written_folder
from sae_emotions.config import DictionaryConfig, RunConfig, config_hash
from sae_emotions.dictionary.checkpoint import drop_checkpoint, load_checkpoint, save_checkpoint
from sae_emotions.dictionary.data import TrainingRows, prefetched, shuffled, training_rows
from sae_emotions.dictionary.encode import load_dictionary, wrapped
from sae_emotions.dictionary.quality import calibrate, check_reload, measure
from sae_emotions.dictionary.splice import spliced_cross_entropy
from sae_emotions.errors import UserError
from sae_emotions.machine import tune_allocator
from sae_emotions.progress import Progress
from sae_emotions.schema import write_table
from sae_emotions.sources.models import device, load_model

LOG_EVERY = 10
Log = Callable[[dict[str, float]], None]
_CURVE = ("step", "rows", "loss", "fvu", "l0", "dead", "lr", "unsure")


def named(config: RunConfig, name: str) -> DictionaryConfig:
    """The dictionary `name` of a config. Raises `UserError` naming those there are."""
    for dictionary in config.dictionaries:
        if dictionary.name == name:
            return dictionary
    raise UserError(f"There is no dictionary '{name}'; this run has {', '.join(d.name for d in config.dictionaries)}.")


def train(config: RunConfig, run: Path, name: str, log: Log = lambda numbers: None) -> Path:
    """Train (or load) dictionary `name` into RUN/dictionaries/<name>; returns that folder. `log` hears the curve's numbers.

    An interrupted training goes on from its last checkpoint and ends with the same weights, bit for bit, as one that was
    not interrupted. Raises `UserError` for too few rows, or a pretrained SAE of another width.
    """
    tune_allocator()
    settings = named(config, name)
    plan = read_json(run / "activations" / "text" / "plan.json")
    torch.set_num_threads(plan["threads"])
    rows = training_rows(run, config, settings)
    folder = run / "dictionaries" / name
    if settings.pretrained is not None:
        sae = saelens.load_pretrained(settings.pretrained)
        if int(sae.cfg.d_in) != plan["d_in"]:
            raise UserError(
                f"Dictionary {name} reads rows of width {int(sae.cfg.d_in)}, but the model's are {plan['d_in']} wide; "
                "choose a dictionary made for this model."
            )
        with written_folder(folder) as beside:
            saelens.save_loaded(sae, beside)
            quality = measure(wrapped(sae, name, settings.block), rows)
            _write_quality(beside, settings, plan, quality | {"dead": quality["silent_on_holdout"], "steps": 0})
        return folder
    sae, trainer, curve = _trained(config, run, settings, plan, rows, log)
    with written_folder(folder) as beside:
        notes: dict[str, Any] = {"steps": trainer.n_training_steps, "rows": trainer.n_training_samples}
        notes["dead"] = float(trainer.dead_neurons.float().mean())
        notes["dead_rows"] = saelens.DEAD_ROWS
        notes["unsure_share"] = float(np.mean(curve["unsure"]))
        sae.eval()
        sae.fold_activation_norm_scaling_factor(trainer.activation_scaler.scaling_factor)
        if hasattr(sae, "topk_threshold"):
            notes["threshold"] = calibrate(sae, rows, settings.k)
        saelens.save(sae, beside, {"l0": None, "hook_name": f"block {settings.block} {plan['hook']}"})
        reloaded = wrapped(saelens.load(beside), name, settings.block)
        notes["reload_difference"] = check_reload(sae, reloaded, rows)
        write_table(beside / "training.parquet", "training", curve)
        _write_quality(beside, settings, plan, measure(reloaded, rows) | notes)
    drop_checkpoint(_checkpoints(run, name))
    return folder


def _checkpoints(run: Path, name: str) -> Path:
    return run / "dictionaries" / f".{name}.checkpoint"


def _trained(
    config: RunConfig, run: Path, settings: DictionaryConfig, plan: dict[str, Any], rows: TrainingRows, log: Log
) -> tuple[Any, Any, dict[str, list[float]]]:
    """Run the loop to its end; returns the SAE (scaled rows), the trainer and the curve."""
    sample_ND = torch.from_numpy(rows.read(rows.train[:: max(1, len(rows.train) // 16_384)]))
    scale = plan["d_in"] ** 0.5 / float(sample_ND.norm(dim=1).mean())
    metadata = {"model_name": plan["model"]["source"], "hook_name": f"block {settings.block} {plan['hook']}"}
    origin_D = torch.from_numpy(rows.stores[0].centre_D * np.float32(scale))
    seed = config.seed if settings.seed is None else settings.seed
    sae = saelens.training_sae(settings, plan["d_in"], metadata, seed, origin_D)
    sae.b_dec.data.copy_(sample_ND.mean(0) * scale)
    total = max(1, int(len(rows.train) * settings.epochs) // settings.batch)
    trainer = saelens.trainer(settings, sae, total * settings.batch, scale, str(device()))
    identity = config_hash(settings) + plan["identity"]
    kept = _checkpoints(run, settings.name)
    curve = load_checkpoint(kept, trainer, identity) or {name: [] for name in _CURVE}
    start = trainer.n_training_steps
    saved = time.monotonic()
    batches = prefetched(shuffled([rows], config.seed, settings.batch, total, start))
    with Progress(f"train {settings.name}", total * settings.batch, "rows", start * settings.batch) as bar:
        for (x_BD,) in batches:
            output = trainer.step(x_BD)
            trainer.n_training_steps += 1
            step = trainer.n_training_steps
            if step % LOG_EVERY == 0 or step == total:
                log(_noted(curve, trainer, output))
            bar.advance(len(x_BD))
            if time.monotonic() - saved > 60 * settings.checkpoint_minutes and step < total:
                _check_finite(output)
                save_checkpoint(kept, trainer, identity, curve)
                saved = time.monotonic()
    return sae, trainer, curve


def _check_finite(output: Any) -> None:
    """Raise `UserError` where the loss is no longer a number, before that reaches the disk."""
    if not math.isfinite(output.loss.item()):
        raise UserError(
            "The training diverged: its loss is not a finite number. Lower the dictionary's lr and train again."
        )


def _noted(curve: dict[str, list[float]], trainer: Any, output: Any) -> dict[str, float]:
    """Append the step's numbers to the curve, and return them. Raises `UserError` where the training diverged."""
    _check_finite(output)
    with torch.no_grad():
        x_BD, y_BD = output.sae_in.float(), output.sae_out.float()
        acts_BF = output.feature_acts
        active = float((acts_BF.coalesce().values() if acts_BF.is_sparse else acts_BF).gt(0).sum())
        variance = float((x_BD - x_BD.mean(0)).pow(2).sum())
        values = {
            "step": trainer.n_training_steps,
            "rows": trainer.n_training_samples,
            "loss": output.loss.item(),
            "fvu": float((x_BD - y_BD).pow(2).sum()) / max(variance, 1e-30),
            "l0": active / len(x_BD),
            "dead": float(trainer.dead_neurons.float().mean()),
            "lr": trainer.optimizer.param_groups[0]["lr"],
            "unsure": getattr(trainer.sae, "unsure_rows", 0) / len(x_BD),
        }
    for name, value in values.items():
        curve[name].append(value)
    return values


def _write_quality(folder: Path, settings: DictionaryConfig, plan: dict[str, Any], notes: dict[str, Any]) -> None:
    cfg = read_json(folder / "cfg.json")
    write_json(
        folder / "quality.json",
        {
            "name": settings.name,
            "block": settings.block,
            "d_in": plan["d_in"],
            "d_sae": cfg["d_sae"],
            "architecture": settings.architecture if settings.pretrained is None else cfg["architecture"],
            "pretrained": settings.pretrained.model_dump() if settings.pretrained else None,
            "ce_recovered": None,
            **notes,
            "config": settings.model_dump(mode="json"),
            "harvest": plan["identity"],
            "versions": versions(),
        },
    )


def splice_quality(config: RunConfig, run: Path, name: str, documents: int = 24) -> dict[str, float]:
    """Cross-entropy with the SAE spliced into the model, on held-out documents; written into quality.json and returned.

    See `spliced_cross_entropy` for what the numbers mean.
    """
    rows = training_rows(run, config, named(config, name))
    plan = read_json(run / "activations" / "text" / "plan.json")
    model = load_model(config.model, getattr(torch, plan["dtype"])).model
    held = rows.holdout_documents[:documents]
    found = spliced_cross_entropy(model, load_dictionary(run, name), run, held, config.harvest.context)
    path = run / "dictionaries" / name / "quality.json"
    write_json(path, read_json(path) | found)
    return found
