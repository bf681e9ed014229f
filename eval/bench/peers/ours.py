"""This package's step, through the trainer that `sae-emotions train` uses: `default`, or the name of a screen."""

from typing import Any

import numpy as np
import torch
from common import Settings, mean, obey, quality, settings
from saelens import trainer_config

from sae_emotions.adapters import saelens_sparse as sparse


def built(task: Settings) -> tuple[Any, Any]:
    """The SAE and its trainer."""
    classes: dict[str, tuple[Any, Any]] = {
        "topk": (sparse.SparseTopKTrainingSAE, sparse.SparseTopKTrainingSAEConfig),
        "batchtopk": (sparse.SparseBatchTopKTrainingSAE, sparse.SparseBatchTopKTrainingSAEConfig),
        "matryoshka": (sparse.SparseMatryoshkaTrainingSAE, sparse.SparseMatryoshkaTrainingSAEConfig),
    }
    sae_class, config_class = classes[task.kind]
    more: dict[str, Any] = {"decoder_init_norm": 1.0}
    if task.kind == "matryoshka":
        more["matryoshka_widths"] = [task.d_sae // 16, task.d_sae // 4, task.d_sae]
    start_D = mean(task)
    sae = sae_class(config_class(d_in=len(start_D), d_sae=task.d_sae, k=task.k, device=task.device, **more))
    sae.b_dec.data.copy_(start_D)
    sae.stored_around(torch.from_numpy(np.load(task.centre)))
    return sae, sparse.SparseTrainer(trainer_config(task), sae, iter(()))


def main() -> None:
    """Serve one task."""
    task = settings()
    sae, trainer = built(task)
    unsure = [0, 0]

    def step(x_BD: Any) -> None:
        trainer.step(x_BD)
        trainer.n_training_steps += 1
        unsure[0] += sae.unsure_rows
        unsure[1] += len(x_BD)

    def measured() -> dict[str, float]:
        return quality(task, sae.encode, sae.decode) | {"unsure": unsure[0] / max(1, unsure[1])}

    obey(task, step, measured)


if __name__ == "__main__":
    main()
