"""Which latents of a row may be its best: two ways to find out, by torch's products or by our own.

B rows, D residual width, M latents, C candidates a row, K active latents a row.
"""

import threading
from collections.abc import Iterator
from typing import Any, NamedTuple, Protocol

import numpy as np
import torch

from sae_emotions.sparse import fused, kernels
from sae_emotions.sparse.screen import (
    CHUNK,
    Kind,
    Rounded,
    empty,
    made_screen,
    part_of,
    product,
    product_room,
    round_rows,
    slack,
)
from sae_emotions.sparse.shapes import Weights
from sae_emotions.threads import Threads
from sae_emotions.vector import PANEL

GROUPS = 32
"""Latents a group, at most."""
SHARED = 6
"""Groups for each candidate that is asked for: enough that few of those share one."""


class Memory:
    """Arrays that are used again, by name: what was in them is lost.

    They begin at a cache line, as torch's tensors do. numpy's own need not, and vectors that straddle two lines made a step's
    gradients half as slow again.
    """

    def __init__(self) -> None:
        self._kept: dict[str, np.ndarray] = {}

    def array(self, name: str, shape: tuple[int, ...], dtype: type) -> np.ndarray:
        """An array of this shape."""
        size = int(np.prod(shape))
        if name not in self._kept or self._kept[name].size < size:
            self._kept[name] = fused.aligned((size,), dtype)
        return self._kept[name][:size].reshape(shape)


class Best(NamedTuple):
    """The K best latents of each row, by index, and whether that is sure; -1 where K were not found."""

    index_BK: np.ndarray
    value_BK: np.ndarray
    sure_B: np.ndarray

    @staticmethod
    def empty(rows: int, k: int) -> "Best":
        """Room for them."""
        return Best(np.full((rows, k), -1, np.int64), np.empty((rows, k), np.float32), np.zeros(rows, bool))


class Candidates(NamedTuple):
    """Latents that a row's screen let through, and their float32 values."""

    latent_BC: np.ndarray
    value_BC: np.ndarray
    score_BC: np.ndarray
    count_B: np.ndarray
    """how many there are; more than C where some were lost"""


class Search(Protocol):
    """One way to search. What it returns lies in memory that the next call uses again."""

    def prepare(self, weights: Weights, norm_M: torch.Tensor) -> None:
        """Take the weights that the next calls search."""
        ...

    def best(self, x_BD: np.ndarray, asked: int, places: int, into: Best) -> None:
        """Of each row the best latents. `asked`: candidates to begin with, more than K; `places`: how many there may be."""
        ...

    def reaching(self, x_BD: np.ndarray, least: float, places: int) -> Candidates:
        """All latents whose score may reach `least`."""
        ...


class _Weights(NamedTuple):
    We_MD: np.ndarray
    be_M: np.ndarray
    norm_M: np.ndarray
    bd_D: np.ndarray


def _numpy(weights: Weights, norm_M: torch.Tensor) -> _Weights:
    return _Weights(weights.We_MD.numpy(), weights.be_M.numpy(), norm_M.numpy(), weights.bd_D.numpy())


class Products:
    """By torch's products of `CHUNK` rows with all encoder rows, in a type that it multiplies."""

    def __init__(self, kind: Kind, origin_D: np.ndarray | None, threads: Threads) -> None:
        self.kind, self.origin_D, self.threads = kind, origin_D, threads
        self._latents: Rounded | None = None
        self._memory, self._own = Memory(), threading.local()

    def prepare(self, weights: Weights, norm_M: torch.Tensor) -> None:
        """See `Search`."""
        held = self._weights = _numpy(weights, norm_M)
        if self._latents is None or self._latents.bits.shape != held.We_MD.shape:
            self._latents = empty(self.kind, *held.We_MD.shape)
        latents = self._latents
        off_D = (held.bd_D if self.origin_D is None else self.origin_D) - held.bd_D
        bias_M = np.empty_like(held.be_M)

        def work(part: slice) -> None:
            round_rows(held.We_MD[part], part_of(latents, part))
            kernels.dots(held.We_MD[part], off_D, bias_M[part])

        self.threads.over(len(held.We_MD), work)
        with np.errstate(over="ignore", invalid="ignore"):  # a training that diverges is refused by its loss
            bias_M += held.be_M
            self._screen = made_screen(self.kind, latents, bias_M, held.norm_M, float((off_D**2).sum() ** 0.5))

    def best(self, x_BD: np.ndarray, asked: int, places: int, into: Best) -> None:
        """See `Search`."""
        groups = max(1, min(GROUPS, len(self._weights.norm_M) // (SHARED * asked)))

        def work(part: slice) -> None:
            for some in _chunks(part):
                centred, *product_ = self._product(x_BD[some])
                rows = (column[some] for column in into)
                kernels.top(*product_, groups, asked, places, centred, self._weights[:3], *rows)

        self.threads.over(len(x_BD), work)

    def reaching(self, x_BD: np.ndarray, least: float, places: int) -> Candidates:
        """See `Search`."""
        found = _room_for(self._memory, len(x_BD), places)
        groups = max(1, min(GROUPS, len(self._weights.norm_M) // 16))

        def work(part: slice) -> None:
            for some in _chunks(part):
                centred, *product_ = self._product(x_BD[some])
                rows = (column[some] for column in found)
                kernels.reaching(*product_, groups, np.float32(least), centred, self._weights[:3], *rows)

        self.threads.over(len(x_BD), work)
        return found

    def _product(self, x_BD: np.ndarray) -> tuple[Any, ...]:
        """At most `CHUNK` rows without the decoder's bias, and what `kernels.top` reads bounds from."""
        room, bits = self._rooms(x_BD.shape[1])
        centred = x_BD - self._weights.bd_D
        into = part_of(bits, slice(0, len(centred)))
        round_rows(centred if self.origin_D is None else x_BD - self.origin_D, into)
        p, bounds = product(self._screen, into.bits, room)
        add_B = np.float32(self._screen.most) * into.error_B
        return centred, p, bounds, into.scale_B, into.norm_B, add_B, self._screen.columns

    def _rooms(self, width: int) -> tuple[torch.Tensor, Rounded]:
        """This thread's own room for a product and for its rows."""
        latents, kept = len(self._weights.norm_M), self._own.__dict__
        if "room" not in kept or kept["room"][0].shape[1] != latents or kept["room"][1].bits.shape[1] != width:
            kept["room"] = product_room(self.kind, latents), empty(self.kind, CHUNK, width)
        made: tuple[torch.Tensor, Rounded] = kept["room"]
        return made


def _chunks(part: slice) -> Iterator[slice]:
    for at in range(part.start, part.stop, CHUNK):
        yield slice(at, min(at + CHUNK, part.stop))


def _room_for(memory: Memory, rows: int, places: int) -> Candidates:
    return Candidates(
        memory.array("latent", (rows, places), np.int32),
        memory.array("value", (rows, places), np.float32),
        memory.array("score", (rows, places), np.float32),
        memory.array("count", (rows,), np.int64),
    )


class Fused:
    """By our own product on AVX-512 with VNNI: see `fused`."""

    def __init__(self, origin_D: np.ndarray | None, threads: Threads) -> None:
        self.origin_D, self.threads = origin_D, threads
        self._packed: fused.Packed | None = None
        self._memory, self._own = Memory(), threading.local()

    def prepare(self, weights: Weights, norm_M: torch.Tensor) -> None:
        """See `Search`."""
        held = self._weights = _numpy(weights, norm_M)
        latents, width = held.We_MD.shape
        self._origin = held.bd_D if self.origin_D is None else self.origin_D
        shift_D = self._origin - held.bd_D
        made = self._packed
        if made is None or made.bits.shape != fused.packed_shape(latents, width):
            made = self._packed = fused.packed(latents, width)
        into, panels = made, len(made.bits)

        def work(part: slice) -> None:
            rows = slice(part.start * PANEL, min(part.stop * PANEL, latents))
            columns = held.We_MD[rows], held.be_M[rows], held.norm_M[rows]
            fused.pack(part.start, *columns, shift_D, slack(width), into)

        self.threads.over(panels, work)
        self._most = np.float32(made.most_M.max())

    def best(self, x_BD: np.ndarray, asked: int, places: int, into: Best) -> None:
        """See `Search`."""
        made = self._made()
        groups = min(len(made.bits), -(-SHARED * asked // PANEL))

        def work(part: slice) -> None:
            room = self._rooms(groups, places)
            rows = (column[part] for column in into)
            bounded = self._origin, self._most, made, room
            fused.top(x_BD[part], *bounded, self._weights[:3], self._weights.bd_D, asked, *rows)

        self.threads.over(len(x_BD), work)

    def reaching(self, x_BD: np.ndarray, least: float, places: int) -> Candidates:
        """See `Search`."""
        made, found = self._made(), _room_for(self._memory, len(x_BD), places)

        def work(part: slice) -> None:
            room = self._rooms(1, places)
            rows = (column[part] for column in found)
            bounded = self._origin, self._most, made, room
            fused.reaching(x_BD[part], *bounded, self._weights[:3], self._weights.bd_D, np.float32(least), *rows)

        self.threads.over(len(x_BD), work)
        return found

    def _made(self) -> fused.Packed:
        assert self._packed is not None
        return self._packed

    def _rooms(self, groups: int, places: int) -> fused.Rooms:
        """This thread's own memory."""
        latents, width = self._weights.We_MD.shape
        what, kept = (latents, width, groups, places), self._own.__dict__
        if kept.get("what") != what:
            kept["what"], kept["room"] = what, fused.rooms(*what)
        room: fused.Rooms = kept["room"]
        return room


def search(kind: Kind, origin_D: np.ndarray | None, threads: Threads) -> Search:
    """The way that a kind of product is used."""
    return Fused(origin_D, threads) if kind == "vnni" else Products(kind, origin_D, threads)
