"""Models that know nothing: other weights at the same scale, seeded, read by both forward passes, and noted."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch

from sae_emotions.config import ModelConfig, parse_config
from sae_emotions.dictionary.train import train
from sae_emotions.harvest.batching import Window
from sae_emotions.harvest.harvest import harvest
from sae_emotions.harvest.plan import identity
from sae_emotions.harvest.readers import Eager, OnThreads
from sae_emotions.harvest.rows import open_rows
from sae_emotions.sources.models import load_model
from tests.tiny import tiny_config, tiny_model


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_model(tmp_path_factory.mktemp("tiny"))


def weights(folder: Path, how: str, seed: int = 0) -> dict[str, torch.Tensor]:
    config = ModelConfig.model_validate({"source": str(folder), "weights": how, "weights_seed": seed})
    return dict(load_model(config, torch.float32).model.named_parameters())


@pytest.mark.parametrize("how", ["random", "permuted"])
def test_all_matrices_change_and_keep_their_scale(folder: Path, how: str) -> None:
    trained, found = weights(folder, "trained"), weights(folder, how)
    for name, old in trained.items():
        assert found[name].norm() == pytest.approx(float(old.norm()), rel=0.1), name
        if old.ndim > 1:
            same = torch.isclose(found[name], old).float().mean()
            assert same < 0.05, name
            assert abs(np.corrcoef(found[name].flatten(), old.flatten())[0, 1]) < 0.1, name


def test_permuted_weights_are_the_old_values_elsewhere(folder: Path) -> None:
    trained, found = weights(folder, "trained"), weights(folder, "permuted")
    assert all(torch.equal(found[name].flatten().sort()[0], old.flatten().sort()[0]) for name, old in trained.items())


@pytest.mark.parametrize("how", ["random", "permuted"])
def test_the_seed_decides(folder: Path, how: str) -> None:
    first, again, other = (weights(folder, how, seed) for seed in (1, 1, 2))
    assert all(torch.equal(first[name], again[name]) for name in first)
    assert not torch.equal(first["model.embed_tokens.weight"], other["model.embed_tokens.weight"])


def test_a_shared_matrix_stays_shared(tmp_path: Path) -> None:
    from transformers import LlamaForCausalLM

    made = LlamaForCausalLM.from_pretrained(tiny_model(tmp_path / "model"))
    made.config.tie_word_embeddings = True
    made.tie_weights()
    made.save_pretrained(tmp_path / "model")
    model = load_model(ModelConfig(source=str(tmp_path / "model"), weights="random"), torch.float32).model
    assert model.lm_head.weight is model.model.embed_tokens.weight


def test_both_forward_passes_read_the_scrambled_weights(folder: Path) -> None:
    cut = [Window(0, 0, np.arange(3, 43))]
    (own, trained) = (
        load_model(ModelConfig.model_validate({"source": str(folder), "weights": how}), torch.float32).model
        for how in ("permuted", "trained")
    )
    eager, other = Eager(own).read(cut, [2])[2], Eager(trained).read(cut, [2])[2]
    reader = OnThreads(own, 2, 64)
    (fused,) = reader.each(lambda windows: reader.read(windows, [2])[2], [cut])
    reader.close()
    assert torch.allclose(fused, eager, atol=1e-5)
    assert not torch.allclose(eager, other, atol=0.1)


def test_a_harvest_says_whose_weights_it_read(tmp_path: Path) -> None:
    data = tiny_config(tmp_path)
    config = parse_config(data | {"model": data["model"] | {"weights": "random"}}, "test")
    plan = json.loads((harvest(config, tmp_path / "run") / "text" / "plan.json").read_text(encoding="utf-8"))
    assert plan["model"]["weights"] == "random, seed 0"
    trained = parse_config(data, "test")
    assert identity(trained, {}) != identity(config, {})
    rows = open_rows(tmp_path / "run" / "activations" / "text", 2).slice(0, 50)
    real = open_rows(harvest(trained, tmp_path / "real") / "text", 2).slice(0, 50)
    assert not np.allclose(rows, real, atol=0.1)


def test_no_epoch_leaves_a_dictionary_of_random_weights(tmp_path: Path) -> None:
    data = tiny_config(tmp_path)
    one = data["dictionaries"][0]
    config = parse_config(data | {"dictionaries": [one, one | {"name": "untrained", "epochs": 0}]}, "test")
    harvest(config, tmp_path / "run")
    quality = {}
    for name in ("d", "untrained"):
        folder = train(config, tmp_path / "run", name)
        quality[name] = json.loads((folder / "quality.json").read_text(encoding="utf-8"))
    assert quality["untrained"]["steps"] == quality["untrained"]["rows"] == 0
    assert quality["untrained"]["l0"] == pytest.approx(4, abs=0.5)
    assert quality["untrained"]["fvu"] > 1.05 * quality["d"]["fvu"]
