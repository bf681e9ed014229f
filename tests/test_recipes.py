"""Every recipe in train/ loads, and what it says of models and dictionaries is so, as far as that is known offline."""

from importlib.util import find_spec
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import yaml

from sae_emotions.cli import main
from sae_emotions.config import load_config

TRAIN = Path(__file__).parents[1] / "train"
RECIPES = sorted(TRAIN.glob("*.yaml"))


class Known(NamedTuple):
    """What the recipe's model is like."""

    blocks: int
    width: int


MODELS = {
    "smollm2-135m": Known(30, 576),
    "gemma-2-2b": Known(26, 2304),
    "gemma-3-1b-it": Known(26, 1152),
    "llama-3.1-8b": Known(32, 4096),
    "qwen3-1.7b": Known(28, 2048),
}
WIDTHS = {"16k": 16_384, "65k": 65_536, "8x": 8 * 4096}


@pytest.fixture(scope="module")
def releases() -> dict[str, Any]:
    """SAELens' table of pretrained dictionaries."""
    spec = find_spec("sae_lens")  # without importing it: that takes seconds
    assert spec is not None
    assert spec.origin is not None
    loader = getattr(yaml, "CSafeLoader", yaml.SafeLoader)
    text = Path(spec.origin).with_name("pretrained_saes.yaml").read_text(encoding="utf-8")
    return dict(yaml.load(text, loader))  # noqa: S506 - both are safe loaders


@pytest.mark.parametrize("path", RECIPES, ids=lambda path: path.stem)
def test_recipe(path: Path) -> None:
    config = load_config(path)
    known = MODELS[path.stem]
    assert config.name == path.stem
    assert max(config.harvest.blocks) < known.blocks - 1, "no block is left above in which an edit can act"
    for dictionary in config.dictionaries:
        assert dictionary.d_sae >= 3 * known.width
        assert dictionary.name.startswith(f"block{dictionary.block}-")
    if path.stem != "smollm2-135m":
        assert config.note == "not run here: needs the hub and a GPU"
    assert f"`{path.name}`" in (TRAIN / "README.md").read_text(encoding="utf-8")


@pytest.mark.parametrize("path", RECIPES, ids=lambda path: path.stem)
def test_dry_run_needs_no_hub(
    path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    measured = {"device": "cpu", "fp32_gflops": 1e3, "bf16_gflops": 1e5, "fast_bf16": True}
    monkeypatch.setattr("sae_emotions.machine.measure", lambda: measured)
    out = tmp_path / "run"
    assert main(["run", str(path), "--out", str(out), "--dry-run"]) == 0
    assert not out.exists()
    printed = "".join(capsys.readouterr())
    assert f"of {MODELS[path.stem].blocks} blocks" in printed
    for dictionary in load_config(path).dictionaries:
        assert f"ablate {dictionary.name}" in printed


def test_pretrained_dictionaries_exist(releases: dict[str, Any]) -> None:
    seen = 0
    for path in RECIPES:
        config = load_config(path)
        for dictionary in config.dictionaries:
            if dictionary.pretrained is None or dictionary.pretrained.release is None:
                continue
            seen += 1
            release, chosen = releases[dictionary.pretrained.release], dictionary.pretrained.id
            assert release["model"] == config.model.source
            assert chosen in {sae["id"] for sae in release["saes"]}
            assert f"l{dictionary.block}r" in str(chosen) or f"layer_{dictionary.block}_" in str(chosen)
            (width,) = (width for mark, width in WIDTHS.items() if mark in str(chosen).split("_"))
            assert dictionary.d_sae == width
    assert seen == 4


def test_the_table_of_recipes_names_no_other() -> None:
    named = {line.split("`")[1] for line in (TRAIN / "README.md").read_text().splitlines() if line.startswith("| `")}
    assert named == {path.name for path in RECIPES} == {f"{name}.yaml" for name in MODELS}
