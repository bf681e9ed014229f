"""A concept set of one's own: a folder with these files.

set.json        {"name": ..., "registers": [first, second], "cells": [...], "readout": text put after a story}
concepts.csv    columns name; optional word, family, definition, and a number for every concept in norm_<name>, such as
                norm_valence
texts.jsonl     one object a line: id, concept, topic, register, cell, split (selection or held_out), text
neutral.jsonl   optional; one object a line with a field text
"""

import csv
import json
import math
from pathlib import Path
from typing import Any

from sae_emotions.artefact import write_json, written_folder
from sae_emotions.concepts.checks import content_hash
from sae_emotions.concepts.shape import Concept, ConceptSet, ConceptText, Norm
from sae_emotions.errors import UserError

_NORM = "norm_"


def _read(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8")
    except FileNotFoundError:
        raise UserError(f"The concept set {path.parent} lacks {path.name}; add it.") from None
    except UnicodeDecodeError:
        raise UserError(f"{path} is not UTF-8 text; save it as UTF-8.") from None


def _lines(path: Path, fields: tuple[str, ...]) -> list[dict[str, str]]:
    rows = []
    for number, line in enumerate(_read(path).splitlines(), 1):
        if not line.strip():
            continue
        try:
            row = json.loads(line)
        except json.JSONDecodeError:
            raise UserError(f"{path}, line {number}, is not valid JSON; write one object a line.") from None
        if not isinstance(row, dict):
            raise UserError(f"{path}, line {number}, is not a JSON object; write one object a line.")
        for field in fields:
            if not isinstance(row.get(field), str):
                raise UserError(f"{path}, line {number}, has no text field '{field}'; add it.")
        rows.append(row)
    return rows


def _strings(path: Path, data: dict[str, Any], key: str) -> tuple[str, ...]:
    value = data.get(key)
    if not isinstance(value, list) or not value or not all(isinstance(item, str) and item for item in value):
        raise UserError(f"{path}: '{key}' must be a list of names.")
    return tuple(value)


def _settings(path: Path) -> dict[str, Any]:
    try:
        data = json.loads(_read(path))
    except json.JSONDecodeError as error:
        raise UserError(f"{path} is not valid JSON at line {error.lineno}; correct it.") from None
    if not isinstance(data, dict) or not all(isinstance(data.get(key), str) for key in ("name", "readout")):
        raise UserError(f"{path} needs the text fields 'name' and 'readout'.")
    extra = set(data) - {"name", "registers", "cells", "readout"}
    if extra:
        raise UserError(f"{path}: unknown key '{sorted(extra)[0]}'; remove it or correct its spelling.")
    return data


def _rows(path: Path) -> list[dict[str, str]]:
    reader = csv.DictReader(_read(path).splitlines())
    if "name" not in (reader.fieldnames or ()):
        raise UserError(f"{path} has no column 'name'; its first line must name the columns.")
    return list(reader)


def _concept(row: dict[str, str]) -> Concept:
    return Concept(
        row["name"], row.get("word") or row["name"], row.get("family") or None, row.get("definition") or None
    )


def _norms(path: Path, rows: list[dict[str, str]]) -> tuple[Norm, ...]:
    columns = [column for column in (rows[0] if rows else ()) if column and column.startswith(_NORM)]
    return tuple(
        Norm(column.removeprefix(_NORM), tuple(_number(path, row, column) for row in rows)) for column in columns
    )


def _number(path: Path, row: dict[str, str], column: str) -> float:
    try:
        value = float(row[column])
    except (TypeError, ValueError):
        value = math.nan
    if not math.isfinite(value):
        raise UserError(f"{path}: '{row['name']}' has no number in column '{column}'; fill it in or drop the column.")
    return value


def load_folder(folder: Path) -> ConceptSet:
    """Read a concept-set folder. Raises `UserError` naming the file and line that is wrong."""
    settings = _settings(folder / "set.json")
    registers = _strings(folder / "set.json", settings, "registers")
    if len(registers) != 2 or registers[0] == registers[1]:
        raise UserError(f"{folder / 'set.json'}: 'registers' must name two different registers: a label needs both.")
    rows = _lines(folder / "texts.jsonl", ConceptText._fields)
    described = _rows(folder / "concepts.csv")
    neutral = folder / "neutral.jsonl"
    found = ConceptSet(
        name=settings["name"],
        concepts=tuple(_concept(row) for row in described),
        texts=tuple(ConceptText(**{field: row[field] for field in ConceptText._fields}) for row in rows),
        registers=(registers[0], registers[1]),
        cells=_strings(folder / "set.json", settings, "cells"),
        neutral=tuple(row["text"] for row in _lines(neutral, ("text",))) if neutral.exists() else (),
        readout=settings["readout"],
        sha256="",
        norms=_norms(folder / "concepts.csv", described),
    )
    return found._replace(sha256=content_hash(found))


def save_folder(concepts: ConceptSet, folder: Path) -> Path:
    """Write a concept set as a folder that `load_folder` reads; returns the folder."""
    settings = {name: getattr(concepts, name) for name in ("name", "registers", "cells", "readout")}
    with written_folder(folder) as beside:
        write_json(beside / "set.json", settings)
        with (beside / "concepts.csv").open("w", encoding="utf-8", newline="") as file:
            writer = csv.writer(file)
            writer.writerow([*Concept._fields, *(_NORM + norm.name for norm in concepts.norms)])
            for c, one in enumerate(concepts.concepts):
                fields = ["" if field is None else field for field in one]
                writer.writerow([*fields, *(norm.values[c] for norm in concepts.norms)])
        texts, neutral = [one._asdict() for one in concepts.texts], [{"text": one} for one in concepts.neutral]
        for name, rows in (("texts", texts), ("neutral", neutral)):
            lines = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
            (beside / f"{name}.jsonl").write_text(lines, encoding="utf-8")
    return folder
