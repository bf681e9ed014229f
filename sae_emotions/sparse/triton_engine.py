"""The sparse step on a GPU, in Triton: a product in float16 screens, float32 decides, all else is sparse.

Not run on a GPU here: the tests hold it equal to `plain` under Triton's interpreter, and compile it for one. The sizes of
blocks and the numbers of warps are first guesses that no GPU has judged.

Gradients are stored before Adam reads them, for AuxK adds to them and their norm clips them. Working them out twice would read
P D 8 bytes again, more than the M D 24 bytes that storing costs wherever P > 3 M (k 64, 4,096 rows, 65,536 latents).

B rows, D residual width, M latents, C candidates a row, K active latents a row, P active pairs, L nested levels, T tiles of D,
R parts of latents' pairs.
"""

from typing import Any

import torch
import triton

from sae_emotions.sparse import triton_updates as updates
from sae_emotions.sparse.graphs import Graphed, Record, record
from sae_emotions.sparse.plain import Plain
from sae_emotions.sparse.shapes import Active, AdamRate, Errors, Weights
from sae_emotions.sparse.triton_screen import (
    Candidates,
    Rounded,
    Screen,
    candidates,
    launch,
    made_screen,
    rounded,
    tile,
)

SPARE = 64
"""Places for candidates beyond four times those that are asked for; a row that needs more is unsure."""
PART = 256
"""Pairs of one latent that one program sums, so that a latent that fires in every row holds nobody up."""
SAMPLE = 512
SHARES = (0.93, 0.65, 0.3)
"""Of the guess: where a batch's limit is looked for, one after the other."""


class Triton(Plain):
    """The engine for GPUs; what it does not do itself is plain PyTorch's.

    `fixed`: the weights will not change. `recorder` records what has fixed shapes; None: nothing.

    What `errors` and `gradients` return lies in memory that the next call of the same method uses again.
    """

    def __init__(self, fixed: bool = False, recorder: Record | None = record) -> None:
        self.fixed = fixed
        self._latents: Rounded | None = None
        self._places = 0
        self._levels: tuple[torch.Tensor, int] | None = None
        self._top = Graphed(self._top_now, recorder)
        self._errors = Graphed(errors_now, recorder)
        self._gradients = Graphed(gradients_now, recorder)
        self._adam = Graphed(adam_now, recorder)

    def top(self, x_BD: torch.Tensor, weights: Weights, norm_M: torch.Tensor, k: int) -> Active:
        """See `Engine`. It waits for the device once, to learn of rows that need a second look."""
        index_BK, value_BK, unsure_B = self._top((x_BD.contiguous(), norm_M), weights, k)
        rest = unsure_B.nonzero()[:, 0]
        index_BK, value_BK = index_BK.clone(), value_BK.clone()
        if len(rest):
            again = super().top(x_BD[rest], weights, norm_M, k)
            index_BK[rest], value_BK[rest] = again.index_P.view(-1, k), again.value_P.view(-1, k)
        start_B1 = torch.arange(0, len(x_BD) * k + 1, k, device=x_BD.device)
        return Active(start_B1, index_BK.view(-1), value_BK.view(-1), len(rest))

    def _top_now(self, x_BD: torch.Tensor, norm_M: torch.Tensor, *rest: Any) -> tuple[torch.Tensor, ...]:
        """The selection, and the rows where it is not certain."""
        weights, k = Weights(*rest[:4]), rest[4]
        places = min(len(norm_M), 4 * k + SPARE)
        screen = self._screen(weights, weights.be_M, norm_M)
        found = candidates(x_BD, weights, screen, norm_M, k, 0.0, places)
        best_BK = found.score_BC.topk(k, -1, sorted=False).indices.sort(-1).values
        unsure_B = (found.count_B < k) | (found.count_B > places)
        return found.latent_BC.gather(1, best_BK).long(), found.value_BC.gather(1, best_BK).relu_(), unsure_B

    def top_of_batch(
        self, x_BD: torch.Tensor, weights: Weights, norm_M: torch.Tensor, k: int, guess: float | None
    ) -> Active:
        """See `Engine`. What is left out scores less than a limit that as many as are wanted reach."""
        x_BD, wanted = x_BD.contiguous(), k * len(x_BD)
        if guess is None:
            some_BD = x_BD[:SAMPLE] - weights.bd_D
            score_BM = torch.addmm(weights.be_M, some_BD, weights.We_MD.t()).mul_(norm_M)
            guess = float(score_BM.view(-1).topk(k * len(some_BD)).values[-1])
        for limit in (guess * share for share in SHARES if guess > 0):
            found = self._reaching(x_BD, weights, weights.be_M, norm_M, limit, 8 * k)
            if int((found.score_BC >= limit).sum()) >= wanted:
                best = found.score_BC.view(-1).topk(wanted, sorted=False).indices.sort().values
                return _picked(found, best)
        return super().top_of_batch(x_BD, weights, norm_M, k, guess)

    def above(self, x_BD: torch.Tensor, weights: Weights, threshold_M: torch.Tensor) -> Active:
        """See `Engine`."""
        bias_M, ones_M = weights.be_M - threshold_M, torch.ones_like(threshold_M)
        found = self._reaching(x_BD.contiguous(), weights, bias_M, ones_M, 0.0, SPARE)
        there_BC = (found.score_BC > -torch.inf) & (found.value_BC > threshold_M[found.latent_BC.long()])
        return _picked(found, there_BC.view(-1).nonzero()[:, 0])

    def _reaching(
        self,
        x_BD: torch.Tensor,
        weights: Weights,
        bias_M: torch.Tensor,
        norm_M: torch.Tensor,
        limit: float,
        places: int,
    ) -> Candidates:
        """Candidates for a score of at least `limit`, all of them."""
        screen = self._screen(weights, bias_M, norm_M)
        self._places = max(self._places, places)
        while True:
            here = min(self._places, len(norm_M))
            found = candidates(x_BD, weights, screen, norm_M, 0, limit, here)
            most = int(found.count_B.max())
            if most <= here:
                return found
            self._places = 2 * most

    def _screen(self, weights: Weights, bias_M: torch.Tensor, norm_M: torch.Tensor) -> Screen:
        if self._latents is None or not self.fixed:
            self._latents = rounded(weights.We_MD, torch.zeros_like(weights.bd_D))
        return made_screen(self._latents, bias_M, norm_M)

    def errors(self, x_BD: torch.Tensor, weights: Weights, active: Active, level_M: torch.Tensor) -> Errors:
        """See `Engine`."""
        if self._levels is None or self._levels[0] is not level_M:
            self._levels = level_M, int(level_M[-1]) + 1
        standing = (weights.Wd_MD, weights.bd_D, level_M)
        made: Errors = self._errors((x_BD.contiguous(), *active[:3]), standing, self._levels[1])
        return made

    def gradients(
        self, x_BD: torch.Tensor, weights: Weights, active: Active, errors: Errors, level_M: torch.Tensor
    ) -> Weights:
        """See `Engine`."""
        standing = (weights.We_MD, weights.bd_D, errors.error_BLD, errors.grad_P, level_M)
        made: Weights = self._gradients((x_BD.contiguous(), *active[:3]), standing)
        return made

    def fired(self, active: Active, latents: int) -> torch.Tensor:
        """See `Engine`. Sums of ones are exact in any order."""
        return active.value_P.new_zeros(latents).index_add_(0, active.index_P, (active.value_P > 0).float())

    def squared_norm(self, gradient: Weights) -> torch.Tensor:
        """See `Engine`."""
        return torch.stack([tensor.norm() for tensor in gradient]).pow(2).sum()

    def adam(self, weights: Weights, gradient: Weights, mean: Weights, square: Weights, rate: AdamRate) -> None:
        """See `Engine`."""
        root = (1 - rate.beta2**rate.step) ** 0.5
        numbers = [0.0, rate.lr / (1 - rate.beta1**rate.step), 1 - rate.beta1, 1 - rate.beta2, root, rate.eps]
        made = weights.bd_D.new_tensor(numbers)
        made[0] = rate.clip
        self._adam((made,), (*weights, *gradient, *mean, *square))


def _picked(found: Candidates, at_P: torch.Tensor) -> Active:
    """Candidates at these places, ascending."""
    rows, places = found.latent_BC.shape
    row_P = at_P // places
    start_B1 = torch.searchsorted(row_P, torch.arange(rows + 1, device=at_P.device))
    return Active(start_B1, found.latent_BC.view(-1)[at_P].long(), found.value_BC.view(-1)[at_P])


def errors_now(
    x_BD: torch.Tensor,
    start_B1: torch.Tensor,
    index_P: torch.Tensor,
    value_P: torch.Tensor,
    Wd_MD: torch.Tensor,
    bd_D: torch.Tensor,
    level_M: torch.Tensor,
    levels: int,
) -> Errors:
    """See `Engine.errors`."""
    rows, width = x_BD.shape
    block = tile(width, 128)
    tiles = triton.cdiv(width, block)
    error_BLD, loss_BTL = x_BD.new_empty(rows, levels, width), x_BD.new_empty(rows, tiles, levels)
    dot_TP = x_BD.new_empty(tiles, len(index_P))
    launch(
        updates.decode,
        (rows, tiles),
        *(x_BD, Wd_MD, bd_D, start_B1, index_P, value_P, level_M, error_BLD, loss_BTL, dot_TP),
        *(len(index_P), width, 2 / rows),
        LEVELS=levels,
        LEVELS_2=triton.next_power_of_2(levels),
        BLOCK_P=16,
        BLOCK_D=block,
    )
    return Errors(error_BLD, loss_BTL.sum((0, 1)) / rows, dot_TP.sum(0))


def gradients_now(
    x_BD: torch.Tensor,
    start_B1: torch.Tensor,
    index_P: torch.Tensor,
    value_P: torch.Tensor,
    We_MD: torch.Tensor,
    bd_D: torch.Tensor,
    error_BLD: torch.Tensor,
    grad_P: torch.Tensor,
    level_M: torch.Tensor,
) -> Weights:
    """See `Engine.gradients`: pairs are sorted by latent once, and each latent's are summed by its own programs."""
    (latents, width), pairs = We_MD.shape, len(index_P)
    spare = pairs // PART
    number_R = torch.arange(latents + spare + 1, device=x_BD.device)
    latent_P, order = index_P.int().sort(stable=True)
    row_P = torch.searchsorted(start_B1[1:], order, right=True)
    start_M1 = torch.searchsorted(latent_P, number_R[: latents + 1].int())
    parts_M = ((start_M1.diff() + PART - 1) // PART).clamp_min(1)
    part_M1 = torch.cat([parts_M.new_zeros(1), parts_M.cumsum(0)])
    latent_R = torch.searchsorted(part_M1[1:], number_R[:-1], right=True)
    gWe, gWd = x_BD.new_empty(2, latents + spare, width).unbind()
    gbe = x_BD.new_empty(latents + spare)
    block = tile(width, 256)
    tiles = triton.cdiv(width, block)
    launch(
        updates.sum_parts,
        (latents + spare, tiles),
        *(x_BD, bd_D, error_BLD, level_M, row_P, value_P[order], grad_P[order], start_M1, part_M1, latent_R),
        *(gWe, gbe, gWd, latents, width, error_BLD.shape[1]),
        PART=PART,
        BLOCK_P=8,
        BLOCK_D=block,
    )
    if spare:
        latent_S = torch.searchsorted(part_M1[1:] - number_R[1 : latents + 1], number_R[:spare], right=True)
        launch(
            updates.add_parts,
            (spare, tiles),
            *(gWe, gbe, gWd, part_M1, latent_S, latents, width),
            BLOCK_D=block,
        )
    gbd_D = error_BLD[:, 0].sum(0) - gbe[:latents] @ We_MD
    return Weights(gWe[:latents], gbe[:latents], gWd[:latents], gbd_D)


def adam_now(numbers: torch.Tensor, *tensors: torch.Tensor) -> None:
    """Adam on weights, gradients, means and squares, four tensors each: see `triton_updates.adam`."""
    for w, g, mean, square in zip(*(tensors[at : at + 4] for at in range(0, 16, 4)), strict=True):
        entries = w.numel()
        launch(updates.adam, (triton.cdiv(entries, 1024),), w, g, mean, square, numbers, entries, BLOCK=1024)
