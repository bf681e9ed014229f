"""The fast half of an exact selection: one product in few bits, and a bound on what it can be wrong by.

A row x and a latent's encoder row w are written as what is kept plus what is lost, x = a + r and w = c + s. Then x.w differs
from a.c by at most |r| (|c| + |s|) + |a| |s|, so that a latent whose bound a.c + that lies below a limit scores less than it.

Rows that were stored as int8 around a centre are exactly int8 around it: there r is zero, and the bound narrower.

B rows, D residual width, M latents.
"""

import functools
from collections.abc import Callable
from typing import Any, Literal, NamedTuple

import numpy as np
import torch

from sae_emotions import vector
from sae_emotions.machine import seconds_of
from sae_emotions.sparse import fused, kernels

Kind = Literal["vnni", "int8", "bfloat16", "float32"]
"""What multiplies: our own int8 product on AVX-512 with VNNI, or torch's product of a type."""
CHUNK = 256
"""Rows a product of torch's."""
_SHAPE, BUDGET = (CHUNK, 576, 4096), 0.1


@functools.cache
def fastest() -> Kind:
    """The kind of product that this machine is fastest at, measured for about a tenth of a second each."""
    rows, width, latents = _SHAPE
    x_BD, w_MD = torch.ones(rows, width), torch.ones(latents, width)
    half_BD, half_MD = x_BD.bfloat16(), w_MD.bfloat16()
    byte_BD, byte_MD = x_BD.to(torch.int8), w_MD.to(torch.int8)
    out_BM = torch.empty(rows, latents, dtype=torch.int32)
    products: dict[Kind, Callable[[], Any]] = {
        "int8": lambda: torch._int_mm(byte_BD, byte_MD.t(), out=out_BM),
        "bfloat16": lambda: torch.nn.functional.linear(half_BD, half_MD),
        "float32": lambda: torch.nn.functional.linear(x_BD, w_MD),
    }
    seconds: dict[Kind, float] = {}
    for kind, product in products.items():
        try:
            seconds[kind] = seconds_of(product, BUDGET)
        except RuntimeError:  # a type that torch does not multiply on this processor
            continue
    if vector.there():
        threads, own = torch.get_num_threads(), _own_product()
        if min(seconds.values()) < own / threads:  # with AMX, say; but bounds are yet to be read from what it makes
            screen = _screening(out_BM.numpy()) / threads
            seconds = {kind: one + screen for kind, one in seconds.items()}
        seconds["vnni"] = own / threads
    return min(seconds, key=seconds.__getitem__)


def _own_product() -> float:
    """Seconds of our own product of `_SHAPE` on one thread, bounds and maxima included."""
    rows, width, latents = _SHAPE
    packed, rooms = fused.packed(latents, width), fused.rooms(latents, width, 16, 1)
    some = np.ones((fused.BLOCK, width), np.float32)

    def product() -> None:
        fused.bounds(some, some[0], np.float32(0), packed, rooms)

    return seconds_of(product, BUDGET) * rows / fused.BLOCK


def _screening(p_BM: np.ndarray) -> float:
    """Seconds to read bounds and maxima from a product on one thread."""
    rows, latents = p_BM.shape
    row_B, columns, norm_M = np.ones(rows, np.float32), np.ones((3, latents), np.float32), np.ones(latents, np.float32)
    row = p_BM, kernels.bounds_int8, row_B, row_B, row_B, columns, 16, np.float32(np.inf)
    nothing = np.ones((rows, 1), np.float32), (np.ones((latents, 1), np.float32), norm_M, norm_M)
    places = np.empty((rows, 1), np.float32)
    found = np.empty((rows, 1), np.int32), places, places, np.empty(rows, np.int64)
    return seconds_of(lambda: kernels.reaching(*row, *nothing, *found), BUDGET)


def slack(width: int) -> np.float32:
    """Error of two float32 dot products, of the product and of the score, a unit of the norms: at least 8 lanes sum."""
    return np.float32(2 * (width / 8 + 8) * 2**-24)


class Rounded(NamedTuple):
    """Rows in few bits."""

    bits: torch.Tensor
    """int8, bfloat16 or float32"""
    scale_B: np.ndarray
    norm_B: np.ndarray
    """norm of what is kept"""
    error_B: np.ndarray
    """norm of what is lost"""


def empty(kind: Kind, rows: int, width: int) -> Rounded:
    """Room for `round_rows`."""
    dtype = torch.int8 if kind == "int8" else getattr(torch, kind)
    columns = (np.ones(rows, np.float32), np.empty(rows, np.float32), np.zeros(rows, np.float32))
    return Rounded(torch.empty(rows, width, dtype=dtype), *columns)


def round_rows(x_BD: np.ndarray, into: Rounded) -> None:
    """Write rows in few bits, and what that loses, into `into`."""
    if into.bits.dtype == torch.int8:
        kernels.quantise(x_BD, into.bits.numpy(), into.scale_B, into.norm_B, into.error_B)
        return
    into.bits.copy_(torch.from_numpy(x_BD))
    if into.bits.dtype == torch.bfloat16:
        kernels.lost(x_BD, into.bits.view(torch.int16).numpy().view(np.uint16), into.norm_B, into.error_B)
    else:
        kernels.squares(x_BD, into.norm_B)
        np.sqrt(into.norm_B, into.norm_B)


def part_of(made: Rounded, part: slice) -> Rounded:
    """Some of the rows."""
    return Rounded(made.bits[part], made.scale_B[part], made.norm_B[part], made.error_B[part])


class Screen(NamedTuple):
    """Encoder rows in few bits, and what turns a product into bounds of scores."""

    kind: Kind
    bits_MD: torch.Tensor
    columns: np.ndarray
    """3 x M: the product's unit, the bias, the error a unit of the row's norm; all times the latent's norm"""
    most: float
    """the largest norm of an encoder row, times the latent's: the error a unit of what is lost of the row"""


def made_screen(kind: Kind, latents: Rounded, bias_M: np.ndarray, norm_M: np.ndarray, shift: float) -> Screen:
    """`bias_M` is what is added to the product of a row and an encoder row; `norm_M` multiplies the sum.

    `shift`: by how much what is multiplied may be shorter than what is scored.
    """
    off = slack(latents.bits.shape[1])
    error_M = latents.error_B + off * latents.norm_B
    bias_M = bias_M + np.float32(shift) * off * (latents.norm_B + latents.error_B)
    columns = np.stack([norm_M * latents.scale_B, norm_M * bias_M, norm_M * error_M])
    return Screen(kind, latents.bits, columns, float((norm_M * (latents.norm_B + error_M)).max()))


def product(screen: Screen, x_bits_BD: torch.Tensor, room_BM: torch.Tensor) -> tuple[np.ndarray, Any]:
    """The product of some rows with all encoder rows, written to `room_BM`, and the kernel that reads bounds from it."""
    out_BM = room_BM[: len(x_bits_BD)]
    if screen.kind == "int8":
        torch._int_mm(x_bits_BD, screen.bits_MD.t(), out=out_BM)
        return out_BM.numpy(), kernels.bounds_int8
    torch.mm(x_bits_BD, screen.bits_MD.t(), out=out_BM)
    if screen.kind == "bfloat16":
        return out_BM.view(torch.int16).numpy().view(np.uint16), kernels.bounds_bfloat16
    return out_BM.numpy(), kernels.bounds_float32


def product_room(kind: Kind, latents: int) -> torch.Tensor:
    """Room for the product of `CHUNK` rows."""
    return torch.empty(CHUNK, latents, dtype=torch.int32 if kind == "int8" else getattr(torch, kind))
