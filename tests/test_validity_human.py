"""The section of eval.validity that reads people's labels: what is there, what is skipped, what is done already."""

import json
import shutil
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
import yaml
from safetensors.numpy import save_file

from eval.validity import human
from eval.validity.asked import Asked
from sae_emotions.artefact import write_json
from sae_emotions.config import parse_config
from sae_emotions.schema import schema, write_table
from tests.planted import BLOCK, D, directions, truth
from tests.planted_words import FILLER


@pytest.fixture
def asked(planted, tmp_path) -> Asked:
    """The planted model as a labelled run, and two invented tables."""
    run, data = tmp_path / "run", tmp_path / "data"
    config = parse_config(planted.config, "planted").model_dump(mode="json")
    write_json(run / "run.json", {"config": config, "stages": {}})
    shutil.copytree(planted.folder / "sae", run / "dictionaries" / "planted")
    write_json(run / "dictionaries" / "planted" / "quality.json", {"block": BLOCK, "d_in": D})
    feature = truth().feature
    columns = {field.name: pa.nulls(len(feature), field.type) for field in schema("concepts", ("a", "b"))}
    columns |= {"concept": list(feature), "feature": list(feature.values())}
    write_table(run / "labels" / "planted" / "concepts.parquet", "concepts", columns, ("a", "b"))
    dense_CD = np.stack([directions().of[f"concept {name}"] for name in feature]).astype(np.float32)
    save_file({"dense_CD": dense_CD}, run / "labels" / "planted" / "dense.safetensors")
    for name in ("one", "two"):
        (data / name).mkdir(parents=True)
        rows: list[dict[str, Any]] = [{"text": " ".join(FILLER[n : n + 7]), "mood": n % 2} for n in range(120)]
        (data / name / "rows.json").write_text(json.dumps(rows))
        mapping: dict[str, Any] = {
            "name": name,
            "files": ["rows.json"],
            "split": {"hash": None, "test": 0.5},
            "format": "json",
        }
        mapping |= {"kind": "classes", "labels": {"columns": {"odd": "mood"}}}
        (data / name / "mapping.yaml").write_text(yaml.safe_dump(mapping))
    return Asked(run, "planted", data)


def test_without_data_nothing_is_read(asked):
    assert human.measured(asked._replace(data=None)) == {"sets": {}, "skipped": {"all": "no --data was given"}}


def test_a_table_that_is_done_is_not_read_again(asked, monkeypatch, capsys):
    seen: list[str] = []

    def evaluated(reader, ready):
        name = ready.table.mapping.name
        if len(seen) == 1:
            seen.append("broken off")
            raise KeyboardInterrupt
        seen.append(name)
        assert ready.tokens == 120 * 7 and reader.concept_set == "minerals"
        return {"test_rows": len(ready.drawn.test_N)}

    monkeypatch.setattr(human, "evaluate", evaluated)
    with pytest.raises(KeyboardInterrupt):
        human.measured(asked)
    assert [path.name for path in (asked.run / "validity" / "human").iterdir()] == ["one.json"]
    found = human.measured(asked)
    assert seen == ["one", "broken off", "two"]
    assert list(found["sets"]) == ["one", "two"] and set(found["sets"]["one"]) == {"test_rows"}
    assert found["skipped"]["goemotions"] == "no folder goemotions"
    assert not (asked.run / "validity" / "human").exists()
    assert "goemotions is skipped" in capsys.readouterr().err


def test_what_was_measured_with_another_mapping_is_measured_again(asked, monkeypatch):
    monkeypatch.setattr(human, "evaluate", lambda reader, ready: {"test_rows": len(ready.drawn.test_N)})
    monkeypatch.setattr(human.shutil, "rmtree", lambda *args, **options: None)
    before = human.measured(asked)["sets"]["one"]["test_rows"]
    path = asked.data / "one" / "mapping.yaml"
    path.write_text(path.read_text().replace("0.5", "0.3"))
    assert human.measured(asked)["sets"]["one"]["test_rows"] < before
