"""Probe sets of a concept set: short texts whose right answer is known, none of them a story the concepts were found on.

A folder `probes` beside a set's other files may hold any of these (gzip allowed, as NAME.gz); what is not there is empty.

scenarios.jsonl    concept, text: what a user tells, the concept unnamed
intensity.json     a list of {id, template with {x}, values, expect: {concept: up or down}}
negation.jsonl     concept, affirmed, negated: one sentence and its denial
binding.jsonl      text, person_a, concept_a, person_b, concept_b, mention (one of the persons, named again), expected
speaker.jsonl      text, user_concept, reply_concept: a user's message, and what a fitting reply would show
masked.jsonl       speaker, real, displayed, text: a narrated cause, then lines that show something else
dialogues.jsonl    text ("Human:" and "Assistant:" paragraphs), human_concept, assistant_concept
"""

import gzip
import json
from importlib import resources
from importlib.resources.abc import Traversable
from pathlib import Path
from typing import Any, NamedTuple

from sae_emotions.concepts.concept_set import load_concepts
from sae_emotions.errors import UserError


class Scenario(NamedTuple):
    """A message that shows a concept without naming it."""

    concept: str
    text: str


class Intensity(NamedTuple):
    """A message with a number in it, and which concepts rise or fall with that number."""

    template: str
    values: tuple[float, ...]
    sign: dict[str, int]
    """concept to 1 (rises) or -1 (falls)"""


class Negation(NamedTuple):
    """A sentence that names a concept, and its denial."""

    concept: str
    affirmed: str
    negated: str


class Binding(NamedTuple):
    """Two persons of unlike concepts, one of whom is mentioned again at the end."""

    text: str
    mention: str
    expected: str
    other: str
    named_first: bool
    """whether the mentioned person is the one that the text names first"""


class Speaker(NamedTuple):
    """A user's message, and the concept of a fitting reply."""

    text: str
    user: str
    reply: str


class Masked(NamedTuple):
    """A narrated cause, then a dialogue in which the speaker shows something else."""

    text: str
    speaker: str
    real: str
    displayed: str


class Dialogue(NamedTuple):
    """A conversation whose two sides show unlike concepts."""

    text: str
    human: str
    assistant: str


class Probes(NamedTuple):
    """All probe sets of a concept set; any may be empty."""

    scenarios: tuple[Scenario, ...] = ()
    intensity: tuple[Intensity, ...] = ()
    negation: tuple[Negation, ...] = ()
    binding: tuple[Binding, ...] = ()
    speaker: tuple[Speaker, ...] = ()
    masked: tuple[Masked, ...] = ()
    dialogues: tuple[Dialogue, ...] = ()


def load_probes(source: str) -> Probes:
    """Probe sets of `builtin:NAME` or a concept-set folder.

    Raises `UserError` for a broken file, a field that is missing, or a concept that the set does not have.
    """
    known = {concept.name for concept in load_concepts(source).concepts}
    folder = _folder(source)
    made = Probes(
        scenarios=tuple(Scenario(r["concept"], r["text"]) for r in _rows(folder, "scenarios.jsonl", "concept text")),
        intensity=tuple(_intensity(folder, r) for r in _rows(folder, "intensity.json", "template values expect")),
        negation=tuple(
            Negation(r["concept"], r["affirmed"], r["negated"])
            for r in _rows(folder, "negation.jsonl", "concept affirmed negated")
        ),
        binding=tuple(
            _binding(r)
            for r in _rows(folder, "binding.jsonl", "text person_a concept_a person_b concept_b mention expected")
        ),
        speaker=tuple(
            Speaker(r["text"], r["user_concept"], r["reply_concept"])
            for r in _rows(folder, "speaker.jsonl", "text user_concept reply_concept")
        ),
        masked=tuple(
            Masked(r["text"], r["speaker"], r["real"], r["displayed"])
            for r in _rows(folder, "masked.jsonl", "text speaker real displayed")
        ),
        dialogues=tuple(
            Dialogue(r["text"], r["human_concept"], r["assistant_concept"])
            for r in _rows(folder, "dialogues.jsonl", "text human_concept assistant_concept")
        ),
    )
    for name, concept in _named(made):
        if concept not in known:
            raise UserError(f"{source}: the probe set '{name}' names the unknown concept '{concept}'.")
    return made


def _folder(source: str) -> Traversable:
    if source.startswith("builtin:"):
        return resources.files("sae_emotions.concepts") / "data" / "probes"
    return Path(source) / "probes"


def _rows(folder: Traversable, name: str, fields: str) -> list[dict[str, Any]]:
    packed, plain = folder / f"{name}.gz", folder / name
    if not (packed.is_file() or plain.is_file()):
        return []
    try:
        data = gzip.decompress(packed.read_bytes()) if packed.is_file() else plain.read_bytes()
        text = data.decode("utf-8")
        rows = json.loads(text) if name.endswith(".json") else [json.loads(x) for x in text.splitlines() if x.strip()]
    except (UnicodeDecodeError, json.JSONDecodeError, gzip.BadGzipFile, EOFError) as error:
        raise UserError(f"The probe set {name} of this concept set cannot be read: {error}.") from None
    # The built-in files say what their concepts are.
    rows = [{key.replace("emotion", "concept"): value for key, value in row.items()} for row in rows]
    for number, row in enumerate(rows, 1):
        for field in fields.split():
            if field not in row:
                raise UserError(f"The probe set {name} lacks the field '{field}' in row {number}; add it.")
    return rows


def _intensity(folder: Traversable, row: dict[str, Any]) -> Intensity:
    signs = {"up": 1, "down": -1}
    wrong = [way for way in row["expect"].values() if way not in signs]
    if wrong or "{x}" not in row["template"]:
        raise UserError(
            f"intensity.json: '{row['template'][:40]}' needs {{x}}, and expects up or down of each concept."
        )
    return Intensity(row["template"], tuple(row["values"]), {name: signs[way] for name, way in row["expect"].items()})


def _binding(row: dict[str, Any]) -> Binding:
    concepts = (row["concept_a"], row["concept_b"])
    if row["mention"] not in (row["person_a"], row["person_b"]) or row["expected"] not in concepts:
        raise UserError(f"binding.jsonl: '{row['text'][:40]}' mentions or expects what it does not name.")
    other = concepts[0] if row["expected"] == concepts[1] else concepts[1]
    first = min((row["person_a"], row["person_b"]), key=row["text"].find)
    return Binding(row["text"], row["mention"], row["expected"], other, row["mention"] == first)


def _named(made: Probes) -> list[tuple[str, str]]:
    found = [("scenarios", one.concept) for one in made.scenarios]
    found += [("intensity", name) for one in made.intensity for name in one.sign]
    found += [("negation", one.concept) for one in made.negation]
    found += [("binding", name) for one in made.binding for name in (one.expected, one.other)]
    found += [("speaker", name) for one in made.speaker for name in (one.user, one.reply)]
    found += [("masked", name) for one in made.masked for name in (one.real, one.displayed)]
    found += [("dialogues", name) for one in made.dialogues for name in (one.human, one.assistant)]
    return found
