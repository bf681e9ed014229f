"""The sparse step on a CPU, compiled by numba: a product in few bits screens, float32 decides, all else is sparse.

B rows, D residual width, M latents, C candidates a row, K active latents a row, P active pairs, L nested levels.
"""

import threading
from typing import NamedTuple

import numpy as np
import torch

from sae_emotions.errors import UserError
from sae_emotions.sparse import kernels, updates
from sae_emotions.sparse.screen import (
    CHUNK,
    Kind,
    Rounded,
    Screen,
    empty,
    exact_screen,
    fastest,
    made_screen,
    part_of,
    product,
    product_room,
    round_rows,
)
from sae_emotions.sparse.shapes import Active, AdamRate, Errors, Weights
from sae_emotions.threads import Threads

GROUPS = 32
PLACES = 64
"""Places for candidates beyond those that are asked for; a row that needs more is unsure."""
UNSURE = 0.004
"""Share of unsure rows above which more spare candidates are taken (up to `MOST` times k), and below a quarter of which fewer."""
START, MOST = 64, 8
SPARE_EXACT = 8
MARGIN, SHRINK, TINY = 0.93, 0.7, np.float32(1e-30)
"""A batch's limit is looked for from `MARGIN` times the guess on, and if it lies lower from `SHRINK` times that."""


class Candidates(NamedTuple):
    """Latents that a row's screen let through, and their float32 values."""

    latent_BC: np.ndarray
    bound_BC: np.ndarray
    """what the score is at most"""
    value_BC: np.ndarray
    score_BC: np.ndarray
    count_B: np.ndarray
    limit_B: np.ndarray
    """what a latent that was left out scores less than"""

    def scores(self) -> np.ndarray:
        """All candidates' scores, one after the other."""
        return self.score_BC[np.arange(self.score_BC.shape[1]) < self.count_B[:, None]]


class Compiled:
    """The engine for CPUs with numba.

    `origin_D`, if given, is what rows are rounded around: rows that were stored as int8 around it lose nothing.
    `kind` is the screen's (default: the one that this machine is fastest at). `fixed`: the weights will not change.
    What it returns lies in memory that the next call of the same method uses again.
    """

    def __init__(self, origin_D: torch.Tensor | None = None, kind: Kind | None = None, fixed: bool = False) -> None:
        self.kind: Kind = kind or fastest()
        self.origin_D = None if origin_D is None else origin_D.numpy()
        self.fixed = fixed
        self.spare = START if self.kind == "int8" else SPARE_EXACT
        self.threads = Threads()
        self._places = 0
        self._latents: Rounded | None = None
        self._made: tuple[Screen, Screen] | None = None
        self._kept: dict[str, np.ndarray] = {}
        self._own = threading.local()

    def top(self, x_BD: torch.Tensor, weights: Weights, norm_M: torch.Tensor, k: int) -> Active:
        """See `Engine`."""
        x, latents = x_BD.numpy(), len(norm_M)
        asked = min(k + self.spare, latents)
        screen, exact = self._screens(weights, norm_M.numpy())
        index_BK, value_BK = np.full((len(x), k), -1, np.int64), np.empty((len(x), k), np.float32)
        sure_B = np.zeros(len(x), bool)
        places = min(2 * asked + PLACES, latents)
        self._candidates(screen, x, weights, norm_M, asked, 0.0, places, (index_BK, value_BK, sure_B))
        rest = np.flatnonzero(~sure_B)
        for some in np.split(rest, range(CHUNK, len(rest), CHUNK)):
            if len(some):
                into = index_BK[some], value_BK[some], sure_B[some]
                self._candidates(exact, x[some], weights, norm_M, min(k + SPARE_EXACT, latents), 0.0, latents, into)
                index_BK[some], value_BK[some] = into[0], into[1]
        if (index_BK < 0).any():
            raise UserError("Some rows or weights are not finite numbers; lower the dictionary's lr and train again.")
        self._adapt(len(rest) / max(1, len(x)), k)
        start_B1 = torch.arange(0, len(x) * k + 1, k)
        np.maximum(value_BK, 0, out=value_BK)
        return Active(start_B1, torch.from_numpy(index_BK).view(-1), torch.from_numpy(value_BK).view(-1), len(rest))

    def _adapt(self, unsure: float, k: int) -> None:
        """Take more spare candidates where many rows were unsure. What is selected does not depend on it."""
        if unsure > UNSURE and self.spare < MOST * k:
            self.spare += 8
        elif unsure < UNSURE / 4 and self.spare > SPARE_EXACT:
            self.spare -= 2

    def top_of_batch(
        self, x_BD: torch.Tensor, weights: Weights, norm_M: torch.Tensor, k: int, guess: float | None
    ) -> Active:
        """See `Engine`. Every row is sure: what is left out scores less than a limit that all that is kept reach."""
        x, latents, wanted = x_BD.numpy(), len(norm_M), k * len(x_BD)
        screen, exact = self._screens(weights, norm_M.numpy())
        if guess is None:
            some = x[: 2 * CHUNK]
            score = self._candidates(exact, some, weights, norm_M, min(4 * k, latents), 0.0, latents).scores()
            at = max(0, len(score) - len(some) * k)
            guess = float(np.partition(score, at)[at])
        least = MARGIN * guess
        while True:
            found = self._reaching(screen, x, weights, norm_M, least, 8 * k)
            score = found.scores()
            if least <= 0 or (score >= least).sum() >= wanted:
                break
            least = SHRINK * least if least > TINY else 0.0
        # Fewer positive scores than are wanted: all of them.
        limit = np.partition(score, len(score) - wanted)[len(score) - wanted] if len(score) > wanted else TINY
        return self._kept_from(found, np.float32(max(limit, TINY)))

    def above(self, x_BD: torch.Tensor, weights: Weights, threshold_M: torch.Tensor) -> Active:
        """See `Engine`."""
        shifted, ones_M = weights._replace(be_M=weights.be_M - threshold_M), torch.ones_like(threshold_M)
        screen, _ = self._screens(shifted, ones_M.numpy())
        found = self._kept_from(self._reaching(screen, x_BD.numpy(), shifted, ones_M, 0.0, PLACES), TINY)
        return found._replace(value_P=found.value_P + threshold_M[found.index_P])

    def _reaching(
        self, screen: Screen, x: np.ndarray, weights: Weights, norm_M: torch.Tensor, least: float, places: int
    ) -> Candidates:
        """Candidates for a score of at least `least`, all of them."""
        latents = len(norm_M)
        self._places = max(self._places, places)
        while True:
            found = self._candidates(screen, x, weights, norm_M, 0, least, min(self._places, latents))
            most = int(found.count_B.max(initial=0))
            if most <= found.score_BC.shape[1]:
                return found
            self._places = 2 * most

    def _kept_from(self, found: Candidates, limit: np.float32) -> Active:
        """The candidates that reach `limit`, by row and latent."""
        there_BC = (found.score_BC >= limit) & (np.arange(found.score_BC.shape[1]) < found.count_B[:, None])
        start_B1 = np.concatenate([[0], there_BC.sum(1).cumsum()])
        index_P, value_P = np.zeros(start_B1[-1], np.int64), np.zeros(start_B1[-1], np.float32)

        def work(part: slice) -> None:
            columns = (found.latent_BC, found.value_BC, found.score_BC, found.count_B)
            starts = start_B1[part.start : part.stop + 1]
            kernels.keep_above(*(column[part] for column in columns), limit, starts, index_P, value_P)

        self.threads.over(len(found.count_B), work)
        return Active(torch.from_numpy(start_B1), torch.from_numpy(index_P), torch.from_numpy(value_P))

    def errors(self, x_BD: torch.Tensor, weights: Weights, active: Active, level_M: torch.Tensor) -> Errors:
        """See `Engine`."""
        levels = int(level_M[-1]) + 1
        error_BLD = self._array("error", (len(x_BD), levels, x_BD.shape[1]), np.float32)
        loss_BL = np.empty((len(x_BD), levels), np.float32)
        grad_P = np.empty(len(active.value_P), np.float32)
        x, (start, index, value) = x_BD.numpy(), (column.numpy() for column in active[:3])
        Wd, bd, level, scale = weights.Wd_MD.numpy(), weights.bd_D.numpy(), level_M.numpy(), np.float32(2 / len(x))

        def work(part: slice) -> None:
            starts = start[part.start : part.stop + 1]
            updates.decode(x[part], Wd, bd, starts, index, value, level, scale, error_BLD[part], loss_BL[part], grad_P)

        self.threads.over(len(x), work)
        loss_L = torch.from_numpy(loss_BL.mean(0, dtype=np.float64).astype(np.float32))
        return Errors(torch.from_numpy(error_BLD), loss_L, torch.from_numpy(grad_P))

    def gradients(
        self, x_BD: torch.Tensor, weights: Weights, active: Active, errors: Errors, level_M: torch.Tensor
    ) -> Weights:
        """See `Engine`."""
        start, index, value = (column.numpy() for column in active[:3])
        latents, pairs = len(level_M), len(index)
        start_M = np.empty(latents + 1, np.int64)
        pair_P, row_P = np.empty(pairs, np.int64), np.empty(pairs, np.int64)
        updates.by_latent(start, index, start_M, pair_P, row_P)
        made = Weights(
            *(torch.from_numpy(self._array(f"g{n}", tuple(w.shape), np.float32)) for n, w in enumerate(weights))
        )
        gWe, gbe, gWd = (tensor.numpy() for tensor in made[:3])
        error, level, grad = errors.error_BLD.numpy(), level_M.numpy(), errors.grad_P.numpy()
        centred = self._centred(x_BD.numpy(), weights.bd_D.numpy())

        def work(part: slice) -> None:
            shared = (centred, error, level, value, grad, start_M, pair_P, row_P)
            updates.gradients(part.start, *shared, gWe[part], gbe[part], gWd[part])

        shares = np.searchsorted(start_M, pairs * np.arange(1, self.threads.count) / self.threads.count)
        self.threads.between([0, *map(int, shares), latents], work)
        with np.errstate(over="ignore", invalid="ignore"):
            made.bd_D.copy_(torch.from_numpy(error[:, 0].sum(0) - gbe @ weights.We_MD.numpy()))
        return made

    def scaled(self, x_BD: torch.Tensor, scale: float) -> torch.Tensor:
        """See `Engine`."""
        x, made = x_BD.numpy(), self._array("scaled", tuple(x_BD.shape), np.float32)
        self.threads.over(len(x), lambda part: np.multiply(x[part], np.float32(scale), made[part]))
        return torch.from_numpy(made)

    def scores(self, active: Active, norm_M: torch.Tensor) -> torch.Tensor:
        """See `Engine`."""
        return torch.from_numpy(active.value_P.numpy() * norm_M.numpy()[active.index_P.numpy()])

    def fired(self, active: Active, latents: int) -> torch.Tensor:
        """See `Engine`."""
        index = active.index_P.numpy()[active.value_P.numpy() > 0]
        return torch.from_numpy(np.bincount(index, minlength=latents).astype(np.float32))

    def norms(self, W_MD: torch.Tensor) -> torch.Tensor:
        """See `Engine`."""
        return torch.from_numpy(np.sqrt(self._squares(W_MD.numpy())))

    def squared_norm(self, gradient: Weights) -> float:
        """See `Engine`."""
        rows = (tensor.numpy() if tensor.ndim == 2 else tensor.numpy()[None] for tensor in gradient)
        return sum(float(self._squares(g).sum(dtype=np.float64)) for g in rows)

    def _squares(self, W_MD: np.ndarray) -> np.ndarray:
        square_M = np.empty(len(W_MD), np.float32)
        self.threads.over(len(W_MD), lambda part: kernels.squares(W_MD[part], square_M[part]))
        return square_M

    def adam(self, weights: Weights, gradient: Weights, mean: Weights, square: Weights, rate: AdamRate) -> None:
        """See `Engine`."""
        clip, lr = np.float32(rate.clip), np.float32(rate.lr / (1 - rate.beta1**rate.step))
        numbers = (clip, lr, np.float32(rate.beta1), np.float32(rate.beta2))
        root, eps = np.float32((1 - rate.beta2**rate.step) ** 0.5), np.float32(rate.eps)
        for group in zip(weights, gradient, mean, square, strict=True):
            w, g, m, s = (tensor.detach().numpy() for tensor in group)
            if w.ndim == 1:
                w, g, m, s = (tensor[None] for tensor in (w, g, m, s))

            def work(part: slice, arrays: tuple[np.ndarray, ...] = (w, g, m, s)) -> None:
                updates.adam(*(array[part] for array in arrays), *numbers, root, eps)

            self.threads.over(len(w), work)

    def _screens(self, weights: Weights, norm_M: np.ndarray) -> tuple[Screen, Screen]:
        """The fast screen and the exact one."""
        if self._made is None or not self.fixed:
            We, be, bd = weights.We_MD.numpy(), weights.be_M.numpy(), weights.bd_D.numpy()
            latents = self._latents
            if latents is None or latents.bits.shape != We.shape:
                latents = self._latents = empty(self.kind, *We.shape)
            self.threads.over(len(We), lambda part: round_rows(We[part], part_of(latents, part)))
            with np.errstate(over="ignore", invalid="ignore"):  # a training that diverges is refused by its loss
                bias = be if self.origin_D is None else be + We @ (self.origin_D - bd)
                self._made = made_screen(self.kind, latents, bias, norm_M), exact_screen(We, latents, bias, norm_M)
        return self._made

    def _candidates(
        self,
        screen: Screen,
        x_BD: np.ndarray,
        weights: Weights,
        norm_M: torch.Tensor,
        k: int,
        least: float,
        places: int,
        best: tuple[np.ndarray, np.ndarray, np.ndarray] | None = None,
    ) -> Candidates:
        """Screen rows (see `kernels.screen` for `k` and `least`), and score what is let through.

        With `best`, only the best are worked out, into these arrays: see `kernels.best`; their values and scores are not kept.
        """
        rows, latents = len(x_BD), len(norm_M)
        # Enough groups that few of those asked for share one, and few enough that their limit is soon found.
        groups = max(1, min(GROUPS, latents // (6 * k if k else 16)))
        found = Candidates(
            self._array("latent", (rows, places), np.int32),
            self._array("bound", (rows, places), np.float32),
            self._array("value", (rows, places), np.float32),
            self._array("score", (rows, places), np.float32),
            self._array("count", (rows,), np.int64),
            self._array("limit", (rows,), np.float32),
        )
        We, be, bd, norm = weights.We_MD.numpy(), weights.be_M.numpy(), weights.bd_D.numpy(), norm_M.numpy()

        def work(part: slice) -> None:
            room, bits = self._rooms(screen.kind, latents, x_BD.shape[1])
            for at in range(part.start, part.stop, CHUNK):
                some = slice(at, min(at + CHUNK, part.stop))
                here = Candidates(*(column[some] for column in found))
                centred = x_BD[some] - bd
                into = part_of(bits, slice(0, len(centred)))
                round_rows(centred if self.origin_D is None else x_BD[some] - self.origin_D, into)
                p, bounds = product(screen, into.bits, room)
                here.limit_B[:] = least
                row = (into.scale_B, into.norm_B, np.float32(screen.most) * into.error_B)
                kept = (here.latent_BC, here.bound_BC, here.count_B, here.limit_B)
                kernels.screen(p, bounds, *row, screen.columns, groups, k, *kept)
                if best is not None:
                    kernels.best(centred, We, be, norm, *kept, *(column[some] for column in best))
                else:
                    kernels.rescore(centred, We, be, norm, here.latent_BC, here.count_B, here.value_BC, here.score_BC)

        self.threads.over(rows, work)
        return found

    def _rooms(self, kind: Kind, latents: int, width: int) -> tuple[torch.Tensor, Rounded]:
        """This thread's own room for a product and for its rows."""
        rooms: dict[str, tuple[torch.Tensor, Rounded]] = self._own.__dict__
        if kind not in rooms or rooms[kind][0].shape[1] != latents or rooms[kind][1].bits.shape[1] != width:
            rooms[kind] = product_room(kind, latents), empty(kind, CHUNK, width)
        return rooms[kind]

    def _array(self, name: str, shape: tuple[int, ...], dtype: type) -> np.ndarray:
        """Memory that is used again: what was in it is lost."""
        size = int(np.prod(shape))
        if name not in self._kept or self._kept[name].size < size:
            self._kept[name] = np.empty(size, dtype)
        return self._kept[name][:size].reshape(shape)

    def _centred(self, x_BD: np.ndarray, bd_D: np.ndarray) -> np.ndarray:
        made = self._array("centred", x_BD.shape, np.float32)
        self.threads.over(len(x_BD), lambda part: np.subtract(x_BD[part], bd_D, made[part]))
        return made
