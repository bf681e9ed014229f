"""The machine's own limits, measured in the same run: products of a training step's shape in three types."""

from collections.abc import Callable
from typing import Any

import torch

from sae_emotions.machine import seconds_of

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

        def product(call: Callable[[], Any] = call) -> None:
            call()
            if device != "cpu":
                torch.cuda.synchronize()

        try:
            found[name] = round(2 * rows * width * latents / seconds_of(product, seconds) / 1e9, 1)
        except RuntimeError:
            continue
    return found
