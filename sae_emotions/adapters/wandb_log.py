"""Weights & Biases: one W&B run a run folder, every stage logs into it. Never a reason for a run to fail.

`WANDB_MODE` is honoured. Without it, a machine that has a key logs online and any other one offline; the files lie in
RUN/wandb, and `wandb sync` sends them later.
"""

import netrc
import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from sae_emotions.config import RunConfig, config_hash
from sae_emotions.progress import say

PROJECT = "sae-emotions"
SECONDS_TO_START = 30


class Tracker:
    """Where stages log. Without a W&B run behind it, logging does nothing."""

    def __init__(self, session: Any = None) -> None:
        self._session = session

    def log(self, stage: str, numbers: Mapping[str, Any], step: int | None = None) -> None:
        """Log `numbers` under a stage's name; `step` (or their own "step") is their place on the stage's axis."""
        found = {f"{stage}/{key}": value for key, value in numbers.items()}
        if step is not None:
            found[f"{stage}/step"] = step
        self._try(lambda: self._session.log(found))

    def summary(self, stage: str, numbers: Mapping[str, Any]) -> None:
        """Set numbers that stand for a whole stage."""
        found = {f"{stage}/{key}": value for key, value in numbers.items()}
        self._try(lambda: self._session.summary.update(found))

    def _try(self, work: Any) -> None:
        if self._session is None:
            return
        try:
            work()
        except Exception as error:
            self._session = None
            _give_up(error)


@contextmanager
def tracker(config: RunConfig, run: Path, *stages: str) -> Iterator[Tracker]:
    """A `Tracker` for stages that run together, such as `harvest` alone or some of `train:NAME`.

    Whatever goes wrong in W&B costs one line on standard error; what goes wrong in the stages is raised as it is.
    """
    made = Tracker(_started(config, run, stages))
    session = made._session
    failed = True
    try:
        yield made
        failed = False
    finally:
        if session is not None:
            try:
                session.finish(exit_code=int(failed))
            except Exception as error:
                _give_up(error)


def run_id(config: RunConfig) -> str:
    """Id of the W&B run: the same for every stage and every resumption of a run with this config."""
    return config_hash(config)[:16]


def mode() -> str:
    """What W&B is to do: `WANDB_MODE` if it is set; else online where there is a key, offline where there is none."""
    return os.environ.get("WANDB_MODE") or ("online" if _has_key() else "offline")


def _has_key() -> bool:
    if os.environ.get("WANDB_API_KEY"):
        return True
    host = urlsplit(os.environ.get("WANDB_BASE_URL", "https://api.wandb.ai")).hostname or ""
    try:
        return netrc.netrc(os.environ.get("NETRC")).authenticators(host) is not None
    except (OSError, netrc.NetrcParseError):
        return False


def _started(config: RunConfig, run: Path, stages: Sequence[str]) -> Any:
    if mode() == "disabled":
        return None
    try:
        import wandb

        chosen: Any = mode()
        # W&B makes its folder only where the one above it is there, and falls back to a temporary one.
        run.mkdir(parents=True, exist_ok=True)
        session = wandb.init(
            project=os.environ.get("WANDB_PROJECT", PROJECT),
            name=config.name,
            id=run_id(config),
            resume="allow" if chosen == "online" else None,
            dir=str(run),
            mode=chosen,
            config=config.model_dump(mode="json"),
            settings=wandb.Settings(silent=True, console="off", disable_git=True, init_timeout=SECONDS_TO_START),
        )
        for stage in stages:
            session.define_metric(f"{stage}/*", step_metric=f"{stage}/step")
        return session
    except Exception as error:
        _give_up(error)
        return None


def _give_up(error: Exception) -> None:
    said = " ".join(str(error).split())[:300]
    say(f"W&B does not log this stage ({type(error).__name__}: {said}); the run goes on without it.")
