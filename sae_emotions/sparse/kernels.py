"""Loops that find a row's active latents, compiled by numba. `plain.py` holds the same in PyTorch, and tests hold them equal.

Every kernel works on the rows (or latents) that it is given and lets go of the interpreter's lock, so that threads share
them out. float32 throughout; sums may be reassociated, but every dot product is the same loop, whoever asks for it.

B rows, D residual width, M latents, C candidates a row, P active pairs of row and latent (in row order), L nested levels.
"""

from typing import Any

import numpy as np

from sae_emotions.compiling import compiled, up
from sae_emotions.vector import prefetch

Array = Any
ZERO, HALF, ONE, TOP = np.float32(0), np.float32(0.5), np.float32(1), np.float32(127)
HALVINGS, FEW, AHEAD, POSITIVE, LOWEST = 24, 2, 8, np.int32(0x7FFFFFFF), np.float32(-3e38)
INFINITE, LINE = np.float32(np.inf), 64
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
        x, h = x_BD[b], h_BD[b]
        kept = gone = ZERO
        for d in range(width):
            c = up(h[d])
            kept += c * c
            gone += (x[d] - c) * (x[d] - c)
        norm_B[b] = np.sqrt(kept)
        error_B[b] = np.sqrt(gone)


@compiled
def limit_of(best_N: Array, k: int) -> Any:
    """A value that at least k of `best_N` reach, and few more: bisection, for it runs along memory. Places that stand for no
    latent hold -inf."""
    high = best_N[0]
    for n in range(best_N.size):
        high = max(high, best_N[n])
    low = high
    for n in range(best_N.size):
        low = min(low, best_N[n] if best_N[n] > LOWEST else low)
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
def _collect(bounded: Any, limit: Any, cand_C: Array, bound_C: Array) -> int:
    """Latents of at least `limit`, as many as fit; returns how many there are. `bounded`: bounds, groups' maxima, groups."""
    u_M, best_N, groups = bounded
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
    for m in range(p_M.size):
        value = up(p_M[m])
        u_M[m] = a[m] * (value + ROUNDED * abs(value)) + (b[m] + norm * f[m] + add)


@compiled
def dot(x_D: Array, w_D: Array) -> Any:
    """Their product."""
    total = ZERO
    for d in range(x_D.size):
        total += x_D[d] * w_D[d]
    return total


@compiled
def ask_for(W_MD: Array, m: int) -> None:
    """Have a row brought into the cache."""
    first = W_MD.ctypes.data + m * W_MD.strides[0]
    for byte in range(0, 4 * W_MD.shape[1], LINE):
        prefetch(first + byte)


@compiled
def dots(W_MD: Array, x_D: Array, out_M: Array) -> None:
    """Each row's product with `x_D`."""
    for m in range(out_M.size):
        out_M[m] = dot(x_D, W_MD[m])


@compiled
def rescore(x_D: Array, weights: Any, cand_C: Array, count: int, value_C: Array, score_C: Array) -> None:
    """float32 pre-activations of a row's first `count` candidates, as far as there are places, and their scores: times the
    norm of the latent's decoder row. `weights`: encoder rows, biases, norms."""
    We_MD, be_M, norm_M = weights
    count = min(count, cand_C.size)
    for c in range(count):
        if c + 1 < count:
            ask_for(We_MD, cand_C[c + 1])
        m = cand_C[c]
        value_C[c] = dot(x_D, We_MD[m]) + be_M[m]
        score_C[c] = value_C[c] * norm_M[m]


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
def _score(x_D: Array, weights: Any, cand_C: Array, bound_C: Array, count: int, reach: Any, into: Any) -> int:
    """float32 values of the candidates whose bound reaches `reach`, those done before left alone; returns how many are done,
    whose scores are the first of `into`'s."""
    We_MD, be_M, norm_M = weights
    value_C, score_C, turn_C, done_C = into
    turns = 0
    for c in range(count):
        if not done_C[c] and bound_C[c] >= reach:
            turn_C[turns] = c
            turns += 1
    if turns:
        ask_for(We_MD, cand_C[turn_C[0]])
    for turn in range(turns):
        if turn + 1 < turns:
            ask_for(We_MD, cand_C[turn_C[turn + 1]])
        c = turn_C[turn]
        value_C[c] = dot(x_D, We_MD[cand_C[c]]) + be_M[cand_C[c]]
        done_C[c] = True
    scored = 0
    for c in range(count):
        if done_C[c]:
            score_C[scored] = value_C[c] * norm_M[cand_C[c]]
            scored += 1
    return scored


@compiled
def best_of(
    x_D: Array, weights: Any, cand_C: Array, bound_C: Array, count: int, into: Any, index_K: Array, value_K: Array
) -> Any:
    """The k best of a row's candidates in float32, by index; returns what the k-th scores, or -inf where they are too few.

    Those with the largest bounds are scored first; of the others only those whose bound reaches what the k-th of them scores.
    `weights`: encoder rows, biases, norms; `into`: memory for values, scores, turns and marks.
    """
    k = index_K.size
    value_C, score_C, _, done_C = into
    if count < k or count > done_C.size:
        return -INFINITE
    for c in range(count):
        done_C[c] = False
    reach = limit_of(bound_C[:count], min(k + AHEAD, count))
    for _ in range(2):
        scored = _score(x_D, weights, cand_C, bound_C, count, reach, into)
        if scored < k:  # only where numbers are not finite
            return -INFINITE
        reach = np.partition(score_C[:scored], scored - k)[scored - k]
    kept = 0
    for c in range(count):
        if done_C[c] and value_C[c] * weights[2][cand_C[c]] >= reach and kept < k:
            _insert(index_K, value_K, 0, kept, cand_C[c], value_C[c])
            kept += 1
    return reach


@compiled
def scratch(places: int) -> Any:
    """Memory for `best_of`."""
    return (
        np.empty(places, np.float32),
        np.empty(places, np.float32),
        np.empty(places, np.int64),
        np.empty(places, np.bool_),
    )


def settling(collect: Any) -> Any:
    """A loop that finds a row's best latents from what bounds their scores, and says whether they are sure; `collect(bounded,
    limit, ...)` finds candidates.

    Where the k-th best of those that reach `limit` scores less, that score becomes the limit: all that may score more are
    then candidates. It is not sure where they need more than the places.
    """

    @compiled
    def settled(
        bounded: Any, limit: Any, x_D: Array, weights: Any, memory: Any, index_K: Array, value_K: Array
    ) -> bool:
        cand_C, bound_C, into = memory
        for _ in range(2):
            count = collect(bounded, limit, cand_C, bound_C)
            reach = best_of(x_D, weights, cand_C, bound_C, count, into, index_K, value_K)
            if reach >= limit:
                return True
            if reach == -INFINITE:
                break
            limit = reach
        return False

    return settled


_settled = settling(_collect)


@compiled
def _bounded(bounds: Any, p_M: Array, numbers: Any, columns: Array, u_M: Array, best_N: Array, groups: int) -> Any:
    """Bounds of a row's scores and the groups' maxima, from its product; `numbers`: see `bounds_int8`."""
    bounds(p_M, *numbers, columns, u_M)
    _maxima(u_M, best_N, groups)
    return u_M, best_N, groups


@compiled
def top(
    p_BM: Array,
    bounds: Any,
    scale_B: Array,
    norm_B: Array,
    add_B: Array,
    columns: Array,
    groups: int,
    asked: int,
    places: int,
    x_BD: Array,
    weights: Any,
    index_BK: Array,
    value_BK: Array,
    sure_B: Array,
) -> None:
    """Each row's best latents from a product that bounds them. A first limit is reached by `asked` of the groups' maxima."""
    rows, latents = p_BM.shape
    u_M, best_N = np.empty(latents, np.float32), np.empty(latents // groups, np.float32)
    memory = np.empty(places, np.int32), np.empty(places, np.float32), scratch(places)
    for b in range(rows):
        numbers = scale_B[b], norm_B[b], add_B[b]
        bounded = _bounded(bounds, p_BM[b], numbers, columns, u_M, best_N, groups)
        sure_B[b] = _settled(bounded, limit_of(best_N, asked), x_BD[b], weights, memory, index_BK[b], value_BK[b])


@compiled
def reaching(
    p_BM: Array,
    bounds: Any,
    scale_B: Array,
    norm_B: Array,
    add_B: Array,
    columns: Array,
    groups: int,
    limit: Any,
    x_BD: Array,
    weights: Any,
    cand_BC: Array,
    value_BC: Array,
    score_BC: Array,
    count_B: Array,
) -> None:
    """Every latent whose score may reach `limit`, and their scores. A count above the places means that some were lost."""
    rows, latents = p_BM.shape
    u_M, best_N = np.empty(latents, np.float32), np.empty(latents // groups, np.float32)
    bound_C = np.empty(cand_BC.shape[1], np.float32)
    for b in range(rows):
        numbers = scale_B[b], norm_B[b], add_B[b]
        bounded = _bounded(bounds, p_BM[b], numbers, columns, u_M, best_N, groups)
        count_B[b] = _collect(bounded, limit, cand_BC[b], bound_C)
        rescore(x_BD[b], weights, cand_BC[b], count_B[b], value_BC[b], score_BC[b])


@compiled
def count_above(score_BC: Array, count_B: Array, limit: Any, out_B: Array) -> None:
    """How many of each row's candidates reach `limit`."""
    for b in range(count_B.size):
        there = 0
        for c in range(count_B[b]):
            there += int(score_BC[b, c] >= limit)
        out_B[b] = there


@compiled
def scores_above(score_BC: Array, count_B: Array, limit: Any, start_B: Array, score_P: Array) -> None:
    """Their scores, from each row's place in `start_B` on."""
    for b in range(count_B.size):
        at = start_B[b]
        for c in range(count_B[b]):
            if score_BC[b, c] >= limit and at < start_B[b + 1]:
                score_P[at] = score_BC[b, c]
                at += 1


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
        norm_M[m] = dot(g_MD[m], g_MD[m])
