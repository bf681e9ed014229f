"""Harvest: batching changes nothing, the store gives back what was read, a killed harvest ends with the same bytes."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from sae_emotions.config import HarvestConfig, RunConfig, parse_config
from sae_emotions.errors import UserError
from sae_emotions.harvest import harvest as stage
from sae_emotions.harvest.batching import batches, has_row, padded, windows
from sae_emotions.harvest.forward import read_blocks, residuals
from sae_emotions.harvest.harvest import harvest, shard_rows, stream
from sae_emotions.harvest.rows import joined, mapped, open_rows, read_documents
from sae_emotions.harvest.store import quantised
from sae_emotions.sources.models import Model, load_model
from sae_emotions.sources.text import documents
from tests.tiny import tiny_config


@pytest.fixture(scope="module")
def config(tmp_path_factory: pytest.TempPathFactory) -> RunConfig:
    return parse_config(tiny_config(tmp_path_factory.mktemp("tiny")), "tiny")


@pytest.fixture(scope="module")
def model(config: RunConfig) -> Model:
    return load_model(config.model, torch.float32)


@pytest.fixture(scope="module")
def run(config: RunConfig, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("run")
    harvest(config, out)
    return out


def contents(folder: Path) -> dict[str, bytes]:
    return {p.relative_to(folder).as_posix(): p.read_bytes() for p in sorted(folder.rglob("*")) if p.is_file()}


@given(st.lists(st.lists(st.integers(3, 50), min_size=1, max_size=40), min_size=1, max_size=8), st.integers(2, 20))
def test_windows_hold_every_token_once_but_for_tails_of_one(docs: list[list[int]], context: int) -> None:
    cut = windows(5, docs, context)
    for number, ids in enumerate(docs, start=5):
        mine = [w for w in cut if w.document == number]
        joined = [int(t) for w in mine for t in w.tokens]
        lost = 1 if len(ids) % context == 1 or context == 1 else 0
        assert joined == ids[: len(ids) - lost]
        assert [w.start for w in mine] == list(range(0, len(joined), context))


@given(st.lists(st.integers(2, 30), min_size=1, max_size=30), st.integers(8, 64))
def test_batches_cover_all_windows_within_the_budget(lengths: list[int], budget: int) -> None:
    cut = windows(0, [[7] * n for n in lengths], 64)
    found = list(batches(cut, budget))
    assert sorted(i for batch in found for i in batch) == list(range(len(cut)))
    for batch in found:
        longest = max(len(cut[i].tokens) for i in batch)
        assert len(batch) == 1 or longest * len(batch) <= budget


def test_first_and_special_tokens_have_no_row() -> None:
    cut = windows(0, [[9, 2, 9], [9, 9]], 8)
    assert has_row(cut, [2]).tolist() == [False, False, True, False, True]
    assert padded(cut, pad=7)[0].tolist() == [[9, 2, 9], [9, 9, 7]]


@settings(max_examples=15, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.lists(st.integers(2, 40), min_size=1, max_size=8), st.integers(16, 200), st.integers(0, 2**31))
def test_order_and_padding_change_no_activation(model: Model, lengths: list[int], budget: int, seed: int) -> None:
    rng = np.random.default_rng(seed)
    docs = [rng.integers(3, 120, n).tolist() for n in lengths]
    how = HarvestConfig(blocks=(1, 2), context=64, batch_tokens=budget)
    together = shard_rows(model, 0, docs, how, [0, 1, 2])
    for number, ids in enumerate(docs):
        alone = residuals(model, ids, (1, 2))
        here = together.document == number
        assert together.position[here].tolist() == list(range(1, len(ids)))
        assert together.token[here].tolist() == ids[1:]
        for block in (1, 2):
            torch.testing.assert_close(
                together.rows[block][here], torch.from_numpy(alone[block][1:]), rtol=1e-4, atol=1e-5
            )


def test_rows_are_the_residual_after_the_block(model: Model) -> None:
    ids = torch.tensor([[5, 6, 7, 8]])
    with torch.no_grad():
        everything = model.model(input_ids=ids, output_hidden_states=True).hidden_states
    assert torch.equal(read_blocks(model.model, ids, (1, 2))[1], everything[2])


def test_the_concept_texts_embeddings_lie_beside_the_rows(config: RunConfig, model: Model, run: Path) -> None:
    found = mapped(run / "embedding.safetensors")
    used = open_rows(run / "activations" / "concepts", config.harvest.blocks[0]).token_N
    assert set(used.tolist()) <= set(found["token"].tolist())
    everything = model.model.get_input_embeddings().weight.detach().numpy()
    np.testing.assert_array_equal(found["W_E"], everything[found["token"]])


def test_an_earlier_harvest_is_given_its_embeddings(config: RunConfig, run: Path, tmp_path: Path) -> None:
    older = shutil.copytree(run, tmp_path / "older")
    (older / "embedding.safetensors").unlink()
    harvest(config, older)
    assert contents(older) == contents(run)


def test_the_forward_pass_stops_at_the_deepest_block(model: Model) -> None:
    calls: list[int] = []
    handles = [
        layer.register_forward_pre_hook(lambda module, args, i=i: calls.append(i))
        for i, layer in enumerate(model.model.model.layers)
    ]
    read_blocks(model.model, torch.tensor([[5, 6, 7]]), (0, 1))
    for handle in handles:
        handle.remove()
    assert calls == [0, 1]


def test_int8_around_the_centre_loses_little() -> None:
    torch.manual_seed(0)
    x_ND = torch.randn(500, 64) + 20 * torch.randn(64)
    centre_D = x_ND.mean(0)
    q_ND, scale_N = quantised(x_ND, centre_D)
    back_ND = q_ND.float() * scale_N[:, None] + centre_D
    assert float((back_ND - x_ND).pow(2).sum() / (x_ND - centre_D).pow(2).sum()) < 5e-4
    assert q_ND.dtype == torch.int8


@pytest.mark.parametrize("store", ["int8", "bfloat16"])
def test_a_store_gives_back_what_was_read(config: RunConfig, model: Model, tmp_path: Path, store: str) -> None:
    how = config.harvest.model_copy(update={"store": store})
    changed = config.model_copy(update={"harvest": how})
    harvest(changed, tmp_path)
    folder = tmp_path / "activations" / "text"
    docs = read_documents(folder)
    fresh = shard_rows(model, 0, docs["token_ids"].to_pylist(), how, [0, 1, 2])
    rows = open_rows(folder, 2)
    assert len(rows) == len(fresh.document) == json.loads((folder / "plan.json").read_text())["rows"]
    assert np.array_equal(rows.document_N, fresh.document)
    assert np.array_equal(rows.position_N, fresh.position)
    assert np.array_equal(rows.token_N, fresh.token)
    pick = np.random.default_rng(0).permutation(len(rows))[:200]
    error = np.linalg.norm(rows.read(pick) - fresh.rows[2].numpy()[pick], axis=1)
    assert (error / np.linalg.norm(fresh.rows[2].numpy()[pick], axis=1)).max() < 0.02
    assert np.array_equal(rows.slice(10, 20), rows.read(np.arange(10, 20)))
    first = json.loads((folder / "shard-00000.json").read_text())
    assert first["mean_norm"]["2"] == pytest.approx(float(fresh.rows[2][: first["rows"]].norm(dim=1).mean()), rel=1e-5)


@pytest.mark.parametrize("store", ["int8", "bfloat16"])
def test_reading_many_rows_is_reading_each(config: RunConfig, model: Model, tmp_path: Path, store: str) -> None:
    """In any order, with rows asked for twice, across shards; the numbers are those that each shard's file decodes to."""
    how = config.harvest.model_copy(update={"store": store})
    harvest(config.model_copy(update={"harvest": how}), tmp_path)
    folder = tmp_path / "activations" / "text"
    rows = open_rows(folder, 2)
    parts = []
    for path in sorted(folder.glob("shard-*.safetensors")):
        shard = mapped(path)
        if store == "int8":
            off_ND = shard["block2.rows"].astype(np.float32) * shard["block2.scale"][:, None]
            parts.append(off_ND + mapped(folder / "centre.safetensors")["block2.centre"])
        else:
            parts.append((shard["block2.rows"].astype(np.uint32) << 16).view(np.float32))
    assert len(parts) > 2
    whole = np.concatenate(parts)
    asked = np.random.default_rng(1).integers(0, len(rows), 3 * len(rows))
    assert np.array_equal(rows.read(asked), whole[asked])
    assert rows.read(np.zeros(0, np.int64)).shape == (0, rows.d_in)
    assert np.array_equal(joined([rows, rows]).read(asked + len(rows)), whole[asked])
    for wrong in (-1, len(rows)):
        with pytest.raises(IndexError, match="rows are 0 to"):
            rows.read(np.array([0, wrong]))


def test_a_seeded_pass_goes_on_from_any_start(run: Path) -> None:
    rows = open_rows(run / "activations" / "text", 1)
    whole = np.concatenate(list(rows.batches(seed=3, batch=50)))
    rest = np.concatenate(list(rows.batches(seed=3, batch=50, start=150)))
    assert np.array_equal(whole[150:], rest)
    assert len(whole) == len(rows)
    assert not np.array_equal(whole, rows.slice(0, len(rows)))


def test_the_stream_and_the_store_hold_the_same_rows(config: RunConfig, model: Model, run: Path) -> None:
    rows = open_rows(run / "activations" / "text", 1)
    texts = documents(config.text, model.tokenizer, config.seed)
    streamed = np.concatenate([part.rows[1].numpy() for part in stream(model, texts, config.harvest)])
    stored = rows.slice(0, len(rows))
    assert np.abs(streamed[: len(stored)] - stored).max() < 0.05 * np.abs(stored).max()


@pytest.mark.parametrize("kill_after", [0, 1, 2, 5, 9])
def test_a_killed_harvest_ends_with_the_same_bytes(
    config: RunConfig, run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kill_after: int
) -> None:
    calls = 0
    whole = stage.write_shard

    def killed(*args: object, **kwargs: object) -> None:
        nonlocal calls
        if calls == kill_after:
            raise KeyboardInterrupt
        calls += 1
        whole(*args, **kwargs)  # type: ignore[arg-type]

    monkeypatch.setattr(stage, "write_shard", killed)
    with pytest.raises(KeyboardInterrupt):
        harvest(config, tmp_path)
    monkeypatch.setattr(stage, "write_shard", whole)
    for half in tmp_path.rglob("shard-*.json"):
        half.unlink()  # as if the machine had died between the rows and their checksum
        break
    harvest(config, tmp_path)
    assert contents(tmp_path) == contents(run)


def test_a_finished_harvest_is_left_alone(config: RunConfig, run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    before = {p: p.stat().st_mtime_ns for p in run.rglob("*")}
    monkeypatch.setattr(stage, "load_model", lambda *_: pytest.fail("the model was loaded for nothing"))
    harvest(config, run)
    assert {p: p.stat().st_mtime_ns for p in run.rglob("*")} == before


@pytest.mark.parametrize(("dtype", "wanted"), [("float32", 300), ("bfloat16", 900)])
def test_a_slow_machine_reads_the_tokens_it_is_given(tmp_path: Path, dtype: str, wanted: int) -> None:
    raw = tiny_config(tmp_path)
    raw["model"]["dtype"] = dtype
    raw["text"]["tokens_in_float32"] = 300
    folder = harvest(parse_config(raw, "tiny"), tmp_path / "run")
    plans = [json.loads((folder / source / "plan.json").read_text()) for source in ("text", "concepts")]
    assert wanted <= plans[0]["tokens"] < wanted + 45  # it stops after the document that reaches the number
    assert plans[0]["dtype"] == dtype


def test_all_rows_of_a_run_are_stored_around_one_centre(run: Path) -> None:
    text, concepts = (open_rows(run / "activations" / source, 2) for source in ("text", "concepts"))
    assert np.array_equal(text.centre_D, concepts.centre_D)


def test_other_settings_are_refused(config: RunConfig, run: Path) -> None:
    other = config.model_copy(update={"harvest": config.harvest.model_copy(update={"context": 12})})
    with pytest.raises(UserError, match="planned with another"):
        harvest(other, run)


def test_a_changed_shard_is_refused(config: RunConfig, run: Path, tmp_path: Path) -> None:
    copy = tmp_path / "copy"
    shutil.copytree(run, copy)
    shard = next(copy.rglob("shard-00000.safetensors"))
    data = bytearray(shard.read_bytes())
    data[-1] ^= 1
    shard.write_bytes(data)
    with pytest.raises(UserError, match="changed on disk"):
        harvest(config, copy)


def test_a_block_beyond_the_depth_is_refused(config: RunConfig, tmp_path: Path) -> None:
    deep = config.model_copy(update={"harvest": config.harvest.model_copy(update={"blocks": (4,)})})
    with pytest.raises(UserError, match="4"):
        harvest(deep, tmp_path)
    assert not list(tmp_path.iterdir())


def test_a_text_of_one_token_is_refused(model: Model) -> None:
    with pytest.raises(UserError, match="two tokens"):
        residuals(model, [5], (1,))


def test_a_missing_block_and_a_cut_shard_are_refused(run: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="holds no block 3"):
        open_rows(run / "activations" / "text", 3)
    copy = tmp_path / "copy"
    shutil.copytree(run, copy)
    shard = copy / "activations" / "text" / "shard-00000.safetensors"
    shard.write_bytes(shard.read_bytes()[:100])
    with pytest.raises(UserError, match="damaged"):
        open_rows(copy / "activations" / "text", 1)
