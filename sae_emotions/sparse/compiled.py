"""The sparse step on a CPU, compiled by numba: a product in few bits screens, float32 decides, all else is sparse.

B rows, D residual width, M latents, C candidates a row, K active latents a row, P active pairs, L nested levels.
"""

from collections.abc import Callable

import numpy as np
import torch

from sae_emotions.errors import UserError
from sae_emotions.sparse import kernels, updates
from sae_emotions.sparse.screen import Kind, fastest
from sae_emotions.sparse.search import Best, Candidates, Memory, Products, search
from sae_emotions.sparse.shapes import Active, AdamRate, Errors, Weights
from sae_emotions.threads import Threads

PLACES = 64
"""Places for candidates beyond those that are asked for; a row that needs more is unsure."""
SPARE, SPARE_EXACT = 64, 8
"""Candidates asked for beyond k, of a product in few bits and of one in float32: few rows then need a second look."""
SOME = 512
"""Rows from which a batch's limit is guessed."""
MARGIN, SHRINK, TINY = 0.93, 0.7, 1e-30
"""A batch's limit is looked for from `MARGIN` times the guess on, and if it lies lower from `SHRINK` times that."""


class Compiled:
    """The engine for CPUs with numba.

    `origin_D`, if given, is what rows are rounded around: rows that were stored as int8 around it lose nothing.
    `kind` is the screen's (default: the one that this machine is fastest at). `fixed`: the weights will not change.
    What it returns lies in memory that the next call of the same method uses again.
    """

    def __init__(self, origin_D: torch.Tensor | None = None, kind: Kind | None = None, fixed: bool = False) -> None:
        self.kind: Kind = kind or fastest()
        self.fixed = fixed
        self._spare = SPARE if self.kind in ("vnni", "int8") else SPARE_EXACT
        self.threads = Threads()
        self._fast = search(self.kind, None if origin_D is None else origin_D.numpy(), self.threads)
        self._exact = Products("float32", None, self.threads)
        self._places = 0
        self._prepared = False
        self._memory = Memory()

    def top(self, x_BD: torch.Tensor, weights: Weights, norm_M: torch.Tensor, k: int) -> Active:
        """See `Engine`."""
        x, latents = x_BD.numpy(), len(norm_M)
        asked = min(k + self._spare, latents)
        self._prepare(weights, norm_M)
        found = Best.empty(len(x), k)
        self._fast.best(x, asked, min(2 * asked + PLACES, latents), found)
        rest = np.flatnonzero(~found.sure_B)
        if len(rest):
            self._settle(x, rest, weights, norm_M, found)
        if (found.index_BK < 0).any():
            raise UserError("Some rows or weights are not finite numbers; lower the dictionary's lr and train again.")
        start_B1 = torch.arange(0, len(x) * k + 1, k)
        np.maximum(found.value_BK, 0, out=found.value_BK)
        index_P, value_P = torch.from_numpy(found.index_BK).view(-1), torch.from_numpy(found.value_BK).view(-1)
        return Active(start_B1, index_P, value_P, len(rest))

    def _settle(self, x: np.ndarray, rest: np.ndarray, weights: Weights, norm_M: torch.Tensor, found: Best) -> None:
        """Find the best of the rows `rest` by float32 products, and write them into `found`."""
        k, latents = found.index_BK.shape[1], len(norm_M)
        self._exact.prepare(weights, norm_M)
        some = Best.empty(len(rest), k)
        self._exact.best(x[rest], min(k + SPARE_EXACT, latents), latents, some)
        found.index_BK[rest], found.value_BK[rest] = some.index_BK, some.value_BK

    def _prepare(self, weights: Weights, norm_M: torch.Tensor) -> None:
        if not (self.fixed and self._prepared):
            self._fast.prepare(weights, norm_M)
            self._prepared = True

    def top_of_batch(
        self, x_BD: torch.Tensor, weights: Weights, norm_M: torch.Tensor, k: int, guess: float | None
    ) -> Active:
        """See `Engine`. Every row is sure: what is left out scores less than a limit that all that is kept reach."""
        x, wanted = x_BD.numpy(), k * len(x_BD)
        self._prepare(weights, norm_M)
        least = MARGIN * (self._guessed(x[:SOME], weights, norm_M, k) if guess is None else guess)
        while True:
            found = self._reaching(x, least, 8 * k, len(norm_M))
            score = self._scores(found, least)
            if least <= 0 or len(score) >= wanted:
                break
            least = SHRINK * least if least > TINY else 0.0
        # Fewer positive scores than are wanted: all of them.
        limit = np.partition(score, len(score) - wanted)[len(score) - wanted] if len(score) > wanted else TINY
        return self._kept_from(found, max(float(limit), TINY))

    def _guessed(self, x: np.ndarray, weights: Weights, norm_M: torch.Tensor, k: int) -> float:
        """About the smallest score of a batch, from some of its rows."""
        few = Best.empty(len(x), min(4 * k, len(norm_M)))
        self._settle(x, np.arange(len(x)), weights, norm_M, few)
        if (few.index_BK < 0).any():
            return 0.0
        score = (few.value_BK * norm_M.numpy()[few.index_BK]).reshape(-1)
        at = max(0, len(score) - len(x) * k)
        return max(0.0, float(np.partition(score, at)[at]))

    def above(self, x_BD: torch.Tensor, weights: Weights, threshold_M: torch.Tensor) -> Active:
        """See `Engine`."""
        shifted, ones_M = weights._replace(be_M=weights.be_M - threshold_M), torch.ones_like(threshold_M)
        self._prepare(shifted, ones_M)
        found = self._kept_from(self._reaching(x_BD.numpy(), 0.0, PLACES, len(ones_M)), TINY)
        return found._replace(value_P=found.value_P + threshold_M[found.index_P])

    def _reaching(self, x: np.ndarray, least: float, places: int, latents: int) -> Candidates:
        """Candidates for a score of at least `least`, all of them."""
        self._places = max(self._places, places)
        while True:
            found = self._fast.reaching(x, least, min(self._places, latents))
            most = int(found.count_B.max(initial=0))
            if most <= found.score_BC.shape[1]:
                return found
            self._places = 2 * most

    def _starts(self, found: Candidates, limit: float) -> np.ndarray:
        """Where each row's candidates that reach `limit` go, one row after the other, and where the last ones end."""
        start_B1 = np.zeros(len(found.count_B) + 1, np.int64)

        def work(part: slice) -> None:
            counts = start_B1[part.start + 1 : part.stop + 1]
            kernels.count_above(found.score_BC[part], found.count_B[part], np.float32(limit), counts)

        self.threads.over(len(found.count_B), work)
        return start_B1.cumsum(out=start_B1)

    def _scores(self, found: Candidates, limit: float) -> np.ndarray:
        """The scores of all candidates that reach `limit`."""
        start_B1 = self._starts(found, limit)
        score_P = np.empty(start_B1[-1], np.float32)

        def work(part: slice) -> None:
            starts = start_B1[part.start : part.stop + 1]
            kernels.scores_above(found.score_BC[part], found.count_B[part], np.float32(limit), starts, score_P)

        self.threads.over(len(found.count_B), work)
        return score_P

    def _kept_from(self, found: Candidates, limit: float) -> Active:
        """The candidates that reach `limit`, by row and latent."""
        start_B1 = self._starts(found, limit)
        index_P, value_P = np.zeros(start_B1[-1], np.int64), np.zeros(start_B1[-1], np.float32)

        def work(part: slice) -> None:
            columns = tuple(column[part] for column in found)
            starts = start_B1[part.start : part.stop + 1]
            kernels.keep_above(*columns, np.float32(limit), starts, index_P, value_P)

        self.threads.over(len(found.count_B), work)
        return Active(torch.from_numpy(start_B1), torch.from_numpy(index_P), torch.from_numpy(value_P))

    def errors(self, x_BD: torch.Tensor, weights: Weights, active: Active, level_M: torch.Tensor) -> Errors:
        """See `Engine`."""
        levels = int(level_M[-1]) + 1
        error_BLD = self._memory.array("error", (len(x_BD), levels, x_BD.shape[1]), np.float32)
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
            *(torch.from_numpy(self._memory.array(f"g{n}", tuple(w.shape), np.float32)) for n, w in enumerate(weights))
        )
        gWe, gbe, gWd = (tensor.numpy() for tensor in made[:3])
        error, level, grad = errors.error_BLD.numpy(), level_M.numpy(), errors.grad_P.numpy()
        centred = self._centred(x_BD.numpy(), weights.bd_D.numpy())

        def work(part: slice) -> None:
            shared = (centred, error, level, value, grad, start_M, pair_P, row_P)
            updates.gradients(part.start, *shared, gWe[part], gbe[part], gWd[part])

        shares = np.searchsorted(start_M, pairs * np.arange(1, self.threads.count) / self.threads.count)
        self.threads.between([0, *map(int, shares), latents], work)
        made.bd_D.copy_(torch.from_numpy(self._sum(error[:, 0]) - self._sum(weights.We_MD.numpy(), gbe)))
        return made

    def _sum(self, x_BD: np.ndarray, factor_B: np.ndarray | None = None) -> np.ndarray:
        """The sum of rows times their factors. No BLAS: its threads go on spinning when they are done, on our cores."""
        factor = np.ones(len(x_BD), np.float32) if factor_B is None else factor_B
        sums: dict[tuple[int, int], np.ndarray] = {}

        def work(part: slice) -> None:
            total_D = sums[part.start, part.stop] = np.zeros(x_BD.shape[1], np.float32)
            updates.add_rows(x_BD[part], factor[part], total_D)

        self.threads.over(len(x_BD), work)
        return np.stack([sums[part] for part in sorted(sums)]).sum(0)

    def share(self, count: int, work: Callable[[slice], object]) -> None:
        """See `Engine`."""
        self.threads.over(count, work)

    def scaled(self, x_BD: torch.Tensor, scale: float) -> torch.Tensor:
        """See `Engine`."""
        x, made = x_BD.numpy(), self._memory.array("scaled", tuple(x_BD.shape), np.float32)
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

    def _centred(self, x_BD: np.ndarray, bd_D: np.ndarray) -> np.ndarray:
        made = self._memory.array("centred", x_BD.shape, np.float32)
        self.threads.over(len(x_BD), lambda part: np.subtract(x_BD[part], bd_D, made[part]))
        return made
