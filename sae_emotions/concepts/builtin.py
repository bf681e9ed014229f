"""The built-in concept set: 171 emotions, 4,617 stories (see data/README.md; CC BY 4.0)."""

import csv
import gzip
import json
from functools import cache
from importlib import resources
from importlib.resources.abc import Traversable
from typing import Any

from sae_emotions.concepts.checks import content_hash
from sae_emotions.concepts.shape import Concept, ConceptSet, ConceptText, Norm

BUILT_IN = ("emotions",)
_CELLS = {"plain": "plain", "literary": "literary", "crossed": "literary"}  # cell: its register


def _data() -> Traversable:
    return resources.files("sae_emotions.concepts") / "data"


def _lines(name: str) -> list[dict[str, Any]]:
    packed = (_data() / f"{name}.jsonl.gz").read_bytes()
    return [json.loads(line) for line in gzip.decompress(packed).decode("utf-8").splitlines()]


def _rows() -> list[dict[str, str]]:
    return list(csv.DictReader((_data() / "concepts.csv").read_text(encoding="utf-8").splitlines()))


def _concepts() -> tuple[Concept, ...]:
    return tuple(Concept(r["name"], r["name"], r["family"] or None, r["definition"] or None) for r in _rows())


def _norms() -> tuple[Norm, ...]:
    rows = _rows()
    return tuple(Norm(name, tuple(float(r[f"{name}_model_rated"]) for r in rows)) for name in ("valence", "arousal"))


def _texts(cell: str, topics: dict[str, str]) -> list[ConceptText]:
    return [
        ConceptText(
            id=f"{cell}/{row['topic_id']:02d}/{row['emotion'].replace(' ', '_')}",
            concept=row["emotion"],
            topic=topics[str(row["topic_id"])],
            register=_CELLS[cell],
            cell=cell,
            split="selection" if row["split"] == "train" else "held_out",
            text=row["text"],
        )
        for row in _lines(cell)
    ]


@cache
def load_builtin(name: str) -> ConceptSet:
    """The built-in set `name`. Selection: plain and literary `train` topics. Held out: the others and all crossed."""
    topics = json.loads((_data() / "topics.json").read_text(encoding="utf-8"))
    plain = ConceptSet(
        name=name,
        concepts=_concepts(),
        texts=tuple(text for cell in _CELLS for text in _texts(cell, topics)),
        registers=("plain", "literary"),
        cells=tuple(_CELLS),
        neutral=tuple(row["text"] for row in _lines("neutral")),
        readout="\nThe main character feels",
        sha256="",
        norms=_norms(),
    )
    return plain._replace(sha256=content_hash(plain))
