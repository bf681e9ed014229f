"""Three things that numba's own language cannot say, written in LLVM's: an int8 product whose sums stay in registers, a
compressed scan, and prefetching. The first two need AVX-512 with VNNI (`there`).

Addresses are integers (`array.ctypes.data`). L = `LANES` numbers a register.
"""

import functools
from collections.abc import Callable, Sequence
from typing import Any

import llvmlite.binding
from llvmlite import ir
from numba import types
from numba.core import cgutils
from numba.extending import intrinsic

LANES, TILE, PANEL = 16, 12, 32
"""Numbers a register; rows and latents whose products are summed at once: 24 of the 32 registers."""

_BIT, _BYTE, _HALF, _INT, _LONG = (ir.IntType(bits) for bits in (1, 8, 16, 32, 64))
_FLOAT = ir.FloatType()
_BITS, _INTS, _FLOATS = (ir.VectorType(kind, LANES) for kind in (_BIT, _INT, _FLOAT))
_STEP = 4 * LANES


@functools.cache
def there() -> bool:
    """Whether this processor has AVX-512 with VNNI."""
    found = llvmlite.binding.get_host_cpu_features()
    return bool(found.get("avx512f") and found.get("avx512vnni"))


def _constant(number: int, kind: Any = _LONG) -> Any:
    return ir.Constant(kind, number)


def _function(b: Any, name: str, result: Any, arguments: Sequence[Any]) -> Any:
    return cgutils.get_or_insert_function(b.module, ir.FunctionType(result, arguments), name)


def _load(b: Any, kind: Any, address: Any, offset: int = 0) -> Any:
    where = b.inttoptr(b.add(address, _constant(offset)), kind.as_pointer())
    return b.load(where, align=_STEP if kind in (_INTS, _FLOATS) else 4)


def _store(b: Any, value: Any, address: Any, align: int) -> None:
    b.store(value, b.inttoptr(address, value.type.as_pointer()), align=align)


def _splat(b: Any, value: Any) -> Any:
    kind = ir.VectorType(value.type, LANES)
    unset = ir.Constant(kind, ir.Undefined)
    return b.shuffle_vector(b.insert_element(unset, value, _constant(0, _INT)), unset, ir.Constant(_INTS, [0] * LANES))


def _emitted(result: Any, arguments: Sequence[Any], body: Callable[[Any, Sequence[Any]], Any]) -> tuple[Any, Any]:
    """What an intrinsic returns: its signature, and what writes its code."""

    def codegen(context: Any, b: Any, signature: Any, values: Any) -> Any:
        made = body(b, values)
        return context.get_dummy_value() if made is None else made

    return result(*arguments), codegen


@intrinsic
def tile(  # type: ignore[no-untyped-def]
    typingctx, row, width, panel, steps, out, most, row_numbers, columns, first
):
    """Bounds of the scores of `TILE` rows and `PANEL` latents, and the largest so far.

    `row`: int8 rows, `width` bytes apart. `panel`: latents as uint8, 128 added; four dimensions of each latent in turn.
    `steps`: dimensions / 4. `row_numbers`: of each row its unit, its norm and what is added to all its bounds, then, as an
    int32, -128 x its sum. `columns`: see `screen.Screen`. Written to `out`, and into `most` (in place of it, if `first`).
    """
    return _emitted(types.void, [types.intp] * 8 + [types.boolean], _tile)


def _tile(b: Any, values: Sequence[Any]) -> None:
    row, width, panel, steps, out, most, row_numbers, columns, first = values
    dot = _function(b, "llvm.x86.avx512.vpdpbusd.512", _INTS, [_INTS] * 3)
    halves = PANEL // LANES
    rows = [b.add(row, b.mul(width, _constant(r))) for r in range(TILE)]
    starts = [_splat(b, _load(b, _INT, row_numbers, 16 * r + 12)) for r in range(TILE)]
    before, loop, after = b.block, b.append_basic_block("dims"), b.append_basic_block("bounds")
    b.branch(loop)
    b.position_at_end(loop)
    step = b.phi(_LONG)
    sums = [b.phi(_INTS) for _ in range(TILE * halves)]
    weights_at, byte = b.add(panel, b.mul(step, _constant(_STEP * halves))), b.mul(step, _constant(4))
    weights = [_load(b, _INTS, weights_at, _STEP * p) for p in range(halves)]
    following = b.add(step, _constant(1))
    step.add_incoming(_constant(0), before)
    step.add_incoming(following, loop)
    for r in range(TILE):
        four = _splat(b, _load(b, _INT, b.add(rows[r], byte)))
        for p in range(halves):
            total = sums[r * halves + p]
            total.add_incoming(starts[r], before)
            total.add_incoming(b.call(dot, [total, weights[p], four]), loop)
    finished = [total.incomings[1][0] for total in sums]
    b.cbranch(b.icmp_signed("<", following, steps), loop, after)
    b.position_at_end(after)
    fused = _function(b, "llvm.fma.v16f32", _FLOATS, [_FLOATS] * 3)
    unit, bias, error = (
        [_load(b, _FLOATS, columns, _STEP * (halves * n + p)) for p in range(halves)] for n in range(3)
    )
    for r in range(TILE):
        scale, norm, add = (_splat(b, _load(b, _FLOAT, row_numbers, 16 * r + 4 * n)) for n in range(3))
        for p in range(halves):
            at = _constant(_STEP * (r * halves + p))
            rest = b.call(fused, [norm, error[p], b.fadd(bias[p], add)])
            bound = b.call(fused, [b.fmul(unit[p], scale), b.sitofp(finished[r * halves + p], _FLOATS), rest])
            _store(b, bound, b.add(out, at), _STEP)
            old = _load(b, _FLOATS, b.add(most, at))
            larger = b.select(b.fcmp_ordered(">", bound, old), bound, old)
            _store(b, b.select(first, bound, larger), b.add(most, at), _STEP)


@intrinsic
def compress(typingctx, bounds, panels, apart, limit, latents, kept, places):  # type: ignore[no-untyped-def]
    """Those of a row's bounds (`panels` times `PANEL`, `apart` bytes from one panel to the next) that reach `limit`.

    Their numbers and the bounds are written to `latents` and `kept` while fewer than `places` are found; both need room
    for `LANES` more. Returns how many there are.
    """
    return _emitted(types.intp, [types.intp] * 3 + [types.float32] + [types.intp] * 3, _compress)


def _compress(b: Any, values: Sequence[Any]) -> Any:
    bounds, panels, apart, limit, latents, kept, places = values
    floats = _function(b, "llvm.x86.avx512.mask.compress.v16f32", _FLOATS, [_FLOATS, _FLOATS, _BITS])
    ints = _function(b, "llvm.x86.avx512.mask.compress.v16i32", _INTS, [_INTS, _INTS, _BITS])
    count = _function(b, "llvm.ctpop.i16", _HALF, [_HALF])
    limits = _splat(b, limit)
    before, loop = b.block, b.append_basic_block("panel")
    b.branch(loop)
    b.position_at_end(loop)
    panel, total, numbers = b.phi(_LONG), b.phi(_LONG), b.phi(_INTS)
    found, here = total, numbers
    address = b.add(bounds, b.mul(panel, apart))
    for half in range(PANEL // LANES):
        values_here = _load(b, _FLOATS, address, _STEP * half)
        reach = b.fcmp_ordered(">=", values_here, limits)
        # Beyond the places, the last ones are written again and again.
        fits = b.icmp_signed("<", found, places)
        at = b.mul(b.select(fits, found, places), _constant(4))
        unset = ir.Constant(_FLOATS, ir.Undefined), ir.Constant(_INTS, ir.Undefined)
        _store(b, b.call(floats, [values_here, unset[0], reach]), b.add(kept, at), 4)
        _store(b, b.call(ints, [here, unset[1], reach]), b.add(latents, at), 4)
        found = b.add(found, b.zext(b.call(count, [b.bitcast(reach, _HALF)]), _LONG))
        here = b.add(here, ir.Constant(_INTS, [LANES] * LANES))
    following = b.add(panel, _constant(1))
    for variable, start, new in (
        (panel, _constant(0), following),
        (total, _constant(0), found),
        (numbers, ir.Constant(_INTS, list(range(LANES))), here),
    ):
        variable.add_incoming(start, before)
        variable.add_incoming(new, loop)
    after = b.append_basic_block("end")
    b.cbranch(b.icmp_signed("<", following, panels), loop, after)
    b.position_at_end(after)
    return found


@intrinsic
def prefetch(typingctx, address):  # type: ignore[no-untyped-def]
    """Fetch the cache line at an address; nothing happens where there is none."""
    return _emitted(types.void, [types.intp], _prefetch)


def _prefetch(b: Any, values: Sequence[Any]) -> None:
    fetch = _function(b, "llvm.prefetch.p0", ir.VoidType(), [_BYTE.as_pointer(), _INT, _INT, _INT])
    read, near, data = _constant(0, _INT), _constant(3, _INT), _constant(1, _INT)
    b.call(fetch, [b.inttoptr(values[0], _BYTE.as_pointer()), read, near, data])
