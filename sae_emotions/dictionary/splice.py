"""Cross-entropy with a dictionary spliced into its model, on held-out documents. B: texts, S: positions, D: width."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from sae_emotions.artefact import read_json
from sae_emotions.cross_entropy import cross_entropy
from sae_emotions.dictionary.encode import Dictionary
from sae_emotions.edit import Edit, splice
from sae_emotions.harvest.rows import mapped, read_documents


def spliced_cross_entropy(
    model: Any, dictionary: Dictionary, run: Path, documents: Sequence[int] | np.ndarray, context: int
) -> dict[str, float]:
    """Nats a token of the whole model, with the SAE spliced in, and with the block's output replaced by its mean.

    `ce_recovered` is 1 where the spliced model is as good as the whole one and 0 where it is as bad as the mean's. The
    first position and special tokens keep their residual in all three.
    """
    folder = run / "activations" / "text"
    special = read_json(folder / "plan.json")["special_ids"]
    mean_D = torch.from_numpy(np.array(mapped(folder / "centre.safetensors")[f"block{dictionary.block}.centre"]))
    ids = read_documents(folder).take([int(number) for number in documents])["token_ids"].to_pylist()
    edits: dict[str, Edit | None] = {
        "ce": None,
        "ce_spliced": splice(lambda x_BD: dictionary.decoded(dictionary.features(x_BD))),
        "ce_mean": splice(lambda x_ND: mean_D.expand_as(x_ND)),
    }
    found = dict.fromkeys(edits, 0.0)
    count = 0
    device = next(model.parameters()).device
    for one in ids:
        window = torch.tensor([one[:context]], device=device)
        for name, edit in edits.items():
            nats = cross_entropy(model, window, torch.ones_like(window), dictionary.block, edit, special=special)
            found[name] += nats * (window.shape[1] - 1)
        count += window.shape[1] - 1
    found = {name: total / count for name, total in found.items()}
    return found | {
        "ce_recovered": (found["ce_mean"] - found["ce_spliced"]) / (found["ce_mean"] - found["ce"]),
        "ce_tokens": count,
    }
