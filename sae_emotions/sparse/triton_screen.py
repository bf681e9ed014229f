"""Exact selection on a GPU: a product in float16 bounds every score, and what the bounds cannot rule out is scored in float32.

A row x and a latent's encoder row w are written as what is kept plus what is lost, x = a + r and w = c + s. Then x.w differs
from a.c by at most |r| |w| + |a| |s|. float16 with a unit a row keeps three bits more than bfloat16 at the same speed, so that
the bounds are narrow. The k-th largest of the groups' lower bounds is a limit that the k largest scores reach.

B rows, D residual width, M latents, G groups of latents, C candidates a row.
"""

from typing import Any, NamedTuple

import torch
import triton

from sae_emotions.sparse import triton_kernels as kernels
from sae_emotions.sparse.shapes import Weights

PRODUCT = 2**26
"""Bounds held at a time: some rows times all latents."""
GROUP = 32
LOOKED_AT = 2048
"""Latents that `collect` looks at in one go."""


class Rounded(NamedTuple):
    """Rows in float16."""

    bits_ND: torch.Tensor
    unit_N: torch.Tensor
    size_N: torch.Tensor
    """norm of what is kept"""
    lost_N: torch.Tensor
    """norm of what is lost"""


class Screen(NamedTuple):
    """Encoder rows in float16, and what turns a product into bounds of scores: see `triton_kernels.bound_scores`."""

    bits_MD: torch.Tensor
    unit_M: torch.Tensor
    bias_M: torch.Tensor
    near_M: torch.Tensor
    """the error a unit of the row's norm"""
    far: torch.Tensor
    """the error a unit of what is lost of the row"""
    least: torch.Tensor
    """the error of adding biases"""


class Candidates(NamedTuple):
    """Latents that a row's screen let through, ascending, with their float32 values; scores of empty places are -inf."""

    latent_BC: torch.Tensor
    value_BC: torch.Tensor
    score_BC: torch.Tensor
    count_B: torch.Tensor
    """how many passed, whether or not there was place for them"""


def launch(kernel: Any, grid: tuple[int, ...], *arguments: Any, warps: int = 4, **blocks: int) -> None:
    """Start a kernel on the device that its tensors lie on, which need not be the current one."""
    with torch.cuda.device_of(arguments[0]):
        kernel[grid](*arguments, num_warps=warps, **blocks)


def tile(width: int, most: int) -> int:
    """Entries of a row that a program holds at a time: a power of 2, at least the 16 that a tensor core takes."""
    return max(16, min(most, triton.next_power_of_2(width)))


def rounded(x_ND: torch.Tensor, shift_D: torch.Tensor) -> Rounded:
    """Rows less `shift_D`."""
    rows, width = x_ND.shape
    columns = x_ND.new_empty(3, rows).unbind()
    made = Rounded(torch.empty(x_ND.shape, dtype=torch.float16, device=x_ND.device), *columns)
    launch(kernels.round_rows, (rows,), x_ND, shift_D, *made, width, BLOCK_D=tile(width, 1024))
    return made


def made_screen(latents: Rounded, bias_M: torch.Tensor, norm_M: torch.Tensor) -> Screen:
    """`bias_M` is what is added to the product of a row and an encoder row; `norm_M` multiplies the sum."""
    whole_M = (latents.size_N + latents.lost_N) * norm_M
    # Twice what a tensor core and the float32 score lose by adding: it adds 16 products at a time, and cuts off.
    slack = 2**-22 * (latents.bits_ND.shape[1] / 16 + 32)
    near_M, bias_M = latents.lost_N * norm_M + slack * whole_M, bias_M * norm_M
    return Screen(latents.bits_ND, latents.unit_N * norm_M, bias_M, near_M, whole_M.max(), bias_M.abs().max() * 2**-20)


def candidates(
    x_BD: torch.Tensor, weights: Weights, screen: Screen, norm_M: torch.Tensor, k: int, limit: float, places: int
) -> Candidates:
    """All that may be among a row's k largest scores; if k is 0, all that may reach `limit`. It does not wait for the device."""
    rows, (latents, width) = len(x_BD), weights.We_MD.shape
    group = GROUP
    while group > 1 and latents // group < 4 * k:  # few groups hold two of the k largest
        group //= 2
    groups, chunk = triton.cdiv(latents, group), max(128, PRODUCT // latents)
    bits_BD, unit_B, size_B, lost_B = rounded(x_BD, weights.bd_D)
    of_row = (bits_BD, unit_B, size_B + lost_B, lost_B * screen.far + screen.least)
    upper_BM = x_BD.new_empty(min(chunk, rows), latents)
    upper_BG, lower_BG = x_BD.new_empty(2, len(upper_BM), groups).unbind()
    limit_B = x_BD.new_full((rows,), limit)
    latent_BC = torch.zeros(rows, places, dtype=torch.int32, device=x_BD.device)
    count_B = torch.empty(rows, dtype=torch.int32, device=x_BD.device)
    for first in range(0, rows, chunk):
        part = slice(first, min(first + chunk, rows))
        here = part.stop - first
        bits, *columns = (column[part] for column in of_row)
        launch(
            kernels.bound_scores,
            (triton.cdiv(here, 128) * triton.cdiv(latents, 128),),
            *(bits, screen.bits_MD, *columns, screen.unit_M, screen.bias_M, screen.near_M),
            *(upper_BM, upper_BG, lower_BG, here, latents, width, groups),
            BLOCK_B=128,
            BLOCK_M=128,
            BLOCK_D=tile(width, 64),
            GROUP=group,
            warps=8,
        )
        if k:
            limit_B[part] = lower_BG[:here].topk(k, -1, sorted=False).values.amin(-1)
        launch(
            kernels.collect,
            (here,),
            *(upper_BM, upper_BG, limit_B[part], latent_BC[part], count_B[part], latents, groups, places),
            BLOCK_G=LOOKED_AT // group,
            GROUP=group,
        )
    value_BC, score_BC = x_BD.new_empty(2, rows, places).unbind()
    launch(
        kernels.score_candidates,
        (rows, triton.cdiv(places, 16)),
        *(x_BD, weights.bd_D, weights.We_MD, weights.be_M, norm_M, latent_BC, count_B, value_BC, score_BC),
        *(places, width),
        BLOCK_C=16,
        BLOCK_D=tile(width, 256),
    )
    return Candidates(latent_BC, value_BC, score_BC, count_B)
