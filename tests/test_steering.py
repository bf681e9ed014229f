"""Steering on the planted model: causal features raise their word with the dose, others do not, nothing changes nothing."""

import json
import math
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from safetensors.torch import save_file

import sae_emotions
from sae_emotions.cli import main
from sae_emotions.concepts.concept_set import load_concepts
from sae_emotions.config import parse_config
from sae_emotions.cross_entropy import cross_entropy
from sae_emotions.dictionary.encode import load_dictionary
from sae_emotions.edit import Edit, add, edited
from sae_emotions.errors import UserError
from sae_emotions.harvest.rows import open_rows
from sae_emotions.label.baselines import difference_of_means
from sae_emotions.label.label import concept_means
from sae_emotions.label.layout import layout
from sae_emotions.pipeline import run_stages
from sae_emotions.run_folder import create_or_check
from sae_emotions.steering.bench import bench, prompt_ids
from sae_emotions.steering.directions import matched, matched_units, of_features, random_units
from sae_emotions.steering.fluency import continuations, perplexities, repetition
from sae_emotions.steering.picture import NAMED, named
from sae_emotions.steering.steer import steer
from sae_emotions.steering.trend import share_as_high, trend
from sae_emotions.steering.words import Positions, site, word_changes
from tests.planted import BLOCK, D, truth
from tests.planted_words import CONCEPTS, FILLER, neutral_texts

TRUTH = truth()
NAME = "planted"
CAUSAL, UNREAD, BYSTANDER = (TRUTH.feature[name] for name in ("amber", "lazurite", "heliodor"))
pytestmark = pytest.mark.slow


PROMPT = " ".join(FILLER[:3])


def steered(*given, **named) -> Any:
    return steer(*given, **named)


@pytest.fixture(scope="module")
def run(planted, tmp_path_factory):
    """Harvested and trained; labelled by hand, as the truth is: steering reads no more of the labels than this."""
    config = parse_config(planted.config, "the planted config")
    folder = tmp_path_factory.mktemp("run") / "planted"
    create_or_check(folder, config)
    run_stages(folder, ["harvest", f"train:{NAME}"])
    dictionary, concepts = load_dictionary(folder, NAME), load_concepts(config.concepts)
    means = concept_means(config, folder, dictionary, selection_only=True)
    labels = folder / "labels" / NAME
    labels.mkdir(parents=True)
    numbers = range(dictionary.d_sae)
    features = {
        "feature": list(numbers),
        "label": [TRUTH.labelled.get(n) for n in numbers],
        "status": ["labelled" if n in TRUTH.labelled else "none" for n in numbers],
        "screened": [n in TRUTH.feature.values() for n in numbers],
    }
    pq.write_table(pa.table(features), labels / "features.parquet")
    chosen = [TRUTH.feature.get(name, min(TRUTH.controls)) for name in CONCEPTS]
    pq.write_table(pa.table({"concept": CONCEPTS, "feature": chosen}), labels / "concepts.parquet")
    dense_CD = difference_of_means(means.resid_TD, layout(concepts).selection)
    save_file({"dense_CD": torch.from_numpy(dense_CD).float()}, labels / "dense.safetensors")
    return folder


@pytest.fixture(scope="module")
def ready(run):
    return bench(run)


@pytest.fixture(scope="module")
def ids(ready):
    return prompt_ids(ready.model, neutral_texts()[0], raw=False)[:20]


@pytest.fixture(scope="module")
def vector_D(ready):
    own = of_features(ready.dictionary, ready.scale, [CAUSAL], "norm")
    return 0.2 * own.length * own.unit_D


@pytest.mark.parametrize("positions", ["all", "prompt"])
def test_a_causal_feature_raises_its_word_with_the_dose_above_every_control(ready, positions):
    found = steered(ready, neutral_texts()[:3], [CAUSAL], positions=positions, tokens=2)
    assert found.concept == "amber"
    effects = [one.features.effect for one in found.doses]
    assert effects == sorted(effects) and effects[0] > 1
    for one in found.doses:
        others = [line.effect for line in (*one.random, *one.matched)]
        assert len(one.random) == len(one.matched) == 20
        assert one.features.effect > max(others) and one.p == pytest.approx(1 / 41)
        assert one.rank == 1 and max(one.words, key=one.words.get) == "amber"
    assert found.trend.p < 1e-3 and found.trend.p_controls == pytest.approx(1 / 41)
    assert found.dense_trend.p_controls == pytest.approx(1 / 41)


def test_a_dose_below_zero_steers_away(ready):
    (away, towards) = steered(ready, neutral_texts()[0], [CAUSAL], [0.1, -0.1], tokens=1).doses
    assert (away.dose, towards.dose) == (-0.1, 0.1)
    assert away.features.effect < -1 and towards.features.effect > 1
    assert away.p == towards.p == pytest.approx(1 / 41)


@pytest.mark.parametrize("feature", [BYSTANDER, UNREAD])
def test_a_feature_that_the_output_does_not_use_lies_among_its_controls(ready, feature):
    found = steered(ready, neutral_texts()[:3], [feature], tokens=1, positions="prompt")
    assert found.trend.p_controls > 0.1 and found.doses[2].p > 0.1
    # What does drive the bystander's word goes along with its cue, and so lies in the dense vector.
    assert (found.dense_trend.p_controls < 0.05) == (feature == BYSTANDER)


def test_words_change_as_in_the_models_own_forward_pass(ready, ids, vector_D):
    model, tree = ready.model.model, ready.tree()
    whole_S = torch.tensor([[*ids, *tree.prompt]])
    single = np.flatnonzero(tree.single())
    tokens = [tree.paths[n][0][1] for n in single]

    def logs(edit):
        with torch.inference_mode(), edited(model, BLOCK, edit, ready.special):
            return torch.log_softmax(model(input_ids=whole_S, use_cache=False).logits[0, -1], 0)[tokens]

    def in_the_text(x_BSD, keep_BS):
        return torch.cat([x_BSD[:, : len(ids)] + vector_D, x_BSD[:, len(ids) :]], dim=1)

    ways: dict[Positions, Edit] = {"all": add(vector_D, 1), "prompt": in_the_text}
    for positions, edit in ways.items():
        at = site(ready.upper, tree, ids, ready.special, positions)
        change_W = word_changes(ready.upper, tree, at, vector_D[None])[0]
        np.testing.assert_allclose(change_W[single], (logs(edit) - logs(None)).numpy(), atol=1e-4)


def test_nothing_added_changes_nothing_bit_for_bit(ready, ids, vector_D):
    at = site(ready.upper, ready.tree(), ids, ready.special, "all")
    both_JD = torch.stack([torch.zeros(D), vector_D])
    change_JW = word_changes(ready.upper, ready.tree(), at, both_JD)
    assert (change_JW[0] == 0).all() and (change_JW[1] != 0).all()
    ids_BS = torch.tensor([ids, ids])
    with torch.inference_mode():
        plain_BSV = ready.model.model(input_ids=ids_BS, use_cache=False).logits
        with edited(ready.model.model, BLOCK, add(both_JD[:, None], 1), ready.special):
            steered_BSV = ready.model.model(input_ids=ids_BS, use_cache=False).logits
    assert torch.equal(plain_BSV[0], steered_BSV[0]) and not torch.equal(plain_BSV[1], steered_BSV[1])


def written(ready, ids, vectors_JD, positions="all", tokens=6, temperature=0.0, seed=0):
    return continuations(ready.model, BLOCK, ids, vectors_JD, ready.special, positions, tokens, temperature, seed)


@pytest.mark.parametrize("positions", ["all", "prompt"])
def test_a_continuation_is_what_the_steered_model_says_token_by_token(ready, ids, vector_D, positions):
    (found,) = written(ready, ids, vector_D[None], positions)
    so_far = list(ids)
    for _ in found.ids:

        def edit(x_BSD, keep_BS):
            steered_BSD = x_BSD + vector_D
            return (
                steered_BSD if positions == "all" else torch.cat([steered_BSD[:, : len(ids)], x_BSD[:, len(ids) :]], 1)
            )

        with torch.inference_mode(), edited(ready.model.model, BLOCK, edit, ready.special):
            logits_V = ready.model.model(input_ids=torch.tensor([so_far]), use_cache=False).logits[0, -1]
        so_far.append(int(logits_V.argmax()))
    assert tuple(so_far[len(ids) :]) == found.ids and len(found.ids) == 6
    assert found.text == ready.model.tokenizer.decode(found.ids)


def test_drawn_tokens_depend_on_the_seed_alone_and_rows_differ_by_what_is_added(ready, ids, vector_D):
    both_JD = torch.stack([torch.zeros(D), vector_D])
    one = written(ready, ids, both_JD, temperature=1.0, tokens=12)
    assert one == written(ready, ids, both_JD, temperature=1.0, tokens=12)
    assert one[0].ids == written(ready, ids, torch.zeros(1, D), temperature=1.0, tokens=12)[0].ids
    assert one[0].ids != one[1].ids
    assert one[0].ids != written(ready, ids, both_JD, temperature=1.0, tokens=12, seed=1)[0].ids
    assert one[0].ids != written(ready, ids, both_JD, tokens=12)[0].ids


def test_perplexity_is_that_of_the_continuation_under_the_unsteered_model(ready, ids):
    model = ready.model.model
    more = ids[1:8]
    whole_BS = torch.tensor([ids[:1] + more])
    expected = math.exp(cross_entropy(model, whole_BS, torch.ones_like(whole_BS), BLOCK, None))
    longer, none = perplexities(model, ids[:1], [more, []])
    assert longer == pytest.approx(expected, rel=1e-4) and none is None
    # The prompt is not counted: its tokens' own loss plays no part.
    after = perplexities(model, ids, [more])[0]
    assert after is not None and after != pytest.approx(expected)


@pytest.mark.parametrize(
    ("text", "n", "share"),
    [("abcabc", 3, 0.25), ("aaaaaaaaaa", 3, 7 / 8), ("abcdef", 3, 0), ("ab", 3, 0), ("", 3, 0), ("abab", 2, 1 / 3)],
)
def test_repetition_on_known_strings(text, n, share):
    assert repetition([ord(one) for one in text], n) == pytest.approx(share)


def test_trends_of_known_curves():
    doses_P = np.array([0.0, 1.0, 2.0, 4.0])
    noise_TP = np.random.default_rng(0).normal(0, 0.01, (6, 4))
    controls_KP = np.outer(np.arange(20) / 100, doses_P)
    rising: Any = trend(doses_P, doses_P + noise_TP, controls_KP)
    assert rising.p < 1e-4 and rising.slope == pytest.approx(1, abs=0.05) and rising.p_controls == pytest.approx(1 / 21)
    falling: Any = trend(doses_P, -doses_P + noise_TP, controls_KP)
    assert falling.p > 0.99 and falling.p_controls == 1
    assert trend(doses_P, np.zeros((3, 4)), controls_KP).p == 1
    alone = trend(doses_P, doses_P[None], controls_KP[:0])
    assert alone.p == pytest.approx(1 / 24) and alone.p_controls is None
    assert trend(doses_P[:2], doses_P[None, :2], controls_KP[:, :2]).p is None
    assert share_as_high(0.5, np.array([0.1, 0.5, 0.9])) == pytest.approx(3 / 4)


def test_doses_are_counted_in_the_stored_rows_own_units(run, ready):
    rows = open_rows(run / "activations" / "text", BLOCK)
    x_ND = rows.slice(0, len(rows))
    acts_NF = ready.dictionary.features(torch.from_numpy(x_ND)).numpy()
    assert ready.scale.norm == pytest.approx(float(np.linalg.norm(x_ND, axis=1).mean()), rel=1e-5)
    own_N = acts_NF[:, CAUSAL]
    assert ready.scale.p99_F[CAUSAL] == pytest.approx(np.percentile(own_N[own_N > 0], 99), rel=1e-5)
    assert np.isnan(ready.scale.p99_F[min(TRUTH.dead)])
    norm_F = ready.dictionary.W_dec_FD.norm(dim=1).numpy()
    one = of_features(ready.dictionary, ready.scale, [CAUSAL], "p99")
    assert one.length == pytest.approx(ready.scale.p99_F[CAUSAL] * norm_F[CAUSAL], rel=1e-5)
    two = of_features(ready.dictionary, ready.scale, [CAUSAL, BYSTANDER], "norm")
    assert two.length == ready.scale.norm and float(two.unit_D.norm()) == pytest.approx(1, rel=1e-5)
    shares = (
        two.unit_D @ ready.dictionary.W_dec_FD[[CAUSAL, BYSTANDER]].T / torch.from_numpy(norm_F[[CAUSAL, BYSTANDER]])
    )
    torch.testing.assert_close(shares, torch.full((2,), 0.5**0.5))


def test_controls_are_unlabelled_fire_and_are_of_length_one(ready):
    found = matched(ready.dictionary, ready.scale, [CAUSAL, BYSTANDER], ready.free, 5)
    assert [len(one) for one in found] == [5, 5]
    for one in found:
        assert set(one.tolist()) <= set(ready.free.tolist()) - set(TRUTH.labelled)
        assert (ready.scale.active_F[one] > 0).all()
    units_KD = matched_units(ready.dictionary, found)
    for some_KD in (units_KD, random_units(5, D, 0)):
        torch.testing.assert_close(some_KD.norm(dim=1), torch.ones(5))
    silent = min(TRUTH.dead)
    assert [len(one) for one in matched(ready.dictionary, ready.scale, [silent], ready.free, 5)] == [0]


def test_an_unlabelled_feature_has_no_target_unless_one_is_named(ready):
    feature = min(TRUTH.controls)
    found = steered(ready, neutral_texts()[0], [feature], [0.1], tokens=2)
    assert [found.concept, found.trend, found.doses[0].features.effect, found.doses[0].dense] == [None] * 4
    assert set(found.doses[0].words) == set(CONCEPTS) and found.doses[0].features.continuation is not None
    named = steered(ready, neutral_texts()[0], [feature], [0.1], concept="coral", tokens=1)
    assert named.concept == "coral" and named.doses[0].features.effect is not None and named.doses[0].dense is not None


@pytest.mark.parametrize(
    ("wrong", "sentence"),
    [
        ({"features": [10_000]}, "There is no feature 10000 in planted"),
        ({"features": []}, "at least one feature"),
        ({"features": [1, 1]}, "none twice"),
        ({"prompts": "  "}, "The prompt is empty"),
        ({"prompts": FILLER[0]}, "shorter than two tokens"),
        ({"prompts": "unheardof words"}, "shorter than two tokens"),  # special tokens, which are never steered
        ({"prompts": []}, "There is no prompt"),
        ({"doses": [0.1, math.nan]}, "A dose must be a number"),
        ({"doses": [0.0]}, "other than 0"),
        ({"unit": "metres"}, "'norm' or 'p99'"),
        ({"positions": "none"}, "'all' or 'prompt'"),
        ({"concept": "granite"}, "has no concept 'granite'"),
        ({"seed": -1}, "from 0 up"),
        ({"readout": " "}, "The readout prompt is empty"),
        ({"controls": 5}, "20 controls"),
        ({"features": [min(TRUTH.dead)], "unit": "p99"}, "never fires"),
    ],
)
def test_bad_input_is_refused_in_a_sentence(ready, wrong, sentence):
    asked = {"prompts": PROMPT, "features": [CAUSAL], **wrong}
    with pytest.raises(UserError, match=sentence):
        steered(ready, **asked)


@pytest.mark.parametrize(
    ("wrong", "sentence"),
    [({"features": [10_000]}, "There is no feature 10000"), ({"concept": "granite"}, "has no concept 'granite'")],
)
def test_what_is_not_there_is_refused_before_anything_slow(run, monkeypatch, wrong, sentence):
    monkeypatch.setattr("sae_emotions.steering.bench.scale", lambda *given: pytest.fail("the general text was read"))
    with pytest.raises(UserError, match=sentence):
        sae_emotions.steer(run, **{"prompts": PROMPT, "features": [CAUSAL], **wrong})


def test_a_run_without_labels_is_refused(run, tmp_path):
    from shutil import copytree

    copytree(run, tmp_path / "run", ignore=lambda folder, names: {"labels"} & set(names))
    with pytest.raises(UserError, match="run the label stage first"):
        sae_emotions.steer(tmp_path / "run", PROMPT, [CAUSAL])
    with pytest.raises(UserError, match="There is no dictionary 'other'"):
        sae_emotions.steer(run, PROMPT, [CAUSAL], dictionary="other")


def test_names_in_the_picture_do_not_cover_each_other():
    size_W = np.zeros(171)
    size_W[[80, 81, 82, 160]] = 3, 4, 2, 1
    assert {81, 160} <= set(named(size_W)) and not {80, 82} & set(named(size_W)) and len(named(size_W)) == NAMED
    assert named(np.arange(5.0)) == [0, 1, 2, 3, 4]


def test_the_command_prints_a_table_json_and_a_picture(run, tmp_path, capsys):
    asked = [
        "steer",
        PROMPT,
        "--run",
        str(run),
        "--feature",
        str(CAUSAL),
        "--dose",
        "0.1",
        "0.3",
        "--tokens",
        "3",
    ]
    assert main([*asked, "--picture", str(tmp_path / "a.png")]) == 0
    printed = capsys.readouterr().out
    assert "amber +" in printed and "unsteered" in printed and "20 random directions" in printed
    assert (tmp_path / "a.png").read_bytes().startswith(b"\x89PNG")
    assert main([*asked, "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["concept"] == "amber" and [one["dose"] for one in found["doses"]] == [0.1, 0.3]
    assert found["doses"][0]["features"]["continuation"]["repetition"] >= 0
    assert main([*asked, "--picture", str(tmp_path / "a.svg")]) == 2
    assert "ends with .png" in capsys.readouterr().err


def test_the_evaluation_counts_the_words_that_rise_most(run, monkeypatch):
    from eval.validity import steering as section
    from eval.validity.asked import Asked
    from tests.planted_words import KINDS, texts

    names = [*KINDS["causal"], *KINDS["bystander"]]
    held_out = [text for text in texts() if text.split == "held_out"]
    scenarios = {name: [text.text for text in held_out if text.concept == name][:4] for name in names}
    monkeypatch.setattr(section, "scenarios_by_concept", lambda: scenarios)
    for name, value in (("DOSES", (0.1, 0.3)), ("TOKENS", 2), ("CHOOSING", (2, 1)), ("REPORTING", (3, 1))):
        monkeypatch.setattr(section, name, value)
    found = section.measured(Asked(run, NAME, None))
    json.dumps(found, allow_nan=False)
    causal = len(KINDS["causal"]) / len(names)
    chance = found["chance"]
    assert chance == 1 / len(names)
    # Those that the output uses raise their words; a bystander's word may still rise most by luck.
    for share in found["reported"]["single chosen"]["share_whose_word_rises_most"]:
        assert causal <= share <= causal + 2 / len(names)
    assert found["reported"]["dense"]["share_whose_word_rises_most"] == [1, 1]
    assert found["chosen"]["single"]["line"].startswith("single ")
    assert found["controls"]["random_directions"] == found["controls"]["matched_features"] == 2 * len(names)
    assert max(found["controls"]["random_share_whose_word_rises_most"]) < 0.3
    assert found["controls"]["share_of_concepts_above_every_control dense"] == [1, 1]
    assert found["all_concepts"]["dense"]["share_whose_word_rises_most"] > 0.4
    assert (run / "validity" / "steering.png").is_file()
    trends = found["trends"]["single chosen"]["concepts"]
    assert trends["amber"]["p_controls"] < 0.05 < trends["heliodor"]["p_controls"]
    reported = found["reported"]
    assert "p_against_chance" in reported["single chosen"] and "p_against_chance" not in reported["single screened"]


def test_a_set_without_the_scenarios_concepts_is_skipped(run):
    from eval.validity import steering as section
    from eval.validity.asked import Asked

    assert "the concept set has no 'afraid'" in section.measured(Asked(run, NAME, None))["skipped"]
