"""Which texts are compared with which: concept texts arranged by register, split and topic.

Shapes: C concepts, S strata, T texts. A stratum is one topic in one cell: its texts differ in their concept alone.
A panel is all strata of one register and split; a label needs evidence in the panels of both registers.
"""

from typing import NamedTuple

import numpy as np

from sae_emotions.concepts.concept_set import ConceptSet

ABSENT = -1


class Panel(NamedTuple):
    """All strata of one register and split."""

    register: str
    split: str
    rows_CS: np.ndarray
    """number of the concept's text in the stratum, ABSENT where it was not written on that topic"""
    cells_S: tuple[str, ...]
    topics_S: tuple[str, ...]
    size_S: np.ndarray
    """texts in the stratum"""
    groups: tuple[np.ndarray, ...]
    """distinct sets of strata that concepts were written on; concepts of one group share a null distribution"""
    group_C: np.ndarray
    """the concept's group"""


class Layout(NamedTuple):
    """Selection and held-out panels of both registers, over the texts in `text_ids`."""

    concepts: tuple[str, ...]
    text_ids: tuple[str, ...]
    selection: tuple[Panel, Panel]
    held_out: tuple[Panel, Panel]

    @property
    def panels(self) -> tuple[Panel, ...]:
        return self.selection + self.held_out


def layout(concepts: ConceptSet) -> Layout:
    """Arrange the texts of a concept set."""
    number = {concept.name: i for i, concept in enumerate(concepts.concepts)}
    panels = {}
    for split in ("selection", "held_out"):
        for register in concepts.registers:
            columns: dict[tuple[str, str], np.ndarray] = {}
            for row, text in enumerate(concepts.texts):
                if (text.split, text.register) == (split, register):
                    empty_C = np.full(len(number), ABSENT, np.int32)
                    columns.setdefault((text.cell, text.topic), empty_C)[number[text.concept]] = row
            panels[split, register] = panel(register, split, columns)
    first, second = concepts.registers
    return Layout(
        concepts=tuple(number),
        text_ids=tuple(text.id for text in concepts.texts),
        selection=(panels["selection", first], panels["selection", second]),
        held_out=(panels["held_out", first], panels["held_out", second]),
    )


def panel(register: str, split: str, columns: dict[tuple[str, str], np.ndarray]) -> Panel:
    """A panel from one column of text numbers (C) a stratum (cell, topic)."""
    rows_CS = np.stack(list(columns.values()), axis=1)
    present_CS = rows_CS != ABSENT
    patterns, group_C = np.unique(present_CS, axis=0, return_inverse=True)
    return Panel(
        register=register,
        split=split,
        rows_CS=rows_CS,
        cells_S=tuple(cell for cell, _ in columns),
        topics_S=tuple(topic for _, topic in columns),
        size_S=present_CS.sum(0),
        groups=tuple(np.flatnonzero(pattern) for pattern in patterns),
        group_C=group_C.reshape(-1),
    )


def part(whole: Panel, keep_S: np.ndarray) -> Panel:
    """The panel of those strata alone where `keep_S` (bool) is true."""
    kept = np.flatnonzero(keep_S)
    columns = {(whole.cells_S[s], whole.topics_S[s]): whole.rows_CS[:, s] for s in kept}
    return panel(whole.register, whole.split, columns)


def cell_panels(found: Layout, split: str) -> dict[str, Panel]:
    """One panel a cell of `split` ("selection" or "held_out")."""
    panels = found.selection if split == "selection" else found.held_out
    return {
        cell: part(whole, np.array([c == cell for c in whole.cells_S]))
        for whole in panels
        for cell in dict.fromkeys(whole.cells_S)
    }


def permuted(found: Layout, rng: np.random.Generator) -> Layout:
    """Permute the concepts among the texts of every stratum: topic, cell, register, split and groups stay."""
    return found._replace(
        selection=(_permuted(found.selection[0], rng), _permuted(found.selection[1], rng)),
        held_out=(_permuted(found.held_out[0], rng), _permuted(found.held_out[1], rng)),
    )


def _permuted(whole: Panel, rng: np.random.Generator) -> Panel:
    rows_CS = whole.rows_CS.copy()
    for s in range(rows_CS.shape[1]):
        there = np.flatnonzero(rows_CS[:, s] != ABSENT)
        rows_CS[there, s] = rng.permutation(rows_CS[there, s])
    return whole._replace(rows_CS=rows_CS)
