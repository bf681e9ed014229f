"""The README says what the committed results say, and its example config loads."""

import re
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from eval.figures import targets
from eval.readme import BLOCK, MAKERS, README, filled, read
from sae_emotions.config import parse_config
from sae_emotions.dictionary.group import SHARE, groups

ROOT = Path(__file__).parents[1]
TEXT = README.read_text(encoding="utf-8")


def test_figures_come_from_the_committed_results() -> None:
    results = read()
    assert filled(TEXT, results) == TEXT
    assert {found[1] for found in BLOCK.findall(TEXT)} == set(MAKERS)
    results["summary"]["dictionaries"][0]["labels"]["features"] += 1
    assert filled(TEXT, results) != TEXT


def test_speed_comes_from_the_committed_measurements() -> None:
    for what, rate in (("train", "vectors_per_second"), ("harvest", "tokens_per_second")):
        results = read()
        found = results["speed"][what]
        (found["tables"][0] if what == "train" else found)["candidates"][0][rate] *= 2
        assert filled(TEXT, results) != TEXT
    for what, point in (("encode", "encoding"), ("scaling", "train")):
        results = read()
        results["speed"][what][point] = (
            read()["speed"][what][point] | {"rows_per_second": 1.0} if what == "encode" else []
        )
        assert filled(TEXT, results) != TEXT


def test_an_aim_is_reached_by_its_number_alone() -> None:
    results = read()
    found = results["validity"] | {"run": results}
    causal = results["summary"]["dictionaries"][0]["causal"]
    for confirmed, says in ((50, "reached"), (49, "missed")):
        causal |= {"tested": 100, "removed": 60, "confirmed": confirmed}
        assert f"| {confirmed} of 100 (60 of them removed exactly) | {says} |" in targets(found)
    cells = [cell["methods"] for kind in results["transfer"]["trained_on"].values() for cell in kind.values()]
    for methods in cells:
        methods["sixteen"]["less_dense"] = {"difference": 0.01, "interval": [-0.01, 0.03]}
    assert "| in all | reached |" in targets(found)
    cells[0]["sixteen"]["less_dense"]["difference"] = -0.01
    assert "below in 1 of" in targets(found)


def test_the_check_of_the_script_agrees() -> None:
    done = subprocess.run([sys.executable, "-m", "eval.readme", "--check"], cwd=ROOT, check=False)
    assert done.returncode == 0


def test_the_example_config_loads() -> None:
    (block,) = re.findall(r"```yaml\n(.*?)```", TEXT, re.DOTALL)
    assert parse_config(yaml.safe_load(block), "the README").dictionaries[0].d_sae == 16384


def test_the_sweep_is_what_the_readme_says(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sae_emotions.dictionary.group.training_memory_gb", lambda: 1000.0)
    (block,) = re.findall(r"```yaml\n(.*?)```", TEXT, re.DOTALL)
    (sweep,) = re.findall(r"`(sweep: .*?)`", TEXT)
    data = yaml.safe_load(block)
    del data["dictionaries"]
    data["harvest"]["blocks"] = [18, 22]
    swept = parse_config(data | yaml.safe_load(sweep), "the README").dictionaries
    assert (len(swept), f"`{swept[0].name}`" in TEXT) == (16, True)
    assert len(groups(swept, 64)) == 1
    keys = re.search(r"same rows\s\(same (.*?)\)", TEXT)
    assert keys is not None
    for key in re.findall(r"`(\w+)`", keys[1]):
        changed = swept[0].model_copy(update={"name": "other", key: 0.5})
        assert len(groups([*swept, changed], 64)) == 2, key
    assert SHARE == 0.5


def test_linked_files_and_named_paths_exist() -> None:
    paths = re.findall(r"\]\(([^)#:]+)\)", TEXT) + re.findall(r"`((?:sae_emotions|train|eval)/[\w./-]+)`", TEXT)
    assert len(paths) > 4
    for path in paths:
        assert (ROOT / path).exists(), path


def test_commands_that_the_readme_names_exist() -> None:
    from sae_emotions.cli import parser

    choices = next(action.choices for action in parser()._actions if action.choices)
    assert choices is not None
    named = set(re.findall(r"sae-emotions (\w+)", TEXT))
    assert named
    assert named <= set(choices)
