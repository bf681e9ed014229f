"""Progress on standard error: a bar with rate and time left for every long stage."""

import sys
from types import TracebackType
from typing import Self


def say(text: str) -> None:
    """Print one line to standard error."""
    print(text, file=sys.stderr, flush=True)


class Progress:
    """A progress bar, as a context manager.

    Off a terminal it prints a plain line at most every ten seconds, so that logs stay short.
    """

    def __init__(self, stage: str, total: int, unit: str, done: int = 0) -> None:
        from tqdm import tqdm

        terminal = sys.stderr.isatty()
        self._bar = tqdm(
            desc=stage,
            total=total,
            initial=done,
            unit=f" {unit}",
            unit_scale=total > 99_999,
            file=sys.stderr,
            mininterval=0.2 if terminal else 10.0,
            maxinterval=1.0 if terminal else 30.0,
            dynamic_ncols=terminal,
            ascii=not terminal,
        )

    def advance(self, n: int) -> None:
        """Count `n` more units as done."""
        self._bar.update(n)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._bar.close()
