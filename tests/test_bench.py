"""The benchmark program on a tiny model and tiny rows; no library's environment is made, and no figure here means anything."""

import json
import sys
from pathlib import Path

import numpy as np
import pytest
import yaml

from eval import speed
from eval.bench import harvest, picture, scaling, train, turns
from eval.bench.__main__ import main
from eval.bench.checks import Check, faster_than_ours, of_family, sentence
from eval.bench.turns import Candidate, Worker, in_turns, summary
from sae_emotions.artefact import read_json
from sae_emotions.config import RunConfig, parse_config
from sae_emotions.errors import UserError
from sae_emotions.harvest.harvest import harvest as harvest_stage
from sae_emotions.harvest.rows import open_rows
from sae_emotions.run_folder import create_or_check
from tests.tiny import tiny_config

FAKE = """
import json, sys
task = json.loads(sys.argv[1])
if task["variant"] == "broken":
    sys.exit("ValueError: it does not start")
print("a library talks", flush=True)
print(json.dumps({"ready": True, "note": task["variant"]}), flush=True)
for line in sys.stdin:
    if not line.strip():
        break
    order = json.loads(line)
    if "quality" in order:
        print(json.dumps({"fvu": 0.5}), flush=True)
    elif task["variant"] == "fails":
        sys.exit("ValueError: it does not step")
    else:
        took = {"default": 0.2, "quick": 0.1, "slow": 0.4}[task["variant"]]
        print(json.dumps({"seconds": [took] * order["steps"]}), flush=True)
"""


@pytest.fixture
def fake(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Workers that only say how long their steps were, by their variant."""
    (tmp_path / "fake.py").write_text(FAKE)
    monkeypatch.setattr(turns, "script", lambda library, what: tmp_path / "fake.py")
    monkeypatch.setattr(turns, "interpreter", lambda library: sys.executable)


@pytest.fixture(scope="module")
def config(tmp_path_factory: pytest.TempPathFactory) -> RunConfig:
    return parse_config(tiny_config(tmp_path_factory.mktemp("tiny")), "tiny")


@pytest.fixture(scope="module")
def run(config: RunConfig, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("run")
    create_or_check(out, config)
    harvest_stage(config, out)
    return out


def test_workers_take_turns_and_say_how_long_it_took(fake: None, tmp_path: Path) -> None:
    workers = [Worker(Candidate("any", variant), "train", {}, tmp_path, False) for variant in ("default", "slow")]
    assert [worker.ready()["note"] for worker in workers] == ["default", "slow"]
    seconds = in_turns(workers, rounds=3, at_least=0.4)
    assert {str(one): len(times) for one, times in seconds.items()} == {"any": 3 * 2, "any (slow)": 3 * 1}
    assert workers[0].quality() == {"fvu": 0.5}
    for worker in workers:
        worker.stop()


def test_a_worker_that_ends_says_why(fake: None, tmp_path: Path) -> None:
    worker = Worker(Candidate("any", "broken"), "train", {}, tmp_path, False)
    with pytest.raises(RuntimeError, match=r"any .broken. ended.*\n.*it does not start"):
        worker.ready()
    worker.stop()


def test_a_library_that_fails_is_named_and_ours_must_not(fake: None, tmp_path: Path) -> None:
    (tmp_path / "centre.safetensors").touch()
    chosen = [Candidate("ours", "default"), Candidate("other", "broken"), Candidate("other", "fails")]
    ready, skipped = harvest._started(chosen, {}, tmp_path, False)
    assert [str(worker.candidate) for worker, _ in ready] == ["ours"]
    assert skipped == [
        {"name": "other (broken)", "reason": "ValueError: it does not start"},
        {"name": "other (fails)", "reason": "ValueError: it does not step"},
    ]
    ready[0][0].stop()
    with pytest.raises(RuntimeError, match=r"ours .broken. ended"):
        harvest._started([Candidate("ours", "broken")], {}, tmp_path, False)


def test_a_training_table_names_who_is_faster(fake: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    chosen = (Candidate("ours", "default"), Candidate("other", "quick"), Candidate("other", "slow"))
    monkeypatch.setitem(train.CANDIDATES, "topk", chosen)
    options = {"rounds": 1, "vectors": 200, "tuned": False, "folder": tmp_path}
    table = train.compare(train.Shape("topk", 8, 2, 100), ["ours", "other"], (tmp_path, tmp_path), options)
    assert [row["ours_is_faster_by"] for row in table["candidates"]] == pytest.approx([1, 0.5, 2])
    assert table["candidates"][0]["vectors_per_second"] == pytest.approx(500)
    equal = train.equal_data(train.Shape("topk", 8, 2, 100), ["ours", "other", "bounds"], (tmp_path, tmp_path), options)
    assert equal["after"] == 200
    assert equal["quality"]["other (slow)"] == {"fvu": 0.5}
    assert "other (quick) is faster than ours here, 2.00 times." in train.rendered(table)
    assert "other (slow) is faster" not in train.rendered(table)


def test_the_machine_and_our_own_rows_beat_nobody() -> None:
    rows = [{"name": name, "ours_is_faster_by": 0.5} for name in ("ours (forward)", "bounds (lb2)", "other")]
    assert faster_than_ours(rows) == ["  other is faster than ours here, 2.00 times."]


def test_summaries() -> None:
    found = summary([0.1, 0.2, 0.3, 0.4, 0.5], 30, "rows_per_second")
    assert found == pytest.approx(
        {"step_ms": 300, "rows_per_second": 100, "steps": 5, "quartiles_ms": pytest.approx([200, 400])}
    )
    assert summary([0.5], 1, "x")["quartiles_ms"] == [500, 500]


def test_checks_of_our_own_kinds() -> None:
    took = {"topk": 100, "batchtopk": 110, "matryoshka": 140, "auxk": 110}
    rows = [{"name": f"ours ({name})", "step_ms": ms} for name, ms in took.items()]
    found = of_family({"candidates": rows, "d_sae": 4096})
    assert [(one["found"], one["holds"]) for one in found] == [(1.1, True), (1.4, False), (1.1, True)]
    assert (
        sentence(found[1]) == "Matryoshka: a step in times of TopK's, d_sae 4,096: 1.40 (at most 1.30: does NOT hold)"
    )
    assert sentence(Check("reads", 2e6, 1e6, at_least=True).data()) == "reads: 2,000,000 (at least 1,000,000: holds)"


@pytest.mark.slow
def test_a_harvest_gives_the_same_rows_by_every_way(
    config: RunConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Ragged windows: what is padded by one and read by another's own batches comes out alike, in the same order."""
    (tmp_path / "config.yaml").write_text(yaml.safe_dump(config.model_dump(mode="json")))
    chosen = (("ours", "default"), ("ours", "forward"), ("transformers", "fp32"), ("transformers", "compiled"))
    monkeypatch.setattr(harvest, "CANDIDATES", tuple(Candidate(*one) for one in chosen))
    monkeypatch.setattr(harvest, "which", lambda name: None)
    files = ["--json", str(tmp_path / "found.json"), "--picture", str(tmp_path / "found.png")]
    call = [
        "harvest",
        "--config",
        str(tmp_path / "config.yaml"),
        "--step-tokens",
        "96",
        "--steps",
        "2",
        "--rounds",
        "1",
    ]
    assert main([*call, "--ragged", "--peers", "ours", "transformers", "sparsify", *files]) == 0
    found = read_json(tmp_path / "found.json")
    rows = {row["name"]: row for row in found["candidates"]}
    assert list(rows) == ["ours", "ours (forward)", "transformers (fp32)"]
    assert rows["transformers (fp32)"]["relative_error"] < 1e-5
    assert rows["ours (forward)"]["relative_error"] < 1e-5
    assert 1e-5 < rows["ours"]["relative_error"] < 0.02
    assert [one["name"] for one in found["skipped"]] == ["transformers (compiled)", "sparsify"]
    assert (tmp_path / "found.png").read_bytes().startswith(b"\x89PNG")


def test_windows_for_libraries_that_do_not_pad_are_full(config: RunConfig) -> None:
    import torch

    from sae_emotions.sources.models import load_model

    model = load_model(config.model, torch.float32)
    full = harvest.reviews(config, model, 20, whole=True)
    assert {len(window) for window in full} == {config.harvest.context}
    assert {len(window) for window in harvest.reviews(config, model, 20, whole=False)} > {config.harvest.context}
    with pytest.raises(UserError, match="ask for fewer"):
        harvest.reviews(config, model, 10_000, whole=True)
    exact_ND = harvest.exact_rows(model, full[:3], 1)
    assert harvest.parity(exact_ND, exact_ND) == pytest.approx({"cosine": 1, "relative_error": 0})
    assert harvest.parity(exact_ND * 1.1, exact_ND)["relative_error"] == pytest.approx(0.1, rel=1e-4)
    with pytest.raises(RuntimeError, match="45 rows"):
        harvest.parity(exact_ND, exact_ND[1:])
    assert harvest.hook_of(model, 1) == "model.layers.1"


def test_a_saved_model_is_read_alike_by_an_older_transformers(config: RunConfig, tmp_path: Path) -> None:
    import torch

    from sae_emotions.sources.models import load_model

    model = load_model(config.model, torch.float32)
    harvest.save_model(model, tmp_path)
    saved = read_json(tmp_path / "config.json")
    assert (
        saved["rope_theta"]
        == saved["rope_parameters"]["rope_theta"]
        == model.model.config.rope_parameters["rope_theta"]
    )


def test_a_copied_store_has_just_the_rows_asked_for(run: Path, tmp_path: Path) -> None:
    text = open_rows(run / "activations" / "text", 2)
    rows = 2 * len(text) + 100
    scaling.copy_rows(run, 2, rows, tmp_path / "copy")
    copy = open_rows(tmp_path / "copy", 2)
    assert len(copy) == rows
    np.testing.assert_array_equal(copy.slice(len(text), 2 * len(text)), text.slice(0, len(text)))
    parts = [set(copy.document_N[at : at + len(text)]) for at in (0, len(text), 2 * len(text))]
    assert not parts[0] & parts[1] and not parts[1] & parts[2]


@pytest.mark.slow
def test_scaling_measures_a_part_and_reads_the_rest(run: Path, tmp_path: Path) -> None:
    files = ["--json", str(tmp_path / "found.json"), "--picture", str(tmp_path / "found.svg")]
    sizes = ["--train", "1024", "--whole", "512", "--harvest", "400", "--shard-tokens", "100", "--d-sae"]
    assert main(["scaling", "--run", str(run), *sizes, "--temp", str(tmp_path / "temp"), *files]) == 0
    found = read_json(tmp_path / "found.json")
    (point,) = found["train"]
    assert not point["measured_whole"]
    left = 1024 - point["trained"]
    assert point["seconds_for_all"] == pytest.approx(point["seconds"] + left / point["pace"])
    assert point["pace"] > point["trained"] / point["seconds"]
    assert point["trained"] <= 512 and point["trained"] + point["read_only"] > 850
    assert [point["shards"] for point in found["harvest"]] == [4]
    assert all(0 < point["own_bytes"] <= point["mapped_bytes"] for point in found["train"] + found["harvest"])
    assert list((tmp_path / "temp").iterdir()) == []
    assert "<svg" in (tmp_path / "found.svg").read_text()


def test_scaling_checks_memory_and_time() -> None:
    few = {"rows": 10, "tokens": 10, "seconds": 2.0, "seconds_for_all": 2.0, "own_bytes": 130}
    many = {"rows": 1000, "tokens": 1000, "seconds": 230.0, "seconds_for_all": 150.0, "own_bytes": 140}
    start = {"rows": 1, "tokens": 1, "seconds": 1.0, "seconds_for_all": 1.0, "own_bytes": 100}
    found = scaling.checks({"train": [start, few, many], "harvest": [few, many | {"own_bytes": 208}]})
    assert [one["found"] for one in found] == pytest.approx([1.4, 0.75, 1.6, 1.15])
    assert [one["holds"] for one in found] == [True, True, False, False]
    assert scaling.checks({"train": [few], "harvest": []}) == []


def test_shares_are_of_products_of_the_same_type() -> None:
    rates = {"ours": 60.0, "other": 20.0, "bounds (bf16)": 120.0, "bounds (fp32)": 40.0}
    types = {"ours": "bfloat16", "other": "float32", "bounds (bf16)": "bfloat16", "bounds (fp32)": "float32"}
    rows = [{"name": name, "type": types[name], "tokens_per_second": rate} for name, rate in rates.items()]
    found = {row["name"]: row for row in harvest._with_ratios(rows)}
    assert found["ours"]["share_of_products"] == found["other"]["share_of_products"] == 0.5
    assert found["other"]["ours_is_faster_by"] == 3


def test_a_store_larger_than_the_disk_is_refused(run: Path) -> None:
    options = {"run": run, "train": [10**15], "temp": None, "whole": 1}
    with pytest.raises(UserError, match=r"needs 600000000\.0 GB"):
        scaling.train_points(options)


@pytest.mark.slow
def test_encoding_scoring_and_the_store_are_measured(config: RunConfig, tmp_path: Path, run: Path) -> None:
    from sae_emotions.dictionary.train import train as train_stage

    train_stage(config, run, "d")
    call = ["encode", "--run", str(run), "--rows", "500", "--tokens", "200", "--json", str(tmp_path / "found.json")]
    assert main(call) == 0
    found = read_json(tmp_path / "found.json")
    assert found["store"]["vectors"] == 500 == found["encoding"]["rows"]
    assert 32 + 4 + 12 < found["store"]["bytes_per_row"] < 100
    assert found["scoring"]["concepts"] == 4
    assert found["encoding"]["latents"] == 64
    assert 200 <= found["forward"]["tokens"] < 300
    took = found["seconds"]
    share = (took["encoding"] + took["scoring"]) / took["forward"]
    assert [one["found"] for one in found["checks"]] == pytest.approx([share, found["store"]["vectors_per_second"]])


def test_the_committed_pictures_can_be_drawn_again(tmp_path: Path) -> None:
    for what, found in speed.read().items():
        if what == "encode":
            continue
        for name in ("first.svg", "second.svg"):
            picture.draw(what, found, tmp_path / name)
        assert (tmp_path / "first.svg").read_bytes() == (tmp_path / "second.svg").read_bytes()


def test_a_picture_of_another_kind_is_refused_before_anything_is_measured(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["harvest", "--config", "nothing.yaml", "--picture", "found.gif"]) == 2
    assert "'.gif'" in capsys.readouterr().err


def test_the_readme_says_where_a_library_is_faster() -> None:
    measured = speed.read()
    found = json.loads(json.dumps(measured))
    assert "as fast as ours" not in speed.ratio(found["harvest"]["candidates"][0])
    other = next(row for row in found["harvest"]["candidates"] if row["name"].startswith("saelens"))
    other["ours_is_faster_by"] = 0.8
    assert "**1.25x as fast as ours**" in speed.harvest(found)
    other["ours_is_faster_by"] = 3.14
    assert "3.1x" in speed.harvest(found)


def test_the_readme_names_what_was_not_measured_whole() -> None:
    point = {
        "rows": 10**7,
        "measured_whole": False,
        "trained": 10**6,
        "read_only": 9 * 10**6,
        "seconds": 50.0,
        "seconds_for_all": 500.0,
        "own_bytes": 2**30,
        "mapped_bytes": 2**31,
    }
    row = speed._train_row(point)
    assert "trained on 1,000,000 rows drawn from all, in 50 s, and read 9,000,000 more" in row
    assert "| 500 s | 1.00 GiB | 2.00 GiB |" in row
