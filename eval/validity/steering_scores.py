"""Whose word rises: scores of changes of words, among each other and among controls. Pure functions of arrays.

Shapes: T texts, P doses, C = W concepts and their words, K controls.
"""

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
from scipy.stats import binomtest

from sae_emotions.steering.trend import trend


class Texts(NamedTuple):
    """One half, and the words to be read after each text."""

    ids: list[list[int]]
    concept_T: np.ndarray
    """place among the 16 of what a scenario shows; -1 for neutral texts"""

    def counting(self, concept: int) -> np.ndarray:
        """Which texts count for a concept, bool T: a scenario of its own does not."""
        return np.asarray(self.concept_T != concept)


def own_change(change_TCPW: np.ndarray, texts: Texts) -> np.ndarray:
    """Mean change of all words when steered towards each concept, over the texts that count for it: C x P x W."""
    return np.stack([change_TCPW[texts.counting(c), c].mean(0) for c in range(change_TCPW.shape[1])])


def hits(change_CPW: np.ndarray) -> np.ndarray:
    """Whether each concept's own word rises most, C x P."""
    return np.asarray(change_CPW.argmax(2) == np.arange(len(change_CPW))[:, None])


def rise(change_XW: np.ndarray, concept: int) -> np.ndarray:
    """A concept's word over the mean of the others, nats: X x W -> X."""
    return np.asarray(change_XW[..., concept] - np.delete(change_XW, concept, axis=-1).mean(-1))


def score(change_CPW: np.ndarray) -> dict[str, Any]:
    """The score at every dose, and what lies beside it."""
    own_CP = change_CPW[np.arange(len(change_CPW)), :, np.arange(len(change_CPW))]
    hits_CP = hits(change_CPW)
    # A word that rises whatever is added: what the concepts have in common is taken off every word.
    centred_CP = hits(change_CPW - change_CPW.mean(0))
    counts, concepts = hits_CP.sum(0), len(hits_CP)
    intervals = [binomtest(int(k), concepts).proportion_ci(method="wilson") for k in counts]
    return {
        "share_whose_word_rises_most": hits_CP.mean(0).tolist(),
        "interval_95": [[float(one.low), float(one.high)] for one in intervals],
        "p_against_chance": [float(binomtest(int(k), concepts, 1 / concepts, "greater").pvalue) for k in counts],
        "share_less_what_all_raise": centred_CP.mean(0).tolist(),
        "mean_rank": (1 + (change_CPW > own_CP[:, :, None]).sum(2)).mean(0).tolist(),
        "mean_rise_over_the_others_nats": np.mean([rise(one, c) for c, one in enumerate(change_CPW)], axis=0).tolist(),
        "own_word_rises_at_all": (own_CP > 0).mean(0).tolist(),
    }


def best(found: dict[str, dict[str, Any]]) -> tuple[str, int]:
    """Name and dose with the best share; among equals the best mean rank, then the smaller dose."""
    keyed = {
        (name, p): (-share, one["mean_rank"][p], p)
        for name, one in found.items()
        for p, share in enumerate(one["share_whose_word_rises_most"])
    }
    return min(keyed, key=lambda key: keyed[key])


def against_controls(
    texts: Texts, own: dict[str, np.ndarray], controls: dict[str, np.ndarray], owners: dict[str, np.ndarray]
) -> dict[str, Any]:
    """The controls' own scores, each as steered towards its owner's word, and where each concept's rise lies among theirs."""
    count = len(next(iter(own.values())))
    rises = {}
    for kind, change_TKPW in controls.items():
        by_concept = []
        for c in range(count):
            mean_KPW = change_TKPW[texts.counting(c)].mean(0)
            by_concept.append((rise(mean_KPW, c), mean_KPW.argmax(2) == c))
        rises[kind] = [np.stack(one) for one in zip(*by_concept, strict=True)]  # C x K x P each
    most_CP = np.maximum(*(rise_CKP.max(1) for rise_CKP, _ in rises.values()))
    found: dict[str, Any] = {
        **{
            f"{kind}_share_whose_word_rises_most": rises[kind][1][of_K, np.arange(len(of_K))].mean(0).tolist()
            for kind, of_K in owners.items()
        },
        "random_directions": len(owners["random"]),
        "matched_features": len(owners["matched"]),
        "mean_rise_over_the_others_nats": {kind: one[0].mean((0, 1)).tolist() for kind, one in rises.items()},
    }
    for name, change_CPW in own.items():
        own_CP = np.stack([rise(change_CPW[c], c) for c in range(count)])
        found[f"share_of_concepts_above_every_control {name}"] = (own_CP > most_CP).mean(0).tolist()
    return found


def trends(
    texts: Texts, change_TCPW: np.ndarray, controls: dict[str, np.ndarray], names: list[str], doses: Sequence[float]
) -> dict[str, Any]:
    """The trend of each concept's rise over the doses, texts as blocks."""
    dose_P = np.array([0.0, *doses])
    both_TKPW = np.concatenate(list(controls.values()), axis=1)
    rows = {}
    for c, name in enumerate(names):
        counts_T = texts.counting(c)

        risen, controls_risen = (
            np.insert(rise(one, c), 0, 0.0, axis=-1) for one in (change_TCPW[counts_T, c], both_TKPW[counts_T].mean(0))
        )
        found = trend(dose_P, risen, controls_risen)
        rows[name] = found._asdict()
    return {
        "test": next(iter(rows.values()))["test"],
        "share_that_rise_with_the_dose": float(np.mean([row["p"] < 0.05 for row in rows.values()])),
        "share_steeper_than_95_percent_of_controls": float(
            np.mean([row["p_controls"] <= 0.05 for row in rows.values()])
        ),
        "concepts": {
            name: {"p": row["p"], "slope": row["slope"], "p_controls": row["p_controls"]} for name, row in rows.items()
        },
    }
