"""SAELens, imported here and in saelens_sparse.py alone: architectures, trainer, file format, pretrained dictionaries.

SAELens is imported inside the functions: it takes seconds and pulls in much. D: residual width.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from sae_emotions.artefact import read_json, write_json
from sae_emotions.config import DictionaryConfig, PretrainedConfig
from sae_emotions.errors import UserError

DEAD_ROWS = 100_000
"""A latent that has not fired for this many rows counts as dead and is revived by AuxK."""


def _arguments(config: DictionaryConfig) -> dict[str, Any]:
    """Settings that only one architecture knows."""
    match config.architecture:
        case "topk" | "batchtopk":
            return {"k": config.k}
        case "matryoshka_batchtopk":
            return {"k": config.k, "matryoshka_widths": [config.d_sae // 16, config.d_sae // 4, config.d_sae]}
        case "jumprelu":
            return {"l0_coefficient": config.l1}
        case "gated" | "standard":
            return {"l1_coefficient": config.l1}


def training_sae(
    config: DictionaryConfig, d_in: int, metadata: dict[str, Any], seed: int, origin_D: torch.Tensor | None = None
) -> Any:
    """A fresh SAELens training SAE, seeded. `metadata` goes into its cfg.json.

    `origin_D`, if given, is what its rows were stored as int8 around, scaled like them.
    """
    import sae_lens
    from sae_lens.saes.sae import SAEMetadata

    from sae_emotions.adapters import saelens_sparse as sparse

    classes = {
        "topk": (sparse.SparseTopKTrainingSAE, sparse.SparseTopKTrainingSAEConfig),
        "batchtopk": (sparse.SparseBatchTopKTrainingSAE, sparse.SparseBatchTopKTrainingSAEConfig),
        "matryoshka_batchtopk": (sparse.SparseMatryoshkaTrainingSAE, sparse.SparseMatryoshkaTrainingSAEConfig),
        "jumprelu": (sae_lens.JumpReLUTrainingSAE, sae_lens.JumpReLUTrainingSAEConfig),
        "gated": (sae_lens.GatedTrainingSAE, sae_lens.GatedTrainingSAEConfig),
        "standard": (sae_lens.StandardTrainingSAE, sae_lens.StandardTrainingSAEConfig),
    }
    sae_class, config_class = classes[config.architecture]
    torch.manual_seed(seed)
    made = sae_class(
        config_class(
            d_in=d_in,
            d_sae=config.d_sae,
            decoder_init_norm=1.0,
            normalize_activations="expected_average_only_in",
            metadata=SAEMetadata(**metadata),
            **_arguments(config),
        )
    )
    if origin_D is not None and isinstance(made, sparse.Sparse):
        made.stored_around(origin_D)
    return made


def trainer(config: DictionaryConfig, sae: Any, rows: int, scale: float, device: str) -> Any:
    """SAELens' trainer over `rows` rows in all; `scale` multiplies every row, and is folded into the weights at the end."""
    from sae_lens import SAETrainer
    from sae_lens.config import SAETrainerConfig

    from sae_emotions.adapters.saelens_sparse import Sparse, SparseTrainer

    steps = max(1, rows // config.batch)
    made = (SparseTrainer if isinstance(sae, Sparse) else SAETrainer)(
        SAETrainerConfig(
            total_training_samples=steps * config.batch,
            train_batch_size_samples=config.batch,
            lr=config.lr,
            lr_end=config.lr,
            lr_warm_up_steps=round(config.warm_up * steps),
            lr_decay_steps=round(config.decay * steps),
            dead_feature_window=max(1, DEAD_ROWS // config.batch),
            device=device,
        ),
        sae.to(device),
        iter(()),
    )
    made.activation_scaler.scaling_factor = scale
    for group in made.optimizer.param_groups:
        group["fused"] = True  # the same Adam, one pass over memory instead of many
    return made


def step_together(trainers: Sequence[Any], x_BD: torch.Tensor) -> list[Any]:
    """One step of each trainer on the same raw rows, which go to the device once; returns their outputs.

    Where a step raised `UserError`, that stands in its output's place, and the others are not touched by it. Every trainer
    does exactly what it would do alone. An output may have to be read before its trainer's next step. Encoder products of
    several trainers joined in one were measured to be no faster than one after the other, so each searches by itself.
    """
    found: list[Any] = []
    for one in trainers:
        x_BD = x_BD.to(one.sae.device)
        try:
            found.append(one.step(x_BD))
            one.n_training_steps += 1
        except UserError as error:
            found.append(error)
    return found


def save(sae: Any, folder: Path, metadata: dict[str, Any]) -> None:
    """Write cfg.json and sae_weights.safetensors, in SAELens' inference form."""
    for name, value in metadata.items():
        sae.cfg.metadata[name] = value
    sae.save_inference_model(folder)
    _sort_keys(folder)


def save_loaded(sae: Any, folder: Path) -> None:
    """Write an inference SAE as it is."""
    sae.save_model(folder)
    _sort_keys(folder)


def _sort_keys(folder: Path) -> None:
    """SAELens writes cfg.json in the order of a set, which differs from one process to the next."""
    path = folder / "cfg.json"
    write_json(path, dict(sorted(read_json(path).items())))


def load(folder: Path) -> Any:
    """An inference SAE from a SAELens folder. Raises `UserError` where the folder holds none."""
    from sae_lens import SAE

    for name in ("cfg.json", "sae_weights.safetensors"):
        if not (folder / name).is_file():
            raise UserError(f"{folder} is no SAELens folder: it lacks {name}.")
    try:
        sae = SAE.load_from_disk(folder, device="cpu", dtype="float32")
    except (KeyError, ValueError, RuntimeError, OSError) as error:
        raise UserError(f"{folder} could not be read as a SAELens dictionary: {str(error).splitlines()[0]}.") from None
    return sae.eval().requires_grad_(False)


def load_pretrained(config: PretrainedConfig) -> Any:
    """A dictionary made elsewhere. Raises `UserError` for an unknown release or id, or without a network."""
    if config.path is not None:
        return load(Path(config.path))
    from sae_lens import SAE
    from sae_lens.loading.pretrained_saes_directory import get_pretrained_saes_directory

    known = get_pretrained_saes_directory()
    if config.release not in known:
        raise UserError(f"SAELens knows no release '{config.release}'; see its table of pretrained SAEs.")
    if config.id not in known[config.release].saes_map:
        some = ", ".join(list(known[config.release].saes_map)[:4])
        raise UserError(f"Release '{config.release}' has no id '{config.id}'; it has {some} and others.")
    try:
        sae = SAE.from_pretrained(config.release, config.id, device="cpu", dtype="float32")
    except Exception as error:
        raise UserError(
            f"'{config.release}' / '{config.id}' could not be downloaded ({type(error).__name__}); check the network."
        ) from None
    return sae.eval().requires_grad_(False)
