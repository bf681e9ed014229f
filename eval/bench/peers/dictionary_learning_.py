"""dictionary_learning through its own trainers, at its defaults (or `autocast`, bfloat16, around its update)."""

from typing import Any

import torch
from common import batches, mean, obey, quality, settings
from dictionary_learning.trainers.batch_top_k import BatchTopKTrainer
from dictionary_learning.trainers.top_k import TopKTrainer


def main() -> None:
    """Serve one task."""
    task = settings()
    width = len(mean(task))
    trainer_class: Any = {"topk": TopKTrainer, "batchtopk": BatchTopKTrainer}[task.kind]
    trainer = trainer_class(
        steps=task.steps,
        activation_dim=width,
        dict_size=task.d_sae,
        k=task.k,
        layer=0,
        lm_name="none",
        lr=task.lr,
        warmup_steps=max(1, task.steps // 50),
        decay_start=task.steps * 4 // 5,
        threshold_start_step=10**9,
        seed=0,
        device=task.device,
    )
    taken = 0

    def step(x_BD: Any) -> None:
        nonlocal taken
        with torch.autocast(task.device, torch.bfloat16, enabled=task.variant == "autocast"):
            trainer.update(taken, x_BD)
        taken += 1

    obey(
        batches(task),
        task.device,
        step,
        lambda: quality(task, lambda x_BD: trainer.ae.encode(x_BD, use_threshold=False), trainer.ae.decode),
    )


if __name__ == "__main__":
    main()
