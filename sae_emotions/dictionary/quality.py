"""How good a dictionary is, on rows it was not trained on. B: rows, D: residual width, F: latents."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch

from sae_emotions.artefact import read_json, versions, write_json
from sae_emotions.config import DictionaryConfig
from sae_emotions.dictionary.data import TrainingRows
from sae_emotions.dictionary.encode import Dictionary
from sae_emotions.errors import UserError

BATCH = 2048


def holdout_batches(rows: TrainingRows, limit: int = 65_536) -> Iterator[torch.Tensor]:
    """x_BD of held-out rows of the general text, spread evenly where there are more than `limit`."""
    numbers = rows.holdout
    if len(numbers) > limit:
        numbers = numbers[np.linspace(0, len(numbers) - 1, limit).astype(np.int64)]
    for at in range(0, len(numbers), BATCH):
        yield torch.from_numpy(rows.stores[0].read(numbers[at : at + BATCH]))


def measure(dictionary: Dictionary, rows: TrainingRows) -> dict[str, Any]:
    """FVU (summed squared error / summed squared deviation from the mean), L0 and silent share on the held-out rows."""
    error = total = 0.0
    mean_D = torch.zeros(dictionary.d_in, dtype=torch.float64)
    active_F = torch.zeros(dictionary.d_sae)
    count = 0
    for x_BD in holdout_batches(rows):
        acts_BF = dictionary.features(x_BD)
        error += float((x_BD - dictionary.decoded(acts_BF)).double().pow(2).sum())
        total += float(x_BD.double().pow(2).sum())
        mean_D += x_BD.double().sum(0)
        active_F += (acts_BF > 0).sum(0)
        count += len(x_BD)
    if not count:
        raise UserError("The general text is one document alone: none can be held out; harvest more text.")
    variance = total - float(mean_D.pow(2).sum()) / count
    return {
        "fvu": error / variance,
        "l0": float(active_F.sum()) / count,
        "silent_on_holdout": float((active_F == 0).float().mean()),
        "holdout_rows": count,
    }


def calibrate(sae: Any, rows: TrainingRows, k: int) -> float:
    """Set a BatchTopK SAE's threshold so that its mean L0 on held-out rows is `k`; returns the threshold.

    SAELens' running minimum leaves exported SAEs 15-19 % denser than `k` on a toy, hence this.
    """
    kept: list[torch.Tensor] = []
    count = 0
    with torch.inference_mode():
        for x_BD in holdout_batches(rows):
            _, pre_BF = sae.encode_with_hidden_pre(x_BD)
            kept.append(torch.topk(pre_BF.flatten(), min(4 * k * len(x_BD), pre_BF.numel())).values)
            count += len(x_BD)
    largest = torch.cat(kept).sort(descending=True).values
    at = min(k * count, len(largest) - 1)
    # Midway between the last value kept and the first left out: no value ties with the threshold.
    threshold = max(float(largest[at - 1] + largest[at]) / 2, 0.0)
    sae.topk_threshold.fill_(threshold)
    return threshold


def check_reload(sae: Any, reloaded: Dictionary, rows: TrainingRows) -> float:
    """Largest relative difference between the trained SAE's features and the reloaded one's on held-out rows.

    Raises RuntimeError above 1e-4, or where more than one feature in a thousand fires in one alone (rounding decides
    ties at the threshold): a saved dictionary that computes something else must not be used.
    """
    x_BD = next(holdout_batches(rows))
    with torch.inference_mode():
        want_BF = sae.encode(x_BD)
        if hasattr(sae, "topk_threshold"):
            _, pre_BF = sae.encode_with_hidden_pre(x_BD)
            want_BF = pre_BF * (pre_BF > sae.topk_threshold)
        want_BF = (want_BF.to_dense() if want_BF.is_sparse else want_BF).float()
    got_BF = reloaded.features(x_BD)
    both_BF = (want_BF > 0) & (got_BF > 0)
    one_alone = int(((want_BF > 0) ^ (got_BF > 0)).sum()) / max(1, int(both_BF.sum()))
    difference = float(((want_BF - got_BF).abs() * both_BF).max() / want_BF.abs().max().clamp_min(1e-12))
    if difference > 1e-4 or one_alone > 1e-3:
        raise RuntimeError(
            f"the saved dictionary differs from the trained one: by {difference:.1e}, {one_alone:.1%} alone"
        )
    return difference


def write_quality(folder: Path, settings: DictionaryConfig, plan: dict[str, Any], notes: dict[str, Any]) -> None:
    """quality.json in a dictionary's folder: `notes`, what it is, and what it was made from."""
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
