"""What is read of a removal: the words' weights, what they are compared with, and the sum in units of the others' scatter."""

import numpy as np
import pytest
import torch

from sae_emotions.causal.profile import FEWEST, outside_of, profile_of, read
from sae_emotions.causal.readouts import WordTree


def tree(single, double):
    return WordTree((1,), (9,), (-1,), tuple(((-1, n),) for n in range(single)) + (((-1, 9), (0, 1)),) * double)


def test_a_word_is_compared_with_whole_words_outside_its_family():
    families = ["a"] * 5 + ["b"] * 20 + [None] * 5
    assert outside_of(tree(25, 5), families, 0).tolist() == list(range(5, 25))
    assert outside_of(tree(25, 5), families, 10).tolist() == list(range(5))
    assert outside_of(tree(25, 5), families, 27).tolist() == list(range(25))


def test_few_whole_words_or_one_family_fall_back_to_all():
    assert outside_of(tree(3, 3), [None] * 6, 1).tolist() == [0, 2, 3, 4, 5]
    assert outside_of(tree(25, 0), ["a"] * 25, 1).tolist() == [0, *range(2, 25)]


def unit(rng, concepts, width=12):
    return torch.nn.functional.normalize(torch.from_numpy(rng.standard_normal((concepts, width))).float(), dim=1)


def test_words_weigh_as_their_concepts_are_alike():
    dense_CD = unit(np.random.default_rng(0), 30)
    found = profile_of(tree(25, 5), [None] * 30, dense_CD, 27)
    read_C = np.append(np.arange(25), 27)
    assert sorted(np.flatnonzero(found.weight_C)) == read_C.tolist()  # words of several tokens cost nodes: own alone
    assert found.weight_C.sum() == pytest.approx(0, abs=1e-12)
    assert np.linalg.norm(found.weight_C) == pytest.approx(1)
    assert found.weight_C.argmax() == 27
    cosine_C = (dense_CD @ dense_CD[27]).numpy()
    assert (np.argsort(found.weight_C[read_C]) == np.argsort(cosine_C[read_C])).all()
    assert set(found.words) == set(read_C) | set(found.outside)


def changes(rng, texts, words=30, shift=None):
    shift = np.zeros(words) if shift is None else shift
    whole = {t: shift + rng.standard_normal(words) for t in texts}
    return {t: (all_W * np.nan, all_W) for t, all_W in whole.items()}


def test_a_removal_is_read_by_its_mean_change():
    rng = np.random.default_rng(1)
    profile = profile_of(tree(30, 0), ["a"] * 4 + [None] * 26, unit(rng, 30), 2)
    one = changes(rng, [3, 5])
    found = read([one, {}], [3, 5, 8], profile)  # nothing was run on text 8: it changed nothing
    mean_W = (one[3][1] + one[5][1]) / 3
    assert found.word_N[0] == pytest.approx(mean_W[2] - mean_W[4:].mean())
    assert found.profile_N[0] == pytest.approx(profile.weight_C @ mean_W)
    assert found.specific_N[0] == pytest.approx(found.profile_N[0] / mean_W[4:].std())
    assert [column[1] for column in (found.word_N, found.profile_N, found.specific_N)] == [0, 0, 0]
    assert found.some(np.array([False, True])).word_N.tolist() == [0]


def test_what_moves_all_words_alike_or_more_is_not_specific():
    rng = np.random.default_rng(2)
    profile = profile_of(tree(30, 0), [None] * 30, unit(rng, 30), 2)
    one = changes(rng, [0])
    alike = {0: (one[0][0], one[0][1] + 7.0)}
    louder = {0: (one[0][0], one[0][1] * 7.0)}
    first, same, again = read([one, alike, louder], [0], profile).specific_N
    assert same == pytest.approx(first)
    assert again == pytest.approx(first)


def test_few_words_outside_are_no_unit():
    rng = np.random.default_rng(3)
    profile = profile_of(tree(FEWEST, 0), [None] * FEWEST, unit(rng, FEWEST), 0)
    assert len(profile.outside) == FEWEST - 1
    found = read([changes(rng, [0], FEWEST)], [0], profile)
    assert found.specific_N[0] == found.profile_N[0]
