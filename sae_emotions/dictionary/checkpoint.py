"""Exact resume of a training run: weights, optimiser, schedule, counters, RNG. safetensors and JSON alone.

The data cursor needs no file: batch number `step` is a pure function of seed and step.
"""

import shutil
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file

from sae_emotions.artefact import read_json, write_json, written_folder

_COUNTERS = ("n_training_steps", "n_training_samples", "n_frac_active_samples")
_TENSORS = ("act_freq_scores", "n_forward_passes_since_fired")


def save_checkpoint(folder: Path, trainer: Any, identity: str, curve: dict[str, list[float]]) -> None:
    """Replace the checkpoint in `folder` by the trainer's state, atomically."""
    tensors = {f"sae.{name}": tensor for name, tensor in trainer.sae.state_dict().items()}
    optimiser = trainer.optimizer.state_dict()
    for number, state in optimiser["state"].items():
        tensors |= {f"adam.{number}.{name}": value for name, value in state.items()}
    tensors |= {f"trainer.{name}": getattr(trainer, name) for name in _TENSORS}
    tensors["rng"] = torch.get_rng_state()
    state = {
        "identity": identity,
        "counters": {name: getattr(trainer, name) for name in _COUNTERS},
        "groups": [{"lr": group["lr"], "initial_lr": group["initial_lr"]} for group in optimiser["param_groups"]],
        "schedule": trainer.lr_scheduler.state_dict(),
        "coefficients": {name: one.state_dict() for name, one in trainer.coefficient_schedulers.items()},
        "scale": trainer.activation_scaler.scaling_factor,
        "curve": curve,
    }
    with written_folder(folder) as beside:
        save_file(
            {name: tensor.detach().cpu().contiguous().clone() for name, tensor in tensors.items()},
            beside / "state.safetensors",
        )
        write_json(beside / "state.json", state)


def load_checkpoint(folder: Path, trainer: Any, identity: str) -> dict[str, list[float]] | None:
    """Put the checkpoint's state into a fresh trainer; returns the curve so far.

    None, and the trainer untouched, where there is no checkpoint or it belongs to other settings.
    """
    if not (folder / "state.json").is_file():
        return None
    state = read_json(folder / "state.json")
    if state["identity"] != identity:
        return None
    tensors = load_file(folder / "state.safetensors")
    trainer.sae.load_state_dict({n.removeprefix("sae."): t for n, t in tensors.items() if n.startswith("sae.")})
    optimiser = trainer.optimizer.state_dict()
    for name, tensor in tensors.items():
        if name.startswith("adam."):
            _, number, key = name.split(".", 2)
            optimiser["state"].setdefault(int(number), {})[key] = tensor
    for group, saved in zip(optimiser["param_groups"], state["groups"], strict=True):
        group.update(saved)
    trainer.optimizer.load_state_dict(optimiser)
    trainer.lr_scheduler.load_state_dict(_revived(trainer.lr_scheduler.state_dict(), state["schedule"]))
    for name, one in trainer.coefficient_schedulers.items():
        one.load_state_dict(state["coefficients"][name])
    for name in _TENSORS:
        getattr(trainer, name).copy_(tensors[f"trainer.{name}"])
    for name in _COUNTERS:
        setattr(trainer, name, state["counters"][name])
    trainer.activation_scaler.scaling_factor = state["scale"]
    torch.set_rng_state(tensors["rng"])
    curve: dict[str, list[float]] = state["curve"]
    return curve


def drop_checkpoint(folder: Path) -> None:
    """Remove a checkpoint that is no longer needed."""
    shutil.rmtree(folder, ignore_errors=True)


def _revived(like: Any, saved: Any) -> Any:
    """JSON turns tuples into lists; give a schedule's state its own types back."""
    if isinstance(like, dict):
        return {key: _revived(like.get(key), value) for key, value in saved.items()}
    if isinstance(like, list) and isinstance(saved, list) and len(like) == len(saved):
        return [_revived(one, two) for one, two in zip(like, saved, strict=True)]
    return saved
