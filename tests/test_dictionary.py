"""Dictionaries: SAELens' contract, exact resume, calibration, held-out rows, other people's SAEs."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.numpy import load_file

from sae_emotions.artefact import read_json
from sae_emotions.concepts.concept_set import load_concepts
from sae_emotions.config import RunConfig, parse_config
from sae_emotions.dictionary.data import order, prefetched, shuffled, training_rows
from sae_emotions.dictionary.encode import load_dictionary, randomised
from sae_emotions.dictionary.train import named, splice_quality, train
from sae_emotions.errors import UserError
from sae_emotions.harvest.harvest import harvest
from sae_emotions.harvest.rows import joined, read_documents
from tests.kill import killed_after_saves
from tests.tiny import tiny_config

ARCHITECTURES = ["topk", "batchtopk", "matryoshka_batchtopk", "jumprelu", "gated", "standard"]


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    return tiny_config(tmp_path_factory.mktemp("tiny"))


@pytest.fixture(scope="module")
def run(data: dict[str, Any], tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("run")
    harvest(parse_config(data, "tiny"), out)
    return out


def config_for(data: dict[str, Any], **changes: Any) -> RunConfig:
    return parse_config(data | {"dictionaries": [data["dictionaries"][0] | changes]}, "tiny")


def test_held_out_rows_and_held_out_topics_never_train(data: dict[str, Any], run: Path) -> None:
    config = config_for(data)
    rows = training_rows(run, config, config.dictionaries[0])
    text, concepts = rows.stores
    trained = set(text.document_N[rows.train[rows.train < len(text)]].tolist())
    assert not trained & set(rows.holdout_documents.tolist())
    assert trained | set(rows.holdout_documents.tolist()) == set(text.document_N.tolist())
    split = {one.id: one.split for one in load_concepts(config.concepts).texts}
    keys = read_documents(run / "activations" / "concepts")["key"].to_pylist()
    used = {split[keys[d]] for d in concepts.document_N[rows.train[rows.train >= len(text)] - len(text)].tolist()}
    assert used == {"selection"}


def test_an_epoch_is_a_permutation_and_any_start_repeats_the_rest(data: dict[str, Any], run: Path) -> None:
    config = config_for(data)
    rows = training_rows(run, config, config.dictionaries[0])
    steps = 2 * len(rows.train) // 32
    whole = np.concatenate([x_BD for (x_BD,) in shuffled([rows], 0, 32, steps, 0)])
    rest = np.concatenate([x_BD for (x_BD,) in shuffled([rows], 0, 32, steps, 7)])
    assert np.array_equal(whole[7 * 32 :], rest)
    first = whole[: len(rows.train)]
    everything = rows.read(rows.train)
    assert np.allclose(np.sort(first.sum(1)), np.sort(everything.sum(1)), atol=1e-4)


def test_blocks_are_read_in_the_same_order(data: dict[str, Any], run: Path) -> None:
    config = config_for(data)
    both = [training_rows(run, config, config.dictionaries[0].model_copy(update={"block": b})) for b in (1, 2)]
    taken = list(order(len(both[0].train), 5, 32, 20, 3))
    assert len(taken) == 17
    for numbers, blocks in zip(taken, shuffled(both, 5, 32, 20, 3), strict=True):
        for rows, x_BD in zip(both, blocks, strict=True):
            text, concepts = rows.stores
            each = rows.train[numbers]
            read = [text.read(n[None]) if n < len(text) else concepts.read(n[None] - len(text)) for n in each]
            assert np.array_equal(x_BD, np.concatenate(read))


def test_rows_stored_around_different_points_are_refused(data: dict[str, Any], run: Path) -> None:
    config = config_for(data)
    text, concepts = training_rows(run, config, config.dictionaries[0]).stores
    concepts.stored.centre_D[0] += 1
    with pytest.raises(UserError, match="around another centre"):
        joined([text, concepts])


def test_prefetching_hands_on_errors_and_stops(data: dict[str, Any]) -> None:
    def broken() -> Any:
        yield torch.zeros(1)
        raise RuntimeError("the disk is gone")

    source = prefetched(broken())
    next(source)
    with pytest.raises(RuntimeError, match="the disk is gone"):
        next(source)


@pytest.fixture(params=["plain", "compiled"])
def engine(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """The sparse step's engine; small dictionaries train in PyTorch unless told otherwise."""
    if request.param == "compiled":
        monkeypatch.setattr("sae_emotions.sparse.step.WORTH", 0)
        monkeypatch.setattr("sae_emotions.dictionary.encode.MANY", 0)
    return str(request.param)


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_every_architecture_trains_saves_and_reloads_the_same(
    data: dict[str, Any], run: Path, tmp_path: Path, architecture: str, engine: str
) -> None:
    from sae_lens import SAE

    if engine == "compiled" and "topk" not in architecture:
        pytest.skip("trains through SAELens alone")
    config = config_for(data, name=f"{architecture}-{engine}", architecture=architecture, lr=1e-3)
    folder = train(config, run, f"{architecture}-{engine}")
    quality = read_json(folder / "quality.json")
    assert quality["reload_difference"] <= 1e-4
    assert 0 < quality["fvu"] < 1
    x_BD = torch.from_numpy(np.random.default_rng(0).normal(size=(40, 32)).astype(np.float32))
    ours = load_dictionary(run, f"{architecture}-{engine}").features(x_BD)
    theirs = SAE.load_from_disk(folder).encode(x_BD)
    assert torch.allclose(ours, theirs, atol=1e-5)
    if "topk" in architecture:
        assert abs(quality["l0"] - 4) < 0.4


@pytest.mark.parametrize("architecture", ["topk", "jumprelu", "standard"])
def test_a_random_dictionary_has_the_shape_and_nothing_learnt(
    data: dict[str, Any], run: Path, architecture: str
) -> None:
    train(config_for(data, architecture=architecture, name=f"r-{architecture}"), run, f"r-{architecture}")
    learnt = load_dictionary(run, f"r-{architecture}")
    before = learnt.W_dec_FD.clone()
    centre = np.linspace(0, 1, learnt.d_in, dtype=np.float32)
    first, again, other = (randomised(learnt, centre, seed) for seed in (0, 0, 1))
    torch.testing.assert_close(learnt.W_dec_FD, before)
    torch.testing.assert_close(first.W_dec_FD, again.W_dec_FD)
    torch.testing.assert_close(first.W_dec_FD.norm(dim=1), before.norm(dim=1))
    assert not torch.allclose(first.W_dec_FD, other.W_dec_FD)
    cosine = torch.nn.functional.cosine_similarity(first.W_dec_FD, before, dim=1)
    assert cosine.abs().mean() < 0.3
    np.testing.assert_allclose(first.b_dec_D.numpy(), centre)
    x = torch.randn(40, learnt.d_in, generator=torch.Generator().manual_seed(0)) + first.b_dec_D
    acts = first.features(x)
    assert acts.shape == (40, learnt.d_sae) and (acts > 0).any()


def test_training_lowers_the_error(data: dict[str, Any], run: Path) -> None:
    config = config_for(data, name="long", epochs=30, lr=2e-3)
    folder = train(config, run, "long")
    from sae_emotions.schema import read_table

    curve = read_table(folder / "training.parquet").to_pydict()
    assert curve["fvu"][-1] < 0.7 * curve["fvu"][0]
    assert curve["rows"][-1] == read_json(folder / "quality.json")["rows"]


@pytest.mark.parametrize("architecture", ["topk", "batchtopk", "jumprelu"])
def test_a_training_that_diverges_says_so(data: dict[str, Any], run: Path, architecture: str, engine: str) -> None:
    config = config_for(data, name="wild", architecture=architecture, lr=1e30)
    with pytest.raises(UserError, match=r"not a finite number|not finite numbers"):
        train(config, run, "wild")
    assert not (run / "dictionaries" / "wild").exists()


@pytest.mark.parametrize("architecture", ["topk", "batchtopk"])
@pytest.mark.parametrize("kill_at", [1, 9, 17])
def test_an_interrupted_training_ends_with_the_same_weights(
    data: dict[str, Any], run: Path, monkeypatch: pytest.MonkeyPatch, architecture: str, kill_at: int, engine: str
) -> None:
    straight = config_for(data, name="straight", architecture=architecture, checkpoint_minutes=1e-9, epochs=4)
    whole = load_file(train(straight, run, "straight") / "sae_weights.safetensors")
    config = config_for(data, name="resumed", architecture=architecture, checkpoint_minutes=1e-9, epochs=4)
    with killed_after_saves(kill_at):
        train(config, run, "resumed")
    torch.rand(17)  # an unrelated draw: the checkpoint's RNG state must win
    again = load_file(train(config, run, "resumed") / "sae_weights.safetensors")
    assert set(whole) == set(again)
    assert all(np.array_equal(whole[name], again[name]) for name in whole)
    assert not (run / "dictionaries" / ".resumed.checkpoint").exists()


def test_cross_entropy_recovered_is_one_for_a_perfect_dictionary(data: dict[str, Any], run: Path) -> None:
    config = config_for(data)
    train(config, run, "d")
    found = splice_quality(config, run, "d", documents=5)
    assert found == {key: read_json(run / "dictionaries" / "d" / "quality.json")[key] for key in found}
    assert found["ce"] > 0 and found["ce_tokens"] > 20


def test_a_saelens_folder_takes_the_place_of_training(data: dict[str, Any], run: Path) -> None:
    config = config_for(data)
    source = train(config, run, "d")
    loaded = config_for(data, name="loaded", pretrained={"path": str(source)})
    folder = train(loaded, run, "loaded")
    assert not (folder / "training.parquet").exists()
    x_BD = torch.randn(8, 32)
    assert torch.equal(load_dictionary(run, "loaded").features(x_BD), load_dictionary(run, "d").features(x_BD))


def test_a_dictionary_of_another_width_is_refused(data: dict[str, Any], run: Path, tmp_path: Path) -> None:
    from sae_lens import StandardSAE, StandardSAEConfig

    StandardSAE(StandardSAEConfig(d_in=48, d_sae=8)).save_model(tmp_path / "wide")
    config = config_for(data, name="wide", pretrained={"path": str(tmp_path / "wide")})
    with pytest.raises(UserError, match="width 48"):
        train(config, run, "wide")
    assert not (run / "dictionaries" / "wide").exists()


@pytest.mark.parametrize(
    ("pretrained", "message"),
    [
        ({"path": "nowhere"}, "lacks cfg.json"),
        ({"release": "no-such-release", "id": "x"}, "knows no release"),
        ({"release": "gemma-scope-2b-pt-res-canonical", "id": "no-such-id"}, "has no id"),
    ],
)
def test_unknown_dictionaries_are_refused(
    data: dict[str, Any], run: Path, pretrained: dict[str, str], message: str
) -> None:
    config = config_for(data, pretrained=pretrained)
    with pytest.raises(UserError, match=message):
        train(config, run, "d")


def test_too_few_rows_are_refused(data: dict[str, Any], run: Path) -> None:
    config = config_for(data, batch=100_000)
    with pytest.raises(UserError, match="fewer than one batch"):
        training_rows(run, config, config.dictionaries[0])
    with pytest.raises(UserError, match="no dictionary 'x'"):
        named(config, "x")
