"""Two ways to read a batch of windows: the model's own forward, and on a CPU the fused one; which one, and why.

N tokens of a batch, end to end; D residual width.
"""

from collections.abc import Callable, Iterable, Iterator, Sequence
from importlib.util import find_spec
from typing import Any, NamedTuple, Protocol, TypeVar

import numpy as np
import torch

from sae_emotions.config import HarvestConfig
from sae_emotions.errors import UserError
from sae_emotions.harvest.batching import Window, packed, padded
from sae_emotions.harvest.forward import read_blocks
from sae_emotions.sources.models import decoder_blocks

WORTH = 5e12
"""Floating-point operations from which on compiling the loops pays: some twenty seconds of two cores."""
STRAY = {torch.float32: 1e-4, torch.bfloat16: 0.05}
"""Relative error of the median row, against the model's own forward, from which on the fused pass is not trusted. On
SmolLM2-135M it was 1e-6 in float32 and .016 in bfloat16 (block 22)."""
_CHECKED = (90, 33, 7)  # tokens of the windows that are compared
Job = TypeVar("Job")
Result = TypeVar("Result")


class Reader(Protocol):
    """Reads batches of windows."""

    path: str
    """`eager` or `fused`"""
    pads: bool
    """whether it pads the windows of a batch to one length"""

    def read(self, windows: Sequence[Window], blocks: Sequence[int]) -> dict[int, torch.Tensor]:
        """Residual stream after each block: block -> x_ND, float32 on the CPU, the windows end to end."""

    def each(self, work: Callable[[Job], Result], jobs: Iterable[Job]) -> Iterator[Result]:
        """`work`, which calls `read`, on every job; results in order."""

    def close(self) -> None:
        """Let go of what it holds."""


class Eager:
    """The model's own forward, on any device."""

    path, pads = "eager", True

    def __init__(self, model: Any) -> None:
        self.model = model

    def read(self, windows: Sequence[Window], blocks: Sequence[int]) -> dict[int, torch.Tensor]:
        """See `Reader`."""
        ids_BS, mask_BS = padded(windows, 0)
        where, real_BS = next(self.model.parameters()).device, torch.from_numpy(mask_BS)
        found = read_blocks(self.model, torch.from_numpy(ids_BS).to(where), blocks)
        return {block: x_BSD.cpu()[real_BS].float() for block, x_BSD in found.items()}

    def each(self, work: Callable[[Job], Result], jobs: Iterable[Job]) -> Iterator[Result]:
        """See `Reader`. One after the other: every product has all threads."""
        return map(work, jobs)

    def close(self) -> None:
        """See `Reader`."""


class OnThreads:
    """The fused forward, a batch a thread. What it reads does not depend on how many threads there are."""

    path, pads = "fused", False

    def __init__(self, model: Any, deepest: int, context: int) -> None:
        from sae_emotions.harvest.llama import fused
        from sae_emotions.threads import Threads

        self.fused, self.threads = fused(model, deepest, context), Threads()

    def read(self, windows: Sequence[Window], blocks: Sequence[int]) -> dict[int, torch.Tensor]:
        """See `Reader`."""
        return self.fused.read(packed(windows), blocks)

    def each(self, work: Callable[[Job], Result], jobs: Iterable[Job]) -> Iterator[Result]:
        """See `Reader`."""
        return self.threads.each(work, jobs)

    def close(self) -> None:
        """See `Reader`."""
        self.threads.close()


class Choice(NamedTuple):
    """The reader of a harvest."""

    reader: Reader
    why: str
    """what speaks for it, in words"""


def compiles(device: torch.device) -> bool:
    """Whether loops can be compiled for models on this device."""
    return device.type == "cpu" and find_spec("numba") is not None


def _against(model: Any) -> str | None:
    """What stands against the fused pass, as far as can be seen without running it."""
    one = next(model.parameters())
    if one.device.type != "cpu":
        return f"the model runs on the {one.device.type}"
    if not compiles(one.device):
        return "numba is not installed"
    if one.dtype not in STRAY:
        return f"the model runs in {str(one.dtype).removeprefix('torch.')}"
    from sae_emotions.harvest.llama import unlike

    found = unlike(model)
    return found and f"the model has {found}"


def _stray(reader: Reader, model: Any, blocks: Sequence[int], context: int) -> float:
    """Relative error of the median row against the model's own forward, at the worst of `blocks`, on a few tokens."""
    rng = np.random.default_rng(0)
    vocabulary = model.get_input_embeddings().num_embeddings
    cut = [Window(n, 0, rng.integers(0, vocabulary, min(length, context))) for n, length in enumerate(_CHECKED)]
    later_N = torch.from_numpy(np.concatenate([np.arange(len(window.tokens)) > 0 for window in cut]))
    (found,) = reader.each(lambda windows: reader.read(windows, blocks), [cut])
    own = Eager(model).read(cut, blocks)
    errors = [
        ((found[block] - own[block]).norm(dim=1) / own[block].norm(dim=1))[later_N].nanquantile(0.5) for block in blocks
    ]
    return max(float(error) if torch.isfinite(error) else np.inf for error in errors)


def _tried(model: Any, blocks: Sequence[int], context: int) -> Choice:
    against = _against(model)
    if against:
        return Choice(Eager(model), against)
    reader = OnThreads(model, max(blocks), context)
    error = _stray(reader, model, blocks, context)
    if error > STRAY[next(model.parameters()).dtype]:
        reader.close()
        return Choice(Eager(model), f"the fused pass is off by {error:.2g} here")
    return Choice(reader, "Llama's blocks on a CPU")


class Reading:
    """The one reader of a harvest, opened when it is known how much there is to read.

    `begun`: the path of a harvest that goes on. It must be the same, for the same bytes.
    """

    def __init__(self, model: Any, settings: HarvestConfig, begun: str | None = None) -> None:
        self._model, self._settings, self._begun = model, settings, begun
        self._choice: Choice | None = None

    def of(self, tokens: int) -> Choice:
        """The faster reader of `tokens` tokens that is right for this model, device and type.

        Raises `UserError` where a harvest began with a reader that cannot be had here.
        """
        if self._choice is None:
            self._choice = self._chosen(tokens)
        return self._choice

    def close(self) -> None:
        """Let go of the reader."""
        if self._choice is not None:
            self._choice.reader.close()

    def _chosen(self, tokens: int) -> Choice:
        blocks, own = self._settings.blocks, Eager(self._model)
        if self._begun == own.path:
            return Choice(own, "so it began")
        layers = decoder_blocks(self._model)[: max(blocks) + 1]
        operations = 2.0 * tokens * sum(one.numel() for layer in layers for one in layer.parameters())
        if self._begun is None and operations < WORTH:
            return Choice(own, "the texts are short")
        found = _tried(self._model, blocks, self._settings.context)
        if self._begun not in (None, found.reader.path):
            raise UserError(
                f"This harvest began with the fused forward pass, which cannot go on here: {found.why}; "
                "choose another --out, or delete its activations."
            )
        return found


def alike(model: Any, settings: HarvestConfig, path: str) -> Reader:
    """The reader that a harvest was read by, to read some of it again; the model's own forward where it cannot be had."""
    return Eager(model) if path == Eager.path else _tried(model, settings.blocks, settings.context).reader


def spoken(device: torch.device) -> str:
    """How models are read on a device, in words."""
    if not compiles(device):
        return f"the model's own, on the {device.type}"
    return "fused by numba where a model's blocks are Llama's and the text is long, else the model's own"
