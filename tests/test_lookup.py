"""Looking things up from Python and on a terminal: ranking, names, numbers, renderings, reading a text."""

import json
import os
import shutil
import struct
import subprocess
import sys

import numpy as np
import pyarrow as pa
import pytest
from safetensors.numpy import load_file, save_file

import sae_emotions
from sae_emotions.artefact import write_json
from sae_emotions.errors import UserError
from sae_emotions.lookup.rows import decoder_row
from sae_emotions.lookup.shapes import Active, Reading, ReadToken
from sae_emotions.lookup.text import feature_card, find_table, marked, read_table, search_table
from sae_emotions.schema import read_table as read_parquet
from sae_emotions.schema import schema, write_table
from tests.fake_run import CELLS, FIRST, PLAIN_ONLY, SECOND, UNTESTABLE, fake_run


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return fake_run(tmp_path_factory.mktemp("lookup") / "run")


@pytest.fixture(scope="module")
def run(folder):
    return sae_emotions.open(folder)


def test_find_ranks_by_held_out_auroc(run):
    found = run.find("afraid")
    assert [one.auroc for one in found] == sorted((one.auroc for one in found), reverse=True)
    assert {one.number for one in found} == {3, 5, PLAIN_ONLY}
    assert {one.number: one.label for one in found} == {3: "afraid", 5: "afraid", PLAIN_ONLY: None}
    assert {one.number: one.verdict for one in found} == {3: "causal", 5: "not shown", PLAIN_ONLY: None}


def test_the_feature_chosen_for_a_concept_is_found_with_that_concepts_scores(run):
    (found,) = run.find("startled")
    concept = next(one for one in run.concepts() if one["concept"] == "startled")
    assert (found.number, found.label) == (3, "afraid")
    assert found.auroc == concept["auroc_held_out"] != run.find("afraid")[1].auroc
    assert found.verdict == "causal" and found.finding["verdict"] is None and concept["verdict"] is None
    assert found.q is None and found.finding["q_concept"] == pytest.approx(0.3)


@pytest.mark.parametrize(
    ("word", "concepts"),
    [
        ("afraid", ["afraid"]),
        ("  AFRAID ", ["afraid"]),
        ("ill-at_ease", ["ill at ease"]),
        ("Fear and Overwhelm", ["afraid", "ill at ease", "startled"]),
        ("ease", ["ill at ease"]),
        ("thrill", ["thrilled"]),
        ("joy", ["joyful"]),
        ("exuberant", ["joyful", "thrilled"]),
    ],
)
def test_words_name_concepts_or_families(run, word, concepts):
    assert run.resolve(word) == concepts


@pytest.mark.parametrize(
    ("word", "hint"), [("afriad", "Did you mean afraid?"), ("", "lists all"), ("xq", "lists all"), ("th", "lists all")]
)
def test_an_unknown_word_gets_a_suggestion(run, word, hint):
    with pytest.raises(UserError, match=hint.replace("?", r"\?")):
        run.find(word)


@pytest.mark.parametrize("number", [-1, 40, "x", "3.0", 10**30])
def test_an_unknown_feature_names_the_range(run, number):
    with pytest.raises(UserError, match="from 0 to 39"):
        run.feature(number)


def test_dictionaries(run, folder):
    assert run.dictionaries == (FIRST, SECOND)
    assert run.feature(3).dictionary == FIRST
    assert run.feature(3, dictionary=SECOND).dictionary == SECOND
    assert run.feature(3, dictionary=SECOND).verdict is None
    for call, what in ((run.find, ["afraid"]), (run.feature, [3]), (run.concepts, []), (run.search, ["x"])):
        with pytest.raises(UserError, match=f"it has {FIRST}, {SECOND}"):
            call(*what, dictionary="no")
    assert run.cells() == CELLS


def test_a_feature_knows_itself(run, folder):
    one = run.feature(3)
    assert one.label == one.concept == "afraid" and one.status == "labelled"
    assert one.logit_lens.top[0] == (" afra", 4.0) and one.logit_lens.bottom[-1] == (" </td>", -1.0)
    splits = [(cell, split) for cell in CELLS for split in ("selection", "held_out")]
    assert [(s["cell"], s["split"]) for s in one.scores] == [s for s in splits if s != ("crossed", "selection")]
    assert one.causal["z"] == -9.0
    first = one.examples()[0]
    assert (first.rank, first.value, first.text) == (0, 8.0, "It was afraid <b>\n")
    assert "3" in repr(one) and "afraid" in repr(one)
    weights = load_file(folder / "dictionaries" / FIRST / "sae_weights.safetensors")["W_dec"]
    assert np.array_equal(one.direction, weights[3])


def test_everything_is_json(run):
    for number in range(40):
        one = run.feature(number)
        json.dumps([one.to_dict(), one.finding, [e.to_dict() for e in one.examples()]], allow_nan=False)
    json.dumps([run.concepts(), run.search("joy")], allow_nan=False)
    assert run.feature(0).to_dict()["cosine_dense"] is None


@pytest.mark.parametrize("kind", ["F64", "F32", "F16", "BF16"])
def test_decoder_rows_of_every_type(tmp_path, kind):
    rows_FD = np.random.default_rng(0).normal(size=(5, 7)).astype(np.float32)
    path = tmp_path / "w.safetensors"
    if kind == "BF16":
        rows_FD = (rows_FD.view(np.uint32) >> 16 << 16).view(np.float32)
        raw = (rows_FD.view(np.uint32) >> 16).astype("<u2").tobytes()
        header = json.dumps({"W_dec": {"dtype": "BF16", "shape": [5, 7], "data_offsets": [0, len(raw)]}}).encode()
        path.write_bytes(struct.pack("<Q", len(header)) + header + raw)
    else:
        rows_FD = rows_FD.astype({"F64": np.float64, "F32": np.float32, "F16": np.float16}[kind])
        save_file({"b_dec": np.zeros(3, np.float32), "W_dec": rows_FD}, path)
    for number in range(5):
        assert np.array_equal(decoder_row(path, number), rows_FD[number].astype(np.float32))


@pytest.mark.parametrize("size", [0, 5, 40, -1])
def test_broken_weights_are_named(tmp_path, folder, size):
    whole = (folder / "dictionaries" / FIRST / "sae_weights.safetensors").read_bytes()
    path = tmp_path / "w.safetensors"
    path.write_bytes(whole[:size])
    with pytest.raises(UserError, match="train stage again"):
        decoder_row(path, 39)
    with pytest.raises(UserError, match="is missing"):
        decoder_row(tmp_path / "none", 0)


def test_search_finds_concepts_families_labels_and_tokens(run):
    hits = run.search("joy")
    assert [(h["kind"], h["match"]) for h in hits][:2] == [("concept", "joyful"), ("family", "Exuberant Joy")]
    assert [(h["kind"], h["feature"]) for h in hits if h["kind"] == "label"] == [("label", 8)]
    tokens = [h for h in hits if h["kind"] == "token"]
    assert {h["match"] for h in tokens} <= {"joyf", "joyful"} and len({h["feature"] for h in tokens}) == len(tokens)
    assert run.search("tok31")[0]["feature"] == 31
    assert run.search("  ") == [] and run.search("nowhere at all") == []


def test_the_find_table_shows_rank_q_and_verdict(run):
    lines = find_table("afraid", run.find("afraid")).splitlines()
    assert lines[0].split() == ["feature", "concept", "status", "AUROC", *CELLS, "q", "causal"]
    assert [int(line.split()[0]) for line in lines[2:5]] == [one.number for one in run.find("afraid")]
    assert len({len(line) for line in lines[1:2]}) == 1 and max(map(len, lines)) <= 100
    assert "0.300*" in find_table("startled", run.find("startled"))


def test_the_card_has_everything(run):
    card = run.show(3)
    for part in (
        "Feature 3 of",
        "labelled afraid (Fear and Overwhelm)",
        "literary",
        "q 2e-05",
        "causal (q below .05)",
        "-0.180 nats, z -9.0",
        "raises  afra · afraid · ly",
        "8.00  It was [afraid] [<b>]↵",
    ):
        assert part in card
    family = run.show(13)
    assert "labelled ill at ease, uneasy, tense … (a family); nearest concept ill at ease" in family
    assert "explained as well by the text's length" in family and "explained" not in card
    assert "not testable (it fires in 4 texts)" in run.show(UNTESTABLE)
    assert "evidence for" in run.show(PLAIN_ONLY) and "plain only" in run.show(PLAIN_ONLY)
    assert "its best concept on the selection set" in run.show(0)
    assert "none was made" in run.show(3, dictionary=SECOND)
    shaded = feature_card(run.feature(3), colour=True)
    assert "\x1b[48;5;208m" in shaded and "[afraid]" not in shaded
    assert max(map(len, feature_card(run.feature(3), width=60).splitlines()[3:])) <= 75


def test_tokens_are_marked():
    assert marked(" was", 0.0, False) == " was"
    assert marked(" was", 0.2, False) == " [was]"
    assert marked("\n", 0.2, False) == "\n[]"
    assert marked(" was", 0.1, True) != marked(" was", 1.0, True)


def test_the_read_table_marks_the_text():
    active = (Active("3", 3, "afraid", "afraid", 2.5, 0.5), Active("8", 8, "joyful", "high valence", 0.1, None))
    token = ReadToken(1, " dread", True, active)
    reading = Reading("one", "A dread", (ReadToken(0, "A", False, ()), token))
    shown = read_table(reading)
    assert shown.startswith("A [dread]") and "afraid 2.50 (feature 3), high valence 0.10 (feature 8)" in shown
    assert "1 of 2 tokens carry" in shown and "not read: 1" in shown
    assert reading.to_dict()["tokens"][1]["features"][0] == {
        "id": "3", "feature": 3, "label": "afraid", "scope": "afraid", "value": 2.5, "share": 0.5,
    }  # fmt: skip
    json.dumps(reading.to_dict())
    many = token._replace(features=tuple(active[0]._replace(feature=n) for n in range(5)))
    shown = " ".join(read_table(reading._replace(tokens=(many,))).split())
    assert "(feature 2), 2 more" in shown and "(feature 3)" not in shown and "--json has all" in shown
    assert "No labelled feature" in read_table(Reading("one", "A", (ReadToken(0, "A", False, ()),)))
    assert search_table([]) == "Nothing in this run matches."


def test_a_changed_table_is_read_again(tmp_path):
    folder = fake_run(tmp_path / "run")
    run = sae_emotions.open(folder)
    assert run.feature(3).label == "afraid"
    path = folder / "labels" / FIRST / "features.parquet"
    rows = read_parquet(path).to_pylist()
    rows[3]["label"] = "startled"
    write_table(path, "features", {name: [row[name] for row in rows] for name in rows[0]}, CELLS)
    assert run.feature(3).label == "startled"


def test_missing_and_broken_folders(tmp_path):
    with pytest.raises(UserError, match="is no run folder"):
        sae_emotions.open(tmp_path)
    folder = fake_run(tmp_path / "run")
    (folder / "labels" / FIRST / "features.parquet").write_bytes(b"PAR1 no")
    with pytest.raises(UserError, match="is damaged"):
        sae_emotions.open(folder).find("afraid")


def test_looking_up_loads_no_model(folder):
    code = (
        "import sys, sae_emotions as s; r = s.open(sys.argv[1]); r.find('afraid'); r.show(3); r.feature(3).direction;"
        "print(sorted({'torch', 'transformers', 'sae_lens', 'sklearn', 'matplotlib', 'fastapi'} & set(sys.modules)))"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, str(folder)], capture_output=True, text=True, check=True, env=os.environ
    )
    assert done.stdout.strip() == "[]"


@pytest.fixture(scope="module")
def planted_run(planted, tmp_path_factory):
    """The planted model, its SAE and its true labels as a run folder."""
    from transformers import AutoTokenizer

    from sae_emotions.config import parse_config
    from tests.planted import BLOCK, D, latents, truth

    folder = tmp_path_factory.mktemp("planted") / "run"
    config = parse_config(planted.config, "planted").model_dump(mode="json")
    write_json(folder / "run.json", {"config": config, "stages": {}})
    shutil.copytree(planted.folder / "sae", folder / "dictionaries" / "planted")
    write_json(folder / "dictionaries" / "planted" / "quality.json", {"block": BLOCK, "d_in": D})
    tokenizer = AutoTokenizer.from_pretrained(planted.folder / "model")
    words = [tokenizer.decode([n]) for n in range(len(tokenizer))]
    write_table(folder / "vocabulary.parquet", "vocabulary", {"token": list(range(len(words))), "text": words})
    features = {field.name: pa.nulls(len(latents()), field.type) for field in schema("features", ("a", "b"))}
    features["feature"] = list(range(len(latents())))
    features["label"] = [truth().labelled.get(n) for n in range(len(latents()))]
    features["max_activation"] = [4.0] * len(latents())
    write_table(folder / "labels" / "planted" / "features.parquet", "features", features, ("a", "b"))
    return sae_emotions.open(folder)


def test_reading_finds_the_planted_features_at_their_cues(planted_run):
    from tests.planted import truth
    from tests.planted_words import FILLER, cues

    (number, concept), *_ = sorted(truth().labelled.items())
    cue = cues(concept)[0]
    reading = planted_run.read(f"{cue} {FILLER[0]} {cue} {FILLER[1]}")
    assert [token.text for token in reading.tokens] == [cue, FILLER[0], cue, FILLER[1]]
    assert [token.read for token in reading.tokens] == [False, True, True, True]
    assert [[f.feature for f in token.features] for token in reading.tokens] == [[], [], [number], []]
    active = reading.tokens[2].features[0]
    assert active.label == concept and active.share == pytest.approx(active.value / 4)
    assert f"[{cue}]" in read_table(reading)


def test_reading_a_long_text_and_a_short_one(planted_run):
    from tests.planted_words import FILLER

    reading = planted_run.read(" ".join(FILLER[n % len(FILLER)] for n in range(300)))
    assert [token.position for token in reading.tokens] == list(range(300))
    assert [n for n, token in enumerate(reading.tokens) if not token.read] == [0, 128, 256]
    with pytest.raises(UserError, match="shorter than two tokens"):
        planted_run.read(FILLER[0])
