"""Recipe, geometry, read-outs and battery scores on small tensors whose truth is known."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from sae_emotions.concepts.probes import (
    Binding,
    Dialogue,
    Intensity,
    Masked,
    Negation,
    Probes,
    Scenario,
    Speaker,
)
from sae_emotions.label.probes import leading_components
from sae_emotions.vectors import batteries as scores
from sae_emotions.vectors import geometry, readout
from sae_emotions.vectors.recipe import concept_vectors, unit, within_topic, without
from sae_emotions.vectors.words import own_word

CONCEPTS, WIDTH, CLUSTERS = 40, 24, 5


@pytest.fixture
def rng() -> np.random.Generator:
    return np.random.default_rng(5)


@pytest.fixture
def cluster_C() -> np.ndarray:
    return np.arange(CONCEPTS) % CLUSTERS


def clustered(rng: np.random.Generator, cluster_C: np.ndarray) -> np.ndarray:
    """Vectors that lie close to their cluster's own axis."""
    return np.asarray(np.eye(WIDTH)[cluster_C] + 0.05 * rng.standard_normal((CONCEPTS, WIDTH)))


def test_the_recipe_finds_what_was_added_to_each_concept(rng: np.random.Generator) -> None:
    planted_CD = rng.standard_normal((CONCEPTS, WIDTH))
    concept_T = np.repeat(np.arange(CONCEPTS), 6)
    common_D, noise_TD = rng.standard_normal(WIDTH), 1e-3 * rng.standard_normal((len(concept_T), WIDTH))
    loud_D = np.eye(WIDTH)[3]
    means_TD = planted_CD[concept_T] + 50 * common_D + noise_TD
    axes_ND = leading_components(np.eye(WIDTH) + 1e4 * np.outer(loud_D, loud_D))
    assert len(axes_ND) == 1
    found = concept_vectors(means_TD, concept_T, CONCEPTS, axes_ND)
    wanted_CD = planted_CD - planted_CD.mean(0)
    assert np.abs(found.raw_CD - wanted_CD).max() < 0.01
    wanted_CD[:, 3] = 0
    assert np.abs(found.vectors_CD - wanted_CD).max() < 0.01
    assert np.linalg.norm(found.unit(), axis=1) == pytest.approx(np.ones(CONCEPTS))
    with pytest.raises(ValueError, match="concept 40 has no story"):
        concept_vectors(means_TD, concept_T, CONCEPTS + 1, axes_ND)


def test_every_story_counts_the_same_whatever_its_topic(rng: np.random.Generator) -> None:
    topic_T = np.array(["a", "b", "c"] * 4)
    shared = {"a": 10.0, "b": -3.0, "c": 0.5}
    concept_T = np.repeat(np.arange(4), 3)
    own_CD = rng.standard_normal((4, WIDTH))
    means_TD = own_CD[concept_T] + np.array([shared[t] for t in topic_T])[:, None]
    centred_TD = within_topic(means_TD, list(topic_T))
    assert centred_TD == pytest.approx((own_CD - own_CD.mean(0))[concept_T])


@settings(deadline=None, max_examples=50)
@given(st.floats(0.05, 1.0), arrays(float, (6, 6), elements=st.floats(-3, 3)))
def test_components_carry_their_share_and_no_fewer_would_do(share: float, root_DD: np.ndarray) -> None:
    covariance_DD = root_DD @ root_DD.T
    axes_ND = leading_components(covariance_DD, share)
    total = np.trace(covariance_DD)
    if total <= 0:
        assert len(axes_ND) == 0
        return
    carried_N = np.cumsum(np.einsum("nd,de,ne->n", axes_ND, covariance_DD, axes_ND)) / total
    assert carried_N[-1] >= share - 1e-6
    assert len(axes_ND) == 1 or carried_N[-2] < share + 1e-6
    left_XD = without(root_DD, axes_ND)
    assert np.abs(left_XD @ axes_ND.T).max() < 1e-6


def test_planted_clusters_are_found_and_permuted_ones_are_not(rng: np.random.Generator, cluster_C: np.ndarray) -> None:
    x_CD = clustered(rng, cluster_C)
    found = geometry.clusters(x_CD, cluster_C, 0)
    assert found["adjusted_rand_index"] == 1
    assert found["p"] < 0.002
    assert abs(found["permuted_mean"]) < 0.01
    wrong = geometry.clusters(x_CD, rng.permutation(cluster_C), 0)
    assert abs(wrong["adjusted_rand_index"]) < 0.1
    assert wrong["p"] > 0.05


@settings(deadline=None, max_examples=50)
@given(st.lists(st.integers(0, 4), min_size=6, max_size=30), st.integers(0, 1000))
def test_adjusted_rand_is_scikit_learns(labels: list[int], seed: int) -> None:
    from sklearn.metrics import adjusted_rand_score

    given_C = np.array(labels)
    if len(set(labels)) < 2 or len(set(labels)) == len(labels):
        return
    rng = np.random.default_rng(seed)
    found_C, many_PC = rng.integers(0, 3, len(given_C)), geometry.permutations(given_C, rng, 5)
    if len(set(found_C)) < 2:
        return
    wanted = [adjusted_rand_score(one_C, found_C) for one_C in many_PC]
    assert geometry.adjusted_rand(many_PC, found_C) == pytest.approx(wanted)


def test_a_planted_axis_is_the_leading_component_and_is_read_out(rng: np.random.Generator) -> None:
    valence_C = rng.standard_normal(CONCEPTS)
    axis_D = unit(rng.standard_normal((1, WIDTH)))[0]
    x_CD = 6 * np.outer(valence_C, axis_D) + rng.standard_normal((CONCEPTS, WIDTH))
    leading = geometry.components(x_CD)
    assert leading.explained_K[0] > 0.5
    found = geometry.against(leading.scores_CK, valence_C, 0)
    assert found["best_component"] == 1
    assert found["best_abs_r"] > 0.95
    assert found["best_p"] < 0.002
    noise_CD = rng.standard_normal((CONCEPTS, WIDTH))
    groups = {"both": ["1", "2"], "one": ["1"]}
    read = readout.readouts({"1": noise_CD, "2": x_CD}, groups, valence_C, {}, 0)
    assert read["places"]["2"]["r"] > 0.9
    assert read["places"]["2"]["p"] < 0.01
    assert abs(read["places"]["1"]["r"]) < 0.5
    assert read["places"]["1"]["p"] > 0.05
    assert read["chosen_within_folds"]["both"]["r"] == read["places"]["2"]["r"]
    assert read["chosen_within_folds"]["both"]["times_chosen"] == {"1": 0, "2": readout.FOLDS}
    assert read["chosen_within_folds"]["one"]["r"] == read["places"]["1"]["r"]


def test_read_outs_are_held_against_other_ratings_of_fewer_words(rng: np.random.Generator) -> None:
    """The read-out knows its own words' ratings alone; the other raters mean the opposite, of half of the words."""
    valence_C = rng.standard_normal(CONCEPTS)
    x_CD = np.column_stack([3 * valence_C, rng.standard_normal((CONCEPTS, WIDTH))])
    rated_C, other_C = np.where(np.arange(CONCEPTS) < 36, valence_C, np.nan), -valence_C
    other_C[::2] = np.nan
    found = readout.readouts({"a": x_CD}, {"a": ["a"]}, rated_C, {"other": other_C}, 0)
    assert found["places"]["a"]["n"] == 36
    other = found["against_other_ratings"]["other"]
    assert other["n"] == 18 and other["agreement_of_the_ratings"] == pytest.approx(-1)
    assert other["r"] == pytest.approx(-other["r_fitted_on_all_words"])
    assert other["r_fitted_on_all_words"] > 0.8
    assert other["r_fitted_on_fewer_words"] != other["r_fitted_on_all_words"]


def test_unrelated_ratings_are_not_found(rng: np.random.Generator) -> None:
    found = geometry.against(geometry.components(rng.standard_normal((CONCEPTS, WIDTH))).scores_CK, np.arange(40.0), 0)
    assert found["best_p"] > 0.05
    assert found["best_abs_r_permuted_mean"] == pytest.approx(0.26, abs=0.06)


def test_predictions_are_scikit_learns_ridge_on_unseen_words(rng: np.random.Generator) -> None:
    """Rotating wide vectors into their own span must change nothing."""
    from sklearn.linear_model import RidgeCV
    from sklearn.model_selection import KFold

    x_CD, rating_C = rng.standard_normal((CONCEPTS, 90)), rng.standard_normal(CONCEPTS)
    rating_CP = np.column_stack([rating_C, rating_C[::-1]])
    found = readout.predicted({"a": x_CD}, rating_CP, {}, 3).of_CP["a"]
    wanted = np.zeros_like(rating_C)
    for train, test in KFold(readout.FOLDS, shuffle=True, random_state=3).split(x_CD):
        ridge = RidgeCV(readout.PENALTIES).fit(unit(x_CD)[train], rating_C[train])
        wanted[test] = ridge.predict(unit(x_CD)[test])
    assert found[:, 0] == pytest.approx(wanted, abs=1e-6)


def test_groups_explain_the_component_that_follows_them(rng: np.random.Generator, cluster_C: np.ndarray) -> None:
    scores_CK = np.column_stack([cluster_C + 0.1 * rng.standard_normal(CONCEPTS), rng.standard_normal(CONCEPTS)])
    first, second = geometry.explained_by_groups(scores_CK, cluster_C, 0)
    assert first["share"] > 0.95 and first["p"] < 0.002
    assert second["permuted_mean"] == pytest.approx((CLUSTERS - 1) / (CONCEPTS - 1), abs=0.02)
    assert second["p"] > 0.02


def test_likeness_of_arrangements(rng: np.random.Generator, cluster_C: np.ndarray) -> None:
    x_CD = clustered(rng, cluster_C)
    turned_CD = x_CD @ np.linalg.qr(rng.standard_normal((WIDTH, WIDTH)))[0]
    assert geometry.likeness(x_CD, 3 * turned_CD, 0)["r"] == pytest.approx(1)
    assert geometry.likeness(x_CD, rng.standard_normal((CONCEPTS, WIDTH)), 0)["p"] > 0.05


def test_own_word_is_raised_by_its_own_vector(rng: np.random.Generator) -> None:
    import torch

    W_U_VD = torch.from_numpy(rng.standard_normal((200, WIDTH))).float()
    ids = [[c, 150] for c in range(CONCEPTS)]
    own = own_word(W_U_VD[:CONCEPTS].numpy(), ids, W_U_VD, 0)
    assert own["percentile_of_own_word"] == pytest.approx(1)
    assert own["own_word_in_top_10"] == 1
    assert own["other_vectors_have_it_in_top_10"] < 0.2
    other = own_word(rng.standard_normal((CONCEPTS, WIDTH)), ids, W_U_VD, 0)
    assert other["percentile_of_own_word"] == pytest.approx(0.5, abs=0.15)
    assert other["p"] > 0.02


NAMES = {f"c{n}": n for n in range(6)}


def shown(names: list[str], strength: float, rng: np.random.Generator) -> np.ndarray:
    """Scores of items that show these concepts."""
    table = rng.standard_normal((len(names), len(NAMES)))
    table[np.arange(len(names)), [NAMES[name] for name in names]] += strength
    return table


def by_measure(found: list[scores.Score], measure: str, place: str) -> scores.Score:
    (one,) = [score for score in found if score.measure.startswith(measure) and score.place == place]
    return one


def test_scenarios_that_are_read_and_that_are_not(rng: np.random.Generator) -> None:
    names = [f"c{n % 6}" for n in range(48)]
    probes = Probes(scenarios=tuple(Scenario(name, "text") for name in names))
    read = {"message": shown(names, 8, rng), "reply's colon": shown(names, 0, rng)}
    found = scores.scenarios(probes, read, NAMES, 0)
    assert by_measure(found, "own concept", "message").score == 1
    assert by_measure(found, "AUROC", "message").score > 0.999
    nothing = by_measure(found, "own concept", "reply's colon")
    assert nothing.chance == pytest.approx(1 / 6) and nothing.p > 0.05
    assert by_measure(found, "AUROC", "reply's colon").score == pytest.approx(0.5, abs=0.12)


def test_auroc_of_the_own_concept_is_scikit_learns(rng: np.random.Generator) -> None:
    from sklearn.metrics import roc_auc_score

    own_I = np.arange(30) % 6
    table_IC = rng.standard_normal((30, 6)).round(1)
    wanted = np.mean([roc_auc_score(own_I == c, table_IC[:, c]) for c in range(6)])
    assert scores.recognised("x", table_IC, own_I, 0)[1].score == pytest.approx(wanted)


def test_intensity_knows_its_direction(rng: np.random.Generator) -> None:
    one = Intensity("{x}", (1, 2, 4, 8, 16), {"c0": 1, "c1": -1})
    table_IC = rng.standard_normal((10, 6))
    table_IC[:, 0], table_IC[:, 1] = [*range(5), *range(5)], [*range(5, 0, -1), *range(5, 0, -1)]
    found = scores.intensity(Probes(intensity=(one, one)), {"message": table_IC}, NAMES, 0)
    assert found[0].score == pytest.approx(1) and found[0].n == 4 and found[0].p < 0.01
    turned = one._replace(sign={"c0": -1, "c1": 1})
    assert scores.intensity(Probes(intensity=(turned, turned)), {"message": table_IC}, NAMES, 0)[0].score < -0.99
    everything = np.repeat(table_IC[:, :1], 6, axis=1)
    drift = scores.intensity(Probes(intensity=(one._replace(sign={"c0": 1}),) * 2), {"message": everything}, NAMES, 0)
    assert drift[1].chance == pytest.approx(1) and drift[1].p == 1  # all concepts drift alike: nothing is shown


def test_a_denied_concept_falls(rng: np.random.Generator) -> None:
    names = [f"c{n % 6}" for n in range(24)]
    probes = Probes(negation=tuple(Negation(name, "yes", "no") for name in names))
    read = {"text": np.concatenate([shown(names, 8, rng), shown(names, 0, rng)])}
    found = scores.negation(probes, read, NAMES, 0)
    assert by_measure(found, "lower", "text").score > 0.95
    assert by_measure(found, "falls more", "text").score > 0.95
    assert by_measure(found, "own concept", "text, affirmed").score > 0.95
    assert by_measure(found, "own concept", "text, negated").score < 0.5
    flat = scores.negation(probes, {"text": np.zeros((48, 6))}, NAMES, 0)
    assert by_measure(flat, "lower", "text")[2:] == (0.5, 0.5, 24, 1.0)


def test_binding_tells_recency_from_binding(rng: np.random.Generator) -> None:
    probes = Probes(binding=tuple(Binding("t", "a", "c0", "c1", n % 2 == 0) for n in range(20)))
    last_IC = np.zeros((20, 6))
    last_IC[:, 0] = [-1 if n % 2 == 0 else 1 for n in range(20)]  # whoever was named last
    found = scores.binding(probes, {"last mention": last_IC}, NAMES, 0)
    assert [one.score for one in found] == [0.5, 0.0, 1.0]
    bound = scores.binding(probes, {"last mention": shown(["c0"] * 20, 9, rng)}, NAMES, 0)
    assert [one.score for one in bound] == [1, 1, 1]


def test_whose_concept_is_read_where(rng: np.random.Generator) -> None:
    users, replies = [f"c{n % 3}" for n in range(12)], [f"c{3 + n % 3}" for n in range(12)]
    probes = Probes(
        speaker=tuple(Speaker("t", u, r) for u, r in zip(users, replies, strict=True)),
        masked=tuple(Masked("t", "s", u, r) for u, r in zip(users, replies, strict=True)),
        dialogues=tuple(Dialogue("t", u, r) for u, r in zip(users, replies, strict=True)),
    )
    one, other = shown(users, 9, rng), shown(replies, 9, rng)
    spoken = scores.speaker(probes, {"message": one, "message's end": one, "reply's colon": other}, NAMES, 0)
    assert [score.score for score in spoken] == [1, 1, 1, 1]
    hidden = scores.masked(probes, {"narration": one, "speaker's lines": other}, NAMES, 0)
    assert [score.score for score in hidden[:2]] == [1, 1]
    assert by_measure(hidden, "AUROC", "speaker's lines, real").score < 0.6
    sides = scores.dialogues(probes, {"human turns": one, "assistant turns": other}, NAMES, 0)
    assert min(score.score for score in sides) > 0.95
    swapped = scores.dialogues(probes, {"human turns": other, "assistant turns": one}, NAMES, 0)
    assert by_measure(swapped, "own side", "human turns").score == 0


def test_cosines_and_activations_are_centred(rng: np.random.Generator) -> None:
    x_IX, vectors_CX = rng.standard_normal((9, 4)), rng.standard_normal((3, 4))
    shifted = scores.centred_cosines(x_IX + 100, 7 * vectors_CX)
    assert shifted == pytest.approx(scores.centred_cosines(x_IX, vectors_CX))
    acts = scores.standardised(np.column_stack([x_IX[:, 0] * 1000, np.zeros(9)]))
    assert acts[:, 0].std() == pytest.approx(1)
    assert (acts[:, 1] == 0).all()
