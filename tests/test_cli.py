"""The command line: every bad input is one clear sentence and exit code 2, and nothing is lost or half-written."""

import errno
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml

from sae_emotions import artefact
from sae_emotions.cli import main, parser
from sae_emotions.config import DictionaryConfig, RunConfig, SweepConfig, parse_config
from sae_emotions.errors import UserError
from sae_emotions.run_folder import create_or_check
from tests.tiny import tiny_config


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    return tiny_config(tmp_path_factory.mktemp("tiny"))


def written(path: Path, data: Any) -> Path:
    path.write_text(yaml.safe_dump(data))
    return path


def refused(capsys: pytest.CaptureFixture[str], *arguments: object) -> str:
    """Run a command that must fail; return its one sentence."""
    assert main([str(one) for one in arguments]) == 2
    out, err = capsys.readouterr()
    sentence = err.strip().splitlines()[-1]
    assert sentence.startswith("sae-emotions: ")
    assert sentence.endswith(".") or "sae-emotions run" in sentence
    assert "Traceback" not in err
    assert out == ""
    return sentence


def changed(data: dict[str, Any], where: str, value: Any) -> dict[str, Any]:
    copy: dict[str, Any] = json.loads(json.dumps(data))
    *parents, last = where.split(".")
    at: Any = copy
    for key in parents:
        at = at[int(key)] if key.isdigit() else at[key]
    at[last] = value
    return copy


@pytest.mark.parametrize(
    ("where", "value", "message"),
    [
        ("model.source", "./no/such/model", "no/such/model"),
        ("model.source", "no-such-org/no-such-model", "no-such-org/no-such-model"),
        ("harvest.hook", "resid_mid", "resid_post"),
        ("harvest.blocks", ["two"], "harvest.blocks"),
        ("harvest.blocks", [-1, 2], "block numbers"),
        ("harvest.contxt", 16, "unknown key 'harvest.contxt'"),
        ("harvest.context", "16 tokens", "harvest.context"),
        ("text.tokens", "1M", "text.tokens"),
        ("text.tokens", 0, "text.tokens"),
        ("dictionaries.0.block", 3, "does not list"),
        ("dictionaries.0.k", 65, "above d_sae"),
        ("dictionaries.0.lr", -1, "lr"),
        ("text.sources.0.column", "txt", "txt"),
        ("text.sources.0.source", "./no-such-file.jsonl", "no-such-file.jsonl"),
        ("concepts", "builtin:nothing", "no built-in concept set"),
        ("label", {"permutations": 5}, "label.permutations"),
        ("sweep", {"block": [2], "d_sea": [64]}, "unknown key 'sweep.d_sea'"),
        ("sweep", {"block": [2], "name": "mine"}, "unknown key 'sweep.name'"),
        ("sweep", {"k": [4]}, "sweep.block"),
        ("sweep", {"block": 2}, "sweep.block"),
        ("sweep", {"block": [3], "d_sae": [64], "k": [4]}, "dictionary b3-64-k4-s0 reads block 3"),
        ("sweep", {"block": [2], "d_sae": [64], "k": [4, 65]}, "k (65) is above d_sae (64)"),
        ("sweep", {"block": [2], "d_sae": [64], "k": [4, 4]}, "same name"),
        ("sweep", [16, 32], "sweep"),
    ],
)
def test_bad_configs(
    capsys: pytest.CaptureFixture[str], data: dict[str, Any], tmp_path: Path, where: str, value: Any, message: str
) -> None:
    path = written(tmp_path / "c.yaml", changed(data, where, value))
    sentence = refused(capsys, "run", path, "--out", tmp_path / "run")
    assert message in sentence
    assert not list(tmp_path.glob("run/activations/*"))


def test_a_block_beyond_the_depth(capsys: pytest.CaptureFixture[str], data: dict[str, Any], tmp_path: Path) -> None:
    deep = changed(changed(data, "harvest.blocks", [9]), "dictionaries.0.block", 9)
    assert "9" in refused(capsys, "run", written(tmp_path / "c.yaml", deep), "--out", tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_a_sweep_is_written_out(data: dict[str, Any]) -> None:
    grid = {"block": [1, 2], "d_sae": [64, 96], "k": [4, 8], "seed": [0, 1], "batch": 32, "lr": 1e-3}
    config = parse_config(data | {"sweep": grid}, "tiny")
    first, *swept = config.dictionaries
    assert first == parse_config(data, "tiny").dictionaries[0]
    assert [d.name for d in swept][:3] == ["b1-64-k4-s0", "b1-64-k4-s1", "b1-64-k8-s0"]
    assert len({(d.block, d.d_sae, d.k, d.seed) for d in swept}) == len(swept) == 16
    for d in swept:
        assert d.name == f"b{d.block}-{d.d_sae}-k{d.k}-s{d.seed}"
        assert (d.batch, d.lr, d.epochs) == (32, 1e-3, 1.0)
    alone = {key: value for key, value in data.items() if key != "dictionaries"} | {"sweep": {"block": [2]}}
    assert [d.name for d in parse_config(alone, "tiny").dictionaries] == ["b2-8192-k32-s0"]
    assert parse_config(config.model_dump(mode="json"), "run.json") == config


def test_a_run_made_before_a_setting_was_there_goes_on(data: dict[str, Any], tmp_path: Path) -> None:
    config = parse_config(data, "tiny")
    older = config.model_dump(mode="json")
    del older["dictionaries"][0]["seed"]
    held = {"config": older, "config_hash": "another", "versions": {}, "model": None}
    (tmp_path / "run.json").write_text(json.dumps(held | {"stages": {"harvest": {"state": "done", "seconds": 1.0}}}))
    before = (tmp_path / "run.json").read_bytes()
    create_or_check(tmp_path, config)
    assert (tmp_path / "run.json").read_bytes() == before
    older["dictionaries"][0]["forgotten"] = 1
    (tmp_path / "run.json").write_text(json.dumps(held | {"stages": {"train:d": {"state": "done", "seconds": 1.0}}}))
    with pytest.raises(UserError, match="another config"):
        create_or_check(tmp_path, config)


def test_broken_yaml_and_missing_files(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    (tmp_path / "broken.yaml").write_text("name: [1, 2\nmodel: {")
    assert "not valid YAML" in refused(capsys, "run", tmp_path / "broken.yaml", "--out", tmp_path / "run")
    (tmp_path / "list.yaml").write_text("- 1\n")
    assert "no mapping" in refused(capsys, "run", tmp_path / "list.yaml", "--out", tmp_path / "run")
    assert "no config file" in refused(capsys, "run", tmp_path / "none.yaml", "--out", tmp_path / "run")
    assert "no run folder" in refused(capsys, "report", tmp_path / "nothing")
    assert "no run folder" in refused(capsys, "find", "joy", "--run", tmp_path / "nothing")


def test_an_empty_corpus_and_texts_too_short(
    capsys: pytest.CaptureFixture[str], data: dict[str, Any], tmp_path: Path
) -> None:
    for name, lines in (("empty", ""), ("short", '{"text": "w1"}\n{"text": "w2"}\n')):
        text = tmp_path / f"{name}.jsonl"
        text.write_text(lines)
        config = written(tmp_path / "c.yaml", changed(data, "text.sources.0.source", str(text)))
        sentence = refused(capsys, "harvest", config, "--out", tmp_path / name)
        assert f"{name}.jsonl" in sentence or "two tokens" in sentence
        assert not list((tmp_path / name).glob("activations/text*"))


def test_a_run_folder_of_another_config(
    capsys: pytest.CaptureFixture[str], data: dict[str, Any], tmp_path: Path
) -> None:
    run = tmp_path / "run"
    assert main(["harvest", str(written(tmp_path / "c.yaml", data)), "--out", str(run)]) == 0
    before = {path: path.read_bytes() for path in run.rglob("*") if path.is_file()}
    other = written(tmp_path / "d.yaml", changed(data, "seed", 1))
    assert "another config (seed: 0 there, 1 here)" in refused(capsys, "run", other, "--out", run)
    assert "is not done" in refused(capsys, "label", run)
    assert "no dictionary 'x'" in refused(capsys, "train", run, "--dictionary", "x")
    shard = run / "activations" / "text" / "shard-00000.safetensors"
    shard.write_bytes(shard.read_bytes()[:-1] + b"\x55")
    assert "changed on disk" in refused(capsys, "verify", run)
    shard.write_bytes(before[shard])
    assert {path: path.read_bytes() for path in run.rglob("*") if path.is_file()} == before
    assert main(["verify", str(run), "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["rows"] > 100
    taken = tmp_path / "taken"
    taken.mkdir()
    (taken / "thesis.txt").write_text("mine")
    assert "is no run folder" in refused(capsys, "run", tmp_path / "c.yaml", "--out", taken)


def test_a_full_disk(
    capsys: pytest.CaptureFixture[str], data: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = written(tmp_path / "c.yaml", data)
    whole, calls = artefact.os.replace, 0

    def full(source: Any, target: Any) -> None:
        nonlocal calls
        calls += "shard-" in str(target)
        if calls > 2:
            raise OSError(errno.ENOSPC, "No space left on device")
        whole(source, target)

    monkeypatch.setattr(artefact.os, "replace", full)
    assert "disk" in refused(capsys, "harvest", config, "--out", tmp_path / "run")
    monkeypatch.setattr(artefact.os, "replace", whole)
    assert not [path for path in (tmp_path / "run").rglob(".*") if "tmp" in path.name]
    assert main(["harvest", str(config), "--out", str(tmp_path / "run")]) == 0


def test_a_dry_run_writes_nothing(capsys: pytest.CaptureFixture[str], data: dict[str, Any], tmp_path: Path) -> None:
    config = written(tmp_path / "c.yaml", data)
    assert main(["run", str(config), "--out", str(tmp_path / "run"), "--dry-run"]) == 0
    shown = capsys.readouterr().err
    assert "tokens" in shown and "min" in shown and "GB of disk" in shown
    assert not (tmp_path / "run").exists()


def test_every_command_has_help(capsys: pytest.CaptureFixture[str]) -> None:
    commands = next(a for a in parser()._actions if a.dest == "work" or (hasattr(a, "choices") and a.choices))
    assert commands.choices is not None
    names = set(commands.choices)
    assert names == {
        "run", "harvest", "train", "label", "ablate", "report", "vectors", "steer", "find", "show", "read", "serve", "verify",
        "sources", "doctor"
    }  # fmt: skip
    for name in names:
        with pytest.raises(SystemExit) as stopped:
            main([name, "--help"])
        assert stopped.value.code == 0
        assert len(capsys.readouterr().out) > 150


def test_doctor_and_sources_speak_json(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["doctor", "--json"]) == 0
    facts = json.loads(capsys.readouterr().out)
    assert {"cores", "amx_bf16", "avx512", "vnni", "cuda", "memory_gb", "free_disk_gb", "models_run_in"} <= set(facts)
    assert "settled in float32" in facts["training_step"] or facts["cuda"]
    assert facts["fp32_gflops"] > 0
    assert main(["sources", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)


def test_the_command_is_installed_and_reports_usage_errors() -> None:
    done = subprocess.run([sys.executable, "-m", "sae_emotions", "show"], capture_output=True, text=True, check=False)
    assert done.returncode == 2
    assert "usage:" in done.stderr


def test_every_setting_has_a_description() -> None:
    from pydantic import BaseModel

    def models(of: type[BaseModel]) -> set[type[BaseModel]]:
        import typing

        found = {of}
        for field in of.model_fields.values():
            for part in (field.annotation, *typing.get_args(field.annotation)):
                if isinstance(part, type) and issubclass(part, BaseModel):
                    found |= models(part)
        return found

    everything = models(RunConfig) | models(DictionaryConfig) | models(SweepConfig)
    assert len(everything) >= 8
    for model in everything:
        for name, field in model.model_fields.items():
            nested = isinstance(field.annotation, type) and issubclass(field.annotation, BaseModel)
            assert field.description or nested or name in ("sources", "dictionaries", "architecture", "pretrained"), (
                f"{model.__name__}.{name}"
            )
