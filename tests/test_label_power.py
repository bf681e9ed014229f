"""Power: at the AUROC that is said to be detectable, planted effects are detected as often as was said."""

import json

import numpy as np
import pytest

from sae_emotions.concepts.concept_set import Concept, ConceptSet, ConceptText
from sae_emotions.config import LabelConfig
from sae_emotions.label.exact import exact_p, topic_distributions
from sae_emotions.label.interval import mean_auroc
from sae_emotions.label.labelling import labelling, readings
from sae_emotions.label.layout import Layout, layout
from sae_emotions.label.power import (
    Found,
    least_auroc,
    least_aurocs,
    least_untied,
    planted,
    planted_with_neighbours,
    rule_power,
    theta_of,
)
from sae_emotions.label.ranks import doubled_midranks, pair_auroc, pair_sums, topic_mean
from sae_emotions.label.rule import decide
from sae_emotions.label.uncertainty import critical_p

C, TOPICS = 14, 9


@pytest.fixture(scope="module")
def found() -> Layout:
    texts = [
        ConceptText(f"{register}{split}{topic}/{c}", f"c{c}", str(topic), register, register, split, "x")
        for register in ("first", "second")
        for split in ("selection", "held_out")
        for topic in range(TOPICS)
        for c in range(C)
    ]
    names = tuple(Concept(f"c{c}", f"c{c}", None, None) for c in range(C))
    return layout(
        ConceptSet("planted", names, tuple(texts), ("first", "second"), ("first", "second"), (), "", "0" * 64)
    )


@pytest.fixture(scope="module")
def acts(found: Layout) -> np.ndarray:
    """Features that fire in 30 to 100 % of the texts."""
    rng = np.random.default_rng(0)
    shape = len(found.text_ids), 200
    return np.where(rng.random(shape) < rng.uniform(0.3, 1, 200), rng.random(shape), 0).astype(np.float32)


def test_the_least_auroc_is_detected_with_the_power_asked_for(found: Layout, acts: np.ndarray) -> None:
    """Planted in sparse features again and again, the exact test finds it in 80 % of the trials."""
    ranks_TF, whole, p = doubled_midranks(acts, found.panels), found.held_out[0], 1e-3
    rng, hits = np.random.default_rng(1), []
    for trial in range(200):
        feature, concept = trial % 200, int(rng.integers(C))
        level = float(least_aurocs(ranks_TF, whole, np.array([concept]), np.array([feature]), p)[0])
        made_T = planted(acts[:, feature], ranks_TF[:, feature], found, concept, level, rng)
        assert made_T is not None
        ranks_T1, pair = doubled_midranks(made_T[:, None], found.panels), (np.array([concept]), np.array([0]))
        sums = pair_sums(ranks_T1, whole, *pair)
        hits.append(exact_p(ranks_T1, whole, whole.group_C[pair[0]], pair[1], sums)[0] <= p)
    assert np.mean(hits) == pytest.approx(0.8, abs=3 * (0.8 * 0.2 / len(hits)) ** 0.5)


def test_more_topics_or_a_milder_p_need_less() -> None:
    def untied(topics: int) -> list[np.ndarray]:
        return [np.where(np.arange(2 * C - 1) % 2 == 0, 1 / C, 0) for _ in range(topics)]

    few, many, mild = least_auroc(untied(6), 1e-3), least_auroc(untied(18), 1e-3), least_auroc(untied(6), 0.05)
    assert 0.5 < many < few < 1
    assert mild < few
    assert least_auroc(untied(6), 1e-3, power=0.95) > few
    assert np.isnan(least_auroc(untied(1), 1e-3))  # one text in 14 cannot be that rare


def test_a_feature_without_ties_needs_what_untied_panels_need(found: Layout) -> None:
    dense = np.random.default_rng(4).random((len(found.text_ids), 1))
    one = np.array([0])
    for whole in found.panels:
        least = least_aurocs(doubled_midranks(dense, found.panels), whole, one, one, 1e-3)
        assert least[0] == pytest.approx(least_untied(whole, 1e-3))


def test_theta_gives_the_auroc_and_none_where_ties_forbid_it(found: Layout, acts: np.ndarray) -> None:
    ranks_TF = doubled_midranks(acts, found.panels)
    topics = topic_distributions(ranks_TF, found.held_out[0], 0, 0)
    for auroc in (0.5, 0.6, 0.9):
        theta = theta_of(topics, auroc)
        assert theta is not None
        assert mean_auroc(topics, theta, 1) == pytest.approx(auroc, abs=1e-6)
    silent = np.zeros(2 * C - 1)
    silent[C - 1] = 1
    assert theta_of([silent] * 3, 0.6) is None


def test_planting_keeps_each_topics_values_and_hits_the_auroc(found: Layout, acts: np.ndarray) -> None:
    ranks_TF, rng = doubled_midranks(acts, found.panels), np.random.default_rng(2)
    reached = []
    for feature in range(30):
        made_T = planted(acts[:, feature], ranks_TF[:, feature], found, 5, 0.8, rng)
        assert made_T is not None
        for whole in found.panels:
            rows_CS = whole.rows_CS
            assert np.array_equal(np.sort(made_T[rows_CS], axis=0), np.sort(acts[rows_CS, feature], axis=0))
            ranks_T1 = doubled_midranks(made_T[:, None], found.panels)
            reached.append(topic_mean(pair_auroc(ranks_T1, whole, np.array([5]), np.array([0])))[0])
    assert np.mean(reached) == pytest.approx(0.8, abs=0.03)


@pytest.mark.parametrize("auroc", [0.5, 0.7, 0.9])
def test_planting_neighbours_hits_the_auroc_and_orders_the_others(found: Layout, auroc: float) -> None:
    """The concept has the AUROC asked for; a near one lies between it and those that are far."""
    values_T, rng = np.random.default_rng(6).random(len(found.text_ids)), np.random.default_rng(7)
    profile_C = np.where(np.arange(C) == 3, 1.0, 0.0)
    profile_C[[7, 8]] = 0.6
    reached = []
    for _ in range(60):
        made_T = planted_with_neighbours(values_T, found, 3, profile_C, auroc, rng)
        for whole in found.panels:
            assert np.array_equal(np.sort(made_T[whole.rows_CS], axis=0), np.sort(values_T[whole.rows_CS], axis=0))
        ranks_T1 = doubled_midranks(made_T[:, None], found.panels)
        pairs = np.array([3, 7, 0]), np.zeros(3, int)
        reached.append(np.mean([topic_mean(pair_auroc(ranks_T1, whole, *pairs)) for whole in found.panels], axis=0))
    own, near, far = np.mean(reached, axis=0)
    assert own == pytest.approx(auroc, abs=0.02)
    assert near == pytest.approx(0.5, abs=0.03) if auroc == 0.5 else own > near > far


def test_the_rules_power_rises_from_nothing_to_all(found: Layout, acts: np.ndarray) -> None:
    def rule(acts_TF: np.ndarray) -> Found:
        settings = LabelConfig(screen_product=1e-5, own=1.0, families=4)
        real = labelling(found, resid, np.eye(8), settings)
        (outcome,) = decide(readings(doubled_midranks(acts_TF, found.panels), found), [real], (), settings)
        passes_F = outcome.concept.q_F <= settings.q
        return Found(outcome.concept.screened_F, passes_F, outcome.labelled_F, outcome.choice.concept_F)

    def plant(feature: int, concept: int, auroc: float, rng: np.random.Generator) -> np.ndarray | None:
        return planted(acts[:, feature], ranks_TF[:, feature], found, concept, auroc, rng)

    resid = np.random.default_rng(4).standard_normal((len(found.text_ids), 8)).astype(np.float32)
    ranks_TF, levels = doubled_midranks(acts, found.panels), (0.5, 0.7, 0.8, 0.9, 0.96)
    given = acts, ranks_TF, found, np.arange(150), levels, 8, 2, plant, rule
    power = rule_power(*given, seed=3)
    shares = [level["share_labelled_with_the_concept"] for level in power["levels"]]
    assert [level["n"] for level in power["levels"]] == [16] * 5
    assert shares[0] < 0.15
    assert shares[-1] > 0.9
    for level in power["levels"]:
        assert level["share_labelled_with_the_concept"] <= min(level["share_screened"], level["share_with_any_label"])
    low, high = power["concept"]["least_auroc_interval"]
    assert 0.7 < low <= power["concept"]["least_auroc"] <= high <= 0.96
    assert power["any_label"]["least_auroc"] <= power["concept"]["least_auroc"]
    assert power == rule_power(*given, seed=3)
    json.dumps(power, allow_nan=False)


def test_a_feature_that_is_too_sparse_is_counted_not_planted(found: Layout) -> None:
    acts = np.zeros((len(found.text_ids), 3), np.float32)

    def rule(acts_TF: np.ndarray) -> Found:
        none_F = np.zeros(3, bool)
        return Found(none_F, none_F, none_F, np.zeros(3, int))

    given = acts, doubled_midranks(acts, found.panels), found, np.arange(3), (0.8,), 2, 1
    power = rule_power(*given, lambda *asked: None, rule, 0)
    assert power["share_of_hosts_too_sparse"] == 1
    assert power["levels"][0]["n"] == 0
    assert power["concept"]["least_auroc"] is None


def test_the_p_that_benjamini_and_hochberg_let_pass() -> None:
    from scipy.stats import false_discovery_control

    p = np.array([1e-6, 1e-4, 0.01, 0.02, 0.3, 0.8])
    q = false_discovery_control(p)
    labelled = int((q <= 0.05).sum())
    bound = critical_p(len(p), labelled, 0.05)
    assert np.array_equal(p <= bound, q <= 0.05)
    assert critical_p(100, 0, 0.05) == 0.0005
