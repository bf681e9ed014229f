"""The screen where AVX-512 has VNNI: product, bounds and group maxima of some rows in one pass, then the choice among them.

Bounds never reach memory as a matrix: `BLOCK` rows at a time, laid out tile by tile, they stay in the cache. Everything
here lets go of the interpreter's lock for as long as a thread's whole share of rows takes.

B rows, D residual width (rounded up to fours in few bits), M latents (rounded up to panels), N groups, T tiles of rows,
C candidates a row, K active latents a row.
"""

from typing import Any, NamedTuple

import numpy as np

from sae_emotions.compiling import compiled
from sae_emotions.sparse.kernels import INFINITE, ZERO, Array, dot, limit_of, quantise, rescore, scratch, settling
from sae_emotions.vector import LANES, PANEL, TILE, compress, tile

BLOCK = 4 * TILE
"""Rows a block."""


class Packed(NamedTuple):
    """Encoder rows in the order in which `tile` reads them, and what turns products into bounds."""

    bits: np.ndarray
    """uint8, panels x D x `PANEL`"""
    columns: np.ndarray
    """float32, panels x 3 x `PANEL`: see `screen.Screen`"""
    most_M: np.ndarray
    """norm of an encoder row, and of what is lost of it, times the latent's: the error a unit of what is lost of a row"""


def aligned(shape: tuple[int, ...], kind: type) -> np.ndarray:
    """Zeros that begin at a cache line."""
    size = int(np.prod(shape)) * np.dtype(kind).itemsize
    raw = np.zeros(size + 64, np.uint8)
    first = -raw.ctypes.data % 64
    return raw[first : first + size].view(kind).reshape(shape)


def packed_shape(latents: int, width: int) -> tuple[int, int]:
    """Panels, and bytes of each."""
    return -(-latents // PANEL), -(-width // 4) * 4 * PANEL


def packed(latents: int, width: int) -> Packed:
    """Room for `pack`."""
    panels, size = packed_shape(latents, width)
    return Packed(
        aligned((panels, size), np.uint8),
        aligned((panels, 3, PANEL), np.float32),
        np.zeros(panels * PANEL, np.float32),
    )


class Rooms(NamedTuple):
    """One thread's memory for a block."""

    bits: np.ndarray
    """int8 rows, B x D"""
    numbers: np.ndarray
    """float32, B x 4: see `vector.tile`"""
    bounds: np.ndarray
    """T x panels x `TILE` x `PANEL`"""
    most: np.ndarray
    """the same for groups of panels"""
    cand: np.ndarray
    """one row's candidates, and their bounds"""
    bound: np.ndarray


def rooms(latents: int, width: int, groups: int, places: int) -> Rooms:
    """Room for blocks of rows; `groups` of panels."""
    panels, tiles = -(-latents // PANEL), BLOCK // TILE
    return Rooms(
        aligned((BLOCK, -(-width // 4) * 4), np.int8),
        aligned((BLOCK, 4), np.float32),
        aligned((tiles, panels, TILE, PANEL), np.float32),
        aligned((tiles, groups, TILE, PANEL), np.float32),
        np.empty(places + LANES, np.int32),
        np.empty(places + LANES, np.float32),
    )


@compiled
def pack(first: int, W_MD: Array, b_M: Array, norm_M: Array, shift_D: Array, slack: Any, into: Any) -> None:
    """Round encoder rows and lay them out, from panel `first` on: `W_MD` begins with that panel's first latent.

    A row's product with `shift_D` is added to its bias; `slack` is the float32 error a unit of norm.
    """
    latents = W_MD.shape[0]
    far = slack * np.sqrt(dot(shift_D, shift_D))
    bits = np.zeros((PANEL, into.bits.shape[1] // PANEL), np.int8)
    scale, kept, gone = np.empty(PANEL, np.float32), np.empty(PANEL, np.float32), np.empty(PANEL, np.float32)
    fours = bits.view(np.int32)
    for panel in range((latents + PANEL - 1) // PANEL):
        start, stop = panel * PANEL, min(latents, (panel + 1) * PANEL)
        quantise(W_MD[start:stop], bits, scale, kept, gone)
        columns, laid = into.columns[first + panel], into.bits[first + panel].view(np.int32)
        for m in range(PANEL):
            if start + m >= stop:
                columns[0, m], columns[1, m], columns[2, m] = ZERO, -INFINITE, ZERO
                continue
            n, error = norm_M[start + m], gone[m] + slack * kept[m]
            bias = b_M[start + m] + dot(shift_D, W_MD[start + m]) + far * (kept[m] + gone[m])
            columns[0, m], columns[1, m], columns[2, m] = n * scale[m], n * bias, n * error
            into.most_M[(first + panel) * PANEL + m] = n * (kept[m] + error)
        for four in range(fours.shape[1]):
            for m in range(PANEL):
                laid[four * PANEL + m] = fours[m, four] ^ np.int32(-2139062144)  # 128 more in each byte


@compiled
def bounds(x_BD: Array, origin_D: Array, most: Any, into: Packed, room: Rooms) -> None:
    """Round a block of rows around `origin_D`, and bound the scores of all latents."""
    rows, width = x_BD.shape
    panels, groups = into.bits.shape[0], room.most.shape[1]
    whole = room.bits.shape[1]
    scale, kept, gone = np.empty(rows, np.float32), np.empty(rows, np.float32), np.empty(rows, np.float32)
    off_BD = np.empty((rows, width), np.float32)
    for b in range(rows):
        for d in range(width):
            off_BD[b, d] = x_BD[b, d] - origin_D[d]
    quantise(off_BD, room.bits, scale, kept, gone)
    sums = room.numbers.view(np.int32)
    for b in range(rows):
        total = np.int32(0)
        for d in range(width):
            total += np.int32(room.bits[b, d])
        room.numbers[b, 0], room.numbers[b, 1], room.numbers[b, 2] = scale[b], kept[b], most * gone[b]
        sums[b, 3] = -128 * total
    tiles = (rows + TILE - 1) // TILE
    before = -1
    for panel in range(panels):
        group = panel * groups // panels
        for t in range(tiles):
            tile(
                room.bits[t * TILE :].ctypes.data,
                whole,
                into.bits[panel].ctypes.data,
                whole // 4,
                room.bounds[t, panel].ctypes.data,
                room.most[t, group].ctypes.data,
                room.numbers[t * TILE :].ctypes.data,
                into.columns[panel].ctypes.data,
                group != before,
            )
        before = group


@compiled
def _limit(b: int, asked: int, most_N: Array, room: Rooms) -> Any:
    """What `asked` of a row's groups reach."""
    t, r = b // TILE, b % TILE
    for group in range(room.most.shape[1]):
        for m in range(PANEL):
            most_N[group * PANEL + m] = room.most[t, group, r, m]
    return limit_of(most_N, asked)


@compiled
def _collect(bounded: Any, limit: Any, cand_C: Array, bound_C: Array) -> Any:
    """A row's latents whose bound reaches `limit`, as many as fit; returns how many there are. `bounded`: bounds of a block
    of rows, and the row."""
    bounds_, b = bounded
    panels, apart = bounds_.shape[1], 4 * TILE * PANEL
    where = cand_C.ctypes.data, bound_C.ctypes.data, cand_C.size - LANES
    return compress(bounds_[b // TILE, 0, b % TILE].ctypes.data, panels, apart, limit, *where)


_settled = settling(_collect)


@compiled
def top(
    x_BD: Array,
    origin_D: Array,
    most: Any,
    into: Packed,
    room: Rooms,
    weights: Any,
    bd_D: Array,
    asked: int,
    index_BK: Array,
    value_BK: Array,
    sure_B: Array,
) -> None:
    """The K best latents of each row: see `kernels.settling`. `weights`: encoder rows, biases, norms."""
    rows = x_BD.shape[0]
    most_N = np.empty(room.most.shape[1] * PANEL, np.float32)
    memory = room.cand, room.bound, scratch(room.cand.size - LANES)
    for at in range(0, rows, BLOCK):
        stop = min(at + BLOCK, rows)
        bounds(x_BD[at:stop], origin_D, most, into, room)
        for b in range(at, stop):
            bounded, limit = (room.bounds, b - at), _limit(b - at, asked, most_N, room)
            sure_B[b] = _settled(bounded, limit, x_BD[b] - bd_D, weights, memory, index_BK[b], value_BK[b])


@compiled
def reaching(
    x_BD: Array,
    origin_D: Array,
    most: Any,
    into: Packed,
    room: Rooms,
    weights: Any,
    bd_D: Array,
    limit: Any,
    cand_BC: Array,
    value_BC: Array,
    score_BC: Array,
    count_B: Array,
) -> None:
    """All latents whose score may reach `limit`, and their values and scores: see `kernels.reaching`."""
    rows, places = x_BD.shape[0], cand_BC.shape[1]
    for at in range(0, rows, BLOCK):
        stop = min(at + BLOCK, rows)
        bounds(x_BD[at:stop], origin_D, most, into, room)
        for b in range(at, stop):
            count_B[b] = _collect((room.bounds, b - at), limit, room.cand, room.bound)
            for c in range(min(count_B[b], places)):
                cand_BC[b, c] = room.cand[c]
            rescore(x_BD[b] - bd_D, weights, cand_BC[b], count_B[b], value_BC[b], score_BC[b])
