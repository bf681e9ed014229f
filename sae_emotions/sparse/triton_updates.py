"""Kernels of the sparse step in Triton: decoding, gradients and Adam. See `triton_kernels` for what they keep to.

B rows, D residual width, M latents, P active pairs, L nested levels, T tiles of the residual width, R parts of latents' pairs.
"""

import triton
import triton.language as tl


@triton.jit
def _pairs(
    p: tl.tensor,
    there: tl.tensor,
    d: tl.tensor,
    index_P: tl.tensor,
    value_P: tl.tensor,
    level_M: tl.tensor,
    Wd_MD: tl.tensor,
    width: tl.tensor,
) -> tuple[tl.tensor, tl.tensor, tl.tensor]:
    """Values and levels of the pairs `p`, and a tile of their decoder rows; 0 where a pair is not `there`."""
    m = tl.load(index_P + p, mask=there, other=0)
    value = tl.load(value_P + p, mask=there, other=0.0)
    level = tl.load(level_M + m, mask=there, other=0)
    here_PD = there[:, None] & (d < width)[None, :]
    return value, level, tl.load(Wd_MD + m[:, None] * width + d[None, :], mask=here_PD, other=0.0)


@triton.jit
def decode(
    x_BD: tl.tensor,
    Wd_MD: tl.tensor,
    bd_D: tl.tensor,
    start_B1: tl.tensor,
    index_P: tl.tensor,
    value_P: tl.tensor,
    level_M: tl.tensor,
    error_BLD: tl.tensor,
    loss_BTL: tl.tensor,
    dot_TP: tl.tensor,
    pairs: tl.tensor,
    width: tl.tensor,
    factor: tl.tensor,
    LEVELS: tl.constexpr,
    LEVELS_2: tl.constexpr,
    BLOCK_P: tl.constexpr,
    BLOCK_D: tl.constexpr,
) -> None:
    """One tile of a row: its reconstructions, their errors, and what the tile adds to the losses and to the gradients by value.

    `factor` is 2 / B; `LEVELS_2` the power of 2 that `LEVELS` fits in.
    """
    row, tile = tl.program_id(0).to(tl.int64), tl.program_id(1)
    d = tile * BLOCK_D + tl.arange(0, BLOCK_D)
    levels = tl.arange(0, LEVELS_2)
    first, end = tl.load(start_B1 + row), tl.load(start_B1 + row + 1)
    out_LD = tl.full((LEVELS_2, BLOCK_D), 0.0, tl.float32)
    for at in range(first, end, BLOCK_P):
        p = at + tl.arange(0, BLOCK_P)
        value, level, w_PD = _pairs(p, p < end, d, index_P, value_P, level_M, Wd_MD, width)
        for one in tl.static_range(LEVELS):
            part_D = tl.sum(tl.where(level == one, value, 0.0)[:, None] * w_PD, 0)
            out_LD += tl.where((levels == one)[:, None], part_D[None, :], 0.0)
    start_D = tl.load(bd_D + d, mask=d < width, other=0.0) - tl.load(x_BD + row * width + d, mask=d < width, other=0.0)
    if LEVELS > 1:
        out_LD = tl.cumsum(out_LD, 0)
    here_LD = (levels < LEVELS)[:, None] & (d < width)[None, :]
    off_LD = tl.where(here_LD, out_LD + start_D[None, :], 0.0)
    tl.store(
        loss_BTL + (row * tl.num_programs(1) + tile) * LEVELS + levels, tl.sum(off_LD * off_LD, 1), levels < LEVELS
    )
    if LEVELS > 1:
        off_LD = tl.cumsum(off_LD, 0, reverse=True)
    off_LD *= factor
    tl.store(error_BLD + (row * LEVELS + levels[:, None]) * width + d[None, :], off_LD, mask=here_LD)
    # The tile of the decoder rows is still in the first-level cache.
    for at in range(first, end, BLOCK_P):
        p = at + tl.arange(0, BLOCK_P)
        value, level, w_PD = _pairs(p, p < end, d, index_P, value_P, level_M, Wd_MD, width)
        dot = tl.full((BLOCK_P,), 0.0, tl.float32)
        for one in tl.static_range(LEVELS):
            off_D = tl.sum(tl.where((levels == one)[:, None], off_LD, 0.0), 0)
            dot = tl.where(level == one, tl.sum(w_PD * off_D[None, :], 1), dot)
        tl.store(dot_TP + tile.to(tl.int64) * pairs + p, tl.where(value > 0, dot, 0.0), mask=p < end)


@triton.jit
def sum_parts(
    x_BD: tl.tensor,
    bd_D: tl.tensor,
    error_BLD: tl.tensor,
    level_M: tl.tensor,
    row_P: tl.tensor,
    value_P: tl.tensor,
    grad_P: tl.tensor,
    start_M1: tl.tensor,
    part_M1: tl.tensor,
    latent_R: tl.tensor,
    gWe_ND: tl.tensor,
    gbe_N: tl.tensor,
    gWd_ND: tl.tensor,
    latents: tl.tensor,
    width: tl.tensor,
    levels: tl.tensor,
    PART: tl.constexpr,
    BLOCK_P: tl.constexpr,
    BLOCK_D: tl.constexpr,
) -> None:
    """Gradients of one latent's encoder row, encoder bias and decoder row, from at most `PART` of its pairs, one tile wide.

    Pairs are in the order of their latents. A latent's first part is written to its row, the others below the last latent's.
    All latents' programs of one tile follow each other, so that the tile of rows and errors stays in the cache.
    """
    part, tile = tl.program_id(0).to(tl.int64), tl.program_id(1)
    m = tl.load(latent_R + part)
    if m < latents:
        number = part - tl.load(part_M1 + m)
        first = tl.load(start_M1 + m) + number * PART
        end = tl.minimum(tl.load(start_M1 + m + 1), first + PART)
        level = tl.load(level_M + m)
        d = tile * BLOCK_D + tl.arange(0, BLOCK_D)
        here_D = d < width
        shift_D = tl.load(bd_D + d, mask=here_D, other=0.0)
        ge_D = tl.full((BLOCK_D,), 0.0, tl.float32)
        gd_D = tl.full((BLOCK_D,), 0.0, tl.float32)
        bias_P = tl.full((BLOCK_P,), 0.0, tl.float32)
        for at in range(first, end, BLOCK_P):
            p = at + tl.arange(0, BLOCK_P)
            row = tl.load(row_P + p, mask=p < end, other=0)
            value = tl.load(value_P + p, mask=p < end, other=0.0)
            grad = tl.load(grad_P + p, mask=p < end, other=0.0)
            here_PD = (p < end)[:, None] & here_D[None, :]
            x_PD = tl.load(x_BD + row[:, None] * width + d[None, :], mask=here_PD, other=0.0) - shift_D[None, :]
            off_PD = tl.load(error_BLD + (row * levels + level)[:, None] * width + d[None, :], mask=here_PD, other=0.0)
            ge_D += tl.sum(grad[:, None] * x_PD, 0)
            gd_D += tl.sum(value[:, None] * off_PD, 0)
            bias_P += grad
        into = tl.where(number == 0, m, latents + part - m - 1)
        tl.store(gWe_ND + into * width + d, ge_D, mask=here_D)
        tl.store(gWd_ND + into * width + d, gd_D, mask=here_D)
        if tile == 0:
            tl.store(gbe_N + into, tl.sum(bias_P, 0))


@triton.jit
def add_parts(
    gWe_ND: tl.tensor,
    gbe_N: tl.tensor,
    gWd_ND: tl.tensor,
    part_M1: tl.tensor,
    latent_S: tl.tensor,
    latents: tl.tensor,
    width: tl.tensor,
    BLOCK_D: tl.constexpr,
) -> None:
    """Add the parts below the last latent's row to their latents: the program of a latent's second part adds all of its."""
    spare, tile = tl.program_id(0).to(tl.int64), tl.program_id(1)
    m = tl.load(latent_S + spare)
    if m < latents:
        first = tl.load(part_M1 + m) - m
        if spare == first:
            d = tile * BLOCK_D + tl.arange(0, BLOCK_D)
            here_D = d < width
            ge_D = tl.load(gWe_ND + m * width + d, mask=here_D, other=0.0)
            gd_D = tl.load(gWd_ND + m * width + d, mask=here_D, other=0.0)
            bias = tl.load(gbe_N + m)
            end = tl.load(part_M1 + m + 1) - m - 1
            for at in range(first, end):
                ge_D += tl.load(gWe_ND + (latents + at) * width + d, mask=here_D, other=0.0)
                gd_D += tl.load(gWd_ND + (latents + at) * width + d, mask=here_D, other=0.0)
                bias += tl.load(gbe_N + latents + at)
            tl.store(gWe_ND + m * width + d, ge_D, mask=here_D)
            tl.store(gWd_ND + m * width + d, gd_D, mask=here_D)
            if tile == 0:
                tl.store(gbe_N + m, bias)


@triton.jit
def adam(
    w_N: tl.tensor,
    g_N: tl.tensor,
    mean_N: tl.tensor,
    square_N: tl.tensor,
    numbers: tl.tensor,
    entries: tl.tensor,
    BLOCK: tl.constexpr,
) -> None:
    """Adam, in one pass. `numbers`, in memory so that a graph may replay them: clip, rate, 1 - beta1, 1 - beta2, root, eps."""
    n = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    here = n < entries
    clip, rate, new1 = tl.load(numbers), tl.load(numbers + 1), tl.load(numbers + 2)
    new2, root, eps = tl.load(numbers + 3), tl.load(numbers + 4), tl.load(numbers + 5)
    g = tl.load(g_N + n, mask=here, other=0.0) * clip
    mean = tl.load(mean_N + n, mask=here, other=0.0)
    square = tl.load(square_N + n, mask=here, other=0.0)
    mean += new1 * (g - mean)
    square += new2 * (g * g - square)
    tl.store(mean_N + n, mean, mask=here)
    tl.store(square_N + n, square, mask=here)
    w = tl.load(w_N + n, mask=here, other=0.0)
    tl.store(w_N + n, w - rate * mean / (tl.sqrt(square) / root + eps), mask=here)
