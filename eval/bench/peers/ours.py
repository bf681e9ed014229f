"""This package's step, through the trainer that `sae-emotions train` uses.

Variants: `auxk` has some latents dead at every step; `topk`, `batchtopk` and `matryoshka` are kinds beside each other.
"""

from typing import Any

import numpy as np
import torch
from common import batches, obey, quality, settings
from saelens import Classes, built, bury

from sae_emotions.adapters import saelens_sparse as sparse

CLASSES: Classes = {
    "topk": (sparse.SparseTopKTrainingSAE, sparse.SparseTopKTrainingSAEConfig),
    "batchtopk": (sparse.SparseBatchTopKTrainingSAE, sparse.SparseBatchTopKTrainingSAEConfig),
    "matryoshka": (sparse.SparseMatryoshkaTrainingSAE, sparse.SparseMatryoshkaTrainingSAEConfig),
}


def main() -> None:
    """Serve one task."""
    task = settings()
    if task.variant in CLASSES:
        task = task._replace(kind=task.variant)
    sae, trainer = built(task, CLASSES, sparse.SparseTrainer)
    sae.stored_around(torch.from_numpy(np.load(task.centre)))
    unsure = [0, 0]

    def step(x_BD: Any) -> None:
        bury(task, trainer)
        trainer.step(x_BD)
        trainer.n_training_steps += 1
        unsure[0] += sae.unsure_rows
        unsure[1] += len(x_BD)

    def measured() -> dict[str, float]:
        return quality(task, sae.encode, sae.decode) | {"unsure": unsure[0] / max(1, unsure[1])}

    obey(batches(task), task.device, step, measured)


if __name__ == "__main__":
    main()
