"""Threads that each do their own share of rows, products included, so that what one core wrote it also reads."""

from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from threading import Barrier
from typing import TypeVar, cast

import numpy as np
import torch

Job = TypeVar("Job")
Result = TypeVar("Result")
Item = TypeVar("Item")


def _alone() -> None:
    torch.set_num_threads(1)
    np.seterr(over="ignore", invalid="ignore")  # whoever asked for the work looks at what comes out


def prepared(items: Iterable[Item]) -> Iterator[Item]:
    """The items, each of which is made by a thread of its own while the one before it is used."""
    end, made = object(), iter(items)
    with ThreadPoolExecutor(1) as pool:
        coming = pool.submit(next, made, end)
        while (item := coming.result()) is not end:
            coming = pool.submit(next, made, end)
            yield cast(Item, item)


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

    def each(self, work: Callable[[Job], Result], jobs: Iterable[Job]) -> Iterator[Result]:
        """`work` on every job, each on one thread; results in order. Few jobs are taken ahead, so they may be many."""
        ahead: deque[Future[Result]] = deque()
        for job in jobs:
            ahead.append(self._pool.submit(work, job))
            if len(ahead) > 2 * self.count:
                yield ahead.popleft().result()
        while ahead:
            yield ahead.popleft().result()

    def close(self) -> None:
        """Let the threads end; what has not begun is not begun any more."""
        self._pool.shutdown(cancel_futures=True)
