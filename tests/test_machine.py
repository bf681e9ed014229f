"""What is said of the machine is measured, and settings follow from it."""

import ctypes
import time

import pytest
import torch

from sae_emotions import machine
from sae_emotions.config import ModelConfig


def test_it_measures_and_is_quick_about_it() -> None:
    start = time.perf_counter()
    found = machine.measure()
    assert time.perf_counter() - start < 30  # two seconds on an idle machine
    assert found["fp32_gflops"] > 0
    assert found["bf16_gflops"] > 0
    assert found["fast_bf16"] == (found["bf16_gflops"] >= 1.3 * found["fp32_gflops"])


@pytest.mark.parametrize("fast", [False, True])
def test_the_dtype_follows_from_the_measurement(monkeypatch: pytest.MonkeyPatch, fast: bool) -> None:
    speeds = {"device": "cpu", "fp32_gflops": 100.0, "bf16_gflops": 500.0 if fast else 20.0, "fast_bf16": fast}
    monkeypatch.setattr(machine, "measure", lambda: speeds)
    chosen = torch.bfloat16 if fast else torch.float32
    assert machine.compute_dtype(ModelConfig(source="m")) == chosen
    assert str(chosen).removeprefix("torch.") in machine.summary(speeds)
    assert str(chosen).removeprefix("torch.") in machine.doctor()["models_run_in"]
    assert machine.compute_dtype(ModelConfig(source="m", dtype="float32")) == torch.float32
    assert machine.compute_dtype(ModelConfig(source="m", dtype="bfloat16")) == torch.bfloat16


def test_what_the_machine_has() -> None:
    facts = machine.describe()
    assert facts["cores"] >= 1
    assert facts["free_disk_gb"] > 0
    assert facts["memory_gb"] is None or facts["memory_gb"] > 0


def test_no_glibc_no_harm(monkeypatch: pytest.MonkeyPatch) -> None:
    def missing(name: str) -> None:
        raise OSError(name)

    monkeypatch.setattr(ctypes, "CDLL", missing)
    assert machine.tune_allocator() is False
