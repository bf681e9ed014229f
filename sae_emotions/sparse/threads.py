"""Threads that each do their own share of rows, products included, so that what one core wrote it also reads."""

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from threading import Barrier

import numpy as np
import torch


def _alone() -> None:
    torch.set_num_threads(1)
    np.seterr(over="ignore", invalid="ignore")  # whoever asked for the work looks at what comes out


class Threads:
    """As many threads as torch has. A product inside one of them runs on that thread alone."""

    def __init__(self) -> None:
        self.count = torch.get_num_threads()
        self._pool = ThreadPoolExecutor(self.count, initializer=_alone)
        # All start now, for set_num_threads acts on the thread that calls it, but also on threads yet to come: hence the
        # second call.
        all_here = Barrier(self.count)
        list(self._pool.map(lambda _: all_here.wait(), range(self.count)))
        torch.set_num_threads(self.count)

    def over(self, count: int, work: Callable[[slice], object]) -> None:
        """`work` on equal parts of `count` things; errors are raised here."""
        self.between([count * part // self.count for part in range(self.count + 1)], work)

    def between(self, cuts: list[int], work: Callable[[slice], object]) -> None:
        """`work` on the parts between `cuts`."""
        list(self._pool.map(work, map(slice, cuts, cuts[1:])))

    def close(self) -> None:
        """Let the threads end."""
        self._pool.shutdown()
