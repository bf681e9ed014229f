"""SAELens through its own trainer: `default`, `autocast` (bfloat16), `sparse` (its sparse activations), `auxk` (some latents
dead at every step).
"""

from typing import Any

import sae_lens
from common import Settings, batches, mean, obey, quality, settings
from sae_lens import SAETrainer
from sae_lens.config import SAETrainerConfig

Classes = dict[str, tuple[Any, Any]]
DEAD = 0.01
"""share of latents that `auxk` counts as dead, whether they have fired or not"""
CLASSES: Classes = {
    "topk": (sae_lens.TopKTrainingSAE, sae_lens.TopKTrainingSAEConfig),
    "batchtopk": (sae_lens.BatchTopKTrainingSAE, sae_lens.BatchTopKTrainingSAEConfig),
    "matryoshka": (sae_lens.MatryoshkaBatchTopKTrainingSAE, sae_lens.MatryoshkaBatchTopKTrainingSAEConfig),
}


def built(task: Settings, classes: Classes, trainer_class: Any) -> tuple[Any, Any]:
    """The SAE and its trainer; `classes` has each kind's class and settings."""
    sae_class, config_class = classes[task.kind]
    more: dict[str, Any] = {"decoder_init_norm": 1.0}
    if task.variant == "sparse":
        more |= {"use_sparse_activations": True, "rescale_acts_by_decoder_norm": False}
    if task.kind == "matryoshka":
        more["matryoshka_widths"] = [task.d_sae // 16, task.d_sae // 4, task.d_sae]
    start_D = mean(task)
    sae = sae_class(config_class(d_in=len(start_D), d_sae=task.d_sae, k=task.k, device=task.device, **more))
    sae.b_dec.data.copy_(start_D)
    return sae, trainer_class(trainer_config(task), sae, iter(()))


def bury(task: Settings, trainer: Any) -> None:
    """Let the first latents count as dead in the next step, where the variant asks for it."""
    if task.variant == "auxk":
        trainer.n_forward_passes_since_fired[: round(DEAD * task.d_sae)] = 10**6


def trainer_config(task: Settings) -> Any:
    """The schedule that all workers follow: 2 % warm-up, 20 % decay."""
    return SAETrainerConfig(
        total_training_samples=task.steps * task.batch,
        train_batch_size_samples=task.batch,
        lr=task.lr,
        lr_end=task.lr / 10,
        lr_warm_up_steps=max(1, task.steps // 50),
        lr_decay_steps=task.steps // 5,
        dead_feature_window=25,
        autocast=task.variant == "autocast",
        device=task.device,
    )


def main() -> None:
    """Serve one task."""
    task = settings()
    sae, trainer = built(task, CLASSES, SAETrainer)

    def step(x_BD: Any) -> None:
        bury(task, trainer)
        trainer.step(x_BD)
        trainer.n_training_steps += 1

    obey(batches(task), task.device, step, lambda: quality(task, sae.encode, sae.decode))


if __name__ == "__main__":
    main()
