"""How anything reaches the disk: written beside, then renamed; JSON, Parquet and safetensors alone."""

import errno
import hashlib
import json
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from importlib import metadata
from pathlib import Path
from typing import Any

from sae_emotions.errors import UserError


@contextmanager
def disk_errors(path: Path) -> Iterator[None]:
    """Turn a full or forbidden disk into a `UserError`."""
    try:
        yield
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            raise UserError(
                f"The disk that holds {path} is full; free some space and run the same command again."
            ) from None
        if error.errno in (errno.EACCES, errno.EROFS):
            raise UserError(f"{path} cannot be written; choose another folder or change its permissions.") from None
        raise


def _beside(path: Path) -> Path:
    return path.with_name(f".{path.name}.tmp-{os.getpid()}")


@contextmanager
def written(path: Path) -> Iterator[Path]:
    """Yield a path beside `path` to write a file to; it takes `path`'s place only if the block succeeds."""
    path.parent.mkdir(parents=True, exist_ok=True)
    beside = _beside(path)
    try:
        with disk_errors(path):
            yield beside
            beside.chmod(0o644)  # safetensors makes files that their owner alone can read
            os.replace(beside, path)
    finally:
        beside.unlink(missing_ok=True)


@contextmanager
def written_folder(path: Path) -> Iterator[Path]:
    """Yield an empty folder beside `path`; it takes `path`'s place only if the block succeeds."""
    path.parent.mkdir(parents=True, exist_ok=True)
    beside = _beside(path)
    shutil.rmtree(beside, ignore_errors=True)
    beside.mkdir()
    try:
        with disk_errors(path):
            yield beside
            for file in beside.rglob("*"):
                file.chmod(0o755 if file.is_dir() else 0o644)
            if path.exists():
                old = path.with_name(f".{path.name}.old-{os.getpid()}")
                os.rename(path, old)
                os.rename(beside, path)
                shutil.rmtree(old)
            else:
                os.rename(beside, path)
    finally:
        shutil.rmtree(beside, ignore_errors=True)


def write_json(path: Path, data: Any) -> None:
    """Write `data` as indented JSON, atomically. NaN is refused: use None."""
    with written(path) as beside:
        beside.write_text(json.dumps(data, indent=1, allow_nan=False) + "\n", encoding="utf-8")


def read_json(path: Path) -> Any:
    """Read JSON. Raises `UserError` where the file is missing or broken."""
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise UserError(f"{path} is missing; run the stage that makes it.") from None
    except (json.JSONDecodeError, UnicodeDecodeError):
        raise UserError(f"{path} is damaged (no valid JSON); delete it and run its stage again.") from None


def sha256_file(path: Path) -> str:
    """sha256 of a file's bytes, 64 hex digits."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def versions() -> dict[str, str]:
    """Versions of this package and of those that shape its results."""
    names = ("sae-emotions", "torch", "transformers", "sae-lens", "numpy", "scipy", "scikit-learn", "pyarrow")
    found = {}
    for name in names:
        try:
            found[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
    return found
