"""W&B: offline for real, absent, broken and disabled; a stage never fails because of it."""

import builtins
import sys
import time
import types

import pytest

from sae_emotions.adapters import wandb_log
from sae_emotions.adapters.wandb_log import mode, run_id, tracker
from sae_emotions.config import parse_config
from tests.fake_run import config


@pytest.fixture(autouse=True)
def bare(monkeypatch, tmp_path):
    """No key, no mode, no netrc: what a fresh machine has."""
    for name in ("WANDB_MODE", "WANDB_API_KEY", "WANDB_BASE_URL", "WANDB_PROJECT"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("NETRC", str(tmp_path / "netrc"))


def logged(run, *stages):
    stages = stages or ("harvest",)
    with tracker(parse_config(config(), "test"), run, *stages) as log:
        for stage in stages:
            log.log(stage, {"loss": 1.0}, step=1)
            log.log(stage, {"loss": 0.5, "step": 2})
            log.summary(stage, {"seconds": 3.0})
    return log


def test_offline_is_the_default_without_a_key(monkeypatch, tmp_path):
    assert mode() == "offline"
    (tmp_path / "netrc").write_text("machine api.wandb.ai login user password secret\n")
    assert mode() == "online"
    (tmp_path / "netrc").write_text("machine elsewhere login user password secret\n")
    assert mode() == "offline"
    (tmp_path / "netrc").write_text("no netrc at all {")
    assert mode() == "offline"
    monkeypatch.setenv("WANDB_API_KEY", "k" * 40)
    assert mode() == "online"
    monkeypatch.setenv("WANDB_MODE", "disabled")
    assert mode() == "disabled"


def test_offline_writes_every_stage_under_the_run(tmp_path, capfd):
    run = tmp_path / "run"
    for stages in (["harvest"], ["train:one", "train:two"]):
        logged(run, *stages)
        time.sleep(1.1)  # W&B names an offline folder by the second
    found = sorted(run.rglob("*.wandb"))
    assert {path.relative_to(run).parts[0] for path in found} == {"wandb"}
    name = run_id(parse_config(config(), "test"))
    assert {path.name for path in found} == {f"run-{name}.wandb"}
    raw = b"".join(path.read_bytes() for path in found)
    for key in (b"harvest/loss", b"train:one/seconds", b"train:two/loss", b"train:two/step"):
        assert key in raw
    out, err = capfd.readouterr()
    assert (out, err) == ("", "")


def test_the_id_belongs_to_the_config():
    other = parse_config(config() | {"seed": 2}, "test")
    assert run_id(parse_config(config(), "test")) == run_id(parse_config(config(), "test")) != run_id(other)


def test_disabled_does_not_even_import_it(monkeypatch, tmp_path):
    monkeypatch.setenv("WANDB_MODE", "disabled")
    monkeypatch.setitem(sys.modules, "wandb", None)
    logged(tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_a_run_goes_on_where_it_is_absent(monkeypatch, tmp_path, capsys):
    real = builtins.__import__

    def without(name, *rest):
        if name.partition(".")[0] == "wandb":
            raise ImportError("No module named 'wandb'")
        return real(name, *rest)

    monkeypatch.setattr(builtins, "__import__", without)
    logged(tmp_path / "run")
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == 1 and "the run goes on without it" in lines[0]


class Session:
    """A W&B run that fails at one point."""

    def __init__(self, fails):
        self.fails, self.seen = fails, []
        self.summary = types.SimpleNamespace(update=lambda numbers: self.do("summary"))

    def do(self, what):
        if what == self.fails:
            raise RuntimeError(f"{what} is broken\nand more")
        self.seen.append(what)

    def log(self, numbers):
        self.do("log")

    def define_metric(self, *names, **rest):
        self.do("define_metric")

    def finish(self, exit_code):
        self.do("finish")
        self.seen.append(exit_code)


@pytest.mark.parametrize("fails", ["init", "define_metric", "log", "summary", "finish"])
def test_a_run_goes_on_where_it_breaks(monkeypatch, tmp_path, capsys, fails):
    session = Session(fails)

    def init(**rest):
        session.do("init")
        return session

    fake = types.SimpleNamespace(init=init, Settings=lambda **rest: None)
    monkeypatch.setitem(sys.modules, "wandb", fake)
    logged(tmp_path / "run")
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == 1 and f"RuntimeError: {fails} is broken" in lines[0]


def test_a_failing_stage_is_raised_and_marked(monkeypatch, tmp_path):
    session = Session(None)
    monkeypatch.setattr(wandb_log, "_started", lambda *_: session)
    with pytest.raises(KeyError), tracker(parse_config(config(), "test"), tmp_path, "harvest"):
        raise KeyError("the stage's own")
    assert session.seen == ["finish", 1]
    logged(tmp_path)
    assert session.seen[-2:] == ["finish", 0]
