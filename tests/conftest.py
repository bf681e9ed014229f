"""Fixtures that several test files need."""

import os
from pathlib import Path
from typing import Any, NamedTuple

import pytest

# Set before any test imports the libraries that read them: no test needs a hub or an account.
os.environ.setdefault("OMP_NUM_THREADS", "1")  # tiny tensors: a second thread only waits
os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("WANDB_MODE", "disabled")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")


class Planted(NamedTuple):
    """The planted model and all around it on disk."""

    folder: Path
    config: dict[str, Any]
    """A `RunConfig` as plain data."""


@pytest.fixture(scope="session")
def planted(tmp_path_factory: pytest.TempPathFactory) -> Planted:
    """The planted model, its SAE, its concept set and its general text, built once; see `tests/planted.py`."""
    from tests.planted import build, config

    folder = build(tmp_path_factory.mktemp("planted"))
    return Planted(folder, config(folder))


@pytest.fixture(scope="session")
def shared_dir() -> Path:
    """The project's shared material where the checkout has it beside it; tests that need it are skipped elsewhere."""
    folder = Path(os.environ.get("SAE_EMOTIONS_SHARED", Path(__file__).parents[2] / "shared"))
    if not folder.is_dir():
        pytest.skip("the shared material is not here")
    return folder
