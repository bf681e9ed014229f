"""Dictionaries trained together: the same bytes as alone, whatever happens to one of them."""

import shutil
import threading
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch

from sae_emotions.artefact import read_json
from sae_emotions.concepts.concept_set import load_concepts
from sae_emotions.config import DictionaryConfig, RunConfig, parse_config
from sae_emotions.cost import Speed, estimate
from sae_emotions.dictionary import group, member
from sae_emotions.dictionary.data import prefetched
from sae_emotions.dictionary.group import groups, training_bytes
from sae_emotions.dictionary.train import train, train_together
from sae_emotions.errors import Diverged, UserError
from sae_emotions.pipeline import run_stages
from sae_emotions.run_folder import create_or_check, stage_keys
from tests.kill import killed_after_saves
from tests.tiny import tiny_config

ALIKE = {"batch": 64, "epochs": 3, "holdout": 0.1, "k": 4, "d_sae": 64, "checkpoint_minutes": 1e-9, "lr": 1e-3}
MEMBERS: dict[str, dict[str, Any]] = {
    "topk": {},
    "batchtopk": {"architecture": "batchtopk"},
    "nested": {"architecture": "matryoshka_batchtopk"},
    "below": {"block": 1},
    "seed": {"seed": 1},
    "wide": {"d_sae": 96, "k": 6},
    "jumprelu": {"architecture": "jumprelu", "block": 1},
}
NAMES = list(MEMBERS)


@pytest.fixture(scope="module")
def config(tmp_path_factory: pytest.TempPathFactory) -> RunConfig:
    each = [{"name": name, "block": 2, **ALIKE, **changes} for name, changes in MEMBERS.items()]
    return parse_config(tiny_config(tmp_path_factory.mktemp("tiny"), dictionaries=each), "tiny")


@pytest.fixture(scope="module")
def harvested(config: RunConfig, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("harvested") / "run"
    create_or_check(out, config)
    assert run_stages(out, ["harvest"]) == ["harvest"]
    return out


@pytest.fixture
def run(harvested: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(harvested, tmp_path / "run"))


@pytest.fixture(scope="module", params=["plain", "compiled"])
def engine(request: pytest.FixtureRequest) -> Any:
    """The sparse step's engine; small dictionaries train in PyTorch unless told otherwise."""
    with pytest.MonkeyPatch.context() as patch:
        if request.param == "compiled":
            patch.setattr("sae_emotions.sparse.step.WORTH", 0)
        yield request.param


@pytest.fixture(scope="module")
def alone(config: RunConfig, harvested: Path, engine: str, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run whose dictionaries were trained one by one."""
    out = Path(shutil.copytree(harvested, tmp_path_factory.mktemp("alone") / "run"))
    for name in NAMES:
        train(config, out, name)
    return out


def bytes_of(run: Path, name: str) -> dict[str, bytes]:
    found = {path.name: path.read_bytes() for path in (run / "dictionaries" / name).iterdir()}
    assert set(found) == {"cfg.json", "sae_weights.safetensors", "training.parquet", "quality.json"}
    return found


def test_together_is_the_same_as_alone(config: RunConfig, run: Path, alone: Path) -> None:
    heard: dict[str, list[float]] = {}
    names = list(
        train_together(config, run, NAMES, lambda name, curve: heard.setdefault(name, []).append(curve["step"]))
    )
    assert names == NAMES
    for name in NAMES:
        assert bytes_of(run, name) == bytes_of(alone, name), name
        assert heard[name] == heard["topk"] and len(heard[name]) > 2
    assert not list((run / "dictionaries").glob(".*"))
    weights = {bytes_of(run, name)["sae_weights.safetensors"] for name in NAMES}
    assert len(weights) == len(NAMES)


@pytest.mark.parametrize("kill_at", [3, 38])
def test_an_interrupted_group_ends_with_the_same_bytes(
    config: RunConfig, run: Path, alone: Path, monkeypatch: pytest.MonkeyPatch, kill_at: int
) -> None:
    """Killed while it saves: some have a checkpoint of this step, some of the last one, and some may have none."""
    names = ["topk", "nested", "below", "seed", "jumprelu"]
    with killed_after_saves(kill_at):
        list(train_together(config, run, names))
    steps = {}
    for name in names:
        kept = run / "dictionaries" / f".{name}.checkpoint" / "state.json"
        steps[name] = read_json(kept)["counters"]["n_training_steps"] if kept.is_file() else 0
    assert len(set(steps.values())) == 2
    torch.rand(17)
    # One goes on by itself, and one joins that was not there before.
    train(config, run, "nested")
    list(train_together(config, run, ["wide", "topk", "below", "seed", "jumprelu"]))
    for name in [*names, "wide"]:
        assert bytes_of(run, name) == bytes_of(alone, name), name
    assert not list((run / "dictionaries").glob(".*"))


@pytest.mark.parametrize("architecture", ["topk", "batchtopk", "jumprelu"])
def test_one_that_diverges_is_left_behind(config: RunConfig, run: Path, alone: Path, architecture: str) -> None:
    wild = config.dictionaries[0].model_copy(update={"name": "wild", "lr": 1e30, "architecture": architecture})
    with_wild = config.model_copy(update={"dictionaries": (wild, *config.dictionaries)})
    trained = train_together(with_wild, run, ["topk", "wild", "below"])
    ended = [next(trained), next(trained)]
    with pytest.raises(Diverged, match=r"wild: .*not (a )?finite number.*lr and train again"):
        next(trained)
    assert ended == ["topk", "below"]
    for name in ended:
        assert bytes_of(run, name) == bytes_of(alone, name)
    assert not (run / "dictionaries" / "wild").exists()


def test_a_full_disk_stops_all(config: RunConfig, run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*args: Any) -> None:
        raise UserError("the disk is full")

    monkeypatch.setattr(member, "save_checkpoint", full)
    with pytest.raises(UserError, match=r"^the disk is full$"):
        list(train_together(config, run, ["topk", "below"]))


def test_those_that_read_other_rows_are_not_trained_together(config: RunConfig, run: Path) -> None:
    other = config.dictionaries[0].model_copy(update={"name": "other", "batch": 32})
    both = config.model_copy(update={"dictionaries": (config.dictionaries[0], other)})
    with pytest.raises(ValueError, match="topk, other do not read the same rows"):
        list(train_together(both, run, ["topk", "other"]))


def test_a_run_trains_what_is_not_done_and_goes_on_without_the_lost(
    config: RunConfig, harvested: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    wild = config.dictionaries[0].model_copy(update={"name": "wild", "lr": 1e30})
    some = [d for d in config.dictionaries if d.name in ("topk", "below", "seed")]
    other = config.dictionaries[0].model_copy(update={"name": "other", "batch": 32})
    mixed = config.model_copy(update={"dictionaries": (some[0], wild, *some[1:], other)})
    run = tmp_path / "run"
    create_or_check(run, mixed)
    shutil.copytree(harvested / "activations", run / "activations")
    run_stages(run, ["harvest", "train:below"])
    before = {path: path.stat().st_mtime_ns for path in (run / "dictionaries" / "below").iterdir()}
    seen: list[Sequence[str]] = []

    def spied(config: RunConfig, run: Path, names: Sequence[str], log: Any) -> Any:
        seen.append(names)
        return train_together(config, run, names, log)

    monkeypatch.setattr("sae_emotions.dictionary.train.train_together", spied)
    label = [key for key in stage_keys(mixed) if not key.startswith(("ablate", "report"))]
    with pytest.raises(Diverged, match="wild"):
        run_stages(run, label)
    assert seen == [["topk", "wild", "seed"], ["other"]]
    stages = read_json(run / "run.json")["stages"]
    done = {key for key, stage in stages.items() if stage["state"] == "done"}
    assert done == {"harvest"} | {f"{s}:{n}" for s in ("train", "label") for n in ("topk", "below", "seed", "other")}
    assert stages["train:wild"]["state"] == "begun"
    assert before == {path: path.stat().st_mtime_ns for path in (run / "dictionaries" / "below").iterdir()}
    with pytest.raises(Diverged):
        run_stages(run, label)
    assert seen[2:] == [["wild"]]


def test_stages_keep_their_keys_and_training_comes_first(config: RunConfig) -> None:
    two = config.model_copy(update={"dictionaries": config.dictionaries[:2]})
    later = ["label:topk", "ablate:topk", "label:batchtopk", "ablate:batchtopk", "report"]
    assert stage_keys(two) == ["harvest", "train:topk", "train:batchtopk", *later]


def named(cut: list[list[DictionaryConfig]]) -> list[list[str]]:
    return [[one.name for one in part] for part in cut]


def test_groups_read_the_same_rows_and_fit_into_memory(config: RunConfig, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(group, "training_memory_gb", lambda: 64.0)
    assert named(groups(config.dictionaries, 32)) == [NAMES]
    base = config.dictionaries[0]
    changes: list[dict[str, Any]] = [
        {"batch": 32}, {"epochs": 1.0}, {"holdout": 0.2}, {"concept_rows": False}, {"lr": 1e-4}, {"block": 1},
        {"pretrained": {"path": "a"}}, {"pretrained": {"path": "b"}}, {"batch": 32},
    ]  # fmt: skip
    each = [parse_dictionary(base, f"d{n}", one) for n, one in enumerate(changes)]
    assert named(groups([base, *each], 32)) == [
        ["topk", "d4", "d5"],
        ["d0", "d8"],
        ["d1"],
        ["d2"],
        ["d3"],
        ["d6"],
        ["d7"],
    ]
    size = training_bytes(base, 32)
    monkeypatch.setattr(group, "training_memory_gb", lambda: 3 * size / group.SHARE / 2**30)
    same = [parse_dictionary(base, f"d{n}", {}) for n in range(7)]
    assert [len(part) for part in groups(same, 32)] == [3, 3, 1]
    monkeypatch.setattr(group, "training_memory_gb", lambda: size / 2**31)
    assert [len(part) for part in groups(same, 32)] == [1] * 7


def test_the_estimate_counts_what_trains_at_once(config: RunConfig, monkeypatch: pytest.MonkeyPatch) -> None:
    model = {"d_model": 32, "blocks": 4, "parameters": 100_000, "vocabulary": 123}
    concepts = load_concepts(config.concepts)

    def memory(done: set[str], gigabytes: float) -> int:
        monkeypatch.setattr(group, "training_memory_gb", lambda: gigabytes)
        return estimate(config, model, concepts, Speed(100.0, 100.0), True, done).memory_bytes

    sizes = [training_bytes(one, 32) for one in config.dictionaries]
    none = memory({f"train:{name}" for name in NAMES}, 64.0)
    assert memory(set(), 64.0) - none == sum(sizes)
    assert memory({"train:wide"}, 64.0) - none == sum(sizes) - sizes[NAMES.index("wide")]
    assert memory(set(), 1e-9) - none == max(sizes)


def parse_dictionary(base: DictionaryConfig, name: str, changes: dict[str, Any]) -> DictionaryConfig:
    return DictionaryConfig.model_validate(base.model_dump() | {"name": name} | changes)


def test_the_runs_seed_is_the_default(config: RunConfig, run: Path, alone: Path) -> None:
    explicit = config.dictionaries[0].model_copy(update={"seed": config.seed})
    weights = "sae_weights.safetensors"
    folder = train(config.model_copy(update={"dictionaries": (explicit,)}), run, "topk")
    assert (folder / weights).read_bytes() == bytes_of(alone, "topk")[weights]


def test_a_prefetched_source_may_be_left() -> None:
    taken = 0
    reader: list[threading.Thread] = []

    def endless() -> Any:
        nonlocal taken
        reader.append(threading.current_thread())
        while True:
            taken += 1
            yield taken

    source = prefetched(endless(), ahead=2)
    assert [next(source), next(source)] == [1, 2]
    source.close()
    assert taken <= 5
    assert reader[0] is not threading.current_thread() and not reader[0].is_alive()
