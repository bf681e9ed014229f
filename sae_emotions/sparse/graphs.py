"""CUDA graphs: many launches as one, where shapes and addresses stay as they were."""

from collections.abc import Callable
from typing import Any

import torch

from sae_emotions.progress import say

Record = Callable[[Callable[[], Any]], tuple[Callable[[], None], Any]]


def record(work: Callable[[], Any]) -> tuple[Callable[[], None], Any]:
    """What launches `work` again, and what it returns: memory that each launch writes anew. Not run here: it needs a GPU."""
    graph = torch.cuda.CUDAGraph()
    # Other threads may allocate in the meantime, as those that read rows do.
    with torch.cuda.graph(graph, capture_error_mode="thread_local"):
        made = work()
    return graph.replay, made


class Graphed:
    """A function of tensors without a wait for the device, recorded when it is called a second time in a row alike.

    Moving tensors are copied into the graph's own; standing ones are known by their addresses, which the graph keeps. What a
    recorded call returns is overwritten by the next one. Whatever is not alike (the first call, which compiles the kernels; a
    batch of another size) is launched as it is. `recorder` None: never record.
    """

    def __init__(self, work: Callable[..., Any], recorder: Record | None) -> None:
        self._work, self._record = work, recorder
        self._last: Any = None
        self._kept: Any = None
        self._inputs: tuple[torch.Tensor, ...] = ()
        self._replay: Callable[[], None] = lambda: None
        self._made: Any = None

    def __call__(self, moving: tuple[torch.Tensor, ...], standing: tuple[torch.Tensor, ...], *numbers: int) -> Any:
        """`work` of all arguments in this order."""
        if self._record is None:
            return self._work(*moving, *standing, *numbers)
        shapes = [(tensor.shape, tensor.stride(), tensor.dtype) for tensor in (*moving, *standing)]
        key = (shapes, [tensor.data_ptr() for tensor in standing], numbers)
        if key != self._kept:
            if key != self._last:
                self._last = key
                return self._work(*moving, *standing, *numbers)
            try:
                self._keep(moving, standing, numbers)
            except RuntimeError as error:
                say(f"CUDA graphs are not used: {error}")
                self._record = None
                return self._work(*moving, *standing, *numbers)
            self._kept = key
        for mine, given in zip(self._inputs, moving, strict=True):
            mine.copy_(given)
        self._replay()
        return self._made

    def _keep(
        self, moving: tuple[torch.Tensor, ...], standing: tuple[torch.Tensor, ...], numbers: tuple[int, ...]
    ) -> None:
        assert self._record is not None
        self._kept = self._made = None
        self._inputs = tuple(tensor.clone() for tensor in moving)
        self._replay, self._made = self._record(lambda: self._work(*self._inputs, *standing, *numbers))
