"""The built-in concept set and concept-set folders."""

import csv
import json
from collections import Counter
from pathlib import Path

import pytest

from sae_emotions.concepts.concept_set import ConceptSet, concept_named, load_concepts
from sae_emotions.errors import UserError

REGISTERS = ("simple", "dense")
SETTINGS = {"name": "colours", "registers": list(REGISTERS), "cells": list(REGISTERS), "readout": "\nIts colour is"}


@pytest.fixture(scope="module")
def builtin() -> ConceptSet:
    return load_concepts("builtin:emotions")


def write_set(folder: Path, **changes: object) -> Path:
    """A small valid concept set, 3 concepts x 2 topics a register and split; `changes` replaces what a file holds."""
    texts = [
        {
            "id": f"{register}-{split}-{topic}-{concept}",
            "concept": concept,
            "topic": f"{split} {topic}",
            "register": register,
            "cell": register,
            "split": split,
            "text": f"A {concept} thing on topic {topic}.",
        }
        for register in REGISTERS
        for split in ("selection", "held_out")
        for topic in range(2)
        for concept in ("red", "green", "blue")
    ]
    folder.mkdir(exist_ok=True)
    (folder / "set.json").write_text(json.dumps(changes.get("settings", SETTINGS)), encoding="utf-8")
    table = [["name", "word", "family"], ["red", "", "warm"], ["green", "", ""], ["blue", "azure", ""]]
    with (folder / "concepts.csv").open("w", newline="", encoding="utf-8") as file:
        csv.writer(file).writerows(changes.get("concepts", table))  # type: ignore[arg-type]
    edit = changes.get("edit", lambda found: found)
    lines = [json.dumps(row) for row in edit(texts)]  # type: ignore[operator]
    (folder / "texts.jsonl").write_text("\n".join(lines) + "\n", encoding="utf-8")
    return folder


def test_builtin_has_every_story_once_in_its_place(builtin: ConceptSet) -> None:
    counts = Counter((text.cell, text.register, text.split) for text in builtin.texts)
    assert counts == {
        ("plain", "plain", "selection"): 1026,
        ("plain", "plain", "held_out"): 513,
        ("literary", "literary", "selection"): 1368,
        ("literary", "literary", "held_out"): 684,
        ("crossed", "literary", "held_out"): 1026,
    }
    assert len(builtin.concepts) == 171 and len(builtin.neutral) == 120
    assert len({concept.family for concept in builtin.concepts}) == 10
    assert len({text.id for text in builtin.texts}) == len(builtin.texts)


def test_no_topic_of_the_builtin_set_is_both_chosen_on_and_held_out(builtin: ConceptSet) -> None:
    chosen = {text.topic for text in builtin.texts if text.split == "selection"}
    held_out = {text.topic for text in builtin.texts if text.split == "held_out"}
    assert len(chosen) == 24 and len(held_out) == 18 and not chosen & held_out


def test_builtin_equals_the_shared_stories(builtin: ConceptSet, shared_dir: Path) -> None:
    for cell in builtin.cells:
        lines = (shared_dir / "stories" / f"{cell}.jsonl").read_text(encoding="utf-8").splitlines()
        there = Counter((row["emotion"], row["text"]) for row in map(json.loads, lines))
        assert there == Counter((text.concept, text.text) for text in builtin.texts if text.cell == cell)


def test_concept_named_finds_names_and_words_and_suggests_near_ones(builtin: ConceptSet, tmp_path: Path) -> None:
    assert concept_named(builtin, " At  Ease ").name == "at ease"
    assert concept_named(load_concepts(str(write_set(tmp_path / "set"))), "azure").name == "blue"
    with pytest.raises(UserError, match="did you mean afraid"):
        concept_named(builtin, "afrade")


def test_a_folder_is_read_and_its_hash_follows_its_content(tmp_path: Path) -> None:
    found = load_concepts(str(write_set(tmp_path / "one")))
    assert found.name == "colours" and found.registers == REGISTERS and found.readout == "\nIts colour is"
    assert [(c.name, c.word, c.family) for c in found.concepts] == [
        ("red", "red", "warm"),
        ("green", "green", None),
        ("blue", "azure", None),
    ]
    assert len(found.texts) == 24 and found.neutral == ()
    (tmp_path / "one" / "neutral.jsonl").write_text('{"text": "A stone."}\n', encoding="utf-8")
    again = load_concepts(str(tmp_path / "one"))
    assert again.neutral == ("A stone.",) and again.sha256 != found.sha256


def moved(topic: str) -> object:
    return lambda texts: [{**row, "topic": topic} if "simple-selection-0" in row["id"] else row for row in texts]


def changed(number: int, **fields: object) -> object:
    return lambda texts: [{**row, **fields} if i == number else row for i, row in enumerate(texts)]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"edit": changed(0, concept="purple")}, "unknown concept 'purple'"),
        ({"edit": changed(0, register="odd")}, "unknown register 'odd'"),
        ({"edit": changed(0, split="train")}, "unknown split 'train'"),
        ({"edit": changed(0, cell="dense")}, "used in two registers"),
        ({"edit": changed(0, text="  ")}, "is empty"),
        ({"edit": changed(0, text=3)}, "line 1, has no text field 'text'"),
        ({"edit": changed(1, id="simple-selection-0-red")}, "is there twice"),
        ({"edit": changed(1, concept="red")}, "has two texts on topic"),
        ({"edit": moved("held_out 0")}, "both selection and held_out"),
        ({"edit": lambda t: [r for r in t if "selection-1" not in r["id"]]}, "has 1 selection topics; at least 2"),
        ({"edit": lambda t: [r for r in t if not ("simple-held" in r["id"] and "red" in r["id"])]}, "no held_out text"),
        ({"concepts": [["name"], ["red"]]}, "at least two concepts"),
        ({"concepts": [["colour"], ["red"]]}, "no column 'name'"),
        ({"settings": {**SETTINGS, "registers": ["simple"]}}, "two different registers"),
        ({"settings": {**SETTINGS, "cells": ["A b"]}}, "column name"),
        ({"settings": {"name": "x", "readout": "y", "regs": 1}}, "unknown key 'regs'"),
        ({"settings": {"name": "x"}}, "'name' and 'readout'"),
    ],
)
def test_a_broken_folder_is_refused_with_a_sentence(tmp_path: Path, changes: dict[str, object], message: str) -> None:
    with pytest.raises(UserError, match=message):
        load_concepts(str(write_set(tmp_path / "set", **changes)))


def test_what_is_not_there_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="no built-in concept set 'colours'; the built-in ones are: emotions"):
        load_concepts("builtin:colours")
    with pytest.raises(UserError, match="no concept set"):
        load_concepts(str(tmp_path / "nowhere"))
    folder = write_set(tmp_path / "set")
    (folder / "texts.jsonl").write_text("{broken\n", encoding="utf-8")
    with pytest.raises(UserError, match="line 1, is not valid JSON"):
        load_concepts(str(folder))
    (folder / "texts.jsonl").unlink()
    with pytest.raises(UserError, match=r"lacks texts\.jsonl"):
        load_concepts(str(folder))


def test_norms_are_numbers_of_every_concept(builtin: ConceptSet, tmp_path: Path) -> None:
    assert [norm.name for norm in builtin.norms] == ["valence", "arousal"]
    names = [concept.name for concept in builtin.concepts]
    valence = dict(zip(names, builtin.norms[0].values, strict=True))
    assert valence["blissful"] > 7 > 3 > valence["terrified"]
    table = [["name", "norm_warmth"], ["red", "8"], ["green", "4.5"], ["blue", "2"]]
    assert load_concepts(str(write_set(tmp_path / "set", concepts=table))).norms == (("warmth", (8.0, 4.5, 2.0)),)


@pytest.mark.parametrize("value", ["", "warm", "nan"])
def test_a_norm_that_is_no_number_is_refused(tmp_path: Path, value: str) -> None:
    table = [["name", "norm_warmth"], ["red", "8"], ["green", value], ["blue", "2"]]
    with pytest.raises(UserError, match="'green' has no number in column 'norm_warmth'"):
        load_concepts(str(write_set(tmp_path / "set", concepts=table)))
