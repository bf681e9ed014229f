"""What a concept set must fulfil so that concepts can be compared within topics."""

import hashlib
import json
import re
from collections import Counter, defaultdict
from collections.abc import Iterable

from sae_emotions.concepts.shape import ConceptSet
from sae_emotions.errors import UserError

SPLITS = ("selection", "held_out")


def content_hash(concepts: ConceptSet) -> str:
    """sha256 of everything in the set but the hash itself."""
    text = json.dumps(concepts._replace(sha256=""), ensure_ascii=False, separators=(",", ":"))
    return hashlib.sha256(text.encode()).hexdigest()


def checked(concepts: ConceptSet, origin: str) -> ConceptSet:
    """Return `concepts` if it can be used. Raises `UserError` with the first thing that is wrong, naming `origin`."""
    _names(concepts, origin)
    _fields(concepts, origin)
    _topics(concepts, origin)
    return concepts


def _twice(items: Iterable[str]) -> str | None:
    return next((item for item, n in Counter(items).items() if n > 1), None)


def _names(concepts: ConceptSet, origin: str) -> None:
    if len(concepts.concepts) < 2:
        raise UserError(f"{origin}: a concept set needs at least two concepts.")
    if any(not concept.name.strip() for concept in concepts.concepts):
        raise UserError(f"{origin}: a concept has no name.")
    for what, names in (("concept", [c.name for c in concepts.concepts]), ("text id", [t.id for t in concepts.texts])):
        if (double := _twice(names)) is not None:
            raise UserError(f"{origin}: the {what} '{double}' is there twice; make it unique.")
    for cell in concepts.cells:
        if not re.fullmatch(r"[a-z0-9_]+", cell):
            raise UserError(f"{origin}: the cell '{cell}' becomes a column name; use a-z, 0-9 and _ only.")


def _fields(concepts: ConceptSet, origin: str) -> None:
    known = {
        "concept": {c.name for c in concepts.concepts},
        "register": set(concepts.registers),
        "cell": set(concepts.cells),
        "split": set(SPLITS),
    }
    registers: dict[str, str] = {}
    for text in concepts.texts:
        for field, allowed in known.items():
            value = getattr(text, field)
            if value not in allowed:
                some = ", ".join(sorted(allowed)[:5])
                raise UserError(f"{origin}: text '{text.id}' has the unknown {field} '{value}'; known are: {some} …")
        if not text.text.strip():
            raise UserError(f"{origin}: text '{text.id}' is empty.")
        if registers.setdefault(text.cell, text.register) != text.register:
            raise UserError(f"{origin}: the cell '{text.cell}' is used in two registers; give each register its own.")


def _topics(concepts: ConceptSet, origin: str) -> None:
    on_topic: dict[tuple[str, str, str], list[str]] = defaultdict(list)
    topics: dict[tuple[str, str], set[str]] = defaultdict(set)
    seen: set[tuple[str, str, str]] = set()
    for text in concepts.texts:
        on_topic[text.cell, text.topic, text.split].append(text.concept)
        topics[text.register, text.split].add(text.topic)
        seen.add((text.register, text.split, text.concept))
    for register in concepts.registers:
        for split in SPLITS:
            if (n := len(topics[register, split])) < 2:
                raise UserError(f"{origin}: register '{register}' has {n} {split} topics; at least 2 are needed.")
            for concept in concepts.concepts:
                if (register, split, concept.name) not in seen:
                    raise UserError(f"{origin}: concept '{concept.name}' has no {split} text in register '{register}'.")
    for (cell, topic, split), names in on_topic.items():
        if (double := _twice(names)) is not None:
            raise UserError(f"{origin}: '{double}' has two texts on topic '{topic}' in cell '{cell}'; keep one.")
        if len(names) < 2:
            raise UserError(f"{origin}: topic '{topic}' in cell '{cell}' ({split}) has one text; nothing to compare.")
    _held_out_topics_are_new(concepts, origin)


def _held_out_topics_are_new(concepts: ConceptSet, origin: str) -> None:
    splits: dict[str, str] = {}
    for text in concepts.texts:
        if splits.setdefault(text.topic, text.split) != text.split:
            raise UserError(f"{origin}: topic '{text.topic}' is both selection and held_out; a topic may be one only.")
