"""Loops that numba compiles: the decorator, floats as bits, and arrays that hold float32 or bfloat16.

numpy has no bfloat16, so a bfloat16 array is the uint16 array of its bits; `up` and `store` read and write either kind.
Importing this module loads numba.
"""

from collections.abc import Callable
from typing import Any

import numpy as np
from llvmlite import ir
from numba import njit, types
from numba.extending import intrinsic, overload

HALF_BITS, ROUND, ONE_BIT = np.uint32(16), np.uint32(0x7FFF), np.uint32(1)


def compiled(function: Callable[..., Any]) -> Any:
    """Compile a loop that lets go of the interpreter's lock. Sums may be reassociated, and no NaN is reckoned with."""
    flags = {"nnan", "nsz", "reassoc", "contract", "arcp"}
    return njit(nogil=True, error_model="numpy", fastmath=flags)(function)


@intrinsic  # type: ignore[untyped-decorator]
def as_float(typing: Any, bits: Any) -> Any:
    """float32 of these bits (uint32)."""
    return types.float32(types.uint32), lambda context, builder, s, args: builder.bitcast(args[0], ir.FloatType())


@intrinsic  # type: ignore[untyped-decorator]
def as_bits(typing: Any, x: Any) -> Any:
    """Bits (uint32) of a float32."""
    return types.uint32(types.float32), lambda context, builder, s, args: builder.bitcast(args[0], ir.IntType(32))


def up(h: Any) -> Any:
    """float32 of a float32, or of a bfloat16's bits."""
    raise TypeError("only compiled loops call this")


@overload(up)  # type: ignore[untyped-decorator]
def _up(h: Any) -> Any:
    def widened(h: Any) -> Any:
        return as_float(np.uint32(h) << HALF_BITS)

    def same(h: Any) -> Any:
        return h

    return widened if h == types.uint16 else same


def store(to_N: Any, n: int, x: Any) -> None:
    """Set `to_N[n]` to the float32 `x`, rounded to the nearest bfloat16 (ties to even) where that is what `to_N` holds."""
    raise TypeError("only compiled loops call this")


@overload(store)  # type: ignore[untyped-decorator]
def _store(to_N: Any, n: Any, x: Any) -> Any:
    def rounded(to_N: Any, n: Any, x: Any) -> None:
        bits = as_bits(x)
        to_N[n] = np.uint16((bits + ROUND + ((bits >> HALF_BITS) & ONE_BIT)) >> HALF_BITS)

    def plain(to_N: Any, n: Any, x: Any) -> None:
        to_N[n] = x

    return rounded if to_N.dtype == types.uint16 else plain
