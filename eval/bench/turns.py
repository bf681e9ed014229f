"""Workers that take turns: while one takes its steps, all others wait, so that what disturbs the machine disturbs all alike."""

import contextlib
import json
import os
import statistics
import subprocess
from pathlib import Path
from typing import Any, NamedTuple

from eval.bench.environments import interpreter, script

TUNED = {
    "MALLOC_MMAP_THRESHOLD_": "8589934592",
    "MALLOC_TRIM_THRESHOLD_": "17179869184",
    "MALLOC_TOP_PAD_": "268435456",
}
"""glibc told to keep what is freed: it helps whoever allocates large matrices every step, and is set for all alike."""


class Candidate(NamedTuple):
    """A library and one of its settings."""

    library: str
    variant: str

    def __str__(self) -> str:
        return self.library if self.variant == "default" else f"{self.library} ({self.variant})"


class Worker:
    """A candidate's process. It is started at once, so that several start together; `ready` waits for it."""

    def __init__(self, candidate: Candidate, what: str, task: dict[str, Any], folder: Path, tuned: bool) -> None:
        self.candidate = candidate
        self._log = folder / f"{what}-{candidate.library}-{candidate.variant}.log"
        with self._log.open("a", encoding="utf-8") as errors:
            self._process: Any = subprocess.Popen(
                [
                    interpreter(candidate.library),
                    str(script(candidate.library, what)),
                    json.dumps(task | {"variant": candidate.variant}),
                ],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=errors,
                text=True,
                env=os.environ | (TUNED if tuned else {}) | {"PYTHONPATH": str(Path(__file__).parents[2])},
            )

    def ready(self) -> dict[str, Any]:
        """What the worker says of itself once it can take steps. Raises RuntimeError where it ends instead."""
        return self._heard()

    def steps(self, count: int) -> list[float]:
        """Seconds of each of the next `count` steps."""
        found: list[float] = self._asked({"steps": count})["seconds"]
        return found

    def quality(self) -> dict[str, Any]:
        """What the worker measures of itself now: FVU, L0 and silent share, or where its rows lie."""
        return self._asked({"quality": True})

    def stop(self) -> None:
        """End the process, one that has ended by itself too."""
        if self._process.stdin.closed:
            return
        with contextlib.suppress(subprocess.TimeoutExpired):
            self._process.communicate("\n", timeout=60)
        self._process.kill()
        for pipe in (self._process.stdin, self._process.stdout):
            with contextlib.suppress(BrokenPipeError):
                pipe.close()
        self._process.wait()

    def _asked(self, order: dict[str, Any]) -> dict[str, Any]:
        with contextlib.suppress(BrokenPipeError):  # a process that ended says why in its log
            self._process.stdin.write(json.dumps(order) + "\n")
            self._process.stdin.flush()
        return self._heard()

    def _heard(self) -> dict[str, Any]:
        line = self._process.stdout.readline()
        while line and not line.startswith("{"):  # what a library prints while it is imported
            line = self._process.stdout.readline()
        if not line:
            tail = self._log.read_text(encoding="utf-8").splitlines()[-12:]
            raise RuntimeError(f"{self.candidate} ended; the last lines of its log:\n" + "\n".join(tail))
        found: dict[str, Any] = json.loads(line)
        return found


def in_turns(workers: list[Worker], rounds: int, at_least: float = 0.4, warm: int = 2) -> dict[Candidate, list[float]]:
    """Seconds of many steps of each worker: `rounds` turns each, every turn at least `at_least` seconds long.

    The first steps, `warm` of them and as many again to learn how long one is, do not count: they allocate and compile.
    """
    counts = {}
    for worker in workers:
        worker.steps(warm)
        counts[worker.candidate] = max(1, round(at_least / min(worker.steps(warm))))
    found: dict[Candidate, list[float]] = {worker.candidate: [] for worker in workers}
    for _ in range(rounds):
        for worker in workers:
            found[worker.candidate] += worker.steps(counts[worker.candidate])
    return found


def summary(seconds: list[float], units: int, name: str) -> dict[str, Any]:
    """Median step, its quartiles, and `units` (rows or tokens of a step) a second under `name`."""
    middle, edges = (
        statistics.median(seconds),
        statistics.quantiles(seconds, n=4, method="inclusive") if len(seconds) > 1 else seconds * 3,
    )
    return {
        "step_ms": 1e3 * middle,
        name: units / middle,
        "steps": len(seconds),
        "quartiles_ms": [1e3 * edges[0], 1e3 * edges[2]],
    }
