"""What every worker does: take some steps when told to, answer with their seconds.

A worker is started with one JSON argument (`Settings`, or for a harvest `reading.Task`), and then obeys one JSON line after
the other on its standard input: {"steps": n} is answered by {"seconds": [...]}, {"quality": true} by what the worker
measures, an empty line ends it.

B rows of a batch, D residual width.
"""

import json
import os
import sys
import time
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import numpy as np
import torch

HOLDOUT = 8192


class Settings(NamedTuple):
    """One candidate's task."""

    rows: str
    """.npy file of scaled float32 rows; the last `HOLDOUT` are for quality alone"""
    centre: str
    """.npy file: what the rows were stored as int8 around, scaled like them"""
    d_sae: int
    k: int
    batch: int
    steps: int
    """of the whole training, for schedules"""
    lr: float
    kind: str
    """topk, batchtopk or matryoshka"""
    variant: str
    """which setting of the library"""
    threads: int
    device: str


_answers = os.fdopen(os.dup(1), "w")


def told() -> dict[str, Any]:
    """The task as plain data, from the command line. Whatever the library prints goes to standard error."""
    os.dup2(2, 1)
    found: dict[str, Any] = json.loads(sys.argv[1])
    torch.set_num_threads(found["threads"])
    torch.manual_seed(0)
    return found


def settings() -> Settings:
    """The task of a training worker."""
    return Settings(**told())


def batches(task: Settings) -> Iterator[torch.Tensor]:
    """x_BD, the same for every worker: seeded order, without end."""
    rows = np.load(task.rows, mmap_mode="r")
    picker = np.random.default_rng(0)
    while True:
        order = picker.permutation(len(rows) - HOLDOUT)
        for at in range(0, len(order) - task.batch + 1, task.batch):
            yield torch.from_numpy(rows[order[at : at + task.batch]]).to(task.device)


def holdout(task: Settings) -> torch.Tensor:
    """Rows that nobody trains on."""
    rows = np.load(task.rows, mmap_mode="r")
    return torch.from_numpy(np.array(rows[-HOLDOUT:])).to(task.device)


def mean(task: Settings) -> torch.Tensor:
    """Mean of some training rows, to start the decoder's bias from."""
    rows = np.load(task.rows, mmap_mode="r")
    return torch.from_numpy(np.array(rows[:HOLDOUT]).mean(0)).to(task.device)


def quality(task: Settings, encode: Callable[[Any], Any], decode: Callable[[Any], Any]) -> dict[str, float]:
    """FVU, L0 and silent share on the held-out rows."""
    x_ND = holdout(task)
    off, active, fired = 0.0, 0.0, None
    with torch.no_grad():
        for x_BD in x_ND.split(1024):
            acts_BM = encode(x_BD)
            acts_BM = acts_BM.to_dense() if acts_BM.is_sparse else acts_BM
            off += float((decode(acts_BM) - x_BD).pow(2).sum())
            active += float((acts_BM > 0).sum())
            here = (acts_BM > 0).any(0)
            fired = here if fired is None else fired | here
    assert fired is not None
    total = float((x_ND - x_ND.mean(0)).pow(2).sum())
    return {"fvu": off / total, "l0": active / len(x_ND), "silent": float((~fired).float().mean())}


def finish(device: str) -> None:
    """Wait until the device has done all it was told to."""
    if device != "cpu":
        torch.cuda.synchronize()


def answer(what: dict[str, Any]) -> None:
    """One line to whoever started us."""
    print(json.dumps(what), file=_answers, flush=True)


def obey(
    source: Iterator[Any],
    device: str,
    step: Callable[[Any], object],
    measured: Callable[[], dict[str, Any]],
    **what: Any,
) -> None:
    """Take steps on what `source` gives and measure, as told, until told to end; the first answer says `what` besides."""
    answer({"ready": True, **what})
    for line in sys.stdin:
        if not line.strip():
            return
        order = json.loads(line)
        if "quality" in order:
            answer(measured())
            continue
        seconds = []
        for _ in range(order["steps"]):
            given = next(source)
            finish(device)
            start = time.perf_counter()
            step(given)
            finish(device)
            seconds.append(time.perf_counter() - start)
        answer({"seconds": seconds})
