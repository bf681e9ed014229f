"""Kernels of the sparse step in Triton: the screen, its candidates, and their float32 scores.

Every kernel writes each place from one program alone and reads nothing that it wrote itself: Triton promises no order between
a store and a load of the same program. Offsets are int64, for a dictionary has more than 2^31 bytes. No autotuning: a CUDA
graph must find its kernels compiled. Arguments are contiguous tensors, named like them.

B rows, D residual width, M latents, G groups of latents, C places for a row's candidates, P active pairs, L nested levels.
"""

import triton
import triton.language as tl


@triton.jit
def round_rows(
    x_ND: tl.tensor,
    shift_D: tl.tensor,
    bits_ND: tl.tensor,
    unit_N: tl.tensor,
    size_N: tl.tensor,
    lost_N: tl.tensor,
    width: tl.tensor,
    BLOCK_D: tl.constexpr,
) -> None:
    """A row less `shift_D`, in float16 times its unit (its largest entry); the norms of what is kept and of what is lost."""
    row = tl.program_id(0).to(tl.int64)
    lane = tl.arange(0, BLOCK_D)
    most_D = tl.full((BLOCK_D,), 0.0, tl.float32)
    for at in range(0, width, BLOCK_D):
        d = at + lane
        x_D = tl.load(x_ND + row * width + d, mask=d < width, other=0.0)
        x_D -= tl.load(shift_D + d, mask=d < width, other=0.0)
        most_D = tl.maximum(most_D, tl.abs(x_D))
    unit = tl.maximum(tl.max(most_D, 0), 1e-30)
    kept_D = tl.full((BLOCK_D,), 0.0, tl.float32)
    lost_D = tl.full((BLOCK_D,), 0.0, tl.float32)
    for at in range(0, width, BLOCK_D):
        d = at + lane
        x_D = tl.load(x_ND + row * width + d, mask=d < width, other=0.0)
        x_D -= tl.load(shift_D + d, mask=d < width, other=0.0)
        bits_D = (x_D / unit).to(tl.float16)
        tl.store(bits_ND + row * width + d, bits_D, mask=d < width)
        back_D = bits_D.to(tl.float32) * unit
        kept_D += back_D * back_D
        lost_D += (x_D - back_D) * (x_D - back_D)
    tl.store(unit_N + row, unit)
    tl.store(size_N + row, tl.sqrt(tl.sum(kept_D, 0)))
    tl.store(lost_N + row, tl.sqrt(tl.sum(lost_D, 0)))


@triton.jit
def bound_scores(
    x_BD: tl.tensor,
    w_MD: tl.tensor,
    unit_B: tl.tensor,
    size_B: tl.tensor,
    far_B: tl.tensor,
    unit_M: tl.tensor,
    bias_M: tl.tensor,
    near_M: tl.tensor,
    upper_BM: tl.tensor,
    upper_BG: tl.tensor,
    lower_BG: tl.tensor,
    rows: tl.tensor,
    latents: tl.tensor,
    width: tl.tensor,
    groups: tl.tensor,
    BLOCK_B: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_D: tl.constexpr,
    GROUP: tl.constexpr,
) -> None:
    """What each score is at most, and each group's largest upper and lower bound.

    The score lies within size_B near_M + far_B of unit_B unit_M (x . w) + bias_M.
    """
    # Eight tiles of rows share the encoder rows that the second-level cache holds.
    tiles_b, tiles_m = (rows + BLOCK_B - 1) // BLOCK_B, (latents + BLOCK_M - 1) // BLOCK_M
    program = tl.program_id(0)
    first = program // (8 * tiles_m) * 8
    together = tl.minimum(tiles_b - first, 8)
    tile_b = first + program % (8 * tiles_m) % together
    tile_m = program % (8 * tiles_m) // together
    b = tile_b.to(tl.int64) * BLOCK_B + tl.arange(0, BLOCK_B)
    m = tile_m.to(tl.int64) * BLOCK_M + tl.arange(0, BLOCK_M)
    d = tl.arange(0, BLOCK_D)
    here_B, here_M = b < rows, m < latents
    dot_BM = tl.full((BLOCK_B, BLOCK_M), 0.0, tl.float32)
    for at in range(0, width, BLOCK_D):
        here_D = at + d < width
        part_BD = tl.load(
            x_BD + b[:, None] * width + at + d[None, :], mask=here_B[:, None] & here_D[None, :], other=0.0
        )
        part_DM = tl.load(
            w_MD + m[None, :] * width + at + d[:, None], mask=here_D[:, None] & here_M[None, :], other=0.0
        )
        dot_BM = tl.dot(part_BD, part_DM, dot_BM)
    unit = tl.load(unit_B + b, mask=here_B, other=0.0)
    middle_BM = dot_BM * unit[:, None] * tl.load(unit_M + m, mask=here_M, other=0.0)[None, :]
    middle_BM += tl.load(bias_M + m, mask=here_M, other=-float("inf"))[None, :]
    size, far = tl.load(size_B + b, mask=here_B, other=0.0), tl.load(far_B + b, mask=here_B, other=0.0)
    off_BM = size[:, None] * tl.load(near_M + m, mask=here_M, other=0.0)[None, :] + far[:, None]
    high_BM, low_BM = middle_BM + off_BM, middle_BM - off_BM
    tl.store(upper_BM + b[:, None] * latents + m[None, :], high_BM, mask=here_B[:, None] & here_M[None, :])
    PER_TILE: tl.constexpr = BLOCK_M // GROUP
    g = tile_m * PER_TILE + tl.arange(0, PER_TILE)
    at_BG = b[:, None] * groups + g[None, :]
    here_BG = here_B[:, None] & (g < groups)[None, :]
    tl.store(upper_BG + at_BG, tl.max(tl.reshape(high_BM, (BLOCK_B, PER_TILE, GROUP)), 2), mask=here_BG)
    tl.store(lower_BG + at_BG, tl.max(tl.reshape(low_BM, (BLOCK_B, PER_TILE, GROUP)), 2), mask=here_BG)


@triton.jit
def collect(
    upper_BM: tl.tensor,
    upper_BG: tl.tensor,
    limit_B: tl.tensor,
    latent_BC: tl.tensor,
    count_B: tl.tensor,
    latents: tl.tensor,
    groups: tl.tensor,
    places: tl.tensor,
    BLOCK_G: tl.constexpr,
    GROUP: tl.constexpr,
) -> None:
    """A row's latents whose upper bound reaches its limit, ascending; all are counted, `places` of them written."""
    row = tl.program_id(0).to(tl.int64)
    limit = tl.load(limit_B + row)
    count = 0
    for at in range(0, groups, BLOCK_G):
        g = at + tl.arange(0, BLOCK_G)
        open_G = tl.load(upper_BG + row * groups + g, mask=g < groups, other=-float("inf")) >= limit
        if tl.max(open_G.to(tl.int32), 0) > 0:
            m = g[:, None] * GROUP + tl.arange(0, GROUP)[None, :]
            there = open_G[:, None] & (m < latents)
            there &= tl.load(upper_BM + row * latents + m, mask=there, other=-float("inf")) >= limit
            found = tl.reshape(there.to(tl.int32), (BLOCK_G * GROUP,))
            place = count + tl.cumsum(found, 0) - found
            into = latent_BC + row * places + place
            tl.store(into, tl.reshape(m, (BLOCK_G * GROUP,)), mask=(found > 0) & (place < places))
            count += tl.sum(found, 0)
    tl.store(count_B + row, count)


@triton.jit
def score_candidates(
    x_BD: tl.tensor,
    bd_D: tl.tensor,
    We_MD: tl.tensor,
    be_M: tl.tensor,
    norm_M: tl.tensor,
    latent_BC: tl.tensor,
    count_B: tl.tensor,
    value_BC: tl.tensor,
    score_BC: tl.tensor,
    places: tl.tensor,
    width: tl.tensor,
    BLOCK_C: tl.constexpr,
    BLOCK_D: tl.constexpr,
) -> None:
    """Pre-activations of candidates in float32, and their scores; the score of an empty place is -inf."""
    row = tl.program_id(0).to(tl.int64)
    first = tl.program_id(1) * BLOCK_C
    c = first + tl.arange(0, BLOCK_C)
    there_C = (c < tl.load(count_B + row)) & (c < places)
    value_C = tl.full((BLOCK_C,), 0.0, tl.float32)
    score_C = tl.full((BLOCK_C,), -float("inf"), tl.float32)
    if first < tl.load(count_B + row):
        m = tl.load(latent_BC + row * places + c, mask=there_C, other=0).to(tl.int64)
        for at in range(0, width, BLOCK_D):
            d = at + tl.arange(0, BLOCK_D)
            x_D = tl.load(x_BD + row * width + d, mask=d < width, other=0.0)
            x_D -= tl.load(bd_D + d, mask=d < width, other=0.0)
            here_CD = there_C[:, None] & (d < width)[None, :]
            w_CD = tl.load(We_MD + m[:, None] * width + d[None, :], mask=here_CD, other=0.0)
            value_C += tl.sum(w_CD * x_D[None, :], 1)
        value_C += tl.load(be_M + m, mask=there_C, other=0.0)
        score_C = tl.where(there_C, value_C * tl.load(norm_M + m, mask=there_C, other=0.0), score_C)
    tl.store(value_BC + row * places + c, value_C, mask=c < places)
    tl.store(score_BC + row * places + c, score_C, mask=c < places)
