"""Collateral damage: how far removing a latent moves the model's predictions on texts that show no concept.

Shapes: S tokens of a text, L latents.
"""

from collections.abc import Callable, Collection, Sequence

import numpy as np
import torch

from sae_emotions.causal.readouts import WordTree
from sae_emotions.causal.runners import Runner
from sae_emotions.causal.runs import Removal, Text, enter
from sae_emotions.dictionary.encode import Dictionary
from sae_emotions.upper import Upper

CONTROLS = 64  # controls that are measured beside the features
TOKENS = 64  # of each neutral text: unembedding every position is what this costs

_NO_WORDS = WordTree((), (), (), ())


def acts_of(dictionary: Dictionary, text: Text, latents_L: np.ndarray) -> torch.Tensor:
    """acts_SL, float32 on the CPU, of these latents at a text's and its prompt's positions; 0 where it may not be edited."""
    acts_SL = torch.zeros(text.packed.stem, len(latents_L))
    keep_S = text.keep_Q[: text.packed.stem].cpu()
    x_ND = text.x_QD[: text.packed.stem].float().cpu()[keep_S]
    if len(x_ND):
        acts_SL[keep_S] = dictionary.features(x_ND)[:, torch.from_numpy(latents_L)].cpu()
    return acts_SL


def kl_of_removal(
    upper: Upper,
    runner: Runner,
    dictionary: Dictionary,
    texts: Sequence[Sequence[int]],
    special: Collection[int],
    latents_L: np.ndarray,
    done: Callable[[int], None],
) -> tuple[np.ndarray, float]:
    """KL(unchanged || latent removed) of the next-token distribution, nats a token, mean over the texts. Shape L.

    With it, the positions of one whole pass for each latent and text in which it fires. Only the first `TOKENS` tokens of a
    text count. A text in which a latent is silent counts with 0.
    """
    total_L, tokens, positions = np.zeros(len(latents_L)), 0, 0.0
    device = next(upper.model.parameters()).device
    for ids in texts:
        text = enter(upper, _NO_WORDS, ids[:TOKENS], special)
        acts_SL = acts_of(dictionary, text, latents_L)
        tokens += text.packed.stem
        firing = [int(n) for n in torch.nonzero((acts_SL > 0).any(0))[:, 0]]
        removals = []
        for n in firing:
            positions_P = torch.nonzero(acts_SL[:, n] > 0)[:, 0]
            direction_D = dictionary.W_dec_FD[int(latents_L[n])].to(device)
            removals.append(Removal(positions_P.to(device), acts_SL[positions_P, n].to(device), direction_D))
        if removals:
            total_L[firing] += runner.kl(text, removals)
            positions += len(removals) * text.packed.stem
        done(1)
    return total_L / max(tokens, 1), positions
