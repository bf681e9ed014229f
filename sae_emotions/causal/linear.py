"""First-order effects of every removal on every word, of all latents at once.

A removal is linear to first order (see `attribute`), so one pass up a text and a few back say it for all latents. A concept is
read as a weighting of the words, and like concepts weigh them alike: a few directions among the words hold nearly all of the
weightings, and one pass back for each of them serves all concepts. What the other words scatter by is approximated along the same
directions, so a first-order number is compared with first-order ones alone.

Shapes: T texts, B texts a batch, Q positions, S those of a text and its prompt, R directions among the words, W words, L latents,
A those that are active in a text, C concepts, F features, N removals, D residual width, V vocabulary.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import NamedTuple

import numpy as np
import torch

from sae_emotions.causal.attribute import by_length
from sae_emotions.causal.profile import Profile, Readings, readings
from sae_emotions.causal.readouts import WordTree
from sae_emotions.causal.runs import Text
from sae_emotions.upper import Upper

HELD = 0.93  # share of the weightings' squares that the directions hold


class Linear(NamedTuple):
    """First-order effects along R directions among the words."""

    basis_RW: np.ndarray
    """orthonormal"""
    latents_TRL: np.ndarray
    """of removing each latent from each text, nats, float32; 0 where it is silent"""
    dense_TRC: np.ndarray
    """of setting a text's reading along each concept's dense vector to the usual one"""
    random: Mapping[int, np.ndarray]
    """feature -> R: mean over its texts of what its random direction does"""

    def read(self, mean_RN: np.ndarray, profile: Profile) -> Readings:
        """Read N removals as exact ones are read. Of words of several tokens it is the first token that moves."""
        return readings(mean_RN.T @ self.basis_RW, profile)


def basis_of(profiles: Sequence[Profile]) -> np.ndarray:
    """The fewest directions among the words that hold `HELD` of the profiles' weights, by their squares. R x W."""
    _, size_R, basis_RW = np.linalg.svd(np.stack([one.weight_C for one in profiles]), full_matrices=False)
    held_R = np.cumsum(size_R**2)
    return np.asarray(basis_RW[: 1 + int(np.searchsorted(held_R, HELD * held_R[-1]))])


class Removable(NamedTuple):
    """All that may be taken out of the texts."""

    directions_LD: torch.Tensor
    dense_CD: torch.Tensor
    """unit vectors"""
    usual_D: torch.Tensor
    """mean residual over the editable positions of all texts: what a projection on a dense vector leaves in its place"""
    random: Mapping[int, torch.Tensor]
    """feature -> unit vector that stands in for its direction; for some of the features"""


def linear(
    upper: Upper,
    tree: WordTree,
    texts: Sequence[Text],
    acts: Sequence[torch.Tensor],
    removable: Removable,
    places_F: np.ndarray,
    uses: Sequence[np.ndarray],
    basis_RW: np.ndarray,
    done: Callable[[int], None],
) -> Linear:
    """Effects of all latents on all texts. `acts` are acts_SL; `places_F` says where features stand among the latents."""
    R, T = len(basis_RW), len(texts)
    latents_TRL = np.zeros((T, R, len(removable.directions_LD)), np.float32)
    dense_TRC = np.zeros((T, R, len(removable.dense_CD)), np.float32)
    random = {f: np.zeros(R) for f in removable.random}
    for t, grad_RSD in _gradients(upper, tree, texts, basis_RW):
        acts_SL = acts[t]
        fires_A = torch.nonzero((acts_SL > 0).any(0))[:, 0]
        acts_SA, directions_AD = acts_SL[:, fires_A], removable.directions_LD[fires_A]
        x_SD = texts[t].x_QD[: len(acts_SL)].float().cpu()
        keep_S = texts[t].keep_Q[: len(acts_SL)].cpu()
        away_SC = ((x_SD - removable.usual_D.cpu()) @ removable.dense_CD.T) * keep_S[:, None]
        for r, grad_SD in enumerate(grad_RSD):
            latents_TRL[t, r, fires_A.numpy()] = -(acts_SA * (grad_SD @ directions_AD.T)).sum(0).numpy()
            dense_TRC[t, r] = -(away_SC * (grad_SD @ removable.dense_CD.T)).sum(0).numpy()
        for f, unit_D in removable.random.items():
            if t in uses[f]:
                place = int(places_F[f])
                added_S = acts_SL[:, place] * removable.directions_LD[place].norm()
                random[f] -= ((grad_RSD @ unit_D) @ added_S).numpy() / len(uses[f])
        done(1)
    return Linear(basis_RW, latents_TRL, dense_TRC, random)


def _gradients(
    upper: Upper, tree: WordTree, texts: Sequence[Text], basis_RW: np.ndarray
) -> Iterator[tuple[int, torch.Tensor]]:
    """Each text's number and R x S x D on the CPU: gradients of the words' log P along each direction; shortest texts first."""
    first_W = torch.tensor([path[0][1] for path in tree.paths])
    for some in by_length([text.packed.stem for text in texts]):
        stems = [texts[t].packed.stem for t in some]
        x_BQD = torch.nn.utils.rnn.pad_sequence([texts[t].x_QD[: texts[t].packed.stem] for t in some], batch_first=True)
        basis = torch.from_numpy(basis_RW).to(x_BQD.device, torch.float32)
        wanted = max(stems) - min(stems) + 1

        def read(
            logits_BQV: torch.Tensor,
            starts: Sequence[int] = [stem - min(stems) for stem in stems],
            basis: torch.Tensor = basis,
        ) -> torch.Tensor:
            last_BV = torch.stack([logits_BQV[row, start] for row, start in enumerate(starts)]).float()
            return basis @ torch.log_softmax(last_BV, dim=-1)[:, first_W.to(basis.device)].sum(0)

        grad_RBQD = upper.gradients(x_BQD, wanted, read).cpu()
        yield from ((t, grad_RBQD[:, row, : stems[row]]) for row, t in enumerate(some))
