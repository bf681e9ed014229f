"""Workers that take turns: while one takes its steps, all others wait, so that what disturbs the machine disturbs all alike."""

import contextlib
import json
import os
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
    """A candidate's process."""

    def __init__(self, candidate: Candidate, task: dict[str, Any], log: Path, tuned: bool) -> None:
        self.candidate = candidate
        with log.open("a", encoding="utf-8") as errors:
            self._process = subprocess.Popen(
                [interpreter(candidate.library), str(script(candidate.library)), json.dumps(task)],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=errors,
                text=True,
                env=os.environ | (TUNED if tuned else {}) | {"PYTHONPATH": str(Path(__file__).parents[2])},
            )
        self._log = log
        self._heard()

    def steps(self, count: int) -> list[float]:
        """Seconds of each of the next `count` steps."""
        found: list[float] = self._asked({"steps": count})["seconds"]
        return found

    def quality(self) -> dict[str, float]:
        """FVU, L0 and silent share now."""
        return self._asked({"quality": True})

    def stop(self) -> None:
        """End the process."""
        with contextlib.suppress(BrokenPipeError):
            self._process.communicate("\n", timeout=60)

    def _asked(self, order: dict[str, Any]) -> dict[str, Any]:
        assert self._process.stdin is not None
        self._process.stdin.write(json.dumps(order) + "\n")
        self._process.stdin.flush()
        return self._heard()

    def _heard(self) -> dict[str, Any]:
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        while line and not line.startswith("{"):  # what a library prints while it is imported
            line = self._process.stdout.readline()
        if not line:
            tail = self._log.read_text(encoding="utf-8").splitlines()[-12:]
            raise RuntimeError(f"{self.candidate} ended; the last lines of {self._log}:\n" + "\n".join(tail))
        found: dict[str, Any] = json.loads(line)
        return found


def in_turns(workers: list[Worker], rounds: int, at_least: float = 0.4) -> dict[Candidate, list[float]]:
    """Seconds of many steps of each worker: `rounds` turns each, every turn at least `at_least` seconds long."""
    counts = {}
    for worker in workers:
        worker.steps(2)  # the first ones allocate and compile
        counts[worker.candidate] = max(1, round(at_least / min(worker.steps(2))))
    found: dict[Candidate, list[float]] = {worker.candidate: [] for worker in workers}
    for _ in range(rounds):
        for worker in workers:
            found[worker.candidate] += worker.steps(counts[worker.candidate])
    return found
