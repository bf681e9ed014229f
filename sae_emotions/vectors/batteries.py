"""Scores of the probe sets, each with its chance level, its n and a p.

What is scored is a table of items by concepts: centred cosines (the items' mean taken out, so that no concept wins by
what all items share), or a feature's activations in units of their spread over the items.
Shapes: I items, C concepts, X width of a reading, P permutations.
"""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import numpy as np

from sae_emotions.concepts.probes import Probes
from sae_emotions.vectors.geometry import p_value
from sae_emotions.vectors.recipe import unit

PERMUTATIONS = 1000
Readings = dict[str, np.ndarray]
"""Place to scores_IC."""


class Score(NamedTuple):
    """One figure of a battery."""

    measure: str
    place: str
    score: float
    chance: float
    n: int
    p: float


def centred_cosines(x_IX: np.ndarray, vectors_CX: np.ndarray) -> np.ndarray:
    """Cosine of each item, less the items' mean, with each vector. (I, C)"""
    return unit(x_IX - x_IX.mean(0)) @ unit(vectors_CX).T


def standardised(acts_IC: np.ndarray) -> np.ndarray:
    """Each column less its mean, in units of its spread over the items; a silent one is 0."""
    spread_C = acts_IC.std(0)
    return np.asarray((acts_IC - acts_IC.mean(0)) / np.where(spread_C > 0, spread_C, 1))


def larger(measure: str, place: str, one_I: np.ndarray, other_I: np.ndarray) -> Score:
    """How often one number is the larger of a pair, ties counted half; p one-sided, by the sign test."""
    from scipy.stats import binomtest

    wins, ties = int((one_I > other_I).sum()), int((one_I == other_I).sum())
    decided = len(one_I) - ties
    p = float(binomtest(wins, decided, alternative="greater").pvalue) if decided else 1.0
    return Score(measure, place, (wins + ties / 2) / len(one_I), 0.5, len(one_I), p)


def _permuted(measure: str, place: str, own_I: np.ndarray, chance: float, of: Any, seed: int) -> Score:
    """A score of the items' own concepts, against the same with the concepts permuted among the items."""
    rng = np.random.default_rng([seed, 30])
    score = of(own_I)
    null_P = np.array([of(rng.permutation(own_I)) for _ in range(PERMUTATIONS)])
    return Score(measure, place, float(score), chance, len(own_I), p_value(float(score), null_P))


def recognised(place: str, scores_IC: np.ndarray, own_I: np.ndarray, seed: int) -> list[Score]:
    """How well the items' own concepts stand out among those of the battery.

    First place among them; and AUROC: among the items of one concept and all others, by that concept's score.
    """
    from scipy.stats import rankdata

    asked, among_I = np.unique(own_I, return_inverse=True)
    among_I = among_I.reshape(-1)
    table_IK = scores_IC[:, asked]
    first_I = table_IK.argmax(1)
    ranks_IK = rankdata(table_IK, axis=0)
    count_K = np.bincount(among_I)
    pairs_K = count_K * (len(own_I) - count_K)

    def auroc(of_I: np.ndarray) -> float:
        sums_K = np.bincount(of_I, ranks_IK[np.arange(len(of_I)), of_I])
        return float(((sums_K - count_K * (count_K + 1) / 2) / pairs_K).mean())

    name = f"own concept comes first among the battery's {len(asked)}"
    return [
        _permuted(name, place, among_I, 1 / len(asked), lambda of_I: float((first_I == of_I).mean()), seed),
        _permuted("AUROC of the own concept, mean over concepts", place, among_I, 0.5, auroc, seed),
    ]


def _number(names: Sequence[str], concepts: dict[str, int]) -> np.ndarray:
    return np.array([concepts[name] for name in names])


def _own(scores_IC: np.ndarray, concept_I: np.ndarray) -> np.ndarray:
    return np.asarray(scores_IC[np.arange(len(concept_I)), concept_I])


def scenarios(probes: Probes, read: Readings, concepts: dict[str, int], seed: int) -> list[Score]:
    """A message that shows a concept without naming it: is that concept read?"""
    own_I = _number([one.concept for one in probes.scenarios], concepts)
    return [score for place, scores_IC in read.items() for score in recognised(place, scores_IC, own_I, seed)]


def intensity(probes: Probes, read: Readings, concepts: dict[str, int], seed: int) -> list[Score]:
    """A number in a message: do the concepts that should rise or fall with it do so?

    Mean of rank correlations with the number, turned by the expected sign. p: the numbers permuted within each template.
    Beside it the same of concepts drawn at random, for numbers alone may move everything one way.
    """
    from scipy.stats import rankdata

    rng = np.random.default_rng([seed, 31])
    found = []
    for place, scores_IC in read.items():
        own, others, null_P, at = [], [], np.zeros(PERMUTATIONS), 0
        for one in probes.intensity:
            ranks_nC = rankdata(scores_IC[at : at + len(one.values)], axis=0)
            at += len(one.values)
            value_Pn = rng.permuted(np.tile(rankdata(one.values), (PERMUTATIONS + 1, 1)), axis=1)
            value_Pn[0] = rankdata(one.values)
            rho_PC = _rank_correlations(value_Pn, ranks_nC)
            sign_K = np.array(list(one.sign.values()))
            own += list(sign_K * rho_PC[0, _number(list(one.sign), concepts)])
            null_P += (sign_K * rho_PC[1:, _number(list(one.sign), concepts)]).sum(1)
            others.append(sign_K * rho_PC[0, rng.integers(0, len(concepts), (PERMUTATIONS, len(sign_K)))])
        random_P = np.concatenate(others, axis=1).mean(1)
        score = float(np.mean(own))
        found += [
            Score("rank correlation with the number", place, score, 0.0, len(own), p_value(score, null_P / len(own))),
            Score(
                "rank correlation, against concepts drawn at random",
                place,
                score,
                float(random_P.mean()),
                len(own),
                p_value(score, random_P),
            ),
        ]
    return found


def _rank_correlations(a_Pn: np.ndarray, b_nC: np.ndarray) -> np.ndarray:
    a_Pn, b_nC = a_Pn - a_Pn.mean(1, keepdims=True), b_nC - b_nC.mean(0)
    scale_PC = np.linalg.norm(a_Pn, axis=1)[:, None] * np.linalg.norm(b_nC, axis=0)
    return np.asarray((a_Pn @ b_nC) / np.maximum(scale_PC, 1e-12))


def negation(probes: Probes, read: Readings, concepts: dict[str, int], seed: int) -> list[Score]:
    """A concept's own score in a sentence and in its denial; its fall against the median fall of all concepts."""
    own_I, half, found = _number([one.concept for one in probes.negation], concepts), len(probes.negation), []
    for place, scores_IC in read.items():
        affirmed_IC, negated_IC = scores_IC[:half], scores_IC[half:]
        fall_IC = affirmed_IC - negated_IC
        found += recognised(f"{place}, affirmed", affirmed_IC, own_I, seed)
        found += recognised(f"{place}, negated", negated_IC, own_I, seed)
        found += [
            larger("lower where it is denied", place, _own(affirmed_IC, own_I), _own(negated_IC, own_I)),
            larger("falls more than the median concept", place, _own(fall_IC, own_I), np.median(fall_IC, axis=1)),
        ]
    return found


def binding(probes: Probes, read: Readings, concepts: dict[str, int], seed: int) -> list[Score]:
    """Where one of two persons is mentioned again: that person's concept against the other's.

    Also apart by which of the two the text names first: a score that only knows what came last fails the first half.
    """
    expected_I = _number([one.expected for one in probes.binding], concepts)
    other_I = _number([one.other for one in probes.binding], concepts)
    first_I, found = np.array([one.named_first for one in probes.binding]), []
    for place, scores_IC in read.items():
        right_I, wrong_I = _own(scores_IC, expected_I), _own(scores_IC, other_I)
        found.append(larger("the mentioned person's concept above the other's", place, right_I, wrong_I))
        for name, keep_I in (("first", first_I), ("last", ~first_I)):
            if keep_I.any():
                found.append(
                    larger(f"the same, mentioned person named {name}", place, right_I[keep_I], wrong_I[keep_I])
                )
    return found


def speaker(probes: Probes, read: Readings, concepts: dict[str, int], seed: int) -> list[Score]:
    """A user's message and a fitting reply of another concept: whose is read where?"""
    user_I = _number([one.user for one in probes.speaker], concepts)
    reply_I = _number([one.reply for one in probes.speaker], concepts)
    lead = {place: _own(scores_IC, user_I) - _own(scores_IC, reply_I) for place, scores_IC in read.items()}
    zero_I, colon = np.zeros(len(user_I)), "reply's colon"
    found = [
        larger("user's concept above the fitting reply's", place, lead_I, zero_I)
        for place, lead_I in lead.items()
        if place != colon
    ]
    return [
        *found,
        larger("fitting reply's concept above the user's", colon, zero_I, lead[colon]),
        larger("turns towards the reply from the message to the colon", colon, lead["message"], lead[colon]),
    ]


def masked(probes: Probes, read: Readings, concepts: dict[str, int], seed: int) -> list[Score]:
    """What a speaker has cause for, and what the speaker shows."""
    real_I = _number([one.real for one in probes.masked], concepts)
    shown_I = _number([one.displayed for one in probes.masked], concepts)
    narrated_IC, spoken_IC = read["narration"], read["speaker's lines"]
    return [
        larger("real concept above the displayed", "narration", _own(narrated_IC, real_I), _own(narrated_IC, shown_I)),
        larger("displayed above the real", "speaker's lines", _own(spoken_IC, shown_I), _own(spoken_IC, real_I)),
        *recognised("narration, real", narrated_IC, real_I, seed),
        *recognised("speaker's lines, displayed", spoken_IC, shown_I, seed),
        *recognised("speaker's lines, real", spoken_IC, real_I, seed),
    ]


def dialogues(probes: Probes, read: Readings, concepts: dict[str, int], seed: int) -> list[Score]:
    """Two sides of unlike concepts: each side's own, over its own turns, against the other's."""
    human_I = _number([one.human for one in probes.dialogues], concepts)
    assistant_I = _number([one.assistant for one in probes.dialogues], concepts)
    found = []
    for place, own_I, other_I in (
        ("human turns", human_I, assistant_I),
        ("assistant turns", assistant_I, human_I),
    ):
        scores_IC = read[place]
        found.append(
            larger("own side's concept above the other's", place, _own(scores_IC, own_I), _own(scores_IC, other_I))
        )
        found += recognised(place, scores_IC, own_I, seed)
    return found


_SCORED: dict[str, Callable[[Probes, Readings, dict[str, int], int], list[Score]]] = {
    "scenarios": scenarios,
    "intensity": intensity,
    "negation": negation,
    "binding": binding,
    "speaker": speaker,
    "masked": masked,
    "dialogues": dialogues,
}


def scored(
    probes: Probes, scores: dict[tuple[str, str], np.ndarray], concepts: dict[str, int], seed: int
) -> dict[str, list[dict[str, Any]]]:
    """All batteries that were read, from (battery, place) to scores_IC; `concepts` numbers the columns."""
    found = {}
    for battery in dict.fromkeys(name for name, _ in scores):
        read = {place: scores_IC for (name, place), scores_IC in scores.items() if name == battery}
        found[battery] = [one._asdict() for one in _SCORED[battery](probes, read, concepts, seed)]
    return found
