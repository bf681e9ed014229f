"""The whole pipeline on the planted model: it must find what was planted, nothing else, and believe the right half."""

import json
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest

from sae_emotions.config import RunConfig, parse_config
from sae_emotions.pipeline import run
from tests.conftest import Planted
from tests.planted import truth
from tests.planted_words import CONCEPTS, CROSSED, FIRST, KINDS, SECOND

TRUTH = truth()
pytestmark = pytest.mark.slow


def rows(path: Path) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = pq.read_table(path).to_pylist()
    return found


@pytest.fixture(scope="module")
def config(planted: Planted) -> RunConfig:
    return parse_config(planted.config, "the planted config")


@pytest.fixture(scope="module")
def folder(config: RunConfig, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return run(config, tmp_path_factory.mktemp("run") / "planted")


@pytest.fixture(scope="module")
def features(folder: Path) -> dict[int, dict[str, Any]]:
    return {row["feature"]: row for row in rows(folder / "labels" / "planted" / "features.parquet")}


@pytest.fixture(scope="module")
def verdicts(folder: Path) -> dict[int, dict[str, Any]]:
    return {row["feature"]: row for row in rows(folder / "causal" / "planted" / "verdicts.parquet")}


def test_exactly_the_planted_features_are_labelled(features: dict[int, dict[str, Any]]) -> None:
    assert {number: row["label"] for number, row in features.items() if row["label"] is not None} == TRUTH.labelled
    assert {number for number, row in features.items() if row["status"] == "labelled"} == set(TRUTH.labelled)


def test_evidence_in_one_register_is_called_so(features: dict[int, dict[str, Any]]) -> None:
    partly = {number: row["status"] for number, row in features.items() if row["status"] not in ("labelled", "none")}
    assert partly == TRUTH.status
    assert {number: features[number]["concept"] for number in TRUTH.status} == {
        TRUTH.feature[concept]: concept for kind in ("first_only", "second_only") for concept in KINDS[kind]
    }


def test_what_holds_on_the_selection_topics_alone_is_not_confirmed(features: dict[int, dict[str, Any]]) -> None:
    screened = {number for number, row in features.items() if row["screened"]}
    assert screened == set(TRUTH.labelled) | set(TRUTH.status) | TRUTH.selection_only
    for number in TRUTH.selection_only:
        assert features[number]["auroc_selection"] > 0.9
        assert features[number]["q"] > 0.05


def test_scores_of_planted_features_are_high_in_every_cell(features: dict[int, dict[str, Any]]) -> None:
    for number in TRUTH.labelled:
        for cell in (FIRST, SECOND, CROSSED):
            assert features[number][f"auroc_{cell}"] > 0.95
        assert features[number]["cosine_dense"] > 0.5
    for concept in KINDS["causal"]:
        word = concept.split()[0]
        assert word in [token.strip() for token in features[TRUTH.feature[concept]]["top_tokens"]]


def test_dead_features_are_left_alone(features: dict[int, dict[str, Any]]) -> None:
    for number in TRUTH.dead:
        row = features[number]
        assert row["label"] is None
        assert row["density"] == 0
        assert not row["screened"]


def test_exactly_the_planted_concepts_are_confirmed(folder: Path) -> None:
    table = {row["concept"]: row for row in rows(folder / "labels" / "planted" / "concepts.parquet")}
    assert set(table) == set(CONCEPTS)
    confirmed = {concept: row["feature"] for concept, row in table.items() if row["confirmed"]}
    assert confirmed == {concept: number for number, concept in TRUTH.labelled.items()}
    for concept, number in confirmed.items():
        assert table[concept]["labelled_features"] == [number]
        assert table[concept][f"dense_{FIRST}"] > 0.9
        assert table[concept][f"tfidf_{CROSSED}"] > 0.9


def test_the_null_finds_nothing(folder: Path) -> None:
    null = json.loads((folder / "labels" / "planted" / "null.json").read_text(encoding="utf-8"))
    assert null["permutations"] >= 20
    assert null["mean_labelled_features"] == 0


def test_features_stand_beside_other_methods_after_every_training(folder: Path) -> None:
    """What was planted in both registers carries over; five concepts in 24 or so are there in one of them or in none."""
    told = json.loads((folder / "labels" / "planted" / "transfer.json").read_text(encoding="utf-8"))
    cells = {(trained, cell): found for trained, read in told["trained_on"].items() for cell, found in read.items()}
    assert set(cells) == {
        *(("both", cell) for cell in (FIRST, SECOND, CROSSED)),
        *((FIRST, cell) for cell in (SECOND, CROSSED)),
        *((SECOND, cell) for cell in (FIRST, CROSSED)),
    }
    for found in cells.values():
        assert set(found["methods"]) == set(told["methods"]) == {
            "single", "five", "sixteen", "all_features", "dense", "dense_denoised", "tfidf", "embeddings"
        }  # fmt: skip
        for figures in found["methods"].values():
            assert len(TRUTH.labelled) <= figures["at_least_90"]["raw"] + 2
            assert figures["interval"][0] < figures["auroc"] < figures["interval"][1]
    assert cells["both", FIRST]["methods"]["single"]["features"] <= len(CONCEPTS)


def test_controls_read_less_than_what_was_planted(folder: Path) -> None:
    from eval.validity.asked import Asked
    from eval.validity.transfer import measured

    looks = (folder / "ledger.jsonl").read_text(encoding="utf-8").count("\n")
    told = measured(Asked(folder, "planted", None))
    assert (folder / "ledger.jsonl").read_text(encoding="utf-8").count("\n") == looks + 1
    json.dumps(told, allow_nan=False)
    for read in told["trained_on"].values():
        for found in read.values():
            auroc = {name: figures["auroc"] for name, figures in found["methods"].items()}
            assert set(auroc) == set(told["methods"])
            planted = min(auroc["single"], auroc["dense"], auroc["logistic"], auroc["sixteen_l1"])
            for control in ("best_dimension", "random_direction", "random_dictionary"):
                assert auroc[control] < planted - 0.05
            assert 0.4 < auroc["random_direction"] < 0.65


def test_top_contexts_show_the_cue(folder: Path) -> None:
    examples = rows(folder / "labels" / "planted" / "examples.parquet")
    for number, concept in TRUTH.labelled.items():
        mine = [row for row in examples if row["feature"] == number]
        assert mine
        for row in mine:
            strongest = row["tokens"][row["values"].index(max(row["values"]))]
            assert strongest.strip().startswith(concept.replace(" ", "") + "cue")


def test_exactly_what_the_output_reads_is_causal(verdicts: dict[int, dict[str, Any]]) -> None:
    assert set(verdicts) == set(TRUTH.labelled)
    assert {number for number, row in verdicts.items() if row["verdict"] == "causal"} == TRUTH.causal
    for number in TRUTH.causal:
        assert verdicts[number]["effect"] < -0.2
        assert verdicts[number]["rank"] == 1


def test_a_bystander_is_tested_and_not_shown(verdicts: dict[int, dict[str, Any]]) -> None:
    """Its concept's dense vector moves the readout, so the test could have shown an effect; the feature has none."""
    for number in TRUTH.not_shown:
        assert verdicts[number]["verdict"] == "not shown"
        assert verdicts[number]["dense_effect"] < -0.2


def test_a_concept_that_nothing_carries_cannot_be_tested(verdicts: dict[int, dict[str, Any]]) -> None:
    for concept in KINDS["unread"]:
        assert verdicts[TRUTH.feature[concept]]["verdict"] == "not testable"


def test_controls_are_unlabelled_and_seldom_causal(folder: Path) -> None:
    effects = rows(folder / "causal" / "planted" / "effects.parquet")
    controls = [row for row in effects if row["kind"] == "control"]
    assert not {row["control"] for row in controls} & set(TRUTH.labelled)
    assert {row["half"] for row in controls} == {"reference", "held_back"}
    causal = json.loads((folder / "causal" / "planted" / "summary.json").read_text(encoding="utf-8"))
    assert causal["controls_confirmed"] <= 0.1 * causal["controls_tested"]


def test_the_screen_ranks_as_the_exact_test_does(folder: Path) -> None:
    found = json.loads((folder / "causal" / "planted" / "summary.json").read_text(encoding="utf-8"))["screen"]
    assert found["rank_agreement"]["low"] > 0.1  # of twelve features, the causal ones all alike
    assert found["rank_agreement_of_z"]["low"] > 0.9  # with controls


def test_the_summary_counts_what_was_planted(folder: Path) -> None:
    summary = json.loads((folder / "summary.json").read_text(encoding="utf-8"))
    (dictionary,) = summary["dictionaries"]
    assert dictionary["labels"]["features"] == len(TRUTH.labelled)
    assert dictionary["labels"]["confirmed_concepts"] == len(TRUTH.labelled)
    assert dictionary["labels"]["null_features"] == 0
    assert dictionary["causal"]["confirmed"] == len(TRUTH.causal)
    assert dictionary["fvu"] < 0.05
    page = (folder / "report.html").read_text(encoding="utf-8")
    assert "rose quartz" in page
    assert "emotion" not in page.replace("sae-emotions", "").replace("sae_emotions", "").lower()


def test_a_second_run_changes_no_byte(config: RunConfig, folder: Path) -> None:
    before = {path: (path.stat().st_mtime_ns, path.read_bytes()) for path in folder.rglob("*") if path.is_file()}
    run(config, folder)
    after = {path: (path.stat().st_mtime_ns, path.read_bytes()) for path in folder.rglob("*") if path.is_file()}
    assert after == before
