"""Labelled tables: mapping files, rows, and the whole way to figures on the planted model."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml

from sae_emotions.concepts.concept_set import load_concepts
from sae_emotions.config import parse_config
from sae_emotions.errors import UserError
from sae_emotions.tables.evaluate import Reader, evaluate, prepare
from sae_emotions.tables.mapping import Table, load_mapping, tables
from sae_emotions.tables.measure import Labels
from sae_emotions.tables.pooled import pooled
from sae_emotions.tables.rows import read_table, sample, scored

KNOWN = Path(__file__).parents[1] / "eval" / "validity" / "mappings"
GOOD = {
    "name": "weather",
    "files": {"train": ["a.tsv"], "test": ["b.tsv"]},
    "format": "tsv",
    "header": ["body", "codes"],
    "text": "body",
    "kind": "classes",
    "labels": {"column": "codes", "separator": ",", "vocabulary": "labels.txt"},
    "concepts": "stones",
    "map": {"sun": ["amber"], "rain": {"up": ["basalt", "coral"], "down": ["amber"]}, "fog": []},
}
ROWS = [(f'{word} "is" number {n}', code) for n in range(8) for word, code in (("light", "0"), ("wet", "1,2"))]


def write_table(folder: Path, mapping: dict[str, Any], train=ROWS, test=ROWS) -> Table:
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "labels.txt").write_text("sun\nrain\nfog\n")
    for name, rows, tail in (("a.tsv", train, ""), ("b.tsv", test, " again")):
        (folder / name).write_text("".join(f"{text}{tail}\t{codes}\n" for text, codes in rows))
    (folder / "mapping.yaml").write_text(yaml.safe_dump(mapping))
    return Table(load_mapping(folder / "mapping.yaml"), folder)


def test_a_table_is_read_as_its_mapping_says(tmp_path):
    found = read_table(write_table(tmp_path, GOOD), seed=0)
    assert found.labels == ("fog", "rain", "sun")
    assert found.values_TL.sum(0).tolist() == [16, 16, 16] and found.test_T.sum() == 16
    assert 'light "is" number 0' in found.texts


def test_test_rows_that_repeat_training_texts_are_left_out(tmp_path):
    again = [*ROWS, ('LIGHT "is" number 3', "0")]
    found = read_table(
        write_table(tmp_path, GOOD, train=[*ROWS, ('light "is" number 3 again', "0")], test=again), seed=0
    )
    assert found.repeated == 2 and found.test_T.sum() == 15


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"colour": 1}, "unknown key 'colour'"),
        ({"labels": {"column": "codes", "sep": ","}}, r"unknown key 'labels\.sep'"),
        ({"kind": "ranks"}, "kind: Input should be"),
        ({"split": {"hash": None, "test": 0.3}}, "either files of train and test, or a list of files and split"),
        ({"files": {"train": ["a.tsv"]}}, "name both train and test"),
        ({"files": ["a.tsv"], "split": {"hash": None, "test": 2.0}}, "a test share between 0 and 1"),
        ({"kind": "numbers"}, "numbers stand each in a column of their own"),
        ({"format": "jsonl"}, "header goes with csv and tsv"),
        ({"concepts": None}, "of which concept set the map speaks"),
        ({"labels": {}}, "either column or columns"),
    ],
)
def test_a_wrong_mapping_is_refused_in_one_sentence(tmp_path, change, message):
    with pytest.raises(UserError, match=message) as error:
        write_table(tmp_path, GOOD | change)
    assert "mapping.yaml" in str(error.value) and "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"files": {"train": ["a.tsv"], "test": ["c.tsv"]}}, "names c.tsv, which is not in"),
        ({"text": "comment"}, "has no column 'comment'; its columns are: body, codes"),
        ({"map": {"sun": [], "rain": []}}, "does not name the label 'fog'"),
        ({"map": {"sun": [], "rain": [], "fog": [], "hail": []}}, "names the label 'hail', which no row has"),
        ({"labels": {"column": "codes", "separator": ","}}, "does not name the label '0'"),
        ({"labels": {"column": "codes", "separator": ",", "vocabulary": "no.txt"}}, "names the vocabulary no.txt"),
        ({"labels": {"column": "codes", "separator": ",", "vocabulary": {"0": "sun"}}}, "'1' is not in the mapping's"),
        (
            {"kind": "numbers", "labels": {"columns": {"sun": "codes"}}, "map": {}},
            "column codes holds '1,2', no number",
        ),
        ({"files": ["a.tsv"], "split": {"column": "codes", "train": ["0"], "test": ["7"]}}, "leaves no test row"),
    ],
)
def test_a_mapping_that_does_not_fit_its_table_is_refused(tmp_path, change, message):
    table = write_table(tmp_path, GOOD | change)
    with pytest.raises(UserError, match=message):
        read_table(table, seed=0)


def test_splits_by_column_and_by_hash(tmp_path):
    rows = [{"text": f"text {n}", "part": "dev" if n % 4 else "rest", "who": n % 5, "mood": n / 7} for n in range(40)]
    (tmp_path / "all.jsonl").write_text("\n".join(map(json.dumps, rows)))
    base = {
        "name": "m",
        "files": ["*.jsonl"],
        "format": "jsonl",
        "kind": "numbers",
        "labels": {"columns": {"v": "mood"}},
    }

    def found(split):
        (tmp_path / "mapping.yaml").write_text(yaml.safe_dump(base | {"split": split}))
        return read_table(Table(load_mapping(tmp_path / "mapping.yaml"), tmp_path), seed=0)

    by_column = found({"column": "part", "train": ["rest"], "test": ["dev"]})
    assert by_column.test_T.sum() == 30 and by_column.values_TL[7, 0] == pytest.approx(1)
    by_hash = found({"hash": "who", "test": 0.5})
    who_T = np.arange(40) % 5
    assert all(len(set(by_hash.test_T[who_T == who])) == 1 for who in range(5)) and 0 < by_hash.test_T.sum() < 40
    assert [len(set(by_hash.group_T[who_T == who])) for who in range(5)] == [1] * 5
    one_by_one = found({"hash": None, "test": 0.5})
    assert 10 < one_by_one.test_T.sum() < 30 and len(set(one_by_one.group_T)) == 40


def test_rare_classes_are_drawn_more_often(tmp_path):
    rows = [(f"text {n}", "1" if n % 20 == 0 else "0") for n in range(400)]
    mapping = GOOD | {"rows": {"train": 100, "test": 50}, "map": {"sun": [], "rain": []}}
    table = write_table(tmp_path, mapping, rows, rows)
    found = read_table(table, seed=0)
    drawn = sample(found, table.mapping, seed=0)
    rain = found.labels.index("rain")
    assert len(drawn.train_N) == 100 and len(drawn.test_N) == 50
    assert found.values_TL[drawn.train_N, rain].sum() > 8  # 5 of 100 in an even sample
    label_N, left = scored(found, drawn, table.mapping)
    few = found.values_TL[drawn.test_N, rain].sum() < 5
    assert ("rain" in left) == few and len(label_N) + len(left) == 2


def test_known_mappings_name_concepts_of_the_built_in_set(tmp_path):
    concepts = load_concepts("builtin:emotions")
    names = {concept.name for concept in concepts.concepts}
    found = tables(KNOWN, tmp_path)
    assert {one.mapping.name for one in found} == {"edos", "emobank", "emotion20", "goemotions", "vader", "xed"}
    for one in found:
        assert one.mapping.concepts == concepts.name and not (one.is_there and one.mapping.folder)
        assert {word for own in one.mapping.map.values() for word in (*own.up, *own.down)} <= names


def test_known_mappings_fit_the_shared_tables(shared_dir):
    there = [one for one in tables(KNOWN, shared_dir / "data") if one.is_there]
    assert there
    for one in there:
        found = read_table(one, seed=0)
        drawn = sample(found, one.mapping, seed=0)
        label_N, left = scored(found, drawn, one.mapping)
        assert set(left) == set(one.mapping.labels.unscored), one.mapping.name
        assert len(label_N) == len(found.labels) - len(left)


def test_own_mappings_are_found_and_take_the_place_of_known_ones(tmp_path):
    write_table(tmp_path / "data" / "mine" / "deep", GOOD | {"name": "goemotions"})
    by_name = {one.mapping.name: one for one in tables(KNOWN, tmp_path / "data")}
    assert by_name["goemotions"].folder == tmp_path / "data" / "mine" / "deep"
    assert by_name["goemotions"].is_there and not by_name["xed"].is_there
    write_table(tmp_path / "data" / "other", GOOD | {"name": "goemotions"})
    with pytest.raises(UserError, match="both named 'goemotions'; rename one"):
        tables(KNOWN, tmp_path / "data")


SHOWN = ("amber", "basalt", "heliodor", "lazurite")


@pytest.fixture(scope="module")
def reader(planted):
    """The planted model and SAE; every cued concept's chosen feature is the planted one."""
    import torch

    from sae_emotions.adapters.saelens import load
    from sae_emotions.dictionary.encode import wrapped
    from sae_emotions.sources.models import load_model
    from tests.planted import BLOCK, directions, truth

    config = parse_config(planted.config, "planted")
    feature = truth().feature
    dense_CD = np.stack([directions().of[f"concept {name}"] for name in feature])
    labels = Labels(tuple(feature), np.array(list(feature.values())), dense_CD.astype(np.float32))
    dictionary = wrapped(load(planted.folder / "sae"), "planted", BLOCK)
    return Reader(config, load_model(config.model, torch.float32), dictionary, labels, "stones")


def stories(count: int, seed: int) -> list[tuple[str, str]]:
    """Filler words with two cue words of one concept; which concept is the label."""
    from tests.planted_words import FILLER, cues

    rng = np.random.default_rng(seed)
    found = []
    for n in range(count):
        name = SHOWN[n % len(SHOWN)]
        words = [str(word) for word in rng.choice(FILLER, 10)]
        for at, cue in zip(rng.choice(np.arange(5, 10), 2, replace=False), rng.choice(cues(name), 2), strict=True):
            words[at] = str(cue)
        found.append((" ".join(words), name))
    return found


@pytest.fixture(scope="module")
def invented(tmp_path_factory) -> Path:
    """A folder of tables with one invented set; "gems" and "rest" are labels of other names than the concepts'."""
    folder = tmp_path_factory.mktemp("tables")
    naming = {"amber": "gems", "basalt": "gems", "heliodor": "yellow", "lazurite": "blue"}
    for name, count, seed in (("train", 120, 1), ("test", 80, 2)):
        rows = [{"text": text, "is": naming[concept]} for text, concept in stories(count, seed)]
        (folder / f"{name}.json").write_text(json.dumps([*rows, {"text": "alone", "is": "blue"}]))
    mapping = {
        "name": "stones",
        "files": {"train": ["train.json"], "test": ["test.json"]},
        "format": "json",
        "kind": "classes",
        "labels": {"column": "is"},
        "concepts": "stones",
        "map": {"gems": ["amber", "basalt"], "yellow": ["heliodor"], "blue": []},
    }
    (folder / "mapping.yaml").write_text(yaml.safe_dump(mapping))
    return folder


def test_planted_features_read_an_invented_table(reader, invented):
    ready = prepare(reader, Table(load_mapping(invented / "mapping.yaml"), invented))
    assert ready.unread == 1  # "alone" is of one token; the test row is left out as a repeated one
    found = evaluate(reader, ready)
    methods = found["methods"]
    assert (found["measure"], found["chance"], found["train_rows"], found["test_rows"]) == ("AUROC", 0.5, 120, 80)
    assert methods["zero_shot_features"]["labels"].keys() == {"gems", "yellow"}
    assert methods["zero_shot_features"]["labels"]["yellow"] == 1
    assert methods["zero_shot_features"]["macro"] > 0.9 and methods["zero_shot_dense"]["macro"] > 0.9
    assert methods["best_feature"]["labels"]["yellow"] == 1 and methods["best_feature"]["labels"]["blue"] == 1
    assert methods["best_feature"]["labels"]["gems"] < 0.9 < methods["five_features"]["labels"]["gems"]
    for name in ("five_features", "sixteen_features", "all_features", "residual_regression", "tfidf"):
        assert methods[name]["macro"] > 0.9, name
    for name in ("permuted_best_feature", "permuted_all_features", "random_direction"):
        assert abs(methods[name]["macro"] - 0.5) < 0.2, name
    low, high = methods["all_features"]["interval"]
    assert low <= methods["all_features"]["macro"] <= high
    assert json.dumps(found, allow_nan=False)


def test_another_concept_set_carries_nothing_over(reader, invented, monkeypatch):
    handed = []
    monkeypatch.setattr(
        "sae_emotions.tables.evaluate.measure", lambda rows, read, labels, words, seed: handed.append(words)
    )
    for name in ("stones", "others"):
        own = reader._replace(concept_set=name)
        evaluate(own, prepare(own, Table(load_mapping(invented / "mapping.yaml"), invented)))
    assert set(handed[0]) == {"gems", "yellow", "blue"} and handed[1] == {}


def test_a_word_that_is_no_concept_is_refused(reader, invented):
    mapping = load_mapping(invented / "mapping.yaml")
    wrong = type(mapping).model_validate(mapping.model_dump() | {"map": {"gems": ["ambre"], "yellow": [], "blue": []}})
    with pytest.raises(UserError, match="maps 'gems' to 'ambre', which is no concept of the set 'stones'"):
        prepare(reader, Table(wrong, invented))


def test_pooling_is_that_of_the_tokens(reader):
    from sae_emotions.harvest.harvest import shard_rows
    from sae_emotions.tables.pooled import token_ids

    texts = [stories(1, 3)[0][0], " ".join(stories(1, 4)[0][0].split()[:3]), stories(2, 5)[1][0]]
    ids, read_T = token_ids(texts, reader.model, 128)
    assert read_T.all()
    got = pooled(ids, reader.model, reader.dictionary, reader.config.harvest, "read")
    for text, one in enumerate(ids):
        rows = shard_rows(reader.model, 0, [one], reader.config.harvest, []).rows[reader.dictionary.block]
        for skip in (1, 4):
            x_ND = rows[skip - 1 :] if len(one) > skip else rows
            acts_NF = reader.dictionary.features(x_ND).numpy()
            wanted = {"mean": acts_NF.mean(0), "max": acts_NF.max(0), "root mean": np.sqrt(acts_NF).mean(0)}
            for pool, wanted_F in wanted.items():
                assert got.acts[pool, skip][[text]].toarray()[0] == pytest.approx(wanted_F, abs=1e-4)
            assert got.resid[skip][text] == pytest.approx(x_ND.mean(0).numpy(), abs=1e-4)
    assert got.tokens_T.tolist() == [len(one) for one in ids]
