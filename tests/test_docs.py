"""What the documents name is there."""

import re
from importlib import import_module
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
TEXT = (ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8")
ROOMS = "sources|harvest|dictionary|label|causal|report|serve|adapters|concepts"
NAMES = sorted(set(re.findall(rf"`((?:{ROOMS})(?:\.\w+)+)`", TEXT)))
PATHS = sorted(set(re.findall(r"`((?:sae_emotions|tests|train|eval)/[\w./-]*|[\w*]+\.py|(?:[a-z]+)/)`", TEXT)))


@pytest.mark.parametrize("name", NAMES)
def test_names_in_contributing_exist(name: str) -> None:
    parts = name.split(".")
    found = import_module(f"sae_emotions.{parts[0]}.{parts[1]}")
    for part in parts[2:]:
        found = getattr(found, part)


@pytest.mark.parametrize("path", PATHS)
def test_paths_in_contributing_exist(path: str) -> None:
    assert any([*ROOT.glob(path), *(ROOT / "sae_emotions").glob(path)])


def test_the_documents_were_read() -> None:
    assert len(NAMES) > 8
    assert len(PATHS) > 8


def test_every_room_is_explained() -> None:
    rooms = {path.parent.name for path in (ROOT / "sae_emotions").glob("*/__init__.py")}
    assert {room for room in rooms if f"`{room}/`" not in TEXT} == set()


def test_make_targets_exist() -> None:
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
    for target in set(re.findall(r"`make (\w+)`", TEXT)):
        assert re.search(rf"^{target}:", makefile, re.MULTILINE), target
