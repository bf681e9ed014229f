"""The vectors command on the planted model: its vectors point where the concepts were planted."""

import json
import shutil
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest

from sae_emotions.cli import main
from sae_emotions.concepts.concept_set import load_concepts
from sae_emotions.config import RunConfig, parse_config
from sae_emotions.errors import UserError
from sae_emotions.harvest.rows import mapped
from sae_emotions.pipeline import run_stages
from sae_emotions.run_folder import create_or_check
from sae_emotions.schema import schema
from sae_emotions.sources.models import Model, load_model
from sae_emotions.vectors import geometry
from sae_emotions.vectors.prompts import Battery, batteries, dialogue, masked, mentioned, message, plan
from sae_emotions.vectors.reading import EMBEDDINGS, Span, span_means, story_means, views
from sae_emotions.vectors.vectors import vectors
from tests.conftest import Planted
from tests.planted import BLOCK, directions, truth
from tests.planted_words import CONCEPTS, CUED, FILLER, KINDS, cues

SHOWN = [name for kind in ("causal", "bystander", "unread") for name in KINDS[kind]]


def probes() -> dict[str, list[dict[str, object]]]:
    """Probe sets in the planted language: a concept is shown by its cue words, and a person's name may be one."""

    def said(*concepts: str) -> str:
        return " ".join([FILLER[3], FILLER[5], *(cues(name)[0] for name in concepts), FILLER[7], "."])

    pairs = list(pairwise(SHOWN))
    return {
        "negation": [{"concept": c, "affirmed": said(c, c), "negated": said()} for c in SHOWN],
        "binding": [
            {
                "text": f"{said()} {cues(a)[1]} {FILLER[9]} {cues(b)[1]} . {FILLER[2]} {cues(a)[1]} .",
                "person_a": cues(a)[1], "concept_a": a, "person_b": cues(b)[1], "concept_b": b,
                "mention": cues(a)[1], "expected": a,
            }
            for a, b in pairs
        ],
        "masked": [
            {"speaker": FILLER[4], "real": a, "displayed": b,
             "text": f"{said(a)}\n\n{FILLER[4]}: {said(b)}\n\n{FILLER[6]}: {said()}"}
            for a, b in pairs
        ],
        "dialogues": [
            {"human_concept": a, "assistant_concept": b, "text": f"Human: {said(a)}\n\nAssistant: {said(b)}"}
            for a, b in pairs
        ],
    }  # fmt: skip


class Made:
    """A labelled run on the planted model, with probe sets, and its model."""

    def __init__(self, planted: Planted, folder: Path) -> None:
        sets = folder / "concepts"
        shutil.copytree(planted.folder / "concepts", sets)
        (sets / "probes").mkdir()
        for name, rows in probes().items():
            (sets / "probes" / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
        # A rating that follows a planted direction by nothing but the concepts' own order.
        (folder / "norms.csv").write_text(
            "word,valence\n" + "".join(f"{name},{n}\n" for n, name in enumerate(CONCEPTS))
        )
        self.config: RunConfig = parse_config(planted.config | {"concepts": str(sets)}, "planted")
        self.run, self.norms = folder / "run", str(folder / "norms.csv")
        create_or_check(self.run, self.config)
        run_stages(self.run, ["harvest", "train:planted", "label:planted"])


@pytest.fixture(scope="module")
def made(planted: Planted, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Made]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(geometry, "PERMUTATIONS", 100)
        yield Made(planted, tmp_path_factory.mktemp("vectors"))


@pytest.fixture(scope="module")
def model(made: Made) -> Model:
    import torch

    return load_model(made.config.model, torch.float32)


@pytest.fixture(scope="module")
def found(made: Made) -> dict[str, Any]:
    folder = vectors(made.run, [0, BLOCK], [made.norms])
    read: dict[str, Any] = json.loads((folder / "vectors.json").read_text())
    return read


def test_vectors_point_along_the_planted_directions(made: Made, found: dict[str, Any]) -> None:
    planted_XD = np.stack(list(directions().of.values()))
    names = list(directions().of)
    for block in (0, BLOCK):
        tensors = mapped(made.run / "vectors" / "vectors.safetensors")
        vectors_CD = np.array(tensors[f"block{block}.vectors"])
        assert vectors_CD.shape == (len(CONCEPTS), planted_XD.shape[1])
        assert np.abs(vectors_CD @ np.array(tensors[f"block{block}.neutral"]).T).max() < 1e-4
        for name in (name for kind in ("causal", "unread") for name in KINDS[kind]):
            along_X = planted_XD @ vectors_CD[CONCEPTS.index(name)]
            assert names[int(along_X.argmax())] == f"concept {name}", block


def test_files_are_as_documented(made: Made, found: dict[str, Any]) -> None:
    folder = made.run / "vectors"
    assert {path.name for path in folder.iterdir()} == {
        "vectors.json", "vectors.safetensors", "tokens.parquet", "components.parquet",
    }  # fmt: skip
    for name in ("tokens", "components"):
        table = pq.read_table(folder / f"{name}.parquet")
        assert table.schema.names == schema(f"vector_{name}").names
        assert len(table) == 3 * len(CONCEPTS)  # two blocks and the embeddings
    tokens = {(r["place"], r["concept"]): r for r in pq.read_table(folder / "tokens.parquet").to_pylist()}
    for name in KINDS["causal"]:
        assert name.split()[0] in tokens[str(BLOCK), name]["top_tokens"]


def test_batteries_know_the_planted_answers(found: dict[str, Any]) -> None:
    def score(where: dict[str, Any], battery: str, measure: str, place: str) -> dict[str, Any]:
        scores = where.get("batteries", where)
        (one,) = [s for s in scores[battery] if s["measure"].startswith(measure) and s["place"] == place]
        assert isinstance(one, dict)
        return one

    kinds = found["dictionary"]["batteries"]
    for where in (found["places"][str(BLOCK)], found["places"]["embeddings"], *kinds.values()):
        assert score(where, "negation", "lower", "text")["score"] == 1
        assert score(where, "binding", "the mentioned", "last mention")["score"] == 1
        assert score(where, "masked", "real concept above", "narration")["score"] == 1
        assert score(where, "masked", "displayed above", "speaker's lines")["score"] == 1
        for side in ("human turns", "assistant turns"):
            own = score(where, "dialogues", "own side's", side)
            assert own["score"] == 1 and own["chance"] == 0.5 and own["p"] < 0.01 and own["n"] == len(SHOWN) - 1


def test_geometry_stands_beside_its_null(found: dict[str, Any]) -> None:
    """Families and the given rating follow nothing that was planted."""
    arrangements = found["places"][str(BLOCK)]["arrangements"]
    assert set(arrangements) == {
        "vectors", "neutral components left in", "each topic's mean taken out", "first stories alone",
        "second stories alone",
    }  # fmt: skip
    assert abs(arrangements["vectors"]["clusters"]["adjusted_rand_index"]) < 0.2
    rated = arrangements["vectors"]["components_against_ratings"]["norms"]["valence"]
    assert rated["n"] == len(CONCEPTS) and rated["best_p"] > 0.01
    read = found["read_out"]["vectors"]["norms"]["valence"]["chosen_within_folds"]["vectors"]
    assert read["p"] > 0.01 and read["n"] == len(CONCEPTS)
    labelled = set(truth().labelled.values())
    assert found["dictionary"]["labelled_concepts"] == len(labelled)
    assert found["dictionary"]["arrangements"]["decoder directions"]["left_out"]  # too few to say anything
    assert found["likeness"]["0"][str(BLOCK)]["r"] > 0.9


def test_blocks_read_now_are_those_of_the_harvest(made: Made, model: Model) -> None:
    """Harvested rows are int8 around their centre, so to a hundredth."""
    texts = [text for text in load_concepts(made.config.concepts).texts if text.split == "selection"][:40]
    settings = made.config.harvest
    stored = story_means(made.run, model, texts, 10, [BLOCK], settings)
    both = story_means(made.run, model, texts, 10, [0, BLOCK], settings)
    assert both[str(BLOCK)] == pytest.approx(stored[str(BLOCK)])
    ids = [model.tokenizer(text.text)["input_ids"] for text in texts]
    spans = [Span(n, 10, len(one)) for n, one in enumerate(ids)]
    now = span_means(model, ids, spans, [0, BLOCK], views(model, [0, BLOCK]), settings, "test")
    assert now["0"] == pytest.approx(both["0"], abs=1e-5)
    assert now[EMBEDDINGS] == pytest.approx(both[EMBEDDINGS], abs=1e-4)
    error = np.linalg.norm(now[str(BLOCK)] - stored[str(BLOCK)]) / np.linalg.norm(now[str(BLOCK)])
    assert error < 0.01
    with pytest.raises(UserError, match="no token to read from position 500"):
        span_means(model, ids, [Span(0, 500, 510)], [0], views(model, [0]), settings, "test")


def test_done_once_and_again_for_another_request(
    made: Made, found: dict[str, Any], capsys: pytest.CaptureFixture[str]
) -> None:
    path = made.run / "vectors" / "vectors.json"
    before = path.read_bytes(), path.stat().st_mtime_ns
    assert main(["vectors", str(made.run), "--blocks", "0", str(BLOCK), "--norms", made.norms]) == 0
    out, err = capsys.readouterr()
    assert "nothing was changed" in err
    assert (
        f"block {BLOCK}" in out
        and "ARI" in out
        and "chosen within the folds: any stories, any block" in out
        and "negation" in out
    )
    assert (path.read_bytes(), path.stat().st_mtime_ns) == before
    named = made.run.parent / "clusters.json"
    named.write_text(json.dumps({"shown": list(SHOWN), "other": [c for c in CUED if c not in SHOWN]}))
    assert main(["vectors", str(made.run), "--clusters", str(named)]) == 0
    again = json.loads(path.read_text())
    assert again["recipe"]["concepts_in_clusters"] == len(CUED)
    assert again["places"][str(BLOCK)]["arrangements"]["vectors"]["clusters"]["k"] == 2
    assert "0" not in again["places"]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--blocks", "9"], "Block 9 is beyond the model"),
        (["--dictionary", "none"], "no dictionary 'none'"),
        (["--norms", "none.csv"], "no file of word ratings"),
        (["--clusters", "none.json"], "no file of clusters"),
        (["--clusters", "."], "no file of clusters"),
    ],
)
def test_bad_requests_are_one_sentence(
    made: Made, capsys: pytest.CaptureFixture[str], options: list[str], message: str
) -> None:
    assert main(["vectors", str(made.run), *options]) == 2
    out, err = capsys.readouterr()
    assert message in err and "Traceback" not in err and out == ""


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("{", "no valid JSON"),
        ("[1]", "not of the shape"),
        ('{"a": [["amber"]]}', "not of the shape"),
        ('{"a": ["mica"]}', "unknown concept 'mica'"),
        ('{"a": ["amber"], "b": ["amber"]}', "names twice 'amber'"),
    ],
)
def test_wrong_clusters_are_refused(made: Made, content: str, message: str) -> None:
    path = made.run.parent / "wrong.json"
    path.write_text(content)
    with pytest.raises(UserError) as error:
        vectors(made.run, clusters=path)
    assert message in str(error.value)


def test_places_of_prompts(model: Model) -> None:
    """Each place covers the words that it should, and no others."""
    from sae_emotions.concepts.probes import Dialogue, Masked, Probes

    def words(prompts: Battery) -> dict[str, list[str]]:
        made = plan([prompts], model.tokenizer)
        names = {place: numbers[0] for (_, place), numbers in made.spans_of.items()}
        return {
            place: [model.tokenizer.decode(made.ids[0][made.spans[n].start : made.spans[n].stop]) for n in numbers]
            for place, numbers in names.items()
        }

    a, b, c = cues("amber")[0], FILLER[1], FILLER[2]
    assert message(f"{a} {b}").text == f"Human: {a} {b}\n\nAssistant:"
    assert words(Battery("x", [message(f"{a} {b}")])) == {
        "message": [f"{a} {b}"], "message's end": [b], "reply's colon": ["<unk>"],
    }  # fmt: skip
    assert words(Battery("x", [mentioned(f"{b} {a} {c} {a} .", a)])) == {"last mention": [a], "text's end": ["."]}
    two = Masked(f"{c} {a} .\n\n{b}: {a}\n\n{c}: {c}\n\n{b}: {c}", b, "amber", "basalt")
    assert words(Battery("x", [masked(two)])) == {
        "narration": [f"{a} ."], "speaker's lines": [f"{b} <unk> {a}", f"{b} <unk> {c}"],
    }  # fmt: skip
    side = dialogue(Dialogue(f"Human: {a}\n\nAssistant: {b}\n\nHuman: {c}", "amber", "basalt"))
    assert words(Battery("x", [side]))["assistant turns"] == [f"<unk> <unk> {b}"]
    assert batteries(Probes()) == []
    with pytest.raises(UserError, match="has no token for: speaker's lines"):
        plan([Battery("masked", [masked(two._replace(speaker="nobody"))])], model.tokenizer)


def test_the_validity_section_says_what_it_skipped(made: Made, tmp_path: Path) -> None:
    from eval.validity.asked import Asked
    from eval.validity.vectors import measured

    (tmp_path / "glasgow").mkdir()
    shutil.copy(made.norms, tmp_path / "glasgow" / "glasgow_norms.csv")
    figures = measured(Asked(made.run, "planted", tmp_path))
    assert "glasgow" not in figures["skipped_norms"]
    one = figures["read_out_of_ratings"]["glasgow_norms"]["valence"]
    assert one["target"] == 0.85 and one["reached"] is False and one["n"] == len(CONCEPTS)
    assert set(figures["batteries"]) == {
        str(BLOCK), EMBEDDINGS, "decoder directions of chosen features", "activations of chosen features",
    }  # fmt: skip
    assert json.loads(json.dumps(figures, allow_nan=False)) == figures
    assert measured(Asked(made.run, "planted", None))["skipped_norms"][0] == "glasgow"
