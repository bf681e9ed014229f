"""First-order attribution: what removing each latent would do to a readout, by one pass up and one pass back.

Removing latent f takes a_f d_f from the residual, so to first order a readout changes by -sum over positions of a_f <d_f, g>,
g its gradient there (attribution patching, Nanda 2023). Two passes above the hook give this for all latents at once.
Shapes: B texts a batch, S positions of a text that may be changed, Q all positions, A positions that are read, D residual
width, N latents that fire, V vocabulary.
"""

from collections.abc import Callable, Collection, Iterator, Sequence
from typing import NamedTuple

import numpy as np
import torch

from sae_emotions.causal.profile import Profile
from sae_emotions.causal.readouts import WordTree
from sae_emotions.dictionary.encode import Dictionary
from sae_emotions.edit import editable
from sae_emotions.upper import Upper

BATCH_TOKENS = 1024  # padded tokens a batch, about
Read = Callable[[torch.Tensor], torch.Tensor]
"""Logits (A x V), or the residual stream after some block (A x D), of a text's last position and of each position of what
follows it, to one number"""


class Asked(NamedTuple):
    """One text and what is read after it."""

    ids: list[int]
    """the text"""
    after: tuple[int, ...]
    """what follows it: the measuring instrument, which is never changed"""
    read: Read


class Slope(NamedTuple):
    """A readout's gradient at a text's positions that may be changed."""

    at_S: torch.Tensor
    """the positions"""
    x_SD: torch.Tensor
    """the residual stream there, float32 on the CPU"""
    grad_SD: torch.Tensor

    def where(self, keep_S: torch.Tensor) -> "Slope":
        """Some of the positions."""
        return Slope(self.at_S[keep_S], self.x_SD[keep_S], self.grad_SD[keep_S])


class Attribution(NamedTuple):
    """Of one text."""

    latent_N: np.ndarray
    """numbers of the latents that fire in it"""
    effect_N: np.ndarray
    """first-order effect of removing each, in the readout's unit"""
    active_N: np.ndarray
    """at how many tokens each is active"""
    amount_N: np.ndarray
    """summed activation of each"""

    def effect_of(self, latent: int) -> float:
        """Effect of one latent; 0 where it is silent."""
        return float(self.effect_N[self.latent_N == latent].sum())


def words_asked(tree: WordTree, ids: list[int], profile: Profile) -> Asked:
    """The words' log-probabilities after the prompt, weighted by a concept's profile: what the exact test reads, unscaled.

    The concept's own word counts whole, others of several tokens with their first one.
    """
    path = tree.paths[profile.own]
    others = [int(word) for word in np.flatnonzero(profile.weight_C) if word != profile.own]
    first = torch.tensor([tree.paths[word][0][1] for word in others])
    weight = torch.tensor(profile.weight_C[others], dtype=torch.float32)
    own_weight = float(profile.weight_C[profile.own])

    def read(logits_AV: torch.Tensor) -> torch.Tensor:
        logp_AV = torch.log_softmax(logits_AV[len(tree.prompt) :].float(), dim=-1)
        whole = torch.stack([logp_AV[n, token] for n, (_, token) in enumerate(path)]).sum()
        return own_weight * whole + logp_AV[0, first.to(logp_AV.device)] @ weight.to(logp_AV.device)

    return Asked(ids, (*tree.prompt, *(token for _, token in path[:-1])), read)


def slopes(
    upper: Upper, asked: Sequence[Asked], special: Collection[int], reached: int | None = None
) -> Iterator[tuple[int, Slope]]:
    """Gradient of each text's own readout, with the text's number; texts come in the order of their lengths.

    With `reached`, readouts get the residual stream after that block instead of logits.
    """
    for some in by_length([len(one.ids) + len(one.after) for one in asked]):
        texts = [asked[n] for n in some]
        most = max(len(one.ids) + len(one.after) for one in texts)
        # Padding lies on the right, where no real position looks.
        padded = [[*one.ids, *one.after] + [0] * (most - len(one.ids) - len(one.after)) for one in texts]
        ids_BQ = torch.tensor(padded, device=next(upper.model.parameters()).device)
        x_BQD = upper.residual(ids_BQ)
        wanted = most - min(len(one.ids) for one in texts) + 1

        def read(out: torch.Tensor, texts: list[Asked] = texts, skipped: int = most - wanted) -> torch.Tensor:
            starts = [len(one.ids) - 1 - skipped for one in texts]
            parts = [
                one.read(out[row, start : start + 1 + len(one.after)])
                for row, (one, start) in enumerate(zip(texts, starts, strict=True))
            ]
            return torch.stack(parts).sum()[None]

        (grad_BQD,) = upper.gradients(x_BQD, wanted, read, reached)
        keep_BQ = editable(ids_BQ, None, special)
        for row, n in enumerate(some):
            keep_BQ[row, len(texts[row].ids) :] = False
            at_S = torch.nonzero(keep_BQ[row])[:, 0]
            yield n, Slope(at_S.cpu(), x_BQD[row, at_S].float().cpu(), grad_BQD[row, at_S].cpu())


def attribution(dictionary: Dictionary, slope: Slope) -> Attribution:
    """First-order effect of removing each latent that fires at these positions."""
    found = dictionary.active(slope.x_SD)
    fires_P = found.value_P > 0
    row_P, latent_P, value_P = (one.cpu()[fires_P] for one in (found.rows(), found.index_P, found.value_P))
    along_P = (dictionary.W_dec_FD[latent_P] * slope.grad_SD[row_P]).sum(1)
    latent_N, place_P = np.unique(latent_P.numpy(), return_inverse=True)

    def summed(value_P: torch.Tensor) -> np.ndarray:
        return np.bincount(place_P, value_P.double().numpy(), len(latent_N))

    return Attribution(latent_N, summed(-value_P * along_P), summed(torch.ones_like(value_P)), summed(value_P))


def projection_effect(slope: Slope, vector_D: torch.Tensor, usual_D: torch.Tensor) -> float:
    """First-order effect of setting the reading along a unit vector to that of `usual_D`, at every position."""
    return float(-(((slope.x_SD - usual_D) @ vector_D) * (slope.grad_SD @ vector_D)).sum())


def by_length(lengths: Sequence[int]) -> Iterator[list[int]]:
    """Numbers of the texts that run together, shortest first."""
    held: list[int] = []
    for n in sorted(range(len(lengths)), key=lambda n: (lengths[n], n)):
        if held and (len(held) + 1) * lengths[n] > BATCH_TOKENS:
            yield held
            held = []
        held.append(n)
    if held:
        yield held
