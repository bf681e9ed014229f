"""The statistics behind labels, against scipy, scikit-learn and brute force."""

from itertools import product

import numpy as np
import pytest
from scipy import stats
from sklearn.metrics import roc_auc_score

from sae_emotions.label.exact import exact_p
from sae_emotions.label.interval import interval, inverted
from sae_emotions.label.layout import ABSENT, Layout, Panel, cell_panels, panel, part, permuted
from sae_emotions.label.ranks import auroc, doubled_midranks, pair_auroc, pair_sums, topic_mean
from sae_emotions.label.uncertainty import false_discovery, mean_over_concepts, two_way_bootstrap


def small_layout(sizes: tuple[tuple[int, ...], ...] = ((5, 5), (4, 5, 5), (5,), (3, 5))) -> Layout:
    """Four panels; a stratum of size n holds the texts of n concepts out of five, not always the same ones."""
    start, panels = 0, []
    for number, strata in enumerate(sizes):
        columns = {}
        for s, size in enumerate(strata):
            column = np.full(5, ABSENT, np.int32)
            there = (np.arange(size) + s) % 5
            column[there] = start + np.arange(size)
            columns[f"cell{number}", f"topic{s}"] = column
            start += size
        panels.append(panel(f"register{number % 2}", "selection" if number < 2 else "held_out", columns))
    ids = tuple(f"text{i}" for i in range(start))
    return Layout(tuple("abcde"), ids, (panels[0], panels[1]), (panels[2], panels[3]))


def tied_values(found: Layout, features: int, rng: np.random.Generator, density: float = 0.5) -> np.ndarray:
    """Sparse values on a coarse grid: many zeros, many ties."""
    shape = (len(found.text_ids), features)
    return np.where(rng.random(shape) < density, rng.integers(1, 4, shape), 0).astype(np.float32)


def all_p(ranks_TF: np.ndarray, whole: Panel) -> np.ndarray:
    """(C, F)"""
    concepts, features = len(whole.rows_CS), ranks_TF.shape[1]
    concept_P, feature_P = np.repeat(np.arange(concepts), features), np.tile(np.arange(features), concepts)
    sum_P = pair_sums(ranks_TF, whole, concept_P, feature_P)
    return exact_p(ranks_TF, whole, whole.group_C[concept_P], feature_P, sum_P).reshape(concepts, features)


def test_midranks_are_those_of_scipy_within_each_topic() -> None:
    found, rng = small_layout(), np.random.default_rng(0)
    values = tied_values(found, 7, rng)
    ranks = doubled_midranks(values, found.panels)
    for whole in found.panels:
        for s in range(len(whole.size_S)):
            rows = whole.rows_CS[:, s][whole.rows_CS[:, s] != ABSENT]
            np.testing.assert_array_equal(ranks[rows] / 2, stats.rankdata(values[rows], axis=0))


def test_auroc_is_that_of_sklearn_averaged_over_topics() -> None:
    found, rng = small_layout(), np.random.default_rng(1)
    values = tied_values(found, 6, rng)
    whole = found.selection[1]
    got = auroc(doubled_midranks(values, found.panels), whole)
    for concept in range(5):
        for feature in range(6):
            per_topic = []
            for s in range(len(whole.size_S)):
                rows = whole.rows_CS[:, s]
                if rows[concept] != ABSENT:
                    there = rows[rows != ABSENT]
                    per_topic.append(roc_auc_score(there == rows[concept], values[there, feature]))
            assert got[concept, feature] == pytest.approx(np.mean(per_topic), abs=1e-6)


def test_pairs_agree_with_the_full_table() -> None:
    found, rng = small_layout(), np.random.default_rng(2)
    ranks = doubled_midranks(tied_values(found, 6, rng), found.panels)
    for whole in found.panels:
        there = np.flatnonzero((whole.rows_CS != ABSENT).any(1))
        concept, feature = np.repeat(there, 6), np.tile(np.arange(6), len(there))
        table = auroc(ranks, whole)[concept, feature]
        np.testing.assert_allclose(topic_mean(pair_auroc(ranks, whole, concept, feature)), table, atol=1e-6)


def test_exact_p_is_the_share_of_all_assignments_at_least_as_high() -> None:
    found, rng = small_layout(), np.random.default_rng(3)
    ranks = doubled_midranks(tied_values(found, 8, rng), found.panels)
    for whole in found.panels:
        got = all_p(ranks, whole)
        for concept, feature in product(range(5), range(8)):
            own = whole.rows_CS[concept]
            if (own == ABSENT).all():
                continue
            strata = [s for s in range(len(own)) if own[s] != ABSENT]
            observed = sum(int(ranks[own[s], feature]) for s in strata)
            texts = [whole.rows_CS[:, s][whole.rows_CS[:, s] != ABSENT] for s in strata]
            sums = [sum(int(ranks[row, feature]) for row in rows) for rows in product(*texts)]
            share = np.mean([total >= observed for total in sums])
            assert got[concept, feature] == pytest.approx(share, abs=1e-12)


def test_exact_p_in_one_topic_is_mann_whitneys() -> None:
    rng = np.random.default_rng(4)
    column = np.arange(40, dtype=np.int32)
    whole = panel("one", "selection", {("one", "topic"): column})
    values = rng.standard_normal((40, 3))
    ranks = doubled_midranks(values, (whole,))
    got = all_p(ranks, whole)
    for concept in range(40):
        others = np.delete(values[:, 1], concept)
        expected = stats.mannwhitneyu(values[[concept], 1], others, alternative="greater", method="exact").pvalue
        assert got[concept, 1] == pytest.approx(expected, rel=1e-9)


def grid(concepts: int, topics: int) -> Panel:
    columns = {("cell", str(s)): np.arange(concepts, dtype=np.int32) + concepts * s for s in range(topics)}
    return panel("register", "selection", columns)


def ranked(whole: Panel, values_TF: np.ndarray) -> np.ndarray:
    return doubled_midranks(values_TF, (whole,))


@pytest.mark.parametrize(("concepts", "topics"), [(171, 6), (57, 8), (171, 10)])
def test_far_tails_keep_their_relative_precision(concepts: int, topics: int) -> None:
    whole = grid(concepts, topics)
    values = np.random.default_rng(5).random((concepts * topics, 1)).astype(np.float32)
    values[whole.rows_CS[0]] = 2
    p = all_p(ranked(whole, values), whole)
    assert p[0, 0] == pytest.approx(float(concepts) ** -topics, rel=1e-12)


def test_bulk_and_direct_convolution_agree(monkeypatch: pytest.MonkeyPatch) -> None:
    found, rng = small_layout(((5,) * 4, (5, 4, 5, 4), (5,), (3, 5, 5))), np.random.default_rng(6)
    ranks = doubled_midranks(tied_values(found, 30, rng), found.panels)
    for whole in found.panels:
        bulk = all_p(ranks, whole)
        monkeypatch.setattr("sae_emotions.label.exact.DIRECT", 2.0)
        np.testing.assert_allclose(all_p(ranks, whole), bulk, rtol=1e-9)
        monkeypatch.undo()


@pytest.mark.parametrize("density", [0.01, 0.05, 0.5])
def test_size_on_sparse_tied_features(density: float) -> None:
    """Under the null P(p <= alpha) <= alpha. A normal approximation breaks this by orders of magnitude at 0.01."""
    whole, rng = grid(60, 5), np.random.default_rng(7)
    values = np.where(rng.random((300, 700)) < density, rng.integers(1, 4, (300, 700)), 0).astype(np.float32)
    p = all_p(ranked(whole, values), whole).ravel()
    for alpha in (0.05, 1e-2, 1e-3, 1e-4):
        expected = alpha * p.size
        assert (p <= alpha).sum() <= expected + 5 * np.sqrt(expected) + 1


def test_p_is_uniform_where_there_are_no_ties() -> None:
    whole, rng = grid(60, 5), np.random.default_rng(8)
    p = all_p(ranked(whole, rng.random((300, 50)).astype(np.float32)), whole).ravel()
    for alpha in (0.5, 0.1, 0.01):
        assert (p <= alpha).mean() == pytest.approx(alpha, rel=0.2)


@pytest.mark.parametrize(("hits", "topics"), [(0, 6), (3, 6), (6, 6), (11, 15)])
def test_interval_is_clopper_pearsons_where_a_topic_is_one_comparison(hits: int, topics: int) -> None:
    one = np.array([0.5, 0.0, 0.5])  # two texts, no tie: doubled midrank 2 or 4
    low, high = inverted([one] * topics, 2 * hits)
    exact = stats.binomtest(hits, topics).proportion_ci(0.95, "exact")
    assert (low, high) == pytest.approx((exact.low, exact.high), abs=1e-5)


def test_interval_holds_the_truth_often_enough() -> None:
    """Coverage under the family it is built on, in tied topics of unequal size."""
    rng = np.random.default_rng(9)
    values = [np.sort(np.where(rng.random(n) < 0.4, rng.random(n), 0.0)) for n in (9, 9, 14, 6)]
    doubled = [(2 * stats.rankdata(v)).astype(int) - 2 for v in values]
    topics = [np.bincount(d, minlength=2 * len(d) - 1) / len(d) for d in doubled]
    for theta in (0.0, 0.15):
        tilted = [np.exp(theta * d) / np.exp(theta * d).sum() for d in doubled]
        pairs = zip(tilted, doubled, strict=True)
        truth = np.mean([(weight * d).sum() / (2 * len(d) - 2) for weight, d in pairs])
        draws = [int(sum(rng.choice(d, p=w) for w, d in zip(tilted, doubled, strict=True))) for _ in range(400)]
        ends = {at: inverted(topics, at) for at in set(draws)}
        assert np.mean([ends[at][0] <= truth <= ends[at][1] for at in draws]) >= 0.93


def test_interval_of_a_pair_holds_its_auroc_and_shrinks_with_topics() -> None:
    rng, widths = np.random.default_rng(10), []
    for topics in (3, 12):
        whole = grid(20, topics)
        values = rng.random((20 * topics, 1)).astype(np.float32)
        values[whole.rows_CS[0]] += 0.4
        ranks, zero = ranked(whole, values), np.array([0])
        total = int(pair_sums(ranks, whole, zero, zero)[0])
        low, high = interval(ranks, whole, 0, 0, total)
        assert low <= topic_mean(pair_auroc(ranks, whole, zero, zero))[0] <= high
        widths.append(high - low)
    assert widths[1] < 0.7 * widths[0]


def test_false_discovery_is_benjamini_hochbergs() -> None:
    p = np.array([0.001, 0.8, 0.02, 0.02, 0.3])
    by_hand = [0.005, 0.8, 0.1 / 3, 0.1 / 3, 0.375]
    np.testing.assert_allclose(false_discovery(p), by_hand)
    assert false_discovery(np.zeros(0)).shape == (0,)


def test_two_way_bootstrap_follows_a_plain_loop() -> None:
    rng = np.random.default_rng(11)
    table = rng.random((12, 6)) + rng.random((12, 1)) + rng.random((1, 6))
    table[3, :3] = np.nan
    loop = []
    for _ in range(3000):
        drawn = table[rng.integers(0, 12, 12)][:, rng.integers(0, 6, 6)]
        rows = drawn[(~np.isnan(drawn)).any(1)]
        loop.append(np.nanmean(rows, axis=1).mean())
    low, high = two_way_bootstrap(table, 3000, np.random.default_rng(12))
    assert (low, high) == pytest.approx(tuple(np.quantile(loop, [0.025, 0.975])), abs=0.03)
    assert low < mean_over_concepts(table) < high


def test_permuting_keeps_strata_and_groups_and_moves_labels() -> None:
    found = small_layout(((5,) * 8, (4, 5, 5), (5,), (3, 5)))
    other = permuted(found, np.random.default_rng(13))
    for before, after in zip(found.panels, other.panels, strict=True):
        np.testing.assert_array_equal(before.rows_CS == ABSENT, after.rows_CS == ABSENT)
        np.testing.assert_array_equal(np.sort(before.rows_CS, axis=0), np.sort(after.rows_CS, axis=0))
    assert (found.selection[0].rows_CS != other.selection[0].rows_CS).any()


def test_cells_are_parts_of_their_panels() -> None:
    found = small_layout()
    cells = cell_panels(found, "held_out")
    assert list(cells) == ["cell2", "cell3"]
    half = part(found.selection[1], np.array([True, False, False]))
    np.testing.assert_array_equal(half.rows_CS[:, 0], found.selection[1].rows_CS[:, 0])
    assert half.size_S.tolist() == [4]
