"""What the label stage reads from rows: story means, contexts, the logit lens, the ledger. Fakes follow the store."""

from collections import defaultdict
from pathlib import Path

import numpy as np
import pytest
import torch

from sae_emotions.errors import UserError
from sae_emotions.label import contexts, means
from sae_emotions.label.contexts import top_contexts
from sae_emotions.label.ledger import looks, note_look
from sae_emotions.label.lens import logit_lens
from sae_emotions.label.means import document_means, embedding_means, rows_to_read, story_means
from sae_emotions.sparse.shapes import Active


class FakeRows:
    """Documents of some length whose window starts (every seventh position) have no row."""

    def __init__(self, lengths: list[int], width: int, seed: int) -> None:
        spans = [[p for p in range(length) if p % 7] for length in lengths]
        self.document_N = np.concatenate([np.full(len(s), d, np.int32) for d, s in enumerate(spans)])
        self.position_N = np.concatenate([np.array(s, np.int32) for s in spans])
        self.token_N = np.arange(len(self.document_N), dtype=np.int32)
        self.x_ND = np.random.default_rng(seed).standard_normal((len(self), width)).astype(np.float32)

    def __len__(self) -> int:
        return len(self.document_N)

    def read(self, index_N: np.ndarray) -> np.ndarray:
        return self.x_ND[index_N]


class FakeDictionary:
    d_sae = 6

    def __init__(self, width: int) -> None:
        self.W_dec_FD = torch.randn(self.d_sae, width, generator=torch.Generator().manual_seed(0))

    def features(self, x_BD: torch.Tensor) -> torch.Tensor:
        acts = torch.relu(x_BD @ self.W_dec_FD.T - 0.5)
        acts[:, 5] = 0  # a dead one
        return acts

    def active(self, x_BD: torch.Tensor) -> Active:
        return Active.of(self.features(x_BD))


LENGTHS = [30, 12, 41, 25, 60, 13]
IDS = ("e", "d", "c", "b", "a")
KEYS = ("a", "b", "not a concept text", "c", "d", "e")


@pytest.fixture
def rows() -> FakeRows:
    return FakeRows(LENGTHS, 4, seed=1)


@pytest.fixture
def dictionary() -> FakeDictionary:
    return FakeDictionary(4)


def test_story_means_are_plain_means_after_the_opening(
    rows: FakeRows, dictionary: FakeDictionary, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(means, "BATCH", 9)
    seen: list[int] = []
    found = story_means(rows, KEYS, dictionary, IDS, 10, advance=seen.append)
    acts = dictionary.features(torch.from_numpy(rows.x_ND)).numpy()
    for text, name in enumerate(IDS):
        here = (rows.document_N == KEYS.index(name)) & (rows.position_N >= 10)
        assert found.tokens_T[text] == here.sum() > 0
        np.testing.assert_allclose(found.acts_TF[text], acts[here].mean(0), atol=1e-5)
        np.testing.assert_allclose(found.resid_TD[text], rows.x_ND[here].mean(0), atol=1e-5)
    assert sum(seen) == rows_to_read(rows, KEYS, IDS, 10) == found.tokens_T.sum()


def test_texts_that_are_not_wanted_are_not_read(rows: FakeRows, dictionary: FakeDictionary) -> None:
    rows.x_ND[rows.document_N == KEYS.index("c")] = np.nan
    wanted = np.array([name != "c" for name in IDS])
    found = story_means(rows, KEYS, dictionary, IDS, 10, wanted)
    assert np.isfinite(found.acts_TF).all()
    assert found.tokens_T[IDS.index("c")] == 0


def test_missing_and_short_texts_are_refused(rows: FakeRows, dictionary: FakeDictionary) -> None:
    with pytest.raises(UserError, match="lack 'z'"):
        story_means(rows, KEYS, dictionary, (*IDS, "z"), 10)
    with pytest.raises(UserError, match="'b' has no token after the first 12"):
        story_means(rows, KEYS, dictionary, IDS, 12)


def test_embedding_means_are_over_the_same_tokens(rows: FakeRows) -> None:
    rows.token_N = np.random.default_rng(3).choice([4, 9, 11, 30], len(rows)).astype(np.int32)
    token_n, W_E_nD = np.array([4, 9, 11, 30]), np.random.default_rng(4).random((4, 3)).astype(np.float32)
    found = embedding_means(rows, KEYS, IDS, 10, token_n, W_E_nD)
    for text, name in enumerate(IDS):
        here = (rows.document_N == KEYS.index(name)) & (rows.position_N >= 10)
        expected = np.mean([W_E_nD[token_n.tolist().index(token)] for token in rows.token_N[here]], axis=0)
        np.testing.assert_allclose(found[text], expected, rtol=1e-5)
    with pytest.raises(UserError, match="lacks tokens"):
        embedding_means(rows, KEYS, IDS, 10, token_n[:3], W_E_nD[:3])


def test_document_means_leave_short_documents_out(rows: FakeRows, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(means, "BATCH", 9)
    found = document_means(rows, 20, 4)
    long = [d for d in range(4) if LENGTHS[d] > 21]
    expected = [rows.x_ND[(rows.document_N == d) & (rows.position_N >= 20)].mean(0) for d in long]
    assert len(long) == 3
    np.testing.assert_allclose(found, expected, atol=1e-5)


@pytest.mark.parametrize("batch", [5, 17, 4096])
def test_top_contexts_are_those_of_brute_force(
    rows: FakeRows, dictionary: FakeDictionary, monkeypatch: pytest.MonkeyPatch, batch: int
) -> None:
    monkeypatch.setattr(contexts, "BATCH", batch)
    n, width = 3, 9
    found = top_contexts(rows, dictionary, n, width)
    acts = dictionary.features(torch.from_numpy(rows.x_ND)).numpy()
    np.testing.assert_allclose(found.density_F, (acts > 0).mean(0))
    place = {(d, p): i for i, (d, p) in enumerate(zip(rows.document_N, rows.position_N, strict=True))}
    for feature in range(dictionary.d_sae):
        loudest: dict[int, tuple[float, int]] = defaultdict(lambda: (0.0, -1))
        for row in range(len(rows)):
            loudest[rows.document_N[row]] = max(loudest[rows.document_N[row]], (acts[row, feature], row))
        expected = sorted((v for v in loudest.values() if v[0] > 0), reverse=True)[:n]
        mine = np.flatnonzero(found.feature_K == feature)
        assert found.rank_K[mine].tolist() == list(range(len(expected)))
        for k, (value, row) in zip(mine, expected, strict=True):
            where = rows.document_N[row], rows.position_N[row]
            assert (found.document_K[k], found.position_K[k]) == where
            assert found.value_K[k] == pytest.approx(value, rel=1e-5)
            shown = [place.get((where[0], where[1] - found.before + w), -1) for w in range(width)]
            np.testing.assert_allclose(
                found.values_KW[k], [acts[i, feature] if i >= 0 else 0 for i in shown], rtol=1e-4, atol=1e-6
            )


@pytest.mark.parametrize("batch", [5, 4096])
def test_a_passage_that_the_text_repeats_is_shown_once(
    dictionary: FakeDictionary, monkeypatch: pytest.MonkeyPatch, batch: int
) -> None:
    monkeypatch.setattr(contexts, "BATCH", batch)
    rows = FakeRows([20, 20, 20], 4, seed=2)
    third = len(rows) // 3
    for column in (rows.token_N, rows.x_ND):  # the second document says what the first one says
        column[third : 2 * third] = column[:third]
    found = top_contexts(rows, dictionary, 3, 9)
    live = found.feature_K != 5
    assert 2 in found.document_K[live]
    assert (np.unique(found.feature_K[live], return_counts=True)[1] == 2).all()


def test_logit_lens_orders_tokens_by_the_product() -> None:
    generator = torch.Generator().manual_seed(3)
    W_dec, W_U = torch.randn(5, 4, generator=generator), torch.randn(30, 4, generator=generator)
    found = logit_lens(W_dec, W_U.half(), n=7)
    logits = (W_dec @ W_U.half().float().T).numpy()
    for feature in range(5):
        order = np.argsort(-logits[feature])
        assert found.top_Fn[feature].tolist() == order[:7].tolist()
        assert found.bottom_Fn[feature].tolist() == order[::-1][:7].tolist()
        np.testing.assert_allclose(found.top_logit_Fn[feature], logits[feature, order[:7]], rtol=1e-5)


def test_a_ledger_only_grows(tmp_path: Path) -> None:
    path = tmp_path / "ledger.jsonl"
    assert looks(path) == []
    note_look(path, {"dictionary": "one"})
    before = path.read_bytes()
    note_look(path, {"dictionary": "two"})
    assert path.read_bytes().startswith(before)
    assert [look["dictionary"] for look in looks(path)] == ["one", "two"]
    assert all(look["date"] for look in looks(path))
