"""Collateral damage: how far removing a latent moves the model's predictions on texts that show no concept.

Shapes: S tokens of a text, L latents, V vocabulary, C computed positions, J removals a batch.
"""

from collections.abc import Callable, Collection, Sequence

import numpy as np
import torch

from sae_emotions.causal.readouts import WordTree
from sae_emotions.causal.runs import Removal, Text, enter, removed, unchanged
from sae_emotions.dictionary.encode import Dictionary
from sae_emotions.upper import Upper

CONTROLS = 64  # controls that are measured beside the features
TOKENS = 64  # of each neutral text: unembedding every position is what this costs
BATCH = 384  # unembedded positions a batch, about

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
    dictionary: Dictionary,
    texts: Sequence[Sequence[int]],
    special: Collection[int],
    latents_L: np.ndarray,
    done: Callable[[int], None],
) -> np.ndarray:
    """KL(unchanged || latent removed) of the next-token distribution, nats a token, mean over the texts. Shape L.

    Only the first `TOKENS` tokens of a text count. A text in which a latent is silent counts with 0.
    """
    total_L, tokens = np.zeros(len(latents_L)), 0
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
            base = unchanged(upper, text, text.packed.stem)
            before_SV = torch.log_softmax(base.logits_CV.float(), dim=-1)
            order = sorted(range(len(removals)), key=lambda n: removals[n].first)
            while order:
                rows = max(1, BATCH // (text.packed.stem - removals[order[0]].first))
                held, order = order[:rows], order[rows:]
                logits_JCV, start = removed(upper, text, base, [removals[n] for n in held], wanted=None)
                for row, n in enumerate(held):
                    after_CV = torch.log_softmax(logits_JCV[row].float(), dim=-1)
                    kl = (before_SV[start:].exp() * (before_SV[start:] - after_CV)).sum()
                    total_L[firing[n]] += float(kl)
        done(1)
    return total_L / max(tokens, 1)
