"""Which room may know which, what is imported when, and what the package shows to the outside."""

import ast
import subprocess
import sys
from collections.abc import Iterator
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parents[1] / "sae_emotions"
HEAVY = (
    "torch",
    "sae_lens",
    "wandb",
    "transformers",
    "datasets",
    "numba",
    "triton",
    "sklearn",
    "scipy",
    "pandas",
    "matplotlib",
    "fastapi",
)

# Modules beside the rooms, by what they are for. Anything new has to be put somewhere on purpose.
GROUPS = {
    "base": {
        "errors",
        "progress",
        "artefact",
        "config",
        "schema",
        "machine",
        "run_folder",
        "compiling",
        "vector",
        "threads",
    },
    "edits": {"edit", "upper", "cross_entropy"},
    "story": {"__init__", "__main__", "cli", "pipeline", "stages", "cost", "verify"},
}
# Data moves to the right and never back: a room may know those named here, itself, and the base.
MAY_KNOW = {
    "base": set[str](),
    "sparse": set[str](),
    "adapters": {"sparse"},
    "sources": set[str](),
    "concepts": set[str](),
    "edits": {"sources"},
    "harvest": {"sources", "concepts", "edits"},
    "dictionary": {"sources", "concepts", "harvest", "edits", "sparse", "adapters"},
    "label": {"concepts", "harvest", "dictionary"},
    "tables": {"sources", "concepts", "harvest", "dictionary", "label"},
    "causal": {"sources", "concepts", "harvest", "dictionary", "label", "edits"},
    "vectors": {"sources", "concepts", "harvest", "dictionary", "label"},
    "lookup": {"sources", "harvest", "dictionary"},
    "steering": {"sources", "concepts", "harvest", "dictionary", "label", "causal", "edits", "lookup"},
    "report": {"lookup"},
    "serve": {"lookup"},
    "story": {
        "sparse",
        "adapters",
        "sources",
        "concepts",
        "harvest",
        "dictionary",
        "label",
        "tables",
        "causal",
        "edits",
        "vectors",
        "lookup",
    }
    | {"report", "serve", "steering"},
}
ONE_ADAPTER = {
    "sae_lens": "adapters",
    "wandb": "adapters",
    "datasets": "sources",
    "gguf": "sources",
    "numba": "base",
    "triton": "sparse",
    "fastapi": "serve",
}


def module_of(path: Path) -> str:
    """Dotted name below the package: `harvest.rows`; a package is called like its folder."""
    parts = path.relative_to(PACKAGE).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" and len(parts) > 1 else parts)


MODULES = {module_of(path): path for path in sorted(PACKAGE.rglob("*.py"))}


def room_of(module: str) -> str:
    first = module.split(".")[0]
    if first in MAY_KNOW and (PACKAGE / first).is_dir():
        return first
    found = [group for group, names in GROUPS.items() if first in names]
    assert found, f"sae_emotions.{module} belongs to no room: add it to GROUPS or MAY_KNOW in {Path(__file__).name}"
    return found[0]


class _Imports(ast.NodeVisitor):
    """Imported dotted names with their line; blocks under TYPE_CHECKING do not count: nothing runs there."""

    def __init__(self) -> None:
        self.found: list[tuple[str, int]] = []

    def visit_If(self, node: ast.If) -> None:
        if not (isinstance(node.test, ast.Name) and node.test.id == "TYPE_CHECKING"):
            self.generic_visit(node)

    def visit_Import(self, node: ast.Import) -> None:
        self.found += [(alias.name, node.lineno) for alias in node.names]

    def visit_ImportFrom(self, node: ast.ImportFrom) -> None:
        assert node.module, "relative import"
        self.found += [(f"{node.module}.{alias.name}", node.lineno) for alias in node.names]


def imports(module: str) -> list[tuple[str, int]]:
    visitor = _Imports()
    visitor.visit(ast.parse(MODULES[module].read_text(encoding="utf-8")))
    return visitor.found


def own_imports(module: str) -> Iterator[tuple[str, int]]:
    """Modules of this package that `module` imports."""
    for name, line in imports(module):
        if name.split(".")[0] != "sae_emotions":
            continue
        parts = name.split(".")[1:]
        for length in range(len(parts), 0, -1):
            if (found := ".".join(parts[:length])) in MODULES:
                yield found, line
                break


def test_no_arrow_points_to_the_left() -> None:
    wrong = [
        f"{module}:{line} ({room_of(module)}) imports {other} ({room_of(other)})"
        for module in MODULES
        for other, line in own_imports(module)
        if room_of(other) not in MAY_KNOW[room_of(module)] | {room_of(module), "base"}
    ]
    assert wrong == []


def test_no_import_goes_in_circles() -> None:
    graph = {module: {other for other, _ in own_imports(module)} for module in MODULES}
    try:
        tuple(TopologicalSorter(graph).static_order())
    except CycleError as error:
        pytest.fail(" -> ".join(error.args[1]))


def test_each_outside_library_has_one_door() -> None:
    wrong = [
        f"{module}:{line} imports {name}"
        for module in MODULES
        for name, line in imports(module)
        if room_of(module) != ONE_ADAPTER.get(name.split(".")[0], room_of(module))
    ]
    assert wrong == []


def python(code: str) -> str:
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


@pytest.mark.parametrize("module", ["sae_emotions", "sae_emotions.cli", "sae_emotions.lookup.run"])
def test_importing_is_light(module: str) -> None:
    loaded = python(f"import sys, {module}; print(*[name for name in {HEAVY!r} if name in sys.modules])")
    assert loaded == ""


@pytest.mark.parametrize("module", ["sae_emotions", "sae_emotions.cli"])
def test_importing_is_fast(module: str) -> None:
    """Seconds of processor time, the best of five: what else runs on the machine does not count."""
    code = f"import time; start = time.process_time(); import {module}; print(time.process_time() - start)"
    best = min(float(python(code)) for _ in range(5))
    assert best < 0.3


def test_exported_names() -> None:
    import sae_emotions

    assert sae_emotions.__all__ == ["RunConfig", "UserError", "load_config", "open", "run", "stages", "steer"]
    assert sae_emotions.__all__ == sorted(sae_emotions.__all__)
    assert dir(sae_emotions) == sae_emotions.__all__
    for name in sae_emotions.__all__:
        assert getattr(sae_emotions, name) is not None
    with pytest.raises(AttributeError, match="no attribute 'nothing'"):
        _ = sae_emotions.nothing


def test_typed_marker() -> None:
    assert (PACKAGE / "py.typed").is_file()
