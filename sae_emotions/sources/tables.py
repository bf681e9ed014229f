"""Local tables, read as a stream: csv, jsonl, json, parquet and plain text, packed or not.

`read_column` yields (row number, value) of one column: a text, or a list of chat messages; null values are left out, their
numbers too. `read_records` yields whole rows.
"""

import csv
import gzip
import io
import json
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import IO, Any, TypeVar, cast

from sae_emotions.errors import UserError

KINDS = (".csv", ".jsonl", ".json", ".parquet", ".txt")
_PACKED = (".zst", ".gz")
Values = Iterator[tuple[int, Any]]
Records = Iterator[dict[str, Any]]
T = TypeVar("T")


def kind_of(name: str) -> str | None:
    """The table type by file name, such as '.csv' for 'a.csv.zst'; None where it is none of `KINDS`."""
    name = name.lower()
    packed = name.endswith(_PACKED)
    for suffix in _PACKED:
        name = name.removesuffix(suffix)
    kind = next((kind for kind in KINDS if name.endswith(kind)), None)
    return None if packed and kind == ".parquet" else kind


def read_column(path: Path, column: str) -> Values:
    """(row number, value) of every row of a table.

    Raises `UserError`: missing file, unknown type, missing column (naming those there are), damaged content.
    """
    if not path.is_file():
        raise UserError(f"There is no text file {path}; correct the text source.")
    kind = kind_of(path.name)
    if kind is None:
        known = ", ".join(KINDS)
        raise UserError(
            f"{path.name} is of an unknown type; known are {known} (all but .parquet also packed as .zst or .gz)."
        )
    return _guarded(path, _parquet(path, column) if kind == ".parquet" else _text_file(path, kind, column))


def read_records(path: Path, kind: str, columns: Sequence[str], header: Sequence[str] | None = None) -> Records:
    """Every row of a table as a mapping of `columns` alone; what a row lacks is None.

    `kind`: csv, tsv (tabs alone: quotation marks are text), jsonl, json or parquet. `header` names the columns of a csv or
    tsv file without a header line. Raises `UserError`: missing file, missing column (naming those there are), damaged content.
    """
    if not path.is_file():
        raise UserError(f"There is no table {path}; correct its name.")
    return _guarded(path, _read_records(path, kind, columns, header))


def _read_records(path: Path, kind: str, columns: Sequence[str], header: Sequence[str] | None) -> Records:
    if kind == "parquet":
        yield from _parquet_records(path, columns)
        return
    with _opened(path) as file:
        if kind in ("csv", "tsv"):
            rows = _csv_rows(file) if kind == "csv" else (line.rstrip("\r\n").split("\t") for line in file)
            names = list(header) if header is not None else next(rows, [])
            if names and (lacking := [column for column in columns if column not in names]):
                raise missing_column(lacking[0], names, path.name)
            for row in rows:
                if any(row):
                    held = dict(zip(names, row, strict=False))
                    yield {column: held.get(column) for column in columns}
            return
        records = {"jsonl": _json_lines, "json": _json_list}[kind](file, path.name)
        seen = False
        for number, record in enumerate(records, start=1):
            if not isinstance(record, dict):
                raise UserError(f"{path.name}: record {number} is not an object with named fields.")
            if not seen and (lacking := [column for column in columns if column not in record]):
                raise missing_column(lacking[0], record, path.name)
            seen = True
            yield {column: record.get(column) for column in columns}


def _guarded(path: Path, values: Iterator[T]) -> Iterator[T]:
    """Damaged content, said in a sentence."""
    import pyarrow as pa
    import zstandard

    try:
        yield from values
    except UnicodeDecodeError:
        raise UserError(f"{path.name} is not UTF-8 text; convert it first.") from None
    except (csv.Error, EOFError, gzip.BadGzipFile, zstandard.ZstdError, pa.ArrowInvalid) as error:
        raise UserError(f"{path.name} is damaged: {(str(error).splitlines() or ['it ends too early'])[0]}.") from None


def missing_column(column: str, there: Iterable[str], where: str) -> UserError:
    """The error for a column that is not there."""
    names = ", ".join(there) or "none"
    return UserError(f"{where} has no column '{column}'; its columns are: {names}.")


def _opened(path: Path) -> IO[str]:
    name = path.name.lower()
    if name.endswith(".zst"):
        import zstandard

        raw = zstandard.ZstdDecompressor().stream_reader(path.open("rb"), closefd=True)
        return io.TextIOWrapper(cast(IO[bytes], raw), encoding="utf-8-sig", newline="")
    if name.endswith(".gz"):
        return gzip.open(path, "rt", encoding="utf-8-sig", newline="")
    return path.open(encoding="utf-8-sig", newline="")


def _text_file(path: Path, kind: str, column: str) -> Values:
    reader = {".csv": _csv, ".jsonl": _jsonl, ".json": _json, ".txt": _txt}[kind]
    with _opened(path) as file:
        yield from reader(file, column, path.name)


def _csv_rows(file: IO[str]) -> Iterator[list[str]]:
    csv.field_size_limit(2**31 - 1)  # one document may well be longer than the module's 128 kB
    return iter(csv.reader(file))


def _csv(file: IO[str], column: str, name: str) -> Values:
    reader = _csv_rows(file)
    header = next(reader, None)
    if header is None:
        return
    if column not in header:
        raise missing_column(column, header, name)
    at = header.index(column)
    for number, row in enumerate(row for row in reader if row):
        if at < len(row):
            yield number, row[at]


def _records(records: Iterable[Any], column: str, name: str) -> Values:
    found = False
    for number, record in enumerate(records):
        if not isinstance(record, dict):
            raise UserError(f"{name}: record {number + 1} is not an object with named fields.")
        if not found and column not in record:
            raise missing_column(column, record, name)
        found = True
        if record.get(column) is not None:
            yield number, record[column]


def _jsonl(file: IO[str], column: str, name: str) -> Values:
    return _records(_json_lines(file, name), column, name)


def _json_lines(file: IO[str], name: str) -> Iterator[Any]:
    for number, line in enumerate(file, start=1):
        if line.strip():
            try:
                yield json.loads(line)
            except json.JSONDecodeError:
                raise UserError(f"{name}: line {number} is not valid JSON.") from None


def _json(file: IO[str], column: str, name: str) -> Values:
    return _records(_json_list(file, name), column, name)


def _json_list(file: IO[str], name: str) -> Iterator[Any]:
    try:
        data = json.load(file)
    except json.JSONDecodeError as error:
        raise UserError(
            f"{name} is not valid JSON at line {error.lineno}; one object a line is a .jsonl file."
        ) from None
    if not isinstance(data, list):
        raise UserError(f"{name} holds no list of records; a .json text file is one list of objects.")
    return iter(data)


def _txt(file: IO[str], column: str, name: str) -> Values:
    """Documents of a plain text, parted by blank lines; there is no column to name."""
    block: list[str] = []
    number = 0
    for line in file:
        if line.strip():
            block.append(line.rstrip("\r\n"))
        elif block:
            yield number, "\n".join(block)
            number, block = number + 1, []
    if block:
        yield number, "\n".join(block)


def _parquet(path: Path, column: str) -> Values:
    import pyarrow.parquet as pq

    with pq.ParquetFile(path) as file:
        if column not in file.schema_arrow.names:
            raise missing_column(column, file.schema_arrow.names, path.name)
        number = 0
        for batch in file.iter_batches(batch_size=1024, columns=[column]):
            for value in batch.column(0).to_pylist():
                if value is not None:
                    yield number, value
                number += 1


def _parquet_records(path: Path, columns: Sequence[str]) -> Records:
    import pyarrow.parquet as pq

    with pq.ParquetFile(path) as file:
        if lacking := [column for column in columns if column not in file.schema_arrow.names]:
            raise missing_column(lacking[0], file.schema_arrow.names, path.name)
        for batch in file.iter_batches(batch_size=1024, columns=list(dict.fromkeys(columns))):
            yield from batch.to_pylist()
