"""All of a Llama's block but its matrix products, compiled by numba.

Arrays hold float32, or bfloat16 as bits (see `compiling`); arithmetic is float32, rounded once where it is stored. The
residual stream is float32 whatever the model's type.

N tokens of a batch, end to end; D residual width; F width of the MLP; H heads of width X, of which every G share one of
the V heads for keys and values. A group is some windows of the batch, laid out as W windows of L places each.
"""

from typing import Any

import numpy as np

from sae_emotions.compiling import as_bits, as_float, compiled, store, up

Array = Any
ZERO, HALF, ONE = np.float32(0), np.float32(0.5), np.float32(1)
LOWEST, HIGHEST, BIAS, EXPONENT = np.float32(-126), np.float32(126), np.int32(127), np.int32(23)
LOG2E = np.float32(np.log2(np.e))
C1, C2, C3, C4, C5, C6 = (
    np.float32(c) for c in (0.69314718, 0.24022651, 0.05550411, 0.009618129, 0.0013333558, 0.00015403530)
)
"""ln(2)^n / n!: the series of 2^g, whose rest is below 2e-7 for |g| <= 1/2"""
LANES = 64
"""Scores are read in whole blocks of this many, so that no loop ends in single steps."""
SIGN, SIZE, LEAST = np.int32(31), np.int32(0x7FFFFFFF), np.int32(-(2**31))


@compiled
def power(t: Any) -> Any:
    """2^t; what underflows is 2^-126."""
    t = min(max(t, LOWEST), HIGHEST)
    whole = np.floor(t + HALF)
    g = t - whole
    series = ONE + g * (C1 + g * (C2 + g * (C3 + g * (C4 + g * (C5 + g * C6)))))
    return series * as_float(np.uint32((np.int32(whole) + BIAS) << EXPONENT))


@compiled
def norm(x_ND: Array, y_ND: Array, add: bool, weight_D: Array, epsilon: Any, out_ND: Array) -> None:
    """`x_ND` += `y_ND` if `add`; then `out_ND` is its root-mean-square norm times `weight_D`."""
    rows, width = x_ND.shape
    for n in range(rows):
        x, y, out = x_ND[n], y_ND[n], out_ND[n]
        total = ZERO
        if add:
            for d in range(width):
                v = x[d] + up(y[d])
                x[d] = v
                total += v * v
        else:
            for d in range(width):
                total += x[d] * x[d]
        scale = ONE / np.sqrt(total / np.float32(width) + epsilon)
        for d in range(width):
            store(out, d, x[d] * scale * weight_D[d])


@compiled
def add(x_ND: Array, y_ND: Array) -> None:
    """`x_ND` += `y_ND`."""
    rows, width = x_ND.shape
    for n in range(rows):
        x, y = x_ND[n], y_ND[n]
        for d in range(width):
            x[d] += up(y[d])


@compiled
def gate(both_NF: Array, out_NF: Array) -> None:
    """`out_NF` = silu(gate) * up, of rows that hold gate and up one after the other."""
    rows, width = out_NF.shape
    for n in range(rows):
        g, u, out = both_NF[n, :width], both_NF[n, width:], out_NF[n]
        for d in range(width):
            v = up(g[d])
            store(out, d, v / (ONE + power(-v * LOG2E)) * up(u[d]))


@compiled
def rotate(
    qkv_NE: Array, length_W: Array, q_: Array, k_: Array, v_: Array, cos_LX: Array, sin_LX: Array, scale: Any
) -> None:
    """Lay out the heads of a group: q (W, V, L, G, X), k and v (W, V, L, X); rotate q and k, and scale q.

    `qkv_NE` holds the group's tokens: H query heads, V key heads and V value heads a row. Places beyond a window's
    length keep what they held, but for values, which are set to 0.
    """
    windows, keys, longest, shared, width = q_.shape
    half, first = width // 2, keys * shared
    n = 0
    for w in range(windows):
        for at in range(length_W[w]):
            cos, sin, row = cos_LX[at], sin_LX[at], qkv_NE[n]
            for h in range(first + keys):
                head = row[h * width : (h + 1) * width]
                if h < first:
                    out, factor = q_[w, h // shared, at, h % shared], scale
                else:
                    out, factor = k_[w, h - first, at], ONE
                for d in range(half):
                    a, b = up(head[d]), up(head[d + half])
                    store(out, d, (a * cos[d] - b * sin[d]) * factor)
                    store(out, d + half, (b * cos[d + half] + a * sin[d + half]) * factor)
            for h in range(keys):
                head, out = row[(first + keys + h) * width : (first + keys + h + 1) * width], v_[w, h, at]
                for d in range(width):
                    out[d] = head[d]
            n += 1
        for h in range(keys):
            for at in range(length_W[w], longest):
                out = v_[w, h, at]
                for d in range(width):
                    out[d] = 0


@compiled
def turned(bits: Any) -> Any:
    """Bits of a float32 as an integer of the same order, and back: a loop over integers finds their largest in parallel."""
    return bits ^ ((bits >> SIGN) & SIZE)


@compiled
def softmax(scores_: Array, length_W: Array, first: int, over_: Array) -> None:
    """Turn scores in base 2 into weights that sum to 1 / `over_`, each position looking at itself and back.

    `scores_` is (W, V, places * G, K): the places from `first` on, of the first K places. What may not be looked at gets
    the weight 0, and so does everything in places beyond a window's length.
    """
    windows, keys, rows, wide = scores_.shape
    shared = over_.shape[3]
    for w in range(windows):
        for h in range(keys):
            for r in range(rows):
                row, at = scores_[w, h, r], first + r // shared
                seen = at + 1
                if at >= length_W[w]:
                    seen = 0
                stop = min(wide, (seen + LANES - 1) // LANES * LANES)
                largest = LEAST
                for j in range(stop):
                    largest = max(largest, turned(np.int32(as_bits(up(row[j])))) if j < seen else LEAST)
                most = as_float(np.uint32(turned(largest)))
                total = ZERO
                for j in range(stop):
                    weight = power(up(row[j]) - most)
                    weight = weight if j < seen else ZERO
                    total += weight
                    store(row, j, weight)
                for j in range(stop, wide):
                    row[j] = 0
                over_[w, h, r // shared, r % shared] = ONE / total if seen else ZERO


@compiled
def gather(mixed_: Array, over_: Array, start_W: Array, length_W: Array, first: int, out_NE: Array) -> None:
    """Hand the heads' outputs, times `over_`, back to their tokens: (W, V, places, G, X) to rows of H heads.

    `start_W`: the row of each window's first token; `first`: its first place here.
    """
    windows, keys, places, shared, width = mixed_.shape
    for w in range(windows):
        for at in range(min(places, length_W[w] - first)):
            row = out_NE[start_W[w] + first + at]
            for h in range(keys):
                for g in range(shared):
                    head, over = mixed_[w, h, at, g], over_[w, h, at, g]
                    out = row[(h * shared + g) * width : (h * shared + g + 1) * width]
                    for d in range(width):
                        store(out, d, up(head[d]) * over)
