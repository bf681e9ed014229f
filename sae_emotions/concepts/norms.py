"""Ratings of words: any table of word, valence and arousal, VADER's lexicon, and those a concept set brings itself."""

import csv
import re
from importlib import resources
from importlib.util import find_spec
from pathlib import Path
from typing import NamedTuple

from sae_emotions.concepts.shape import ConceptSet
from sae_emotions.errors import UserError

DIMENSIONS = ("valence", "arousal")
_NAMES = {
    "word": re.compile(r"(words?|terms?|tokens?|lemmas?|concepts?|names?)$"),
    "valence": re.compile(r"val|v\.mean"),
    "arousal": re.compile(r"aro|a\.mean"),
}


class Norms(NamedTuple):
    """Ratings of words by one set of raters, in that set's own units."""

    name: str
    ratings: dict[str, dict[str, float]]
    """"valence" and, where it is there, "arousal": lower-case word to rating"""

    def of(self, concepts: ConceptSet, dimension: str) -> list[float | None]:
        """The rating of each concept, by its name or its word; None where there is none."""
        rated = self.ratings[dimension]
        return [rated.get(one.name.casefold(), rated.get(one.word.casefold())) for one in concepts.concepts]


def read_norms(asked: str) -> Norms:
    """Read `FILE`, `FILE=WORD,VALENCE[,AROUSAL]` or `vader` (the lexicon of the installed package vaderSentiment).

    The file is separated by commas, semicolons or tabs. Columns are named in its first line or numbered from 1; where
    none are given they are found by their names, case ignored, and a file whose first line has a number in its second
    field is read as word, valence. Lines without a word or a number are passed over.
    Raises `UserError` where there is no such file or column, or no rating in it.
    """
    if asked == "vader" and not Path(asked).exists():
        if find_spec("vaderSentiment") is None:
            raise UserError("The package vaderSentiment is not installed; install it, or give a file of ratings.")
        lexicon = resources.files("vaderSentiment") / "vader_lexicon.txt"
        return _parsed("vader", lexicon.read_text(encoding="utf-8"), [])
    name, _, columns = (asked, "", "") if Path(asked).is_file() else asked.partition("=")
    try:
        text = Path(name).read_text(encoding="utf-8-sig")
    except (FileNotFoundError, IsADirectoryError):
        raise UserError(f"There is no file of word ratings {name}; give a CSV of word, valence, arousal.") from None
    except UnicodeDecodeError:
        raise UserError(f"{name} is not UTF-8 text; save it as UTF-8.") from None
    return _parsed(Path(name).stem, text, [one.strip() for one in columns.split(",")] if columns else [])


def own_norms(source: str) -> Norms | None:
    """The ratings that a concept set brings in its concepts.csv, or None.

    They stand in columns whose names begin with valence and arousal; what follows there names the raters.
    """
    folder = (
        resources.files("sae_emotions.concepts") / "data" if source.startswith("builtin:") else Path(source)
    ) / "concepts.csv"
    text = folder.read_text(encoding="utf-8")
    header = text.splitlines()[0].split(",")
    found = [one for one in header if one.casefold().startswith("valence")]
    if not found:
        return None
    return _parsed(found[0].casefold().removeprefix("valence").strip("_ ") or "own", text, [])


def _parsed(name: str, text: str, columns: list[str]) -> Norms:
    first = text.partition("\n")[0]
    delimiter = "\t" if "\t" in first else max(",;", key=first.count)
    rows = list(csv.reader(text.splitlines(), delimiter=delimiter, quoting=csv.QUOTE_NONE if delimiter == "\t" else 0))
    at = _columns(name, rows[0] if rows else [], columns)
    ratings: dict[str, dict[str, float]] = {dimension: {} for dimension in at if dimension != "word"}
    for row in rows:
        for dimension, rated in ratings.items():
            if max(at["word"], at[dimension]) < len(row) and (word := row[at["word"]].strip().casefold()):
                number = _number(row[at[dimension]])
                if number is not None:
                    rated.setdefault(word, number)
    if not ratings["valence"]:
        raise UserError(f"The word ratings '{name}' hold no number; name the columns as FILE=WORD,VALENCE,AROUSAL.")
    return Norms(name, ratings)


def _columns(name: str, header: list[str], asked: list[str]) -> dict[str, int]:
    plain = [one.strip().casefold() for one in header]
    keys = ("word", *DIMENSIONS)
    if asked:
        found = {}
        for key, column in zip(keys, asked, strict=False):
            if column.isdigit():
                number = int(column) - 1
            else:
                number = plain.index(column.casefold()) if column.casefold() in plain else -1
            if not 0 <= number < len(header):
                raise UserError(f"The word ratings '{name}' have no column '{column}'; there are: {', '.join(header)}.")
            found[key] = number
        if not 2 <= len(asked) <= len(keys):
            raise UserError(f"Name two or three columns of '{name}': FILE=WORD,VALENCE,AROUSAL.")
        return found
    if len(header) > 1 and _number(header[1]) is not None:
        return {"word": 0, "valence": 1}
    found = {key: next((n for n, one in enumerate(plain) if pattern.match(one)), -1) for key, pattern in _NAMES.items()}
    for key in ("word", "valence"):
        if found[key] < 0:
            raise UserError(
                f"The word ratings '{name}' have no column for {key}; name them as FILE=WORD,VALENCE,AROUSAL."
            )
    return {key: number for key, number in found.items() if number >= 0}


def _number(field: str) -> float | None:
    try:
        value = float(field)
    except ValueError:
        return None
    return value if abs(value) < float("inf") else None
