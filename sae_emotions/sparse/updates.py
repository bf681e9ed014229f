"""Loops over the active values once they are found, compiled by numba: decode, gradients, Adam. See `kernels.py`.

B rows, D residual width, M latents, P active pairs of row and latent (in row order), L nested levels.
"""

from typing import Any

import numpy as np

from sae_emotions.compiling import compiled
from sae_emotions.sparse.kernels import ONE, ZERO, Array


@compiled
def decode(
    x_BD: Array,
    Wd_MD: Array,
    bd_D: Array,
    start_B: Array,
    index_P: Array,
    value_P: Array,
    level_M: Array,
    scale: Any,
    error_BLD: Array,
    loss_BL: Array,
    grad_P: Array,
) -> None:
    """Each level's squared error; its gradient, summed over this level and the wider ones; dL/d(pre-activation).

    `scale` is the gradient of the loss by the squared error, twice. `start_B` has one entry more than there are rows.
    """
    rows, width = x_BD.shape
    levels = error_BLD.shape[1]
    for b in range(rows):
        x = x_BD[b]
        at, last = start_B[b], start_B[b + 1]
        for level in range(levels):
            e = error_BLD[b, level]
            if level:
                before = error_BLD[b, level - 1]
                for d in range(width):
                    e[d] = before[d]
            else:
                for d in range(width):
                    e[d] = bd_D[d] - x[d]
            while at < last and level_M[index_P[at]] == level:
                value = value_P[at]
                if value > ZERO:
                    w = Wd_MD[index_P[at]]
                    for d in range(width):
                        e[d] += value * w[d]
                at += 1
            total = ZERO
            for d in range(width):
                total += e[d] * e[d]
            loss_BL[b, level] = total
        for back in range(levels):
            level = levels - 1 - back
            e = error_BLD[b, level]
            for d in range(width):
                e[d] *= scale
            if back:
                wider = error_BLD[b, level + 1]
                for d in range(width):
                    e[d] += wider[d]
        for p in range(start_B[b], last):
            total = ZERO
            if value_P[p] > ZERO:
                e, w = error_BLD[b, level_M[index_P[p]]], Wd_MD[index_P[p]]
                for d in range(width):
                    total += e[d] * w[d]
            grad_P[p] = total


@compiled
def by_latent(start_B: Array, index_P: Array, start_M: Array, pair_P: Array, row_P: Array) -> None:
    """Pairs in the order of their latents, rows ascending (a counting sort)."""
    start_M[:] = 0
    for p in range(index_P.size):
        start_M[index_P[p] + 1] += 1
    for m in range(start_M.size - 1):
        start_M[m + 1] += start_M[m]
    at_M = start_M[:-1].copy()
    for b in range(start_B.size - 1):
        for p in range(start_B[b], start_B[b + 1]):
            at = at_M[index_P[p]]
            pair_P[at], row_P[at] = p, b
            at_M[index_P[p]] = at + 1


@compiled
def gradients(
    first: int,
    x_BD: Array,
    error_BLD: Array,
    level_M: Array,
    value_P: Array,
    grad_P: Array,
    start_M: Array,
    pair_P: Array,
    row_P: Array,
    gWe_MD: Array,
    gbe_M: Array,
    gWd_MD: Array,
) -> None:
    """Gradients of encoder rows, encoder biases and decoder rows, from latent `first` on: one pass over each one's pairs."""
    latents, width = gWe_MD.shape
    for m in range(latents):
        ge, gd = gWe_MD[m], gWd_MD[m]
        for d in range(width):
            ge[d] = ZERO
            gd[d] = ZERO
        bias = ZERO
        level = level_M[first + m]
        for at in range(start_M[first + m], start_M[first + m + 1]):
            value, g = value_P[pair_P[at]], grad_P[pair_P[at]]
            if value > ZERO:
                x, e = x_BD[row_P[at]], error_BLD[row_P[at], level]
                bias += g
                for d in range(width):
                    ge[d] += g * x[d]
                    gd[d] += value * e[d]
        gbe_M[m] = bias


@compiled
def add_rows(x_BD: Array, factor_B: Array, total_D: Array) -> None:
    """Add rows times their factors to `total_D`."""
    for b in range(x_BD.shape[0]):
        x, factor = x_BD[b], factor_B[b]
        for d in range(total_D.size):
            total_D[d] += factor * x[d]


@compiled
def adam(
    W_MD: Array,
    g_MD: Array,
    mean_MD: Array,
    square_MD: Array,
    clip: Any,
    rate: Any,
    beta1: Any,
    beta2: Any,
    root: Any,
    eps: Any,
) -> None:
    """Adam over gradients times `clip`. `rate`: lr / (1 - beta1^t); `root`: sqrt(1 - beta2^t)."""
    for m in range(W_MD.shape[0]):
        w, g, mean, square = W_MD[m], g_MD[m], mean_MD[m], square_MD[m]
        for d in range(w.size):
            v = g[d] * clip
            mean[d] = beta1 * mean[d] + (ONE - beta1) * v
            square[d] = beta2 * square[d] + (ONE - beta2) * v * v
            w[d] -= rate * mean[d] / (np.sqrt(square[d]) / root + eps)
