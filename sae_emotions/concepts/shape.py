"""The shape of a concept set in memory."""

from typing import NamedTuple


class Concept(NamedTuple):
    """One thing that is looked for."""

    name: str
    word: str  # as it is read out after a text, such as "at ease"
    family: str | None
    definition: str | None


class Norm(NamedTuple):
    """One number a concept, such as its valence, in the order of the set's concepts."""

    name: str
    values: tuple[float, ...]


class ConceptText(NamedTuple):
    """One text that shows one concept on one topic."""

    id: str
    concept: str
    topic: str
    register: str
    cell: str
    split: str  # "selection" or "held_out"
    text: str


class ConceptSet(NamedTuple):
    """All that the labeler and the causal test know of what they look for."""

    name: str
    concepts: tuple[Concept, ...]
    texts: tuple[ConceptText, ...]
    registers: tuple[str, str]  # first, second
    cells: tuple[str, ...]  # each cell belongs to one register
    neutral: tuple[str, ...]  # texts that show none of the concepts
    readout: str  # what follows a text when the model is asked for its concept's word
    sha256: str  # of the whole content, 64 hex digits
    norms: tuple[Norm, ...] = ()
