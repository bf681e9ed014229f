"""A part of a harvest: the same rows under new numbers, of a run that need not be run again; and sets of some concepts."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from sae_emotions.artefact import read_json
from sae_emotions.concepts.concept_set import load_concepts, some_concepts
from sae_emotions.concepts.folder import save_folder
from sae_emotions.config import DictionaryConfig, parse_config
from sae_emotions.dictionary.twin import train_missing, twin
from sae_emotions.errors import UserError
from sae_emotions.harvest.harvest import harvest
from sae_emotions.harvest.part import write_part
from sae_emotions.harvest.rows import open_rows, read_documents
from sae_emotions.harvest.store import shard_is_done
from tests.tiny import tiny_config


@pytest.fixture(scope="module", params=["int8", "bfloat16"])
def made(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[dict[str, Any], Path]:
    folder = tmp_path_factory.mktemp(request.param)
    data = tiny_config(folder)
    data["harvest"]["store"] = request.param
    harvest(parse_config(data, "test"), folder / "run")
    return data, folder / "run"


def test_a_part_has_the_same_rows_under_new_numbers(made: tuple[dict[str, Any], Path], tmp_path: Path) -> None:
    whole = made[1] / "activations" / "text"
    all_keys = read_documents(whole)["key"].to_pylist()
    keys = all_keys[1:30:3]
    part = write_part(whole, tmp_path / "part", keys, [2])
    documents, old, new = read_documents(part), open_rows(whole, 2), open_rows(part, 2)
    assert documents["key"].to_pylist() == keys
    assert documents["document"].to_pylist() == list(range(len(keys)))
    numbers = [all_keys.index(key) for key in keys]
    same = np.flatnonzero(np.isin(old.document_N, numbers))
    assert np.array_equal(new.read(np.arange(len(new))), old.read(same))
    assert np.array_equal(new.position_N, old.position_N[same])
    assert np.array_equal(new.token_N, old.token_N[same])
    assert np.array_equal(np.array(numbers)[new.document_N], old.document_N[same])
    plan = read_json(part / "plan.json")
    assert plan["rows"] == len(new)
    assert plan["blocks"] == [2]
    assert plan["tokens"] == sum(map(len, documents["token_ids"].to_pylist()))
    assert plan["identity"] != read_json(whole / "plan.json")["identity"]
    assert all(shard_is_done(part, number) for number in range(len(plan["shards"])))


def test_what_the_harvest_lacks_is_refused(made: tuple[dict[str, Any], Path], tmp_path: Path) -> None:
    whole = made[1] / "activations" / "text"
    with pytest.raises(UserError, match="lacks 1 of the documents"):
        write_part(whole, tmp_path / "part", ["elsewhere"], [2])
    with pytest.raises(UserError, match="holds the blocks 1, 2"):
        write_part(whole, tmp_path / "part", read_documents(whole)["key"].to_pylist(), [0])
    assert not (tmp_path / "part").exists()


def test_a_dictionary_trains_on_a_part(made: tuple[dict[str, Any], Path], tmp_path: Path) -> None:
    config = parse_config(made[0], "test")
    for source in ("text", "concepts"):
        whole = made[1] / "activations" / source
        keys = read_documents(whole)["key"].to_pylist()[::2]
        write_part(whole, tmp_path / "half" / "activations" / source, keys, [2])
    train_missing(config, tmp_path / "half")
    quality = read_json(tmp_path / "half" / "dictionaries" / "d" / "quality.json")
    assert 0 < quality["rows"] < 3 * 0.6 * (900 + 960)
    before = (tmp_path / "half" / "dictionaries" / "d" / "quality.json").stat().st_mtime_ns
    train_missing(config, tmp_path / "half")
    assert (tmp_path / "half" / "dictionaries" / "d" / "quality.json").stat().st_mtime_ns == before


def test_a_twin_has_the_same_shape(made: tuple[dict[str, Any], Path], tmp_path: Path) -> None:
    config = parse_config(made[0], "test")
    own = config.dictionaries[0]
    assert twin(config, tmp_path, "d", seed=5) == own.model_copy(update={"seed": 5})
    loaded = {"name": "d", "block": 1, "pretrained": {"path": str(tmp_path)}}
    (tmp_path / "dictionaries" / "d").mkdir(parents=True)
    (tmp_path / "dictionaries" / "d" / "quality.json").write_text('{"d_sae": 48, "l0": 3.4}')
    other = twin(parse_config(made[0] | {"dictionaries": [loaded]}, "test"), tmp_path, "d", name="twin")
    assert other == DictionaryConfig(name="twin", block=1, d_sae=48, k=3)


def test_some_concepts_are_saved_and_read_again(tmp_path: Path) -> None:
    whole = load_concepts("builtin:emotions")
    some = some_concepts(whole, {"afraid", "at ease", "calm", "proud"})
    assert (
        {text.concept for text in some.texts}
        == {one.name for one in some.concepts}
        == {"afraid", "at ease", "calm", "proud"}
    )
    assert some.sha256 != whole.sha256
    assert load_concepts(str(save_folder(some, tmp_path / "some"))) == some
    with pytest.raises(UserError, match="at least two concepts"):
        some_concepts(whole, {"afraid"})
