"""The tables of a run folder as a reader needs them: loaded when asked for, and again when their file has changed."""

import math
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar, cast

import pyarrow as pa

from sae_emotions.artefact import read_json
from sae_emotions.errors import UserError
from sae_emotions.schema import read_table

T = TypeVar("T")
Row = dict[str, Any]


class Unknown(UserError):
    """A name or number that is not in the run: the API answers it with 404."""


class RunFolder:
    """Read-only, cached view of a run's files; safe to share between threads."""

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)
        if not (self.path / "run.json").is_file():
            raise UserError(f"{path} is no run folder (it has no run.json); make one with: sae-emotions run")
        self._held: dict[Any, tuple[Any, Any]] = {}
        self._lock = threading.RLock()

    def stamp(self, *names: str) -> tuple[tuple[int, int, int] | None, ...]:
        """Changes whenever one of the files does; None for a file that is not there."""
        stamps: list[tuple[int, int, int] | None] = []
        for name in names:
            try:
                found = (self.path / name).stat()
                stamps.append((found.st_mtime_ns, found.st_size, found.st_ino))
            except FileNotFoundError:
                stamps.append(None)
        return tuple(stamps)

    def derived(self, key: Any, names: tuple[str, ...], build: Callable[[], T]) -> T:
        """What `build` makes of the files `names`, kept until one of them changes."""
        with self._lock:
            stamp = self.stamp(*names)
            if key not in self._held or self._held[key][0] != stamp:
                self._held[key] = (stamp, build())
            return cast(T, self._held[key][1])

    def has(self, name: str) -> bool:
        """Whether the file is there."""
        return (self.path / name).is_file()

    def json(self, name: str) -> Any:
        """A JSON file. Raises `UserError` where it is missing or damaged."""
        return self.derived(name, (name,), lambda: read_json(self.path / name))

    def table(self, name: str) -> pa.Table:
        """A Parquet file. Raises `UserError` where it is missing or damaged."""
        return self.derived(name, (name,), lambda: read_table(self.path / name))


def plain(value: Any) -> Any:
    """`value` as JSON can carry it: a float that is not finite becomes None, in lists and mappings too."""
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, list):
        return [plain(one) for one in value]
    if isinstance(value, dict):
        return {key: plain(one) for key, one in value.items()}
    return value


def rows(table: pa.Table) -> list[Row]:
    """All rows of a table as plain mappings."""
    return [plain(row) for row in table.to_pylist()]


def row(table: pa.Table, number: int) -> Row:
    """One row of a table as a plain mapping."""
    return cast(Row, plain(table.slice(number, 1).to_pylist()[0]))


def cells_of(concepts: pa.Table) -> tuple[str, ...]:
    """Names of the concept set's cells, in order, as the columns of concepts.parquet spell them."""
    return tuple(name.removeprefix("dense_") for name in concepts.column_names if name.startswith("dense_"))
