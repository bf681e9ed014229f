"""The probe sets as texts to read, and where in each text they are read.

Messages stand in the paper's form, "Human: ... Assistant:"; the last colon is where a reply would begin. A place to read
is a set of character ranges; a token belongs to it if it overlaps one of them.
"""

from collections.abc import Sequence
from typing import Any, NamedTuple

from sae_emotions.concepts.probes import Dialogue, Masked, Probes
from sae_emotions.errors import UserError
from sae_emotions.vectors.reading import Span

Range = tuple[int, int]


class Prompt(NamedTuple):
    """One text and the places where it is read."""

    text: str
    places: dict[str, list[Range]]


class Battery(NamedTuple):
    """The prompts of one probe set, in its order (negation: affirmed ones first; intensity: template by template)."""

    name: str
    prompts: list[Prompt]


def message(text: str) -> Prompt:
    """A user's message, read over all of it, at its end, and at the colon where the reply begins."""
    opening, text = "Human: ", text.strip()
    whole = f"{opening}{text}\n\nAssistant:"
    end = len(opening) + len(text)
    return Prompt(
        whole,
        {
            "message": [(len(opening), end)],
            "message's end": [(end - 1, end)],
            "reply's colon": [(len(whole) - 1, len(whole))],
        },
    )


def sentence(text: str) -> Prompt:
    """A bare text, read over all of it and at its end."""
    text = text.strip()
    return Prompt(text, {"text": [(0, len(text))], "text's end": [(len(text) - 1, len(text))]})


def mentioned(text: str, name: str) -> Prompt:
    """A bare text, read where `name` stands last, and at the text's end."""
    text = text.strip()
    at = text.rindex(name)
    return Prompt(text, {"last mention": [(at, at + len(name))], "text's end": [(len(text) - 1, len(text))]})


def paragraphs(text: str) -> list[tuple[Range, str]]:
    """Range and text of each paragraph; paragraphs are parted by an empty line."""
    found, at = [], 0
    for one in text.split("\n\n"):
        found.append(((at, at + len(one)), one))
        at += len(one) + 2
    return found


def masked(one: Masked) -> Prompt:
    """Narration and the speaker's own lines, apart."""
    lines = paragraphs(one.text)
    spoken = [place for place, text in lines if text.startswith(f"{one.speaker}:")]
    return Prompt(one.text, {"narration": [lines[0][0]], "speaker's lines": spoken})


def dialogue(one: Dialogue) -> Prompt:
    """Either side's turns, apart."""
    lines = paragraphs(one.text)
    sides = {"human turns": "Human:", "assistant turns": "Assistant:"}
    return Prompt(
        one.text, {name: [place for place, text in lines if text.startswith(mark)] for name, mark in sides.items()}
    )


def batteries(probes: Probes) -> list[Battery]:
    """All probe sets that are there."""
    made = [
        Battery("scenarios", [message(one.text) for one in probes.scenarios]),
        Battery("intensity", [message(one.template.format(x=x)) for one in probes.intensity for x in one.values]),
        Battery(
            "negation",
            [sentence(one.affirmed) for one in probes.negation] + [sentence(one.negated) for one in probes.negation],
        ),
        Battery("binding", [mentioned(one.text, one.mention) for one in probes.binding]),
        Battery("speaker", [message(one.text) for one in probes.speaker]),
        Battery("masked", [masked(one) for one in probes.masked]),
        Battery("dialogues", [dialogue(one) for one in probes.dialogues]),
    ]
    return [one for one in made if one.prompts]


class Plan(NamedTuple):
    """All prompts as token ids, their spans, and where the mean of each (battery, place) is to be found."""

    ids: list[list[int]]
    spans: list[Span]
    spans_of: dict[tuple[str, str], list[list[int]]]
    """(battery, place) to, prompt by prompt, the numbers of its spans"""


def plan(made: Sequence[Battery], tokenizer: Any) -> Plan:
    """Tokenise all prompts and turn ranges of characters into ranges of tokens; the first token of a text has no row.

    Raises `UserError` for a place without a token.
    """
    found = Plan([], [], {})
    for battery in made:
        for prompt in battery.prompts:
            encoded = tokenizer(prompt.text, return_offsets_mapping=True)
            offsets, number = encoded["offset_mapping"], len(found.ids)
            found.ids.append(encoded["input_ids"])
            for place, ranges in prompt.places.items():
                numbers = []
                for low, high in ranges:
                    inside = [n for n, (start, stop) in enumerate(offsets) if start < high and stop > low and n > 0]
                    if not inside:
                        continue
                    numbers.append(len(found.spans))
                    found.spans.append(Span(number, inside[0], inside[-1] + 1))
                if not numbers:
                    raise UserError(f"The probe '{prompt.text[:40]}' of '{battery.name}' has no token for: {place}.")
                found.spans_of.setdefault((battery.name, place), []).append(numbers)
    return found
