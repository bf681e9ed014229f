"""The grain of a label on planted story means: a concept, a family and a norm are told apart; so is what only looks like one."""

import numpy as np
import pytest

from sae_emotions.concepts.shape import Concept, ConceptSet, ConceptText, Norm
from sae_emotions.config import LabelConfig
from sae_emotions.label.families import found_families, given_families
from sae_emotions.label.layout import Layout, layout
from sae_emotions.label.means import StoryMeans
from sae_emotions.label.measure import Measured, measure
from sae_emotions.label.tables import explanations, scope_auroc

FAMILIES, EACH = 5, 6
C = FAMILIES * EACH
WORD, FAMILY, LOW, LENGTH, NOISE = range(5)
FEATURES = 40
SETTINGS = LabelConfig(permutations=20, bootstraps=50, families=FAMILIES)
NAMES = tuple(f"concept{c:02d}" for c in range(C))
WARMTH = np.repeat([2.0, 1.0, 0.0, -1.0, -2.0], EACH) + np.tile(np.linspace(-1.2, 1.2, EACH), FAMILIES)


@pytest.fixture(scope="module")
def concepts() -> ConceptSet:
    texts = [
        ConceptText(
            f"{register}/{split}/{topic}/{c}", NAMES[c], f"{split} {topic}", register, register, split, "A tale."
        )
        for register in ("first", "second")
        for split in ("selection", "held_out")
        for topic in range(6)
        for c in range(C)
    ]
    names = tuple(Concept(name, name, f"family{c // EACH}" if c != 29 else None, None) for c, name in enumerate(NAMES))
    registers, norms = ("first", "second"), (Norm("warmth", tuple(WARMTH)),)
    return ConceptSet("planted", names, tuple(texts), registers, registers, (), "", "0" * 64, norms)


@pytest.fixture(scope="module")
def story(concepts: ConceptSet) -> StoryMeans:
    rng = np.random.default_rng(1)
    concept_T = np.array([NAMES.index(text.concept) for text in concepts.texts])
    acts = rng.random((len(concept_T), FEATURES)).astype(np.float32)
    tokens = rng.integers(20, 60, len(concept_T))
    tokens[concept_T == 21] += 30
    acts[:, WORD] += 2.0 * (concept_T == 8)
    acts[:, FAMILY] += 0.8 * (concept_T // EACH == 2)
    acts[:, LOW] -= 0.5 * WARMTH[concept_T]
    acts[:, LENGTH] = tokens + 5 * acts[:, LENGTH]
    centres = rng.standard_normal((FAMILIES, 16))
    resid = (
        3 * centres[concept_T // EACH] + rng.standard_normal((C, 16))[concept_T] + rng.standard_normal((len(acts), 16))
    )
    return StoryMeans(acts, resid.astype(np.float32), tokens)


@pytest.fixture(scope="module")
def found(concepts: ConceptSet) -> Layout:
    return layout(concepts)


@pytest.fixture(scope="module")
def measured(concepts: ConceptSet, found: Layout, story: StoryMeans) -> Measured:
    return measure(concepts, found, story, SETTINGS, seed=0)


def test_every_planted_feature_gets_its_grain(measured: Measured) -> None:
    found = measured.grain
    grain = {int(f): (kind, scope) for f, kind, scope in zip(found.feature_P, found.kind_P, found.scope_P, strict=True)}
    assert grain[WORD] == ("concept", "concept08")
    assert grain[FAMILY][0] == "family"
    assert set(np.flatnonzero(measured.grain.weights_PC[list(grain).index(FAMILY)])) == set(range(12, 18))
    assert grain[LOW] == ("norm", "low warmth")
    assert set(grain) <= {WORD, FAMILY, LOW, LENGTH}
    assert measured.null["permutations_with_any_label"] == 0


def test_given_families_are_reported_beside_the_found_ones(measured: Measured) -> None:
    given = dict(zip(measured.given_grain.feature_P.tolist(), measured.given_grain.scope_P, strict=True))
    assert given[WORD] == "concept08" and given[FAMILY] == "family2"


def test_a_label_that_length_explains_says_so_and_the_others_do_not(measured: Measured) -> None:
    explained = dict(zip(measured.grain.feature_P.tolist(), explanations(measured, SETTINGS.q), strict=True))
    assert "length" in explained[LENGTH]
    assert all("length" not in explained[f] and "person" not in explained[f] for f in (WORD, FAMILY, LOW))


def test_scope_auroc_is_that_of_all_its_concepts(measured: Measured) -> None:
    auroc = dict(zip(measured.grain.feature_P.tolist(), scope_auroc(measured), strict=True))
    assert auroc[WORD] == 1.0
    assert 0.85 < auroc[FAMILY] < 1.0  # 1 - (1 - .8)^2 / 2 = .98 within a topic, less for its small numbers


def test_families_are_found_where_the_vectors_lie_together() -> None:
    rng = np.random.default_rng(1)
    vectors = np.repeat(rng.standard_normal((3, 8)), 4, axis=0) + 0.1 * rng.standard_normal((12, 8))
    found = found_families([f"c{i}" for i in range(12)], vectors, 3)
    assert sorted(np.bincount(found.of_C)) == [4, 4, 4]
    assert all(len(set(found.of_C[i : i + 4])) == 1 for i in (0, 4, 8))
    assert all(name.count(",") == 2 and name.endswith(" …") for name in found.names)
    np.testing.assert_array_equal(found.inside_GC().sum(0), 1)


def test_a_concept_of_no_family_stands_alone(concepts: ConceptSet) -> None:
    given = given_families(concepts.concepts)
    assert len(given.names) == FAMILIES + 1 and given.names[given.of_C[29]] == "concept29"
