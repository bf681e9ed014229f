"""Probe sets and word ratings: the built-in ones, folders, and what is refused."""

import gzip
import json
from pathlib import Path

import pytest

from sae_emotions.concepts.concept_set import load_concepts
from sae_emotions.concepts.norms import own_norms, read_norms
from sae_emotions.concepts.probes import Binding, Intensity, Probes, load_probes
from sae_emotions.errors import UserError
from tests.test_concepts import write_set

BUILT_IN = "builtin:emotions"


def write_probes(folder: Path, **files: list[dict[str, object]]) -> str:
    """A small concept set (red, green, blue) with some probe sets; intensity is written packed."""
    write_set(folder)
    (folder / "probes").mkdir()
    for name, rows in files.items():
        if name == "intensity":
            (folder / "probes" / "intensity.json.gz").write_bytes(gzip.compress(json.dumps(rows).encode()))
        else:
            text = "".join(json.dumps(row) + "\n" for row in rows)
            (folder / "probes" / f"{name}.jsonl").write_text(text, encoding="utf-8")
    return str(folder)


BOUND: dict[str, object] = {
    "text": "Ann is green, Bo is red. In came Ann.",
    "person_a": "Bo",
    "concept_a": "red",
    "person_b": "Ann",
    "concept_b": "green",
    "mention": "Ann",
    "expected": "green",
}
GROWING: dict[str, object] = {"template": "{x} of it", "values": [1, 2.5], "expect": {"red": "up", "blue": "down"}}


def test_built_in_probes_name_built_in_concepts_only() -> None:
    found = load_probes(BUILT_IN)
    assert {name: len(rows) for name, rows in found._asdict().items()} == {
        "scenarios": 96, "intensity": 12, "negation": 32, "binding": 24, "speaker": 24, "masked": 120, "dialogues": 150,
    }  # fmt: skip
    assert sum(one.named_first for one in found.binding) == 12
    assert all(one.expected != one.other for one in found.binding)


def test_a_folder_may_hold_some_probes_or_none(tmp_path: Path) -> None:
    assert load_probes(str(write_set(tmp_path / "bare"))) == Probes()
    found = load_probes(write_probes(tmp_path / "some", binding=[BOUND], intensity=[GROWING]))
    assert found.binding == (Binding(str(BOUND["text"]), "Ann", "green", "red", True),)
    assert found.intensity == (Intensity("{x} of it", (1, 2.5), {"red": 1, "blue": -1}),)
    assert found.scenarios == ()


@pytest.mark.parametrize(
    ("files", "message"),
    [
        ({"scenarios": [{"concept": "mauve", "text": "t"}]}, "'scenarios' names the unknown concept 'mauve'"),
        ({"scenarios": [{"concept": "red"}]}, "lacks the field 'text' in row 1"),
        ({"binding": [BOUND | {"mention": "Cy"}]}, "does not name"),
        ({"intensity": [GROWING | {"template": "no number"}]}, "needs {x}"),
        ({"intensity": [GROWING | {"expect": {"red": "sideways"}}]}, "up or down"),
    ],
)
def test_wrong_probes_are_refused(tmp_path: Path, files: dict[str, list[dict[str, object]]], message: str) -> None:
    source = write_probes(tmp_path / "set", **files)
    with pytest.raises(UserError) as error:
        load_probes(source)
    assert message in str(error.value)


def test_broken_probes_are_refused(tmp_path: Path) -> None:
    source = write_probes(tmp_path / "set")
    (tmp_path / "set" / "probes" / "masked.jsonl").write_text("{")
    with pytest.raises(UserError, match=r"masked.jsonl .* cannot be read"):
        load_probes(source)
    (tmp_path / "set" / "probes" / "masked.jsonl.gz").write_bytes(b"not gzip")
    with pytest.raises(UserError, match=r"masked.jsonl .* cannot be read"):
        load_probes(source)


@pytest.mark.parametrize(
    ("content", "asked"),
    [
        ("Word,V.Mean.Sum,A.Mean.Sum\nred,2,3\nBlue,4,5\n", ""),
        ("id;term;Arousal (1-9);valence\n1;red;3;2\n2;blue;5;4\n", ""),
        ("Words,AROU,,VAL\n,M,SD,M\nred,3,1,2\nblue,5,1,4\nblue,9,9,9\n", ""),
        ("a\tb\tc\nred\t3\t2\nblue\t5\t4\n", "=a,c,b"),
        ("red,x,2,3\nblue,y,4,5\n", "=1,3,4"),
    ],
)
def test_ratings_are_read_from_any_table(tmp_path: Path, content: str, asked: str) -> None:
    path = tmp_path / "some.csv"
    path.write_text(content)
    found = read_norms(f"{path}{asked}")
    assert found.name == "some"
    assert found.ratings == {"valence": {"red": 2, "blue": 4}, "arousal": {"red": 3, "blue": 5}}
    concepts = load_concepts(str(write_set(tmp_path / "set")))
    assert found.of(concepts, "valence") == [2, None, 4]  # red, green, blue


def test_a_lexicon_without_a_header_is_word_and_valence(tmp_path: Path) -> None:
    path = tmp_path / "lexicon.txt"
    path.write_text('"\t1\t0.5\t[1, 2]\nazure\t-1.5\t0.8\t[-1, -1, -2, -2]\n')
    found = read_norms(str(path))
    assert found.ratings == {"valence": {'"': 1, "azure": -1.5}}
    concepts = load_concepts(str(write_set(tmp_path / "set")))
    assert found.of(concepts, "valence") == [None, None, -1.5]  # by blue's word


@pytest.mark.parametrize(
    ("content", "asked", "message"),
    [
        ("word,valence\nred,2\n", "=word,joy", "no column 'joy'"),
        ("word,valence\nred,2\n", "=word,3", "no column '3'"),
        ("word,valence\nred,2\n", "=word", "two or three columns"),
        ("word,pleasure\nred,2\n", "", "no column for valence"),
        ("stimulus,valence\nred,2\n", "", "no column for word"),
        ("word,valence\nred,high\n", "", "hold no number"),
        ("", "", "no column for word"),
    ],
)
def test_wrong_ratings_are_refused(tmp_path: Path, content: str, asked: str, message: str) -> None:
    path = tmp_path / "some.csv"
    path.write_text(content)
    with pytest.raises(UserError) as error:
        read_norms(f"{path}{asked}")
    assert message in str(error.value)


def test_missing_ratings_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(UserError, match="no file of word ratings"):
        read_norms(str(tmp_path / "none.csv"))
    (tmp_path / "latin.csv").write_bytes("word,valence\ncafé,1\n".encode("latin-1"))
    with pytest.raises(UserError, match="not UTF-8"):
        read_norms(str(tmp_path / "latin.csv"))
    monkeypatch.setattr("sae_emotions.concepts.norms.find_spec", lambda name: None)
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UserError, match="vaderSentiment is not installed"):
        read_norms("vader")


def test_a_set_may_bring_its_own_ratings(tmp_path: Path) -> None:
    built_in = own_norms(BUILT_IN)
    assert built_in is not None
    assert built_in.name == "model_rated"
    concepts = load_concepts(BUILT_IN)
    assert None not in built_in.of(concepts, "valence") + built_in.of(concepts, "arousal")
    assert own_norms(str(write_set(tmp_path / "bare"))) is None
    table = [["name", "valence"], ["red", "1"], ["green", ""], ["blue", "-2"]]
    rated = own_norms(str(write_set(tmp_path / "rated", concepts=table)))
    assert rated is not None
    assert rated.name == "own" and rated.ratings == {"valence": {"red": 1, "blue": -2}}


def test_glasgow_rates_82_of_the_words(shared_dir: Path) -> None:
    found = read_norms(str(shared_dir / "data" / "glasgow" / "glasgow_norms.csv"))
    concepts = load_concepts(BUILT_IN)
    for dimension in ("valence", "arousal"):
        assert sum(value is not None for value in found.of(concepts, dimension)) == 82
