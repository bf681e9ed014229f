"""Which texts to test on: a small common pool, so that one run of a control serves every feature that uses that text.

Shapes: T texts, L latents, F features under test (the first F of the L), N rows.
"""

from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np
import torch

from sae_emotions.dictionary.encode import Dictionary
from sae_emotions.harvest.rows import Rows

LEAST = 768  # texts looked at, at least
STRONGEST = 128  # of those: the texts in which a feature fires most, from which its own are taken
CHUNK = 32  # texts encoded together
OVERHEAD = 25  # what a run costs beside the text's tokens, in tokens: the prompt and the unembedding


class Firing(NamedTuple):
    """Where latents fire."""

    active_TL: np.ndarray
    """active tokens of each text, float32"""
    amount_TL: np.ndarray
    """summed activation of each text, float32"""
    tokens_T: np.ndarray
    """tokens of each text that a latent could be active at"""


def scan(
    rows: Rows,
    dictionary: Dictionary,
    documents: Sequence[int],
    latents_L: np.ndarray,
    features: int,
    texts: int,
    done: Callable[[int], None],
) -> Firing:
    """Read stored rows of `documents`, in this order, until each of the first `features` latents fires in `texts` of them.

    At least `LEAST` documents are read (all, if there are fewer), and there must be one. The result covers what was read.
    """
    starts_T = np.searchsorted(rows.document_N, documents)
    ends_T = np.searchsorted(rows.document_N, documents, side="right")
    take_L = torch.from_numpy(latents_L)
    active, amount = [], []
    fires_F = np.zeros(features, np.int64)
    for at in range(0, len(documents), CHUNK):
        spans = list(zip(starts_T[at : at + CHUNK].tolist(), ends_T[at : at + CHUNK].tolist(), strict=True))
        x_ND = rows.read(np.concatenate([np.arange(*span) for span in spans]))
        acts_NL = dictionary.features(torch.from_numpy(x_ND))[:, take_L]
        for acts_SL in acts_NL.split([end - start for start, end in spans]):
            active.append((acts_SL > 0).sum(0).float().numpy())
            amount.append(acts_SL.sum(0).numpy())
            fires_F += active[-1][:features] > 0
        done(len(spans))
        if len(active) >= LEAST and (fires_F >= texts).all():
            break
    return Firing(np.stack(active), np.stack(amount), (ends_T - starts_T)[: len(active)])


def strongest(amount_TF: np.ndarray, count: int = STRONGEST) -> np.ndarray:
    """Which texts are among the `count` in which each feature fires most, and in which it fires at all. Bool, T x F."""
    ordered_TF = np.sort(amount_TF, axis=0)[::-1]
    return (amount_TF > 0) & (amount_TF >= ordered_TF[min(count, len(ordered_TF)) - 1])


def choose(fires_TF: np.ndarray, tokens_T: np.ndarray, texts: int) -> np.ndarray:
    """Numbers of few and short texts such that each feature fires in `texts` of them, where it can; most useful first.

    Greedy set cover: next comes the text with the most features still in need for its cost; the first of equals wins.
    """
    need_F = np.minimum(fires_TF.sum(0), texts)
    left_T = np.ones(len(fires_TF), bool)
    cost_T = tokens_T + OVERHEAD
    chosen = []
    while need_F.any():
        gain_T = np.where(left_T, (fires_TF & (need_F > 0)).sum(1) / cost_T, -1.0)
        best = int(gain_T.argmax())
        chosen.append(best)
        left_T[best] = False
        need_F = np.maximum(need_F - fires_TF[best], 0)
    return np.array(chosen, dtype=np.int64)
