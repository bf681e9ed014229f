"""The habits of the house, as far as a machine can check them."""

import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
CODE = sorted(path for room in ("sae_emotions", "tests", "train", "eval") for path in (ROOT / room).rglob("*.py"))
LIBRARY = [path for path in CODE if path.is_relative_to(ROOT / "sae_emotions")]
TEXTS = {".py", ".md", ".toml", ".txt", ".yaml", ".yml", ".json", ".jsonl", ".csv", ".html", ".css", ".js", ""}
IGNORED = re.compile(r"\.(?!ci$|gitignore$)|(runs|wandb|build|dist|__pycache__)$|.*\.egg-info$")


def committed() -> list[Path]:
    """Text files that are, or could be, committed."""
    found = [path for path in ROOT.rglob("*") if path.is_file() and path.suffix in TEXTS]
    return [path for path in found if not any(map(IGNORED.match, path.relative_to(ROOT).parts))]


def tool(*arguments: str) -> None:
    done = subprocess.run([sys.executable, "-m", *arguments], cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr


def test_style() -> None:
    tool("ruff", "check", "--no-cache", ".")


def test_format() -> None:
    tool("ruff", "format", "--check", "--no-cache", ".")


@pytest.mark.slow
def test_types() -> None:
    tool("mypy")


@pytest.mark.parametrize("path", CODE, ids=lambda path: str(path.relative_to(ROOT)))
def test_files_are_short(path: Path) -> None:
    assert len(path.read_text(encoding="utf-8").splitlines()) <= 400


@pytest.mark.parametrize("path", LIBRARY, ids=lambda path: str(path.relative_to(ROOT)))
def test_only_concepts_know_what_is_looked_for(path: Path) -> None:
    """A user with another concept set gets the same report. The package's own name and the default do not count."""
    if path.is_relative_to(ROOT / "sae_emotions" / "concepts"):
        return
    text = re.sub(r"sae[_-]emotions|builtin:emotions", "", path.read_text(encoding="utf-8"), flags=re.IGNORECASE)
    found = [line for line in text.splitlines() if "emotion" in line.lower()]
    assert found == []


def test_nothing_pickled() -> None:
    pattern = re.compile(r"import pickle|torch\.(load|save)\b|joblib|weights_only|allow_pickle=True")
    found = [
        f"{path.name}: {line}" for path in LIBRARY for line in path.read_text().splitlines() if pattern.search(line)
    ]
    assert found == []


def test_no_unfinished_code() -> None:
    pattern = re.compile(r"\b(TODO|FIXME|XXX|HACK)\b|raise NotImplementedError")
    found = [
        f"{path.name}: {line}" for path in LIBRARY for line in path.read_text().splitlines() if pattern.search(line)
    ]
    assert found == []


def test_no_path_of_one_machine() -> None:
    pattern = re.compile(r"(?<![\w.])/(?:work|root|tmp|home)/|(?:pythonhosted|pypi)\.org")
    found = [
        f"{path.relative_to(ROOT)}: {line[:120]}"
        for path in committed()
        for line in path.read_text(encoding="utf-8").splitlines()
        if pattern.search(line)
    ]
    assert found == []


@pytest.mark.parametrize("room", ["train", "eval"])
def test_recipes_and_evaluations_hold_no_library_code(room: str) -> None:
    """They call the library; what is worth calling twice belongs into it."""
    own = {path.stem for path in CODE if path.is_relative_to(ROOT / room)}
    for path in CODE:
        modules = re.findall(r"^\s*(?:from|import)\s+([\w.]+)", path.read_text(encoding="utf-8"), re.MULTILINE)
        if path in LIBRARY:
            assert not {module for module in modules if module.split(".")[0] == room}, path
        elif path.parent == ROOT / "eval" / "bench" / "peers":
            # Workers run in other libraries' environments, and ours alone knows us.
            ours = {module for module in modules if module.split(".")[0] in ("sae_emotions", "eval")}
            assert not ours or path.stem in ("ours", "ours_harvest"), path
        elif path.parent not in (ROOT / "eval" / "bench", ROOT / "eval" / "validity") and path.is_relative_to(
            ROOT / room
        ):
            assert any(module.split(".")[0] == "sae_emotions" for module in modules), path
            assert not {module for module in modules if module.split(".")[0] in own}, path


def test_constraints_lie_within_the_ranges() -> None:
    """What is pinned is what pyproject.toml asks for, and every direct dependency is pinned."""
    import tomllib

    from packaging.requirements import Requirement
    from packaging.utils import canonicalize_name

    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    lines = (ROOT / "constraints.txt").read_text(encoding="utf-8").splitlines()
    pins = {canonicalize_name(r.name): r for r in (Requirement(line) for line in lines if line and line[0] != "#")}
    for wanted in map(Requirement, [*project["dependencies"], *project["optional-dependencies"]["test"]]):
        pin = pins[canonicalize_name(wanted.name)]
        (exact,) = pin.specifier
        assert exact.operator == "=="
        assert "+" not in exact.version
        assert wanted.specifier.contains(exact.version), wanted
