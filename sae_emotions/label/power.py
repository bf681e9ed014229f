"""Power: the smallest AUROC that this many texts can detect.

For one pair in one register it is exact, in the model of `interval`: in every topic the concept's text is drawn with a
probability proportional to exp(theta x midrank), so that the summed midrank has the null distribution tilted by theta;
ties, as sparse features have them, included. For the whole rule it is a simulation: that alternative is planted in real
features that nobody labelled, on the real texts, and the rule has to find them.

Shapes: T texts, F features, C concepts, P pairs of a feature and a concept, S strata, L planted levels of AUROC.
"""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import numpy as np

from sae_emotions.label.exact import convolved, topic_distributions
from sae_emotions.label.interval import mean_auroc, tilt
from sae_emotions.label.layout import ABSENT, Layout, Panel
from sae_emotions.label.ranks import stratum_rows

POWER = 0.8


class Found(NamedTuple):
    """What a labelling rule says of each feature."""

    screened_F: np.ndarray
    labelled_F: np.ndarray
    """its concept passed the held-out test"""
    any_F: np.ndarray
    """it got some label, be it that concept or something wider"""
    concept_F: np.ndarray


Rule = Callable[[np.ndarray], Found]
"""Labels features by their means over the texts, acts_TF."""
Plant = Callable[[int, int, float, np.random.Generator], np.ndarray | None]
"""Makes a feature read a concept with some AUROC: its means over the texts, or None where it cannot."""


def least_auroc(topics: list[np.ndarray], p: float, power: float = POWER) -> float:
    """AUROC at which the summed midrank's p is at most `p` with probability `power`; NaN where no sum is that rare.

    `topics`: the null distribution in each topic, as from `exact.topic_distributions`.
    """
    null = convolved(topics)
    support = np.flatnonzero(null)
    rare = np.cumsum(null[support][::-1])[::-1] <= p
    if not rare.any() or rare.all():
        return float("nan")
    return mean_auroc(topics, tilt(np.log(null[support]), support, rare, power), 1)


def least_aurocs(
    ranks_TF: np.ndarray, whole: Panel, concept_P: np.ndarray, feature_P: np.ndarray, p: float, power: float = POWER
) -> np.ndarray:
    """`least_auroc` of some pairs in one panel. (P,)"""
    groups = whole.group_C[concept_P]
    return np.array(
        [
            least_auroc(topic_distributions(ranks_TF, whole, int(group), int(feature)), p, power)
            for group, feature in zip(groups, feature_P, strict=True)
        ]
    )


def least_untied(whole: Panel, p: float, power: float = POWER) -> float:
    """The same for a feature without any ties, as a dense reading has none; mean over the groups of concepts."""
    found = []
    for strata in whole.groups:
        topics = []
        for size in whole.size_S[strata]:
            topics.append(np.zeros(2 * size - 1))
            topics[-1][::2] = 1 / size
        found.append(least_auroc(topics, p, power))
    return float(np.mean(found))


def theta_of(topics: list[np.ndarray], auroc: float) -> float | None:
    """The tilt whose mean AUROC is `auroc`; None where ties make that impossible."""
    from scipy.optimize import brentq

    if not mean_auroc(topics, None, -1) < auroc < mean_auroc(topics, None, 1):
        return None
    share_SL = np.zeros((len(topics), max(map(len, topics))))
    for share_L, topic in zip(share_SL, topics, strict=True):
        share_L[: len(topic)] = topic
    values_L = np.arange(share_SL.shape[1])
    top_S = np.array([len(topic) - 1 for topic in topics])
    last_S1 = (values_L * (share_SL > 0)).max(1, keepdims=True)
    first_S1 = (share_SL > 0).argmax(1)[:, None]

    def excess(theta: float) -> float:
        weight_SL = share_SL * np.exp(np.minimum(theta * (values_L - (last_S1 if theta > 0 else first_S1)), 0))
        return float((weight_SL @ values_L / weight_SL.sum(1) / top_S).mean()) - auroc

    size = 1e-3
    while excess(-size) > 0 or excess(size) < 0:
        size *= 2
        if size > 1e3:
            return None
    return float(brentq(excess, -size, size, xtol=1e-9))


def highest(ranks_T: np.ndarray, found: Layout, concept: int) -> float:
    """What no feature with these ties can read `concept` better than, in the panel where that is least."""
    return min(mean_auroc(topics, None, 1) for topics in _topics(ranks_T, found, concept))


def _topics(ranks_T: np.ndarray, found: Layout, concept: int) -> list[list[np.ndarray]]:
    """A feature's null distributions, panel by panel and topic by topic of the concept."""
    return [topic_distributions(ranks_T[:, None], one, int(one.group_C[concept]), 0) for one in found.panels]


def planted(
    values_T: np.ndarray, ranks_T: np.ndarray, found: Layout, concept: int, auroc: float, rng: np.random.Generator
) -> np.ndarray | None:
    """One feature's means over the texts, made to read `concept` with an expected AUROC of `auroc` in every panel.

    In every topic the concept's text changes places with one drawn by the tilted distribution: each topic keeps its
    values. None where ties keep the AUROC lower in some panel.
    """
    made_T = values_T.copy()
    for whole, topics in zip(found.panels, _topics(ranks_T, found, concept), strict=True):
        theta = theta_of(topics, auroc)
        if theta is None:
            return None
        for s in whole.groups[whole.group_C[concept]]:
            rows = stratum_rows(whole, int(s))
            weight = np.exp(theta * (ranks_T[rows].astype(np.float64) - ranks_T[rows].max()))
            taken, own = rng.choice(rows, p=weight / weight.sum()), whole.rows_CS[concept, s]
            made_T[[own, taken]] = values_T[[taken, own]]
    return made_T


def planted_with_neighbours(
    values_T: np.ndarray, found: Layout, concept: int, profile_C: np.ndarray, auroc: float, rng: np.random.Generator
) -> np.ndarray:
    """One feature's means over the texts, made to read `concept` and, as far as `profile_C` says, the others.

    In every topic the values are dealt anew, the greatest to the text whose beta x profile + Gumbel noise is greatest
    (Plackett 1975, Luce 1959): two texts are then in order with the logistic function of beta x the difference of their
    profiles, which gives the beta at which `concept` has the AUROC asked for. `profile_C` must be greatest at the concept.
    Ties in the values, where there are many, make the AUROC lower.
    """
    made_T = values_T.copy()
    for whole in found.panels:
        strata = whole.groups[whole.group_C[concept]]
        beta = _beta(whole.rows_CS[:, strata] != ABSENT, concept, profile_C, auroc)
        for s in range(len(whole.size_S)):
            there = np.flatnonzero(whole.rows_CS[:, s] != ABSENT)
            rows, score = whole.rows_CS[there, s], beta * profile_C[there] + rng.gumbel(size=len(there))
            made_T[rows[np.argsort(score)]] = np.sort(values_T[rows])
    return made_T


def _beta(there_CS: np.ndarray, concept: int, profile_C: np.ndarray, auroc: float) -> float:
    from scipy.optimize import brentq
    from scipy.special import expit

    others_CS = there_CS.copy()
    others_CS[concept] = False
    weight_C = (others_CS / others_CS.sum(0)).mean(1)

    def excess(beta: float) -> float:
        return float(weight_C @ expit(beta * (profile_C[concept] - profile_C))) - auroc

    high = 1.0
    while excess(high) < 0:
        high *= 2
        if high > 1e6:
            return high
    return float(brentq(excess, 0.0, high)) if auroc > 0.5 else 0.0


def rule_power(
    acts_TF: np.ndarray,
    ranks_TF: np.ndarray,
    found: Layout,
    hosts: np.ndarray,
    levels: Sequence[float],
    each: int,
    rounds: int,
    plant: Plant,
    rule: Rule,
    seed: int,
    advance: Callable[[int], None] = lambda count: None,
) -> dict[str, Any]:
    """Share of planted features that `rule` labels with the concept planted, level by level, and where it reaches `POWER`.

    Every round plants `each` features a level, in hosts drawn from `hosts` for which the highest level can be had, and puts
    them in the place of these hosts among all features. `rule` is called once a round.
    """
    rng = np.random.default_rng([seed, 9])
    hits_L4, tried, lacking = np.zeros((len(levels), 4), np.int64), 0, 0
    for _ in range(rounds):
        acts, places, coming = acts_TF.copy(), [], iter(rng.permutation(hosts).tolist())
        for level in np.repeat(np.arange(len(levels)), each).tolist():
            for feature in coming:
                concept, tried = int(rng.integers(len(found.concepts))), tried + 1
                fits = highest(ranks_TF[:, feature], found, concept) > max(levels)
                made_T = plant(feature, concept, levels[level], rng) if fits else None
                if made_T is None:
                    lacking += 1
                    continue
                acts[:, feature] = made_T
                places.append((level, feature, concept))
                break
        told = rule(acts)
        for level, feature, concept in places:
            right = bool(told.concept_F[feature] == concept)
            steps = right and told.screened_F[feature], right and told.labelled_F[feature], told.any_F[feature]
            hits_L4[level] += (1, *map(int, steps))
        advance(1)
    return {
        "hosts_tried": tried,
        "share_of_hosts_too_sparse": round(lacking / max(1, tried), 4),
        "levels": [_level(level, *hits) for level, hits in zip(levels, hits_L4.tolist(), strict=True)],
        "concept": _reached(np.array(levels), hits_L4[:, 2], hits_L4[:, 0], rng),
        "any_label": _reached(np.array(levels), hits_L4[:, 3], hits_L4[:, 0], rng),
    }


def _level(auroc: float, count: int, screened: int, labelled: int, with_any: int) -> dict[str, Any]:
    from scipy.stats import binomtest

    told: dict[str, Any] = {"auroc": auroc, "n": count}
    hits = {"screened": screened, "labelled_with_the_concept": labelled, "with_any_label": with_any}
    for name, found in hits.items():
        ends = binomtest(found, count).proportion_ci(0.95) if count else None
        told[f"share_{name}"] = round(found / count, 4) if count else None
        told[f"share_{name}_interval"] = ends and [round(float(ends.low), 4), round(float(ends.high), 4)]
    return told


def _reached(level_L: np.ndarray, hits_L: np.ndarray, count_L: np.ndarray, rng: np.random.Generator) -> dict[str, Any]:
    """The AUROC at which the share, made monotone and joined by lines, reaches `POWER`; interval by redrawn counts."""
    there = count_L > 0
    level_L, hits_L, count_L = level_L[there], hits_L[there], count_L[there]
    if not len(level_L):
        return {"least_auroc": None, "least_auroc_interval": None}
    drawn = rng.binomial(count_L, hits_L / count_L, (1000, len(level_L)))
    crossings = [_crossing(level_L, hits / count_L, count_L) for hits in [hits_L, *drawn]]
    ends = [float(np.quantile(crossings[1:], at, method="inverted_cdf")) for at in (0.025, 0.975)]
    told = [None if np.isinf(one) else round(one, 4) for one in (crossings[0], *ends)]
    return {"least_auroc": told[0], "least_auroc_interval": told[1:]}


def _crossing(level_L: np.ndarray, share_L: np.ndarray, count_L: np.ndarray) -> float:
    from sklearn.isotonic import isotonic_regression

    rising = isotonic_regression(share_L, sample_weight=count_L.astype(np.float64))
    above = np.flatnonzero(rising >= POWER)
    if not len(above):
        return float("inf")
    at = int(above[0])
    if at == 0:
        return float(level_L[0])
    return float(np.interp(POWER, rising[at - 1 : at + 1], level_L[at - 1 : at + 1]))
