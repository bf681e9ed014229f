"""The words of the planted model: its concepts, its vocabulary, its concept texts and its general text.

Knows no vectors: `tests.planted` gives each word its direction. The kinds of concept are explained there.
"""

import csv
import json
from functools import cache
from pathlib import Path
from typing import NamedTuple

import numpy as np

SEED = 7
FIRST, SECOND, CROSSED = "first", "second", "crossed"
READOUT = "\nThe main character feels"
KINDS = {
    "causal": ("amber", "basalt", "coral", "dolomite", "emerald", "flint", "garnet", "rose quartz"),
    "bystander": ("heliodor", "iolite", "jasper", "kyanite"),
    "unread": ("lazurite", "marble"),
    "first_only": ("nephrite", "onyx"),
    "second_only": ("pearl", "quartzite"),
    "selection_only": ("ruby", "slate"),
    "register_bound": ("topaz", "ulexite"),
    "silent": ("variscite", "wulfenite"),
}
CONCEPTS = tuple(sorted(name for names in KINDS.values() for name in names))
CUED = tuple(name for name in CONCEPTS if name not in KINDS["silent"])
TOPICS = {FIRST: 15, SECOND: 15, CROSSED: 5}
HELD_OUT_FROM = 10  # topics of both registers from this number on are held out; all crossed ones are
FILLERS, WORDS_A_TEXT, CUES_A_CONCEPT = 150, 48, 3
STYLE = ["thereupon", "albeit"]


class Text(NamedTuple):
    """One concept text."""

    id: str
    concept: str
    topic: str
    register: str
    cell: str
    split: str
    text: str


def kind_of(concept: str) -> str:
    return next(kind for kind, names in KINDS.items() if concept in names)


def family_of(concept: str) -> str:
    """Six families of four, each of mixed kinds."""
    return f"family-{CONCEPTS.index(concept) % 6}"


def cues(concept: str) -> list[str]:
    return [f"{concept.replace(' ', '')}cue{i}" for i in range(CUES_A_CONCEPT)]


def topic_words(topic: str) -> list[str]:
    return [f"{topic.replace('-', '')}word{i}" for i in range(2)]


def topics() -> list[str]:
    return [f"{cell}-{n:02d}" for cell, count in TOPICS.items() for n in range(count)]


SYLLABLES = [c + v for c in "bdfgklmnprstvz" for v in "aeiou"]
FILLER = [SYLLABLES[i % 70] + SYLLABLES[(i * 11 + 3) % 70] + SYLLABLES[(i * 29 + i // 70) % 70] for i in range(FILLERS)]
SPECIAL = ["<pad>", "<unk>", "<eos>"]


@cache
def vocabulary() -> list[str]:
    """All words, special ones first."""
    words = [*SPECIAL, ".", *READOUT.split(), *FILLER, *STYLE]
    words += [word for name in CONCEPTS for word in name.split()]
    words += [word for name in CUED for word in cues(name)]
    words += [word for topic in topics() for word in topic_words(topic)]
    assert len(set(words)) == len(words)
    return words


def filler_weights() -> np.ndarray:
    weights = 1 / (np.arange(FILLERS) + 40.0)
    return weights / weights.sum()


def _words(rng: np.random.Generator, count: int) -> list[str]:
    return [str(word) for word in rng.choice(FILLER, count, p=filler_weights())]


def _put(rng: np.random.Generator, words: list[str], extra: list[str]) -> None:
    """Replace words from the 13th on, but not the last, by `extra`, at random places."""
    for place, word in zip(rng.choice(np.arange(12, len(words) - 1), len(extra), replace=False), extra, strict=True):
        words[place] = word


def _is_cued(concept: str, cell: str, split: str) -> bool:
    match kind_of(concept):
        case "silent":
            return False
        case "register_bound":
            return cell == FIRST
        case "first_only":
            return split == "selection" or cell == FIRST
        case "second_only":
            return split == "selection" or cell != FIRST
        case "selection_only":
            return split == "selection"
    return True


@cache
def texts() -> tuple[Text, ...]:
    """All concept texts: one a concept and topic, in every cell."""
    rng = np.random.default_rng(SEED + 5)
    everywhere = [name for name in CONCEPTS if kind_of(name) in ("causal", "bystander", "unread")]
    made = []
    for topic in topics():
        cell, number = topic.split("-")
        split = "held_out" if cell == CROSSED or int(number) >= HELD_OUT_FROM else "selection"
        for concept in CONCEPTS:
            words = _words(rng, int(WORDS_A_TEXT + rng.integers(-6, 7)))
            extra = [str(word) for word in rng.choice(topic_words(topic), 2)]
            if cell != FIRST:
                extra += STYLE
            if _is_cued(concept, cell, split):
                extra += [str(word) for word in rng.choice(cues(concept), rng.integers(2, 5))]
            if rng.random() < 0.25:  # someone else's cue: no feature is perfect
                extra.append(str(rng.choice(cues(str(rng.choice(everywhere))))))
            _put(rng, words, extra)
            register = FIRST if cell == FIRST else SECOND
            name = f"{topic}-{concept.replace(' ', '_')}"
            made.append(Text(name, concept, topic, register, cell, split, " ".join(words) + " ."))
    return tuple(made)


def neutral_texts() -> list[str]:
    rng = np.random.default_rng(SEED + 6)
    return [" ".join(_words(rng, WORDS_A_TEXT)) + " ." for _ in range(24)]


def build_corpus(path: Path, documents: int = 240) -> Path:
    """Write the general text: jsonl with a column `text`."""
    rng = np.random.default_rng(SEED + 8)
    strewn = [word for concept in CUED for word in cues(concept)] + STYLE + topic_words(topics()[0])
    with path.open("w", encoding="utf-8") as file:
        for _ in range(documents):
            words = _words(rng, int(rng.integers(25, 70)))
            extra = [str(word) for word in rng.choice(strewn, rng.integers(0, 4))]
            _put(rng, words, extra)
            file.write(json.dumps({"text": " ".join(words) + " ."}) + "\n")
    return path


def _write_lines(path: Path, rows: list[dict[str, str]]) -> None:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")


def build_concepts(folder: Path) -> Path:
    """Write the concept set as a folder that `load_concepts` reads."""
    folder.mkdir(parents=True)
    settings = {"name": "minerals", "registers": [FIRST, SECOND], "cells": list(TOPICS), "readout": READOUT}
    (folder / "set.json").write_text(json.dumps(settings), encoding="utf-8")
    with (folder / "concepts.csv").open("w", encoding="utf-8", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["name", "word", "family", "definition"])
        writer.writerows([name, name, family_of(name), f"the mineral {name}"] for name in CONCEPTS)
    _write_lines(folder / "texts.jsonl", [text._asdict() for text in texts()])
    _write_lines(folder / "neutral.jsonl", [{"text": text} for text in neutral_texts()])
    return folder
