"""Two labellings side by side: the same one agrees wholly, one that knows nothing of it by chance alone."""

import json

import numpy as np
import pytest
from scipy.stats import ortho_group

from sae_emotions.label.agreement import Labels, agreement, cosines

C, F, D = 40, 200, 24


def labels_of(seed: int, labelled: int = 60) -> Labels:
    rng = np.random.default_rng(seed)
    concept_F = np.full(F, -1)
    concept_F[rng.choice(F, labelled, replace=False)] = rng.integers(0, C // 2, labelled)
    return Labels(rng.standard_normal((F, D)), concept_F, rng.random(C) < 0.4, rng.random(C))


def test_a_labelling_agrees_with_itself_wholly() -> None:
    one = labels_of(0)
    found = agreement(one, one, 0, np.arange(C) % 5)
    assert found["labelled_concepts"]["share_found_again"] == found["confirmed_concepts"]["share_found_again"] == 1
    assert found["labelled_concepts"]["p"] < 1e-6
    assert found["concept_auroc"]["spearman"] == 1
    assert found["features"]["labelled"]["share_with_partner"] == 1
    assert found["features"]["labelled"]["share_with_partner_one_to_one"] == 1
    assert found["partners_labels"]["share_labelled"] == 1
    assert found["partners_labels"]["share_of_labelled_with_the_same_concept"] == 1
    assert found["partners_labels"]["share_of_labelled_in_the_same_family"] == 1


def test_order_and_norm_of_features_play_no_part() -> None:
    one, order = labels_of(0), np.random.default_rng(1).permutation(F)
    scale_F = np.random.default_rng(2).uniform(0.1, 9, (F, 1))
    other = one._replace(directions_FD=(one.directions_FD * scale_F)[order], concept_F=one.concept_F[order])
    found, alike = agreement(one, other, 0), agreement(one, one, 0)
    for result in (found, alike):
        del result["features"]["labelled_by_chance"]  # the same draws meet other directions
    assert found == alike


def test_another_dictionary_agrees_by_chance() -> None:
    """Directions in 24 dimensions come near one another at times: the chance level must say how often."""
    one = labels_of(0)
    turned = one.directions_FD @ ortho_group.rvs(D, random_state=3)
    shares, chance = [], []
    for seed in range(20):
        rng = np.random.default_rng(seed)
        other = Labels(turned, rng.permutation(one.concept_F), rng.permutation(one.confirmed_C), rng.random(C))
        found = agreement(one, other, seed)
        assert abs(found["concept_auroc"]["spearman"]) < 0.6
        shares.append(found["confirmed_concepts"]["share_found_again"])
        chance.append(found["confirmed_concepts"]["share_found_again_by_chance"])
        partner, by_chance = (
            found["features"][kind]["share_with_partner"] for kind in ("labelled", "labelled_by_chance")
        )
        assert partner == pytest.approx(by_chance, abs=0.25)
    assert np.mean(shares) == pytest.approx(np.mean(chance), abs=0.1)


def test_the_chance_of_a_label_is_that_of_one_drawn_blindly() -> None:
    """The same directions, but labels dealt anew among the labelled: agreement is what chance says."""
    one = labels_of(0)
    same, chance = [], []
    for seed in range(80):
        dealt = one.concept_F.copy()
        dealt[one.labelled] = np.random.default_rng(seed).permutation(one.concept_F[one.labelled])
        found = agreement(one, one._replace(concept_F=dealt), 0, np.arange(C) % 5)["partners_labels"]
        same.append([found[f"share_of_labelled_{kind}"] for kind in ("with_the_same_concept", "in_the_same_family")])
        chance.append(
            [found[f"share_of_labelled_{kind}_by_chance"] for kind in ("with_the_same_concept", "in_the_same_family")]
        )
    assert np.mean(same, axis=0) == pytest.approx(np.mean(chance, axis=0), abs=0.02)


def test_nothing_labelled_is_no_error() -> None:
    one = labels_of(0)
    nothing = one._replace(concept_F=np.full(F, -1), confirmed_C=np.zeros(C, bool), auroc_C=np.full(C, np.nan))
    for pair in ((nothing, one), (one, nothing), (nothing, nothing)):
        found = agreement(*pair, 0, np.arange(C))
        json.dumps(found, allow_nan=False)
    assert found["labelled_concepts"]["share_found_again"] is None


def test_cosines_are_sklearns() -> None:
    from sklearn.metrics.pairwise import cosine_similarity

    first, second = labels_of(0).directions_FD, labels_of(1).directions_FD[:7]
    first[3] = 0
    assert cosines(first, second) == pytest.approx(cosine_similarity(first, second), abs=1e-6)
