"""The machine's own limits, measured in the same run: products of a training step's shape in three types."""

import time
from collections.abc import Callable
from typing import Any

import torch

SHAPES = {"cpu": (1024, 576, 4096), "cuda": (8192, 2304, 16384)}
"""Rows, width and latents of a product that keeps a device busy."""


def products(device: str, seconds: float = 1.0) -> dict[str, float]:
    """G op/s of x_BD W_MD' in float32, bfloat16 and int8; a type that the device cannot multiply is left out."""
    rows, width, latents = SHAPES[device]
    x_BD, W_MD = torch.ones(rows, width, device=device), torch.ones(latents, width, device=device)
    half, byte = (x_BD.bfloat16(), W_MD.bfloat16().t()), (x_BD.to(torch.int8), W_MD.to(torch.int8).t())
    calls: dict[str, Callable[[], Any]] = {
        "float32": lambda: x_BD @ W_MD.t(),
        "bfloat16": lambda: half[0] @ half[1],
        "int8": lambda: torch._int_mm(*byte),
    }
    found = {}
    for name, call in calls.items():
        try:
            call()
        except RuntimeError:
            continue
        times, end = [], time.perf_counter() + seconds
        while time.perf_counter() < end:
            start = time.perf_counter()
            call()
            if device != "cpu":
                torch.cuda.synchronize()
            times.append(time.perf_counter() - start)
        found[name] = round(2 * rows * width * latents / sorted(times)[len(times) // 4] / 1e9, 1)
    return found
