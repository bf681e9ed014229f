"""First-order attribution: what removing each latent would do to a readout, by one pass up and one pass back.

Removing latent f takes a_f d_f from the residual, so to first order a readout changes by -sum over positions of a_f <d_f, g>,
g its gradient there (attribution patching, Nanda 2023). Two passes above the hook give this for all latents at once.
Shapes: B texts a batch, S positions of a text, Q of a text with prompt and word, D residual width, L latents of the
dictionary, N latents that fire, V vocabulary.
"""

from collections.abc import Collection, Iterator, Sequence
from typing import NamedTuple

import numpy as np
import torch

from sae_emotions.causal.readouts import WordTree
from sae_emotions.dictionary.encode import Dictionary
from sae_emotions.edit import editable
from sae_emotions.upper import Upper

BATCH_TOKENS = 1024  # padded tokens a batch, about


class Asked(NamedTuple):
    """One text and what is read after it."""

    ids: list[int]
    own: int
    """number of the word"""
    outside: np.ndarray
    """the words that it is compared with"""


class Attribution(NamedTuple):
    """Of one text."""

    latent_N: np.ndarray
    """numbers of the latents that fire in it"""
    effect_N: np.ndarray
    """first-order effect of removing each, nats"""
    active_N: np.ndarray
    """at how many tokens each is active"""
    amount_N: np.ndarray
    """summed activation of each"""


def attributed(
    upper: Upper, tree: WordTree, dictionary: Dictionary, asked: Sequence[Asked], special: Collection[int]
) -> Iterator[tuple[int, Attribution]]:
    """First-order effects on each text's own readout, with the text's number; texts come in the order of their lengths.

    The readout is that of `effects.words_of`: log P of the whole own word less the mean of the others'. Others of several
    tokens count with their first one.
    """
    for some in _batches(tree, asked):
        texts = [asked[n] for n in some]
        ids_BQ = _padded(upper, tree, texts)
        keep_BQ = editable(ids_BQ, None, special)
        x_BQD = upper.residual(ids_BQ)
        grad_BQD = _gradient(upper, tree, x_BQD, texts)
        for row, n in enumerate(some):
            # The prompt is the measuring instrument and stays.
            keep_Q = keep_BQ[row] & (torch.arange(ids_BQ.shape[1], device=ids_BQ.device) < len(texts[row].ids))
            yield n, of_rows(dictionary, x_BQD[row][keep_Q].float().cpu(), grad_BQD[row][keep_Q].cpu())


def of_rows(dictionary: Dictionary, x_SD: torch.Tensor, grad_SD: torch.Tensor) -> Attribution:
    """Effect of removing each latent that fires in these rows of the residual, given a readout's gradient there."""
    found = dictionary.active(x_SD)
    fires_P = found.value_P > 0
    row_P, latent_P, value_P = (one.cpu()[fires_P] for one in (found.rows(), found.index_P, found.value_P))
    along_P = (dictionary.W_dec_FD[latent_P] * grad_SD[row_P]).sum(1)
    latent_N, place_P = np.unique(latent_P.numpy(), return_inverse=True)

    def summed(value_P: torch.Tensor) -> np.ndarray:
        return np.bincount(place_P, value_P.double().numpy(), len(latent_N))

    return Attribution(latent_N, summed(-value_P * along_P), summed(torch.ones_like(value_P)), summed(value_P))


def _length(tree: WordTree, one: Asked) -> int:
    return len(one.ids) + len(tree.prompt) + len(tree.paths[one.own]) - 1


def _batches(tree: WordTree, asked: Sequence[Asked]) -> Iterator[list[int]]:
    held: list[int] = []
    for n in sorted(range(len(asked)), key=lambda n: (_length(tree, asked[n]), n)):
        if held and (len(held) + 1) * _length(tree, asked[n]) > BATCH_TOKENS:
            yield held
            held = []
        held.append(n)
    if held:
        yield held


def _padded(upper: Upper, tree: WordTree, texts: Sequence[Asked]) -> torch.Tensor:
    """Text, prompt and own word but for its last token; padding on the right, which no real position looks at."""
    rows = [[*one.ids, *tree.prompt, *(token for _, token in tree.paths[one.own][:-1])] for one in texts]
    most = max(map(len, rows))
    device = next(upper.model.parameters()).device
    return torch.tensor([row + [0] * (most - len(row)) for row in rows], device=device)


def _gradient(upper: Upper, tree: WordTree, x_BQD: torch.Tensor, texts: Sequence[Asked]) -> torch.Tensor:
    most = x_BQD.shape[1]
    ends = [len(one.ids) + len(tree.prompt) - 1 for one in texts]
    wanted = most - min(ends)
    first_W = torch.tensor([path[0][1] for path in tree.paths], device=x_BQD.device)

    def read(logits_BWV: torch.Tensor) -> torch.Tensor:
        total = logits_BWV.new_zeros((), dtype=torch.float32)
        for row, (one, end) in enumerate(zip(texts, ends, strict=True)):
            path = tree.paths[one.own]
            at = end - (most - wanted)
            logp_CV = torch.log_softmax(logits_BWV[row, at : at + len(path)].float(), dim=-1)
            own = sum(logp_CV[n, token] for n, (_, token) in enumerate(path))
            total = total + own - logp_CV[0, first_W[torch.from_numpy(one.outside)]].mean()
        return total

    return upper.gradient(x_BQD, wanted, read)[1]
