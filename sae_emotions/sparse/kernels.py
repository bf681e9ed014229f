"""Loops that find a row's active latents, compiled by numba. `plain.py` holds the same in PyTorch, and tests hold them equal.

Every kernel works on the rows (or latents) that it is given and lets go of the interpreter's lock, so that threads share
them out. float32 throughout; sums may be reassociated, but every dot product is the same loop, whoever asks for it.

B rows, D residual width, M latents, C candidates a row, P active pairs of row and latent (in row order), L nested levels.
"""

from typing import Any

import numpy as np

from sae_emotions.compiling import compiled

Array = Any
ZERO, HALF, ONE, TOP = np.float32(0), np.float32(0.5), np.float32(1), np.float32(127)
HALVINGS, FEW, AHEAD, POSITIVE = 24, 2, 8, np.int32(0x7FFFFFFF)
ROUNDED = np.float32(2**-8)
"""bfloat16's relative error, twice its worst."""


@compiled
def quantise(x_BD: Array, q_BD: Array, scale_B: Array, norm_B: Array, error_B: Array) -> None:
    """Rows as int8 times `scale_B`; norms of what is kept and of what is lost."""
    rows, width = x_BD.shape
    limits = np.empty(1, np.int32)
    for b in range(rows):
        x, q = x_BD[b], q_BD[b]
        largest = np.int32(0)
        bits = x.view(np.int32)
        for d in range(width):  # the bits of positive floats are in their order, and maxima of integers run in parallel
            largest = max(largest, bits[d] & POSITIVE)
        limits[0] = largest
        scale = limits.view(np.float32)[0] / TOP if largest else ONE
        inverse = ONE / scale
        kept = gone = ZERO
        for d in range(width):
            c = np.floor(x[d] * inverse + HALF)
            q[d] = np.int8(c)
            c *= scale
            kept += c * c
            gone += (x[d] - c) * (x[d] - c)
        scale_B[b] = scale
        norm_B[b] = np.sqrt(kept)
        error_B[b] = np.sqrt(gone)


@compiled
def lost(x_BD: Array, h_BD: Array, norm_B: Array, error_B: Array) -> None:
    """Norms of what is kept and of what is lost where rows are rounded to bfloat16, given as bits."""
    rows, width = x_BD.shape
    for b in range(rows):
        x = x_BD[b]
        h = (h_BD[b].astype(np.uint32) << np.uint32(16)).view(np.float32)
        kept = gone = ZERO
        for d in range(width):
            kept += h[d] * h[d]
            gone += (x[d] - h[d]) * (x[d] - h[d])
        norm_B[b] = np.sqrt(kept)
        error_B[b] = np.sqrt(gone)


@compiled
def _limit(best_N: Array, k: int) -> Any:
    """A value that at least k of `best_N` reach, and few more: bisection, for it runs along memory."""
    low = high = best_N[0]
    for n in range(best_N.size):
        low = min(low, best_N[n])
        high = max(high, best_N[n])
    for _ in range(HALVINGS):
        middle = HALF * (low + high)
        count = np.int32(0)
        for n in range(best_N.size):
            count += np.int32(best_N[n] >= middle)
        if count >= k:
            low = middle
            if count <= k + FEW:
                break
        else:
            high = middle
    return low


@compiled
def _maxima(u_M: Array, best_N: Array, groups: int) -> None:
    """The largest of each group; group n holds latents n, n + N, n + 2 N, ... so that the loop runs along memory."""
    count = best_N.size
    for n in range(count):
        best_N[n] = u_M[n]
    for g in range(1, groups):
        first = g * count
        for n in range(count):
            best_N[n] = max(best_N[n], u_M[first + n])


@compiled
def _collect(u_M: Array, best_N: Array, groups: int, limit: Any, cand_C: Array, bound_C: Array) -> int:
    """Latents of at least `limit`, as many as fit; returns how many there are."""
    count, room, found = best_N.size, cand_C.size, 0
    for n in range(count):
        if best_N[n] >= limit:
            for g in range(groups):
                if u_M[g * count + n] >= limit:
                    if found < room:
                        cand_C[found], bound_C[found] = g * count + n, u_M[g * count + n]
                    found += 1
    for m in range(groups * count, u_M.size):
        if u_M[m] >= limit:
            if found < room:
                cand_C[found], bound_C[found] = m, u_M[m]
            found += 1
    return found


@compiled
def bounds_int8(p_M: Array, scale: Any, norm: Any, add: Any, columns: Array, u_M: Array) -> None:
    """Upper bounds of a row's scores, from an int32 product: columns hold its unit, the bias, and the error a unit of norm."""
    a, b, f = columns[0], columns[1], columns[2]
    for m in range(p_M.size):
        u_M[m] = scale * a[m] * np.float32(p_M[m]) + (b[m] + norm * f[m] + add)


@compiled
def bounds_float32(p_M: Array, scale: Any, norm: Any, add: Any, columns: Array, u_M: Array) -> None:
    """The same from a float32 product."""
    a, b, f = columns[0], columns[1], columns[2]
    for m in range(p_M.size):
        u_M[m] = a[m] * p_M[m] + (b[m] + norm * f[m] + add)


@compiled
def bounds_bfloat16(p_M: Array, scale: Any, norm: Any, add: Any, columns: Array, u_M: Array) -> None:
    """The same from the bits of a bfloat16 product, itself rounded."""
    a, b, f = columns[0], columns[1], columns[2]
    value_M = (p_M.astype(np.uint32) << np.uint32(16)).view(np.float32)
    for m in range(p_M.size):
        u_M[m] = a[m] * (value_M[m] + ROUNDED * abs(value_M[m])) + (b[m] + norm * f[m] + add)


@compiled
def screen(
    p_BM: Array,
    bounds: Any,
    scale_B: Array,
    norm_B: Array,
    add_B: Array,
    columns: Array,
    groups: int,
    k: int,
    cand_BC: Array,
    bound_BC: Array,
    count_B: Array,
    limit_B: Array,
) -> None:
    """Every latent whose score may be among a row's k largest (k > 0), or may reach the row's `limit_B` (k = 0).

    With k > 0 the limit is reached by k of the groups' largest bounds, so that at least k latents reach it; what is left out
    scores less. A count above the places means that some were lost.
    """
    rows, latents = p_BM.shape
    u_M = np.empty(latents, np.float32)
    best_N = np.empty(latents // groups, np.float32)
    for b in range(rows):
        bounds(p_BM[b], scale_B[b], norm_B[b], add_B[b], columns, u_M)
        _maxima(u_M, best_N, groups)
        if k > 0:
            limit_B[b] = _limit(best_N, k)
        count_B[b] = _collect(u_M, best_N, groups, limit_B[b], cand_BC[b], bound_BC[b])


@compiled
def _dot(x_D: Array, w_D: Array) -> Any:
    total = ZERO
    for d in range(x_D.size):
        total += x_D[d] * w_D[d]
    return total


@compiled
def rescore(
    x_BD: Array,
    W_MD: Array,
    b_M: Array,
    norm_M: Array,
    cand_BC: Array,
    count_B: Array,
    value_BC: Array,
    score_BC: Array,
) -> None:
    """float32 pre-activations of the candidates, and their scores: times the norm of the latent's decoder row."""
    room = cand_BC.shape[1]
    for b in range(x_BD.shape[0]):
        for c in range(min(count_B[b], room)):
            m = cand_BC[b, c]
            value_BC[b, c] = _dot(x_BD[b], W_MD[m]) + b_M[m]
            score_BC[b, c] = value_BC[b, c] * norm_M[m]


@compiled
def _insert(index_P: Array, value_P: Array, first: int, last: int, index: int, value: Any) -> None:
    """Put a pair where it belongs among those from `first` to `last`, by index."""
    at = last
    while at > first and index_P[at - 1] > index:
        index_P[at] = index_P[at - 1]
        value_P[at] = value_P[at - 1]
        at -= 1
    index_P[at] = index
    value_P[at] = value


@compiled
def best(
    x_BD: Array,
    W_MD: Array,
    b_M: Array,
    norm_M: Array,
    cand_BC: Array,
    bound_BC: Array,
    count_B: Array,
    limit_B: Array,
    index_BK: Array,
    value_BK: Array,
    sure_B: Array,
) -> None:
    """The k best candidates of each row in float32, by index; whether they are sure to be the best of all latents.

    Those with the largest bounds are scored first; of the others only those whose bound reaches what the k-th of them scores.
    """
    room, k = cand_BC.shape[1], index_BK.shape[1]
    score_C, kept_C = np.empty(room, np.float32), np.empty(room, np.float32)
    done_C = np.empty(room, np.bool_)
    for b in range(x_BD.shape[0]):
        count = count_B[b]
        sure_B[b] = False
        if count < k or count > room:
            continue
        reach = _limit(bound_BC[b, :count], min(k + AHEAD, count))
        for turn in range(2):
            scored = 0
            for c in range(count):
                if turn == 0:
                    done_C[c] = False
                if not done_C[c] and bound_BC[b, c] >= reach:
                    m = cand_BC[b, c]
                    kept_C[c] = _dot(x_BD[b], W_MD[m]) + b_M[m]
                    done_C[c] = True
                if done_C[c]:
                    score_C[scored] = kept_C[c] * norm_M[cand_BC[b, c]]
                    scored += 1
            if scored < k:  # only where numbers are not finite
                break
            reach = np.partition(score_C[:scored], scored - k)[scored - k]
        if scored < k:
            continue
        sure_B[b] = reach >= limit_B[b]
        kept = 0
        for c in range(count):
            if done_C[c] and kept_C[c] * norm_M[cand_BC[b, c]] >= reach and kept < k:
                _insert(index_BK[b], value_BK[b], 0, kept, cand_BC[b, c], kept_C[c])
                kept += 1


@compiled
def keep_above(
    cand_BC: Array,
    value_BC: Array,
    score_BC: Array,
    count_B: Array,
    limit: Any,
    start_B: Array,
    index_P: Array,
    kept_P: Array,
) -> None:
    """The candidates of at least `limit`, by row and index, from each row's place in `start_B` on."""
    for b in range(count_B.size):
        first = last = start_B[b]
        for c in range(count_B[b]):
            if score_BC[b, c] >= limit and last < start_B[b + 1]:
                _insert(index_P, kept_P, first, last, cand_BC[b, c], value_BC[b, c])
                last += 1


@compiled
def squares(g_MD: Array, norm_M: Array) -> None:
    """Sum of squares of each row."""
    for m in range(g_MD.shape[0]):
        total = ZERO
        for d in range(g_MD.shape[1]):
            total += g_MD[m, d] * g_MD[m, d]
        norm_M[m] = total
