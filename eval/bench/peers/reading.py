"""What every harvest worker does: read the same windows of token ids, and hand over its rows to be compared.

W windows, S tokens of a window, D residual width.
"""

import json
import os
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import numpy as np
import torch
from common import obey, told

Windows = list[list[int]]


class Task(NamedTuple):
    """One candidate's task."""

    model: str
    """folder with the weights in float32 and the tokenizer, in the Hugging Face form"""
    folder: str
    """a folder of this worker's own"""
    windows: str
    """.json file: every window's token ids"""
    hook: str
    """the module whose output is the residual stream, such as model.layers.22"""
    config: dict[str, Any]
    """our own run config, for our own worker"""
    block: int
    width: int
    step_windows: int
    """windows of a step; the first step's are compared"""
    batch_tokens: int
    """padded tokens of a forward pass, at most"""
    variant: str
    """which setting of the library"""
    threads: int
    device: str


def task() -> Task:
    """The task, from the command line. Nothing is fetched from a hub."""
    os.environ["HF_HUB_OFFLINE"] = "1"
    return Task(**told())


def windows(given: Task) -> Windows:
    """All windows."""
    with open(given.windows, encoding="utf-8") as file:
        found: Windows = json.load(file)
    return found


def chunks(given: Task) -> Iterator[Windows]:
    """The windows of one step after the other, without end."""
    every = windows(given)
    while True:
        for at in range(0, len(every) - given.step_windows + 1, given.step_windows):
            yield every[at : at + given.step_windows]


def batches(given: Task, some: Windows) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
    """Right-padded ids and mask (windows, S), at most `batch_tokens` each, shorter windows first, as our harvest has them."""
    batch: Windows = []
    for window in [*sorted(some, key=len), []]:
        longest = len(window or batch[-1])
        if batch and (not window or longest * (len(batch) + 1) > given.batch_tokens):
            longest = len(batch[-1])
            ids_WS = torch.tensor([one + [0] * (longest - len(one)) for one in batch])
            mask_WS = torch.tensor([[1] * len(one) + [0] * (longest - len(one)) for one in batch])
            yield ids_WS.to(given.device), mask_WS.to(given.device)
            batch = []
        batch.append(window)


def kept(x_WSD: torch.Tensor, mask_WS: torch.Tensor) -> torch.Tensor:
    """Rows of real tokens but the first of each window: float32, in memory, as an SAE is trained on them."""
    keep_WS = mask_WS.bool().clone()
    keep_WS[:, 0] = False
    return x_WSD[keep_WS].float().cpu()


def hand_over(given: Task, rows_ND: np.ndarray) -> dict[str, Any]:
    """Write the first step's rows, in the order of the windows, where whoever started us looks for them."""
    path = os.path.join(given.folder, "rows.npy")
    np.save(path, rows_ND.astype(np.float32))
    return {"rows": path}


def serve(given: Task, step: Callable[[Windows], object], rows: Callable[[Windows], np.ndarray], **what: Any) -> None:
    """Harvest chunk after chunk, as told."""
    first = windows(given)[: given.step_windows]
    obey(chunks(given), given.device, step, lambda: hand_over(given, rows(first)), **what)
