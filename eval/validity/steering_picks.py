"""Which single features to steer a concept with: criteria that look at selection data or at the choosing texts alone.

A feature *reads* a concept where its mean AUROC over both registers' selection stories is at least `READS`. `READING`
criteria pick among features that read the concept. The others are their controls, for a feature that raises a word,
whatever it reads, says nothing about what reading features do: of dozens of features one in sixteen has the word on top by
luck, and a screen finds it. So as many features that do not read the concept go through the same screen.

Shapes: C concepts, F latents, D residual width, V vocabulary.
"""

from typing import TYPE_CHECKING

import numpy as np
import torch

from eval.validity.asked import Asked
from sae_emotions.label.label import concept_means
from sae_emotions.label.layout import layout
from sae_emotions.label.lens import read_unembedding
from sae_emotions.label.ranks import auroc, doubled_midranks
from sae_emotions.steering.bench import Bench
from sae_emotions.steering.directions import unit

if TYPE_CHECKING:
    from eval.validity.steering import Steering
    from eval.validity.steering_scores import Texts

SEED, READS = 5, 0.7
NEAR = 24
"""features that a criterion ranks, at most, and that are screened by each"""
SCREENED_AT = 0.1
"""share of the residual norm"""
CRITERIA = {
    "chosen": f"the concept's feature in concepts.parquet, then others that read it (selection AUROC >= {READS}) by that AUROC",
    "cosine": "among features that read it: cosine of the decoder direction with the concept's difference of means, less the "
    "largest with those of the other 15",
    "screened": f"of the first {NEAR} by each of these two: rise of the word over its nearest rival on the choosing texts, at "
    f"{SCREENED_AT} of the norm",
    "screened others": "the same screen of as many features that read another of the 16 and not this one",
    "writes": "among all features: the decoder direction's logit for the word less the mean of the other 15",
}
READING = ("chosen", "cosine", "screened")
Picks = dict[str, list[list[int]]]
"""criterion -> for each concept its features, best first; at least one"""


def selection_auroc(asked: Asked, found: Bench, number_C: np.ndarray) -> np.ndarray:
    """Mean over registers of every feature's AUROC for the concepts on the selection stories, C x F."""
    means = concept_means(found.config, asked.run, found.dictionary, selection_only=True)
    panels = layout(found.concepts).selection
    ranks_TF = doubled_midranks(means.acts_TF, panels)
    one, other = (auroc(ranks_TF, panel)[number_C] for panel in panels)
    return np.asarray((one + other) / 2)


def unscreened(asked: Asked, found: Bench, number_C: np.ndarray, chosen: list[int], auroc_CF: np.ndarray) -> Picks:
    """The criteria that need no forward pass, at most `NEAR` features each. Features that never fire are left out."""
    units_FD = unit(found.dictionary.W_dec_FD.cpu())
    fires_F = found.scale.active_F > 0
    cosine_CF = (found.dense_CD[number_C].cpu() @ units_FD.T).numpy()
    rival_CF = np.stack([np.delete(cosine_CF, c, axis=0).max(0) for c in range(len(number_C))])
    tree = found.tree([found.concepts.concepts[n].word for n in number_C])
    first_CD = read_unembedding(asked.run, found.dictionary.d_in)[[path[0][1] for path in tree.paths]].float()
    lens_CF = ((first_CD - first_CD.mean(0)) @ units_FD.T).numpy()

    def ranked(score_F: np.ndarray, among_F: np.ndarray) -> list[int]:
        order = np.argsort(-score_F, kind="stable")
        return order[among_F[order]][:NEAR].tolist()

    picks: Picks = {"chosen": [], "cosine": [], "writes": []}
    for c, n in enumerate(number_C):
        reads_F = fires_F & (auroc_CF[c] >= READS)
        reads_F[chosen[n]] = True
        picks["chosen"].append(list(dict.fromkeys([chosen[n], *ranked(auroc_CF[c], reads_F)]))[:NEAR])
        picks["cosine"].append(ranked(cosine_CF[c] - rival_CF[c], reads_F))
        picks["writes"].append(ranked(lens_CF[c], fires_F))
    return picks


def screened(steering: "Steering", choosing: "Texts", picks: Picks, auroc_CF: np.ndarray) -> Picks:
    """`screened` and `screened others`: candidates by the rise of the word over its nearest rival on the choosing texts."""
    found, rng = steering.found, np.random.default_rng([SEED, 2])
    own = [sorted({*one, *other}) for one, other in zip(picks["chosen"], picks["cosine"], strict=True)]
    every = np.array(sorted({feature for some in own for feature in some}))
    others = []
    for c, some in enumerate(own):
        free = np.setdiff1d(every[auroc_CF[c, every] < READS], some)
        free = free if len(free) else every  # one feature that reads everything
        others.append(np.sort(rng.permutation(free)[: len(some)]).tolist())
    units_JD = unit(found.dictionary.W_dec_FD[torch.from_numpy(every)].cpu())
    length_JP = np.full((len(every), 1), SCREENED_AT * found.scale.norm)
    change_TJW = steering.changes("screen", choosing, units_JD, length_JP)[:, :, 0]

    def best(c: int, some: list[int]) -> list[int]:
        mean_JW = change_TJW[choosing.counting(c)][:, np.searchsorted(every, some)].mean(0)
        rise_J = mean_JW[:, c] - np.delete(mean_JW, c, axis=1).max(1)
        return [some[j] for j in np.argsort(-rise_J, kind="stable")[:NEAR]]

    pools = {"screened": own, "screened others": others}
    return {name: [best(c, some) for c, some in enumerate(pool)] for name, pool in pools.items()}
