"""A labelled table in memory: its texts, its labels as numbers, its split; and the sample of it that is read.

Shapes: T rows of the table, L labels.
"""

import hashlib
import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from sae_emotions.errors import UserError
from sae_emotions.sources.tables import read_records
from sae_emotions.tables.mapping import LabelsConfig, Mapping, Table

FEW = 5
"""Rows of either split that a label needs, to be scored."""


class Labelled(NamedTuple):
    """All usable rows of a table."""

    texts: list[str]
    test_T: np.ndarray
    """bool: only scored, never fitted on"""
    labels: tuple[str, ...]
    values_TL: np.ndarray
    """float64; 1 and 0 for classes"""
    group_T: np.ndarray
    """rows of one number stay together when rows are dealt to folds"""
    repeated: int
    """test rows left out because their text is also one of the training split"""


class Sample(NamedTuple):
    """Rows that are read."""

    train_N: np.ndarray
    test_N: np.ndarray


def read_table(table: Table, seed: int) -> Labelled:
    """Read a table. Rows without text or split are left out; so are test rows whose text occurs among the training rows.

    Raises `UserError` for a missing file or column, a label that the mapping does not name (or one it names that no row has),
    a value that is no number, and a split without rows.
    """
    mapping, vocabulary = table.mapping, _vocabulary(table)
    texts, tests, names, numbers, groups = [], [], [], [], []
    for at, (row, split) in enumerate(_records(table)):
        text = row[mapping.text]
        test = _is_test(mapping, row, split, at, seed)
        own = _labels_of(mapping.labels, row, vocabulary)
        if not isinstance(text, str) or not text.strip() or test is None or own is None:
            continue
        texts.append(text.strip())
        tests.append(test)
        names.append(own)
        numbers.append(_numbers(mapping, row))
        groups.append(str(row[mapping.split.hash]) if mapping.split and mapping.split.hash else str(at))
    test_T = np.array(tests, bool)
    seen = {text.casefold() for text, test in zip(texts, tests, strict=True) if not test}
    again_T = np.array([test and text.casefold() in seen for text, test in zip(texts, tests, strict=True)], bool)
    for split, some_T in (("training", ~test_T), ("test", test_T & ~again_T)):
        if not some_T.any():
            raise UserError(f"The mapping '{mapping.name}' leaves no {split} row; correct its files or its split.")
    labels, values_TL = _arranged(mapping, names, numbers)
    kept = np.flatnonzero(~again_T)
    group_T = np.unique(groups, return_inverse=True)[1].reshape(-1)
    kept_texts = [texts[i] for i in kept]
    return Labelled(kept_texts, test_T[kept], labels, values_TL[kept], group_T[kept], int(again_T.sum()))


def sample(found: Labelled, mapping: Mapping, seed: int) -> Sample:
    """The rows to read. Test rows are drawn evenly; training rows of rare classes are drawn more often.

    A training row's chance goes with one over the square root of its rarest label's count: an AUROC does not ask how frequent
    a label is, and a rare one would have next to no rows in an even sample.
    """
    rng = np.random.default_rng([seed, 3])
    train, test = np.flatnonzero(~found.test_T), np.flatnonzero(found.test_T)
    weight = np.ones(len(train))
    if mapping.kind == "classes":
        has_NL = found.values_TL[train] > 0
        weight = np.where(has_NL, 1 / np.sqrt(np.maximum(has_NL.sum(0), 1)), 0).max(1)
        none_N = ~has_NL.any(1)
        weight[none_N] = 1 / np.sqrt(max(int(none_N.sum()), 1))
    size = min(mapping.rows.train, len(train))
    return Sample(
        np.sort(rng.choice(train, size, replace=False, p=weight / weight.sum())),
        np.sort(rng.choice(test, min(mapping.rows.test, len(test)), replace=False)),
    )


def scored(found: Labelled, drawn: Sample, mapping: Mapping) -> tuple[np.ndarray, dict[str, str]]:
    """(labels that can be scored on a sample, the others and why)."""
    left = {}
    for label in range(len(found.labels)):
        name = found.labels[label]
        for split, some in (("training", drawn.train_N), ("test", drawn.test_N)):
            values = found.values_TL[some, label]
            count = int(values.sum())
            if mapping.kind == "classes" and not FEW <= count <= len(some) - FEW:
                left[name] = f"{count} of {len(some)} {split} rows have it; {FEW} with and without it are needed"
            elif np.ptp(values) == 0:
                left[name] = f"the same in all {split} rows"
        if name in mapping.labels.unscored:
            left[name] = "not scored, says the mapping"
    if len(left) == len(found.labels):
        raise UserError(f"The mapping '{mapping.name}' leaves no label with enough rows; read more of them (`rows`).")
    return np.array([i for i, name in enumerate(found.labels) if name not in left]), left


def _files(table: Table) -> Iterator[tuple[Path, str | None]]:
    files = table.mapping.files
    groups = files.items() if isinstance(files, dict) else [(None, files)]
    for split, patterns in groups:
        for pattern in patterns:
            found = sorted(table.folder.glob(pattern))
            if not found:
                raise UserError(f"The mapping '{table.mapping.name}' names {pattern}, which is not in {table.folder}.")
            yield from ((path, split) for path in found)


def _records(table: Table) -> Iterator[tuple[dict[str, Any], str | None]]:
    mapping = table.mapping
    labels = mapping.labels
    columns = [mapping.text, *([labels.column] if labels.column else (labels.columns or {}).values())]
    if mapping.split is not None:
        columns += [name for name in (mapping.split.column, mapping.split.hash) if name]
    for path, split in _files(table):
        for row in read_records(path, mapping.format, columns, mapping.header):
            yield row, split


def _is_test(mapping: Mapping, row: dict[str, Any], split: str | None, at: int, seed: int) -> bool | None:
    if mapping.split is None:
        return split == "test"
    if mapping.split.column is None:
        key = row[mapping.split.hash] if mapping.split.hash else at
        digest = hashlib.sha256(f"{seed} {mapping.name} {key}".encode()).digest()
        assert isinstance(mapping.split.test, float)
        return int.from_bytes(digest[:8], "little") < mapping.split.test * 2**64
    assert isinstance(mapping.split.test, tuple)
    value = str(row[mapping.split.column])
    return None if value not in (*mapping.split.train, *mapping.split.test) else value in mapping.split.test


def _vocabulary(table: Table) -> dict[str, str] | None:
    named = table.mapping.labels.vocabulary
    if not isinstance(named, str):
        return named
    path = table.folder / named
    if not path.is_file():
        raise UserError(
            f"The mapping '{table.mapping.name}' names the vocabulary {named}, which is not in {table.folder}."
        )
    return {str(n): line.strip() for n, line in enumerate(path.read_text(encoding="utf-8").split("\n")) if line.strip()}


def _labels_of(labels: LabelsConfig, row: dict[str, Any], vocabulary: dict[str, str] | None) -> list[str] | None:
    """The labels of a row; None for a row that is left out."""
    if labels.column is None:
        return []
    value = row[labels.column]
    if value is None:
        return None
    parts = value if isinstance(value, list) else str(value).split(labels.separator) if labels.separator else [value]
    codes = [code for part in parts if (code := str(part).strip())]
    if set(codes) & set(labels.without) or not codes:
        return None
    if vocabulary is None:
        return codes
    unknown = [code for code in codes if code not in vocabulary]
    if unknown:
        raise UserError(
            f"The label '{unknown[0]}' is not in the mapping's vocabulary; add it, or leave it out by `without`."
        )
    return [vocabulary[code] for code in codes]


def _numbers(mapping: Mapping, row: dict[str, Any]) -> list[float]:
    found = []
    for column in (mapping.labels.columns or {}).values():
        try:
            value = float(row[column])
        except (TypeError, ValueError):
            value = math.nan
        if not math.isfinite(value):
            raise UserError(f"The mapping '{mapping.name}': column {column} holds {row[column]!r}, no number.")
        if mapping.kind == "classes" and value not in (0, 1):
            raise UserError(
                f"The mapping '{mapping.name}': column {column} holds {row[column]!r}, but a class is there (1) or not (0)."
            )
        found.append(value)
    return found


def _arranged(
    mapping: Mapping, names: list[list[str]], numbers: list[list[float]]
) -> tuple[tuple[str, ...], np.ndarray]:
    if mapping.labels.columns is not None:
        labels = tuple(mapping.labels.columns)
        values_TL = np.array(numbers, np.float64).reshape(len(numbers), len(labels))
    else:
        labels = tuple(sorted({name for some in names for name in some}))
        number = {name: i for i, name in enumerate(labels)}
        values_TL = np.zeros((len(names), len(labels)))
        for at, some in enumerate(names):
            values_TL[at, [number[name] for name in some]] = 1
    known = {*mapping.map, *mapping.labels.unscored}
    unnamed, unfound = [one for one in labels if one not in known], [one for one in known if one not in labels]
    if unnamed and mapping.map:
        raise UserError(
            f"The mapping '{mapping.name}' does not name the label '{unnamed[0]}'; map it to concepts, or to an empty list."
        )
    if unfound:
        raise UserError(f"The mapping '{mapping.name}' names the label '{sorted(unfound)[0]}', which no row has.")
    return labels, values_TL
