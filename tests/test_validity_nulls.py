"""Nulls, stability and power on the planted model: scrambled, it shows nothing; its labels are found again."""

import json
from pathlib import Path
from typing import Any

import pytest

from eval.validity import power
from eval.validity.__main__ import main
from eval.validity.nulls import shared_topics
from sae_emotions.concepts.concept_set import load_concepts
from sae_emotions.config import parse_config
from sae_emotions.label.ledger import looks
from sae_emotions.pipeline import run_stages
from sae_emotions.run_folder import create_or_check
from tests.conftest import Planted
from tests.planted import BLOCK

NAME = "trained-here"
DICTIONARY = {"name": NAME, "block": BLOCK, "d_sae": 128, "k": 6, "batch": 512, "epochs": 4, "lr": 8e-3}
SECTIONS = ("power", "stability", "nulls")
pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def run(planted: Planted, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("validity") / "run"
    changes = {"dictionaries": [DICTIONARY], "label": planted.config["label"] | {"permutations": 20}}
    create_or_check(folder, parse_config(planted.config | changes, "the planted config"))
    run_stages(folder, ["harvest", f"train:{NAME}", f"label:{NAME}"])
    return folder


@pytest.fixture(scope="module")
def found(run: Path) -> dict[str, Any]:
    patch = pytest.MonkeyPatch()
    patch.setattr(power, "EACH", 6)
    patch.setattr(power, "ROUNDS", 1)
    assert main(["--run", str(run), "--only", *SECTIONS]) == 0
    patch.undo()
    told: dict[str, Any] = json.loads((run / "validity.json").read_text(encoding="utf-8"))
    return told


def test_what_has_learned_nothing_shows_less_than_what_was_planted(found: dict[str, Any]) -> None:
    nulls = found["nulls"]
    trained, untrained = nulls["trained"], nulls["untrained_dictionary"]
    assert trained["labelled_features"] > 0
    assert trained["weights"] == untrained["weights"] == "trained"
    assert trained["labelled_features_with_permuted_labels"] < 1
    assert untrained["fvu"] > trained["fvu"]
    assert untrained["steps"] == 0
    for how in ("random", "permuted"):
        assert nulls[f"{how}_weights"]["weights"] == f"{how}, seed 0"
        assert nulls[f"{how}_weights"]["features"] == trained["features"]
        assert nulls[f"{how}_weights"]["labelled_features"] < 0.2 * trained["labelled_features"]
        assert nulls[f"{how}_weights"]["held_out"]["dense_auroc_first"] < trained["held_out"]["dense_auroc_first"]
        assert nulls[f"{how}_weights"]["held_out"]["tfidf_auroc_first"] == trained["held_out"]["tfidf_auroc_first"]


def test_planted_labels_are_found_again(found: dict[str, Any]) -> None:
    seeds = found["stability"]["seeds"]
    for kind in ("seeds", "halves_of_the_rows", "halves_of_the_topics"):
        again = found["stability"][kind]["labelled_concepts"]
        assert again["share_found_again"] > again["share_found_again_by_chance"] + 0.2
        assert again["p"] < 1e-3
    labelled, chance = (seeds["features"][kind]["share_with_partner"] for kind in ("labelled", "labelled_by_chance"))
    assert labelled > chance
    topics = found["stability"]["halves_of_the_topics"]
    assert topics["features"]["labelled"]["share_with_partner"] in (None, 1)
    assert found["stability"]["halves_of_the_rows"]["concepts"] == 24


def test_power_is_told_for_a_pair_and_for_the_rule(found: dict[str, Any]) -> None:
    told = found["power"]
    assert told["labelled_features"] > 0
    assert told["p_needed"] == pytest.approx(0.05 * told["passed"] / told["screened"])
    assert 0.5 < told["one_pair"]["held_out_first"]["without_ties"] < 1
    near = told["whole_rule"]["with_neighbours"]["levels"]
    assert near[0]["share_with_any_label"] < 0.5 < near[-1]["share_with_any_label"]
    for kind in ("alone", "with_neighbours"):
        assert told["whole_rule"][kind]["levels"][0]["share_labelled_with_the_concept"] < 0.2


def test_every_look_at_the_held_out_texts_is_in_the_ledger(run: Path, found: dict[str, Any]) -> None:
    assert len(looks(run / "ledger.jsonl")) == 1 + 1 + 6 + 4, [one["dictionary"] for one in looks(run / "ledger.jsonl")]


def test_a_part_of_the_run_holds_the_same_rows(run: Path, found: dict[str, Any]) -> None:
    from sae_emotions.harvest.rows import open_rows, read_documents

    part, whole = (
        folder / "activations" / "text" for folder in (run / "validity" / "stability" / NAME / "half-0", run)
    )
    keys, all_keys = (read_documents(folder)["key"].to_pylist() for folder in (part, whole))
    assert 0 < len(keys) < len(all_keys)
    rows, all_rows = open_rows(part, BLOCK), open_rows(whole, BLOCK)
    same = all_keys.index(keys[3])
    few, many = rows.document_N == 3, all_rows.document_N == same
    assert (rows.read(few.nonzero()[0]) == all_rows.read(many.nonzero()[0])).all()
    assert (rows.position_N[few] == all_rows.position_N[many]).all()
    assert (rows.token_N[few] == all_rows.token_N[many]).all()


def test_the_built_in_sets_groups_of_topics() -> None:
    concepts = load_concepts("builtin:emotions")
    assert len(shared_topics(concepts).concepts) == 57


def test_sections_are_not_measured_twice(run: Path, found: dict[str, Any], capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--run", str(run), "--only", *SECTIONS]) == 0
    assert all(f"validity: {name} is done" in capsys.readouterr().err for name in ("power",))
