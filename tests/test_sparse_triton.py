"""The sparse step in Triton, and CUDA graphs, without a GPU.

Triton reads from the environment how it runs when it is imported, so that the tests of the kernels run in processes of their own.
"""

import os
import subprocess
import sys
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
import torch

from sae_emotions.sparse.graphs import Graphed

FOLDER = Path(__file__).parent / "triton"


@pytest.mark.slow
@pytest.mark.parametrize("name", ["interpreted", "compiled"])
def test_kernels(name: str, tmp_path: Path) -> None:
    if find_spec("triton") is None:
        pytest.skip("Triton is not here")
    env = os.environ | {"TRITON_INTERPRET": str(int(name == "interpreted")), "TRITON_CACHE_DIR": str(tmp_path)}
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", str(FOLDER / f"{name}.py")]
    done = subprocess.run(command, env=env, cwd=FOLDER.parents[1], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr


class Recorder:
    """A graph that runs its work at every launch, into the memory that it first returned."""

    def __init__(self, fails: bool = False) -> None:
        self.fails, self.recorded, self.launched = fails, 0, 0

    def __call__(self, work: Callable[[], Any]) -> tuple[Callable[[], None], Any]:
        if self.fails:
            raise RuntimeError("operation not permitted when stream is capturing")
        self.recorded += 1
        made = torch.zeros_like(work())

        def replay() -> None:
            self.launched += 1
            made.copy_(work())

        return replay, made


def test_what_is_called_twice_alike_is_recorded() -> None:
    recorder, weight = Recorder(), torch.tensor([2.0, 3.0])
    graphed = Graphed(lambda x, w, number: x * w + number, recorder)
    for turn in range(4):
        x = torch.tensor([1.0, turn])
        assert torch.equal(graphed((x,), (weight,), 1), x * weight + 1)
    assert (recorder.recorded, recorder.launched) == (1, 3)
    weight += 1
    assert graphed((torch.ones(2),), (weight,), 1).tolist() == [4.0, 5.0]
    assert (recorder.recorded, recorder.launched) == (1, 4)


def test_what_differs_is_launched_as_it_is_and_recorded_when_it_comes_again() -> None:
    recorder, weight = Recorder(), torch.tensor([2.0])
    graphed = Graphed(lambda x, w, number: x * w + number, recorder)
    one, other = torch.ones(3), torch.ones(5)
    for x, number in [(one, 1), (one, 1), (other, 1), (one, 1), (one, 2), (one, 1)]:
        assert torch.equal(graphed((x,), (weight,), number), x * weight + number)
    assert (recorder.recorded, recorder.launched) == (1, 3)
    moved = torch.tensor([7.0])
    for _ in range(3):
        assert graphed((one,), (moved,), 1).tolist() == [8.0] * 3
    assert (recorder.recorded, recorder.launched) == (2, 5)


def test_without_graphs_all_is_launched(capsys: pytest.CaptureFixture[str]) -> None:
    for recorder in (None, Recorder(fails=True)):
        graphed = Graphed(lambda x: x + 1, recorder)
        for turn in range(4):
            assert graphed((torch.tensor([float(turn)]),), ()).tolist() == [turn + 1]
    heard = capsys.readouterr()
    assert (heard.out + heard.err).count("CUDA graphs are not used") == 1
