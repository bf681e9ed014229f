"""A harvest by the fused forward pass: the same rows, resumed after a kill, on any number of threads."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch

from sae_emotions.config import RunConfig, parse_config
from sae_emotions.errors import UserError
from sae_emotions.harvest import harvest, readers
from sae_emotions.harvest.batching import Window
from sae_emotions.harvest.parity import parity
from sae_emotions.harvest.readers import OnThreads
from tests.tiny import tiny_config


@pytest.fixture(scope="module")
def config(tmp_path_factory: pytest.TempPathFactory) -> RunConfig:
    raw = tiny_config(tmp_path_factory.mktemp("tiny"))
    raw["model"]["dtype"] = "bfloat16"
    return parse_config(raw, "tiny")


@pytest.fixture(scope="module")
def run(config: RunConfig, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("run")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(readers, "WORTH", 0)
        harvest.harvest(config, out)
    return out


def contents(folder: Path) -> dict[str, bytes]:
    return {p.relative_to(folder).as_posix(): p.read_bytes() for p in sorted(folder.rglob("*")) if p.is_file()}


def test_the_plan_says_how_it_was_read_and_how_close_that_is(run: Path) -> None:
    plans = [json.loads((run / "activations" / s / "plan.json").read_text()) for s in ("text", "concepts")]
    assert plans[0]["forward"] == plans[1]["forward"] == {"path": "fused", "why": "Llama's blocks on a CPU"}
    assert plans[0]["parity_with_float32"] == plans[1]["parity_with_float32"]
    for one in plans[0]["parity_with_float32"].values():
        assert 0 < one["relative_error"] <= one["eager"]["relative_error"] < 0.02


def test_a_plan_that_does_not_say_how_it_is_read_is_refused(config: RunConfig, run: Path, tmp_path: Path) -> None:
    shutil.copytree(run, tmp_path / "run")
    for source in ("text", "concepts"):
        path = tmp_path / "run" / "activations" / source / "plan.json"
        plan = json.loads(path.read_text())
        del plan["forward"]
        path.write_text(json.dumps(plan))
    next((tmp_path / "run" / "activations" / "text").glob("shard-*.json")).unlink()
    with pytest.raises(UserError, match="planned by an earlier version"):
        harvest.harvest(config, tmp_path / "run")


def test_both_passes_store_the_same_rows(config: RunConfig, run: Path, tmp_path: Path) -> None:
    from sae_emotions.harvest.rows import open_rows

    harvest.harvest(config, tmp_path)
    assert json.loads((tmp_path / "activations/text/plan.json").read_text())["forward"]["path"] == "eager"
    for source in ("text", "concepts"):
        one, other = (open_rows(folder / "activations" / source, 2) for folder in (run, tmp_path))
        for column in ("document_N", "position_N", "token_N"):
            assert np.array_equal(getattr(one, column), getattr(other, column))
        a_ND, b_ND = (rows.slice(0, len(rows)) for rows in (one, other))
        assert np.linalg.norm(a_ND - b_ND) / np.linalg.norm(b_ND) < 0.02


@pytest.mark.parametrize("kill_after", [0, 1, 4, 9])
def test_a_killed_harvest_ends_with_the_same_bytes_on_more_threads(
    config: RunConfig, run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kill_after: int
) -> None:
    calls = 0
    whole = harvest.write_shard
    monkeypatch.setattr(readers, "WORTH", 0)

    def killed(*args: object) -> None:
        nonlocal calls
        if calls == kill_after:
            raise KeyboardInterrupt
        calls += 1
        whole(*args)  # type: ignore[arg-type]

    monkeypatch.setattr(harvest, "write_shard", killed)
    with pytest.raises(KeyboardInterrupt):
        harvest.harvest(config, tmp_path)
    monkeypatch.undo()  # what was begun goes on, however short what is left
    for plan in tmp_path.rglob("plan.json"):
        plan.write_text(plan.read_text().replace('"threads": 1', '"threads": 3'))
    try:
        harvest.harvest(config, tmp_path)
    finally:
        torch.set_num_threads(1)
    for plan in tmp_path.rglob("plan.json"):
        plan.write_text(plan.read_text().replace('"threads": 3', '"threads": 1'))
    assert contents(tmp_path) == contents(run)


def test_an_error_in_a_thread_ends_the_harvest(
    config: RunConfig, run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    copy = tmp_path / "copy"
    shutil.copytree(run, copy)
    for file in (copy / "activations" / "text").glob("shard-*"):
        file.unlink()
    monkeypatch.setattr(harvest, "keep", lambda *_: 1 // 0)
    with pytest.raises(ZeroDivisionError):
        harvest.harvest(config, copy)
    assert not list((copy / "activations" / "text").glob("shard-*"))


@pytest.mark.slow
def test_on_the_real_model_it_is_as_close_to_float32_as_the_models_own_forward() -> None:
    import yaml

    from sae_emotions.config import ModelConfig
    from sae_emotions.sources.models import load_model

    raw = yaml.safe_load((Path(__file__).parents[1] / "train" / "smollm2-135m.yaml").read_text(encoding="utf-8"))
    model = load_model(ModelConfig(**raw["model"]), torch.bfloat16)
    text = " ".join(f"On day {n} the harvest was {w} again." for n, w in enumerate(["poor", "rich", "late"] * 40))
    ids = np.array(model.tokenizer(text)["input_ids"])
    cut = [Window(0, at, ids[at : at + length]) for at, length in ((0, 256), (256, 200), (500, 31))]
    reader = OnThreads(model.model, 22, 256)
    keep_N = torch.from_numpy(np.concatenate([np.arange(len(window.tokens)) > 0 for window in cut]))
    found = parity(model.model, reader, cut, keep_N, (5, 22))
    reader.close()
    assert found is not None
    for one in found.values():
        assert one["relative_error"] < 1.1 * one["eager"]["relative_error"]
        assert one["cosine"] > 0.9995
