"""What lies between the products where a change of the residual is carried through Llama's blocks, compiled by numba.

Every loop takes what the unchanged text has (float32) and the change (float32, or bfloat16 as bits), works out what both
together give, and hands on the difference. With nothing changed and nothing unchanged to take off, it gives the value
itself: that is how what the unchanged text has is found.

N tokens of a batch, Q positions of a packed text, D residual width, F width of the MLP, E = (H + 2 V) X: H query heads and V
key heads of width X; G = H / V. L queries, K keys, V vocabulary where logits are meant.
"""

from typing import Any

import numpy as np

from sae_emotions.compiling import as_bits, as_float, compiled, store, up
from sae_emotions.harvest.kernels import LEAST, LOG2E, ONE, ZERO, power, turned

Array = Any
HIDDEN = np.float32(-1e30)


@compiled
def normed(
    dx_ND: Array,
    dy_ND: Array,
    add: bool,
    x_QD: Array,
    h_QD: Array,
    at_N: Array,
    weight_D: Array,
    epsilon: Any,
    out_ND: Array,
) -> None:
    """`dx_ND` += `dy_ND` if `add`; then `out_ND` is by how much the norm of the stream `x_QD` leaves `h_QD`."""
    rows, width = dx_ND.shape
    x = np.empty(width, np.float32)
    for n in range(rows):
        dx, dy, base, h, out = dx_ND[n], dy_ND[n], x_QD[at_N[n]], h_QD[at_N[n]], out_ND[n]
        total = ZERO
        if add:
            for d in range(width):
                dx[d] += up(dy[d])
        for d in range(width):
            v = base[d] + dx[d]
            x[d] = v
            total += v * v
        scale = ONE / np.sqrt(total / np.float32(width) + epsilon)
        for d in range(width):
            store(out, d, x[d] * scale * weight_D[d] - h[d])


@compiled
def gated(d_NF: Array, both_QF: Array, gated_QF: Array, at_N: Array, out_NF: Array) -> None:
    """By how much silu(gate) * up leaves `gated_QF`; `d_NF` and `both_QF` hold gate and up one after the other."""
    rows, width = out_NF.shape
    for n in range(rows):
        dg, du, out = d_NF[n, :width], d_NF[n, width:], out_NF[n]
        g, u, before = both_QF[at_N[n], :width], both_QF[at_N[n], width:], gated_QF[at_N[n]]
        for d in range(width):
            v = g[d] + up(dg[d])
            store(out, d, v / (ONE + power(-v * LOG2E)) * (u[d] + up(du[d])) - before[d])


@compiled
def laid(
    d_NE: Array,
    at_N: Array,
    base_QE: Array,
    cos_QX: Array,
    sin_QX: Array,
    scale: Any,
    first: int,
    q_: Array,
    k_: Array,
    v_: Array,
) -> None:
    """Lay out the heads of one text's tokens: q (V, L, G, X) of tokens from `first` on, k and v (V, K, X) of all.

    `base_QE` holds what the unchanged text has, rotated and with scaled queries. Keys that come before the tokens, the
    text's first, are its own.
    """
    keys, _, shared, width = q_.shape
    half, heads, before = width // 2, keys * shared, k_.shape[1] - len(at_N)
    for at in range(before):
        row = base_QE[at]
        for h in range(keys):
            key, value = row[(heads + h) * width : (heads + h + 1) * width], row[(heads + keys + h) * width :]
            k, v = k_[h, at], v_[h, at]
            for d in range(width):
                k[d] = key[d]
                v[d] = value[d]
    for n in range(len(at_N)):
        row, base, cos, sin = d_NE[n], base_QE[at_N[n]], cos_QX[at_N[n]], sin_QX[at_N[n]]
        for h in range(heads + keys):
            if h < heads and n < first:
                continue
            part, old = row[h * width : (h + 1) * width], base[h * width : (h + 1) * width]
            if h < heads:
                out, factor = q_[h // shared, n - first, h % shared], scale
            else:
                out, factor = k_[h - heads, before + n], ONE
            for d in range(half):
                a, b = up(part[d]), up(part[d + half])
                out[d] = old[d] + (a * cos[d] - b * sin[d]) * factor
                out[d + half] = old[d + half] + (b * cos[d + half] + a * sin[d + half]) * factor
        for h in range(keys):
            start = (heads + keys + h) * width
            part, old, out = row[start : start + width], base[start : start + width], v_[h, before + n]
            for d in range(width):
                out[d] = old[d] + up(part[d])


@compiled
def softened(scores_: Array, seen_L: Array, stem: int, see_LM: Array, over_: Array) -> None:
    """Turn scores in base 2, (V, L, G, K), into weights that sum to 1 / `over_`.

    A query sees the first `seen_L` of the `stem` keys, and of the M keys behind them those that `see_LM` says.
    """
    keys, queries, shared, wide = scores_.shape
    for h in range(keys):
        for n in range(queries):
            seen = seen_L[n]
            for g in range(shared):
                row = scores_[h, n, g]
                for j in range(seen, stem):
                    row[j] = HIDDEN
                for j in range(stem, wide):
                    if not see_LM[n, j - stem]:
                        row[j] = HIDDEN
                largest = LEAST
                for j in range(wide):
                    largest = max(largest, turned(np.int32(as_bits(row[j]))))
                most = as_float(np.uint32(turned(largest)))
                total = ZERO
                for j in range(wide):
                    weight = power(row[j] - most)
                    total += weight
                    row[j] = weight
                over_[h, n, g] = ONE / total


@compiled
def mixed(heads_: Array, over_: Array, mixed_QE: Array, at_L: Array, out_LE: Array) -> None:
    """By how much the heads' outputs, (V, L, G, X) times `over_`, leave `mixed_QE`."""
    keys, queries, shared, width = heads_.shape
    for n in range(queries):
        before, row = mixed_QE[at_L[n]], out_LE[n]
        for h in range(keys):
            for g in range(shared):
                start = (h * shared + g) * width
                head, old, out, over = (
                    heads_[h, n, g],
                    before[start : start + width],
                    row[start : start + width],
                    over_[h, n, g],
                )
                for d in range(width):
                    store(out, d, head[d] * over - old[d])


@compiled
def moved(d_CV: Array, p_SV: Array, slot_C: Array, norm_C: Array, mean_C: Array) -> None:
    """How changes of logits move what is predicted: log E[e^d] and E[d] under the unchanged probabilities `p_SV`."""
    rows, width = d_CV.shape
    for c in range(rows):
        d, p = d_CV[c], p_SV[slot_C[c]]
        more = mean = ZERO
        for v in range(width):
            change = up(d[v])
            more += p[v] * (power(change * LOG2E) - ONE)
            mean += p[v] * change
        norm_C[c] = np.log1p(more)
        mean_C[c] = mean
