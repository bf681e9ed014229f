"""The ablation stage at its edges, on the planted model: no label, labels that never fire, inputs that are not there."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from safetensors.torch import save_file

from eval.validity import causal as section
from eval.validity.asked import Asked
from sae_emotions.causal import runners
from sae_emotions.causal.ablate import ablate
from sae_emotions.config import parse_config
from sae_emotions.errors import UserError
from sae_emotions.run_folder import create_or_check
from sae_emotions.schema import TABLES
from sae_emotions.stages import harvest, train
from tests.planted import BLOCK, D, directions, latents, truth
from tests.planted_words import CONCEPTS, KINDS

TRUTH = truth()
NAME = "planted"
pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def config(planted):
    data = {**planted.config, "ablate": {**planted.config.get("ablate", {}), "controls": 20, "neutral_texts": 2}}
    return parse_config(data, "the planted config")


@pytest.fixture(scope="module")
def run(config, tmp_path_factory):
    folder = tmp_path_factory.mktemp("run") / "planted"
    create_or_check(folder, config)
    harvest(config, folder)
    train(config, folder, NAME)
    return folder


def label(run: Path, labels: dict[int, str]) -> None:
    """Labels made by hand: the stage reads no more of the label stage than this."""
    folder = run / "labels" / NAME
    folder.mkdir(parents=True, exist_ok=True)
    count = len(latents())
    columns = {
        "feature": list(range(count)),
        "label": [labels.get(n) for n in range(count)],
        "status": ["labelled" if n in labels else "none" for n in range(count)],
        "screened": [n in labels for n in range(count)],
        "auroc_selection": np.linspace(0, 1, count),
    }
    pq.write_table(pa.table(columns), folder / "features.parquet")
    dense_CD = np.random.default_rng(0).standard_normal((len(CONCEPTS), D))
    for concept in KINDS["causal"]:
        dense_CD[CONCEPTS.index(concept)] = directions().of[f"concept {concept}"]
    save_file({"dense_CD": torch.from_numpy(dense_CD).float()}, folder / "dense.safetensors")


def tables(run: Path) -> tuple[list[dict[str, Any]], list[dict[str, Any]], dict[str, Any]]:
    folder = run / "causal" / NAME
    names = ("effects", "verdicts", "joint")
    found = [pq.read_table(folder / f"{name}.parquet") for name in names]
    for name, table in zip(names, found, strict=True):
        assert table.column_names == [column.name for column in TABLES[name]]
    return found[0].to_pylist(), found[1].to_pylist(), json.loads((folder / "summary.json").read_text(encoding="utf-8"))


def test_without_a_label_there_are_empty_tables_and_a_summary_that_says_so(config, run):
    label(run, {})
    ablate(config, run, NAME)
    effects, verdicts, *_, summary = tables(run)
    assert effects == verdicts == []
    assert pq.read_table(run / "causal" / NAME / "joint.parquet").num_rows == 0
    assert summary["tested"] == summary["confirmed"] == summary["not_testable"] == 0
    assert "no labelled feature" in summary["rule"]


def test_a_label_that_never_fires_is_not_testable(config, run):
    dead = min(TRUTH.dead)
    label(run, {dead: CONCEPTS[0]})
    ablate(config, run, NAME)
    effects, verdicts, *_, summary = tables(run)
    assert effects == []
    assert [(row["feature"], row["verdict"], row["texts"]) for row in verdicts] == [(dead, "not testable", 0)]
    assert "fires in 0 held-out texts" in verdicts[0]["reason"]
    assert (summary["tested"], summary["not_testable"]) == (0, 1)


def test_a_rerun_gives_the_same_tables_and_counts_its_work(config, run):
    label(run, {TRUTH.feature[one]: one for one in KINDS["causal"][:3]} | {min(TRUTH.dead): CONCEPTS[0]})
    ablate(config, run, NAME)
    first = tables(run)
    ablate(config, run, NAME)
    second = tables(run)
    assert first[:2] == second[:2]
    assert {row["kind"] for row in first[0]} == {"feature", "control", "random", "dense"}
    summary = first[2]
    assert summary["not_testable"] >= 1
    assert 0 < summary["largest_change_by_removing_nothing"] + 1e-9 < 1e-4
    assert summary["block_tokens"] == sum(summary["block_tokens_by_phase"].values())
    assert min(summary["block_tokens_by_phase"].values()) > 0
    # Of a few removals in a small model the screen costs most; the removals themselves are cheap.
    assert summary["block_tokens_of_full_forwards_a_removal"] > 3 * summary["block_tokens_by_phase"]["removals"]
    assert summary["times_fewer_than_full_forwards"] > 1


def test_changes_alone_give_the_effects_of_whole_passes(config, run, monkeypatch):
    label(run, {TRUTH.feature[one]: one for one in KINDS["causal"][:3]})
    found = {}
    for worth in (runners.WORTH, 0):
        monkeypatch.setattr(runners, "WORTH", worth)
        ablate(config, run, NAME)
        found[worth] = tables(run)
    (whole, judged, summary), (alone, again, other) = found.values()
    assert (summary["how"][:5], other["how"][:7]) == ("whole", "changes")
    assert len(whole) == len(alone) > 10
    most = max(abs(row["effect"]) for row in whole if row["effect"] is not None)
    for one, two in zip(whole, alone, strict=True):
        if one["half"] == "reference":  # read to first order alone
            assert one == two and one["effect"] is None
            continue
        if one["kind"] == "dense":
            assert one["z"] is two["z"] is None
            one["z"] = two["z"] = 0.0
        for column in ("effect", "profile"):
            assert two.pop(column) == pytest.approx(one.pop(column), rel=0.02, abs=0.005 * most)
        for column in ("specific", "z"):
            assert two.pop(column) == pytest.approx(one.pop(column), rel=0.05, abs=0.05)
        assert one == two
    assert [row["verdict"] for row in again] == [row["verdict"] for row in judged]
    assert again[0]["kl"] == pytest.approx(judged[0]["kl"], rel=0.05, abs=1e-5)


def limited(config, features: int):
    return config.model_copy(update={"ablate": config.ablate.model_copy(update={"features": features})})


def test_the_screen_decides_what_is_run_and_all_is_judged(config, run):
    causal = [TRUTH.feature[concept] for concept in KINDS["causal"][:3]]
    label(run, {TRUTH.feature[concept]: concept for concept in (*KINDS["causal"][:3], KINDS["unread"][0])})
    ablate(limited(config, 2), run, NAME)
    effects, verdicts, summary = tables(run)
    of = {row["feature"]: row for row in verdicts}
    (kept_out,) = [of[number] for number in causal if not of[number]["removed"]]
    assert (kept_out["verdict"], kept_out["p"]) == ("not shown", 1.0)
    assert kept_out["first_order_z"] == max(of[number]["first_order_z"] for number in causal)
    assert summary["screen"]["limit"] == pytest.approx(kept_out["first_order_z"])
    unread = of[TRUTH.feature[KINDS["unread"][0]]]
    assert (unread["verdict"], unread["removed"]) == ("not testable", False)
    for row in verdicts:
        assert (row["effect"] is None) == (row["z"] is None) == (not row["removed"])
    assert (summary["labelled"], summary["tested"], summary["not_testable"], summary["removed"]) == (4, 3, 1, 2)
    controls = [row for row in effects if row["kind"] == "control"]
    assert {row["half"] for row in controls} == {"reference", "held_back"}
    for row in controls:
        assert (row["z"] is not None) == bool(row["let_through"])
        assert row["let_through"] in ((True, False) if row["half"] == "held_back" else (None,))


def test_features_of_one_concept_are_removed_together(config, run):
    """Two that the word depends on, and one that it does not: joint and single effects, and the controls', are known."""
    one, two = KINDS["causal"][:2]
    label(run, {TRUTH.feature[one]: one, TRUTH.feature[two]: two, TRUTH.feature[KINDS["unread"][0]]: one})
    ablate(config, run, NAME)
    (joint,) = pq.read_table(run / "causal" / NAME / "joint.parquet").to_pylist()
    assert joint["concept"] == one
    assert sorted(joint["features"]) == sorted([TRUTH.feature[one], TRUTH.feature[KINDS["unread"][0]]])
    assert joint["effect"] < -0.1
    assert joint["profile"] == pytest.approx(joint["sum_of_single"], rel=0.2)
    assert len(joint["reference"]) == len(joint["held_back"]) == 4
    assert max(map(abs, joint["held_back"])) < abs(joint["specific"])
    summary = tables(run)[2]
    assert summary["joint"]["concepts"] == 1
    assert summary["joint"]["features"] == 2


def test_further_readouts_of_a_run(config, run, monkeypatch):
    """Block 2 carries some directions to the prompt: what reads them there falls, the dense vectors being theirs."""
    labels = {TRUTH.feature[concept]: concept for concept in (*KINDS["causal"], *KINDS["unread"])}
    label(run, labels)
    monkeypatch.setattr(section, "EXACT", 12)
    found = section.measured(Asked(run, NAME, None))
    further = found["reading_further_up"]
    assert further["block"] == BLOCK + 1
    assert further["confirmed"] >= 6
    assert further["controls_confirmed"] <= 0.1 * further["controls_tested"]
    assert further["first_order_against_exact"]["rho"] > 0.9
    assert found["continuation"]["texts"] == 60
    assert "skipped" in found["position"]


def test_missing_inputs_are_user_errors(config, run):
    with pytest.raises(UserError, match="no dictionary 'other'"):
        ablate(config, run, "other")
    label(run, {3: "a concept that is not there"})
    with pytest.raises(UserError, match="no concept 'a concept that is not there'"):
        ablate(config, run, NAME)
    label(run, {})
    save_file({"dense_CD": torch.zeros(2, 3)}, run / "labels" / NAME / "dense.safetensors")
    with pytest.raises(UserError, match="dense vectors"):
        ablate(config, run, NAME)
