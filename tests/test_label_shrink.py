"""Shrunken counts against planted truth."""

import numpy as np
import pytest

from sae_emotions.label.shrink import counts_at_least, shrunken


def observed(truth_C: np.ndarray, topics: int, precision: float, rng: np.random.Generator) -> np.ndarray:
    """AUROC per topic, beta distributed around each concept's true value: variance mu (1 - mu) / (precision + 1)."""
    mu_CS = np.repeat(truth_C[:, None], topics, axis=1)
    return rng.beta(mu_CS * precision, (1 - mu_CS) * precision)


def test_shrinking_comes_closer_to_the_truth_than_the_raw_means() -> None:
    rng = np.random.default_rng(0)
    truth = rng.beta(8, 2, 171)
    for topics, precision in ((3, 1.5), (6, 4.0)):
        table = observed(truth, topics, precision, rng)
        found = shrunken(table)
        assert np.mean((found.auroc_C - truth) ** 2) < 0.8 * np.mean((found.raw_C - truth) ** 2)


def test_the_expected_count_is_nearer_than_the_raw_one_which_flatters() -> None:
    rng = np.random.default_rng(1)
    raw, expected, true = [], [], []
    for _ in range(40):
        truth = rng.beta(12, 4, 171)
        found = counts_at_least(observed(truth, 3, 3.0, rng), 0.9)
        raw.append(found["raw"])
        expected.append(found["expected"])
        true.append((truth >= 0.9).sum())
    assert np.mean(raw) > 2 * np.mean(true)
    assert abs(np.mean(expected) - np.mean(true)) < 0.3 * abs(np.mean(raw) - np.mean(true))


def test_equal_concepts_are_shrunk_to_their_mean() -> None:
    table = observed(np.full(171, 0.85), 6, 3.0, np.random.default_rng(2))
    found = shrunken(table)
    assert found.kept < 0.25
    assert (found.raw_C >= 0.9).sum() > 20 and counts_at_least(table, 0.9)["shrunken"] == 0


def test_without_noise_nothing_is_shrunk() -> None:
    truth = np.linspace(0.5, 1.0, 21)
    found = shrunken(np.repeat(truth[:, None], 4, axis=1))
    np.testing.assert_allclose(found.auroc_C, truth, atol=1e-9)
    assert counts_at_least(np.repeat(truth[:, None], 4, axis=1), 0.9)["raw"] == 5


def test_hard_topics_are_no_noise_and_absent_concepts_are_left_out() -> None:
    rng = np.random.default_rng(3)
    truth = rng.uniform(0.6, 0.9, 60)
    table = truth[:, None] + np.array([-0.1, 0.0, 0.1])
    table[7] = np.nan
    table[8, 0] = np.nan
    found = shrunken(table)
    assert len(found.concept_C) == 59 and 7 not in found.concept_C
    assert found.kept == pytest.approx(1, abs=0.05)
