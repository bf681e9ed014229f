"""A mapping file: how a labelled table is read, and which concepts its labels stand for. YAML, unknown keys refused.

name: weather-posts
about: 2,000 posts, labelled by three people each (a source, a licence)
folder: posts                   # below the folder of tables; a mapping.yaml beside its table needs none
files: {train: [a.csv], test: [b.csv]}      # or [all.csv], with `split`
split: {column: part, train: [train], test: [dev, test]}      # or {hash: COLUMN or null, test: 0.3}
format: csv
text: body
kind: classes                   # or numbers
labels: {column: label}         # or {column: labels, separator: ","}, or {columns: {LABEL: COLUMN}}
concepts: NAME                  # the concept set that `map` speaks of
map: {sunny: [happy, cheerful], cold: {up: [miserable], down: [cheerful]}, odd: []}
"""

from pathlib import Path
from typing import Any, Literal, NamedTuple

import yaml
from pydantic import Field, ValidationError, field_validator, model_validator

from sae_emotions.config import Config, Positive
from sae_emotions.errors import UserError

FILE = "mapping.yaml"


class SplitConfig(Config):
    """Which rows are chosen and fitted on, and which are only scored."""

    column: str | None = Field(None, description="column that names the split")
    train: tuple[str, ...] = Field((), description="its values for training rows")
    test: tuple[str, ...] | float = Field(
        (), description="its values for test rows; with `hash`, the share of test rows"
    )
    hash: str | None = Field(
        None, description="deal by a hash of this column: rows that share its value stay together; null: row by row"
    )

    @model_validator(mode="after")
    def _one_way(self) -> "SplitConfig":
        if self.column is None:
            if self.train or not isinstance(self.test, float) or not 0 < self.test < 1:
                raise ValueError("give column, train and test, or hash and a test share between 0 and 1")
        elif "hash" in self.model_fields_set or not self.train or not self.test or isinstance(self.test, float):
            raise ValueError("give column with lists of train and test values, or hash and a test share")
        return self


class LabelsConfig(Config):
    """Where the labels stand: all in one column, or each in its own."""

    column: str | None = Field(None, description="column of the label, or of several, separated")
    separator: str | None = Field(None, description="what separates several labels in `column`")
    vocabulary: str | dict[str, str] | None = Field(
        None, description="file of labels, one a line, that `column` numbers from 0; or a mapping of codes to labels"
    )
    columns: dict[str, str] | None = Field(None, description="label -> its own column: 0 or 1, or a number")
    without: tuple[str, ...] = Field((), description="rows with one of these labels are left out")
    unscored: tuple[str, ...] = Field(
        (), description="labels that are not scored; their rows count as without the others"
    )

    @model_validator(mode="after")
    def _one_way(self) -> "LabelsConfig":
        if (self.column is None) == (self.columns is None):
            raise ValueError("give either column or columns")
        if self.columns is not None and (self.separator or self.vocabulary or self.without):
            raise ValueError("separator, vocabulary and without go with column")
        return self


class Words(Config):
    """Concepts that a label rises with, and those that it falls with."""

    up: tuple[str, ...] = ()
    down: tuple[str, ...] = ()


class RowsConfig(Config):
    """How many rows are read at most: reading is what costs. A seeded sample."""

    train: Positive = 3000
    test: Positive = 1500


class Mapping(Config):
    """A labelled table, and what its labels mean."""

    name: str = Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*$", description="short name")
    about: str = Field("", description="what it is, whose, under which licence")
    folder: str = Field("", description="its folder below the folder of tables")
    files: tuple[str, ...] | dict[Literal["train", "test"], tuple[str, ...]] = Field(
        description="files, * and ? allowed; or those of each split"
    )
    split: SplitConfig | None = Field(None, description="how rows are split, where the files do not say it")
    format: Literal["csv", "tsv", "json", "jsonl", "parquet"] = Field(
        description="csv: RFC 4180; tsv: tabs alone, quotation marks are text"
    )
    header: tuple[str, ...] | None = Field(
        None, description="csv, tsv: the columns' names, where no header line does it"
    )
    text: str = Field("text", description="column of the text")
    kind: Literal["classes", "numbers"]
    labels: LabelsConfig
    concepts: str | None = Field(None, description="name of the concept set that `map` speaks of")
    map: dict[str, Words] = Field({}, description="label -> concepts; an empty list: none")
    rows: RowsConfig = RowsConfig()

    @field_validator("map", mode="before")
    @classmethod
    def _lists_rise(cls, value: Any) -> Any:
        if not isinstance(value, dict):
            return value
        return {label: {"up": words} if isinstance(words, list) else words for label, words in value.items()}

    @model_validator(mode="after")
    def _composed(self) -> "Mapping":
        if isinstance(self.files, dict) == (self.split is not None):
            raise ValueError("give either files of train and test, or a list of files and split")
        if isinstance(self.files, dict) and set(self.files) != {"train", "test"}:
            raise ValueError("files: name both train and test")
        if self.kind == "numbers" and self.labels.columns is None:
            raise ValueError("numbers stand each in a column of their own: give labels.columns")
        if self.header is not None and self.format not in ("csv", "tsv"):
            raise ValueError("header goes with csv and tsv")
        if self.map and self.concepts is None:
            raise ValueError("say by `concepts` of which concept set the map speaks")
        return self


class Table(NamedTuple):
    """A mapping, and the folder in which its files lie."""

    mapping: Mapping
    folder: Path

    @property
    def is_there(self) -> bool:
        """Whether the folder is there."""
        return self.folder.is_dir()


def load_mapping(path: Path) -> Mapping:
    """Read a mapping file. Raises `UserError` naming the file and the first wrong field."""
    try:
        data = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise UserError(f"{path} is not valid YAML: {getattr(error, 'problem', None) or error}.") from None
    if not isinstance(data, dict):
        raise UserError(f"{path} holds no mapping of settings; see sae_emotions/tables/mapping.py for the keys.")
    try:
        return Mapping.model_validate(data)
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(map(str, first["loc"])) or "the mapping"
        if first["type"] == "extra_forbidden":
            raise UserError(f"{path}: unknown key '{where}'; remove it or correct its spelling.") from None
        raise UserError(f"{path}: {where}: {first['msg'].removeprefix('Value error, ')}.") from None


def tables(known: Path, data: Path) -> list[Table]:
    """The tables that `known` (a folder of mapping files) describes, and those in `data` with a mapping.yaml beside them.

    One of `data` takes the place of a known one of its name. Raises `UserError` for a wrong mapping or two of one name.
    """
    found = {}
    for path in sorted(known.glob("*.yaml")):
        mapping = load_mapping(path)
        found[mapping.name] = Table(mapping, data / mapping.folder)
    own: dict[str, Path] = {}
    for path in sorted(data.rglob(FILE)):
        mapping = load_mapping(path)
        if mapping.name in own:
            raise UserError(f"{path} and {own[mapping.name]} are both named '{mapping.name}'; rename one.")
        own[mapping.name] = path
        found[mapping.name] = Table(mapping, path.parent / mapping.folder)
    return list(found.values())
