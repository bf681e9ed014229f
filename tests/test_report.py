"""The report: its numbers are the tables', its page is whole and escaped, and missing stages do not break it."""

import json
import re
import shutil
from html.parser import HTMLParser
from itertools import pairwise

import numpy as np
import pytest

from sae_emotions.artefact import read_json, write_json
from sae_emotions.errors import UserError
from sae_emotions.report import story
from sae_emotions.report.findings import gather
from sae_emotions.report.html import context
from sae_emotions.report.picture import picture
from sae_emotions.report.report import report
from sae_emotions.report.table import final_table
from sae_emotions.run_folder import config_of, is_done
from sae_emotions.schema import read_table, write_table
from tests.fake_run import CELLS, FAMILY, FIRST, JOINT, LABELLED, SCREEN, SECOND, fake_run


class Page(HTMLParser):
    """What a page holds: text, ids, tags, and every address that it would fetch or lead to."""

    VOID = frozenset({"meta", "link", "br", "use", "path"})

    def __init__(self, text):
        super().__init__()
        self.open, self.ids, self.links, self.tags, self.words, self.attributes = [], [], [], [], [], []
        self.feed(text)
        self.close()

    def handle_starttag(self, tag, attributes):
        self.tags.append(tag)
        self.attributes.append((tag, dict(attributes)))
        for name, value in attributes:
            if name == "id":
                self.ids.append(value)
            if name in ("href", "src", "xlink:href", "srcset", "data"):
                self.links.append(value)
        if tag not in self.VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag, attributes):
        self.handle_starttag(tag, attributes)
        if tag not in self.VOID:
            self.open.pop()

    def handle_endtag(self, tag):
        if tag not in self.VOID:
            assert self.open.pop() == tag

    def handle_data(self, data):
        self.words.append(data)

    @property
    def text(self):
        return " ".join("".join(self.words).split())


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return fake_run(tmp_path_factory.mktemp("report") / "run")


@pytest.fixture(scope="module")
def page(folder):
    return Page(report(config_of(folder), folder).read_text(encoding="utf-8"))


@pytest.fixture
def fresh(tmp_path):
    return fake_run(tmp_path / "run")


def rewritten(folder, table, change):
    """Change the rows of one labels or causal table."""
    path = folder / table
    rows = change(read_table(path).to_pylist())
    cells = CELLS if path.stem in ("features", "concepts") else ()
    names = [field.name for field in read_table(path).schema]
    write_table(path, path.stem, {name: [row[name] for row in rows] for name in names}, cells)


def test_the_summary_has_the_tables_numbers(folder, page):
    found = read_json(folder / "summary.json")
    first, second = found["dictionaries"]
    concepts = read_table(folder / "labels" / FIRST / "concepts.parquet")
    for cell in CELLS:
        assert first["labels"][f"auroc_{cell}"] == pytest.approx(np.mean(concepts[f"auroc_{cell}"].to_pylist()))
        for name in ("dense", "tfidf"):
            expected = pytest.approx(np.mean(concepts[f"{name}_{cell}"].to_pylist()))
            assert first["labels"][f"{name}_auroc_{cell}"] == first["labels"][f"{name}_{cell}"] == expected
    assert first["labels"]["features"] == len(LABELLED) and first["labels"]["concepts"] == len(set(LABELLED.values()))
    assert first["labels"]["confirmed_concepts"] == 4 and first["labels"]["null_features"] == 0.05
    assert first["causal"] == {
        "tested": 4,
        "confirmed": 2,
        "not_testable": 1,
        "removed": 4,
        "controls_removed": 16,
        "controls_tested": 16,
        "controls_confirmed": 0,
        "below_most_controls": 0.5,  # the two that are causal, at z -9
        "joint": JOINT,
        "screen": SCREEN,
        "times_fewer_than_full_forwards": 14.2,
    }
    assert second["causal"] is None and second["name"] == SECOND and second["block"] == 3
    assert {key: first[key] for key in ("d_sae", "l0", "fvu", "dead", "ce_recovered")} == {
        "d_sae": 40,
        "l0": 4.0,
        "fvu": 0.25,
        "dead": 0.0,
        "ce_recovered": 0.91,
    }
    assert found["tokens"] == 2048 and found["model"]["stored"] == "Q4_1 (4 bits)"
    assert found["dictionaries"][0]["read"]["eager"]["relative_error"] == 0.0117
    assert found["seconds"] == {"harvest": 10.0, "train": 25.0, "label": 27.0, "ablate": 13.0}
    assert found["wall_seconds"] == sum(found["seconds"].values())
    assert first["seconds"] == {"train": 11.0, "label": 12.0, "ablate": 13.0}


def test_the_page_needs_nothing_but_itself(folder, page):
    assert page.open == []
    assert all(link.startswith("#") or link == "data:," for link in page.links)
    text = (folder / "report.html").read_text(encoding="utf-8")
    assert not re.search(r"https?://|@import|url\((?!#)", text)
    assert "script" not in page.tags and "img" not in page.tags


def test_the_page_is_well_formed(page):
    assert len(page.ids) == len(set(page.ids))
    assert {link[1:] for link in page.links if link.startswith("#")} <= set(page.ids)
    named = {value for tag, found in page.attributes for name, value in found.items() if name == "aria-labelledby"}
    assert named and named <= set(page.ids)
    levels = [int(tag[1]) for tag in page.tags if re.fullmatch(r"h[1-6]", tag)]
    assert levels[0] == 1 and levels.count(1) == 1
    assert all(after - before <= 1 for before, after in pairwise(levels))


def test_every_plot_says_what_it_shows(page):
    plots = [found for tag, found in page.attributes if found.get("role") == "img"]
    assert len(plots) == page.tags.count("svg") == page.tags.count("figcaption") == 4 + 2
    assert all(len(found["aria-label"]) > 30 for found in plots)


def test_the_page_tells_the_story(page):
    for part in (
        "2,048 tokens of general text",
        "stored as Q4_1 (4 bits)",
        "by the fused pass; on a few windows of the text they stray from the model in float32 by 0.64%",
        "no room to compare them",
        "6 of 40 features pass the screen",
        "5 features hold on held-out topics",
        "1 plain only",
        "0.05 features on average there, 1 at most, against 5",
        "4 concepts are confirmed on held-out topics, 2 are not",
        "the dense vector (difference of means) reaches",
        "it does better than the single feature everywhere",
        "2 features are causal",
        "For 2 concepts all labelled features (2.5 on average) were removed at once: 1 joint removal is causal",
        "a correlation of 0.97 (95% interval 0.90 to 0.99, 30 features)",
        "14.2 times fewer block-token products",
        "0 of 16 matched controls",
        "The causal stage was not run for this dictionary",
        "A feature stays if both registers agree.",
        "config sha256",
        "block2-topk-40",
    ):
        assert part in page.text, part


def test_every_concept_verdict_and_labelled_feature_is_there(folder, page):
    for concept in read_table(folder / "labels" / FIRST / "concepts.parquet")["concept"].to_pylist():
        assert concept in page.text
    for number, label in LABELLED.items():
        assert f"{FAMILY.get(number, label)} · feature {number}" in page.text
    assert page.text.count("not testable") >= 2


def test_the_same_run_gives_the_same_bytes(folder, page):
    before = {name: (folder / name).read_bytes() for name in ("report.html", "summary.json")}
    report(config_of(folder), folder)
    assert {name: (folder / name).read_bytes() for name in before} == before


def test_texts_are_escaped(fresh):
    def change(rows):
        for row in rows:
            row["tokens"] = ["<script>alert(1)</script>", " &", ' "q"', " x", "\n"]
        return rows

    rewritten(fresh, f"labels/{FIRST}/examples.parquet", change)
    text = report(config_of(fresh), fresh).read_text(encoding="utf-8")
    assert "<script" not in text and "&lt;script&gt;alert(1)&lt;/script&gt;" in text


def test_active_tokens_are_marked():
    shown = context(["It", " was", " dread", "\n"], [0.0, 1.0, 4.0, 0.0])
    assert re.sub(r' style="[^"]*" title="[^"]*"', "", shown) == 'It <mark>was</mark> <mark class="peak">dread</mark>↵'
    shares = [float(found) for found in re.findall(r"--share:([\d.]+)", shown)]
    assert shares == sorted(shares) and shares[0] < shares[1]
    assert "<mark" not in context(["a", "b"], [0.0, 0.0])


@pytest.mark.parametrize("gone", ["labels", "causal", "dictionaries", "activations"])
def test_stages_that_were_not_run(fresh, gone):
    shutil.rmtree(fresh / gone)
    text = Page(report(config_of(fresh), fresh).read_text(encoding="utf-8")).text
    found = read_json(fresh / "summary.json")
    assert found["tokens"] == (None if gone == "activations" else 2048)
    assert (found["dictionaries"][0]["labels"] is None) == (gone == "labels")
    assert found["dictionaries"][0]["causal"] is None or gone in ("dictionaries", "activations")
    assert ("It is not labelled yet" in text) == (gone == "labels")
    assert ("not labelled yet" in final_table(fresh)) == (gone == "labels")


def test_a_run_in_which_nothing_was_found(fresh):
    def nothing(rows):
        for row in rows:
            row |= {"label": None, "status": "none", "screened": False, "q": None}
        return rows

    def unconfirmed(rows):
        return [row | {"confirmed": False, "labelled_features": [], "q": 1.0} for row in rows]

    rewritten(fresh, f"labels/{FIRST}/features.parquet", nothing)
    rewritten(fresh, f"labels/{FIRST}/concepts.parquet", unconfirmed)
    for table in ("effects", "verdicts"):
        rewritten(fresh, f"causal/{FIRST}/{table}.parquet", lambda rows: [])
    zero = {"tested": 0, "confirmed": 0, "not_testable": 0, "controls_tested": 0, "controls_confirmed": 0}
    write_json(fresh / "causal" / FIRST / "summary.json", zero)
    text = Page(report(config_of(fresh), fresh).read_text(encoding="utf-8")).text
    assert "None holds on held-out topics" in text and "no concepts are confirmed" in text
    assert "so nothing was tested" in text
    assert read_json(fresh / "summary.json")["dictionaries"][0]["labels"]["features"] == 0
    assert "No concept is confirmed." in final_table(fresh)
    assert picture(fresh, fresh / "p.png").stat().st_size > 1000


def test_values_that_are_not_there(fresh):
    def change(rows):
        return [row | {"auroc_crossed": None, "tfidf_crossed": float("nan"), "dense_crossed": None} for row in rows]

    rewritten(fresh, f"labels/{FIRST}/concepts.parquet", change)
    text = report(config_of(fresh), fresh).read_text(encoding="utf-8")
    assert "nan" not in Page(text).text.lower().split()
    assert read_json(fresh / "summary.json")["dictionaries"][0]["labels"]["tfidf_auroc_crossed"] is None


def test_permuted_aurocs_are_drawn_where_they_were_kept(fresh):
    path = fresh / "labels" / FIRST / "null.json"
    before = report(config_of(fresh), fresh).read_text(encoding="utf-8")
    values = [0.5 + 0.01 * n for n in range(12)]
    write_json(path, read_json(path) | {"chosen_auroc": dict.fromkeys(CELLS, values)})
    after = report(config_of(fresh), fresh).read_text(encoding="utf-8")
    assert "permuted labels</text>" in after and "permuted labels</text>" not in before


def test_validity_is_shown_where_it_was_measured(fresh):
    before = report(config_of(fresh), fresh).read_text(encoding="utf-8")
    figures = {"tables": {"seconds": 3, "colours": {"macro": 0.8125, "rows": 900, "each": {"red": [0.1, 0.2]}}}}
    write_json(fresh / "validity.json", {"dictionary": FIRST, "machine": {"cores": 2}, "tables": figures["tables"]})
    after = Page(report(config_of(fresh), fresh).read_text(encoding="utf-8")).text
    for part in ("Validity", "colours · macro", "0.812", "colours · each · red", "0.100, 0.200"):
        assert part in after
    assert "seconds" not in after.partition("Validity")[2].partition("Provenance")[0]
    assert "validity.json" not in before


def test_a_report_is_done_while_it_shows_the_validity_that_is_there(fresh):
    where = fresh / "run.json"
    held = read_json(where)
    write_json(where, held | {"stages": held["stages"] | {"report": {"state": "done", "seconds": 1.0}}})
    report(config_of(fresh), fresh)
    assert is_done(fresh, "report")
    for figure in (0.5, 0.6):
        write_json(fresh / "validity.json", {"dictionary": FIRST, "machine": {}, "power": {"figure": figure}})
        assert not is_done(fresh, "report")
        report(config_of(fresh), fresh)
        assert is_done(fresh, "report")
    (fresh / "validity.json").unlink()
    assert not is_done(fresh, "report")


def test_grain_and_what_explains_labels_are_told(fresh):
    path = fresh / "labels" / FIRST / "summary.json"
    write_json(path, read_json(path) | {"grain": {"concept": 4, "family": 1}, "explained_by": {"length": 1, "bag": 0}})
    text = Page(report(config_of(fresh), fresh).read_text(encoding="utf-8")).text
    assert "4 with one concept and 1 with a family of concepts" in text
    assert "the text's length (1)" in text and "a bag of words (0)" not in text
    assert "a family: held-out AUROC 0.770" in text and "explained as well by the text's length" in text


def test_winners_are_named_honestly(fresh):
    def change(rows):
        for row in rows:
            row |= {f"auroc_{c}": 0.8 for c in CELLS}
            row |= {"dense_plain": 0.9, "dense_literary": 0.7, "dense_crossed": 0.8}
            row |= {f"tfidf_{c}": 0.6 for c in CELLS}
        return rows

    rewritten(fresh, f"labels/{FIRST}/concepts.parquet", change)
    labels = gather(config_of(fresh), fresh).dictionaries[0].labels
    assert labels is not None
    _, dense, tfidf = story.comparison(labels)
    assert "does better than the single feature in plain, and no better in literary and crossed" in dense
    assert "the single feature is at least as good everywhere" in tfidf


@pytest.mark.parametrize(
    ("number", "text"), [(0, "no features"), (1, "1 feature"), (2, "2 features"), (1200, "1,200 features")]
)
def test_counts_read_well(number, text):
    assert story.count(number, "feature") == text


def test_the_final_table_is_one_a_person_can_read(folder):
    first, second = final_table(folder).split(f"\n\n{SECOND}")
    lines = first.splitlines()
    assert lines[2].split() == ["concept", "feature", "AUROC", *CELLS, "q", "causal"]
    assert lines[4].split()[:2] == ["joyful", "8"] and lines[4].endswith("causal")
    assert "5 labelled features, 4 concepts among them that pass by themselves, and 4 confirmed concepts of 6" in first
    assert "permuted labels give 0.05" in first and "2 of 4 tested features are causal, 0 of 16" in first
    assert "tested" not in second
    assert "… and 2 more" in final_table(folder, concepts=2)


@pytest.mark.parametrize("ending", ["png", "svg"])
def test_the_picture_is_small_and_the_same_twice(folder, tmp_path, ending):
    one, two = (picture(folder, tmp_path / f"{name}.{ending}") for name in "ab")
    assert one.read_bytes() == two.read_bytes()
    assert 5_000 < one.stat().st_size < 200_000
    assert picture(folder, tmp_path / f"c.{ending}", SECOND).read_bytes() != one.read_bytes()


def test_a_picture_that_cannot_be_drawn(folder, tmp_path):
    with pytest.raises(UserError, match=r"ends with \.png or \.svg"):
        picture(folder, tmp_path / "a.gif")
    with pytest.raises(UserError, match="no labelled dictionary other"):
        picture(folder, tmp_path / "a.png", "other")


def test_no_run_is_no_report(tmp_path, folder):
    with pytest.raises(UserError, match="is no run folder"):
        report(config_of(folder), tmp_path)


def test_the_summary_is_strict_json(folder, page):
    json.loads((folder / "summary.json").read_text(), parse_constant=lambda name: pytest.fail(name))


def test_what_was_judged_to_first_order_alone_is_said(fresh):
    """Two of the four testable features were not removed, so all are drawn by their first-order z."""

    def kept_out(rows):
        gone = dict.fromkeys(("effect", "profile", "specific", "z"))
        return [row | gone | {"removed": False} if (row["z"] or 0) > 0 else row for row in rows]

    rewritten(fresh, f"causal/{FIRST}/verdicts.parquet", kept_out)
    where = fresh / "causal" / FIRST / "summary.json"
    write_json(where, read_json(where) | {"removed": 2, "controls_removed": 5, "screen": SCREEN | {"limit": -3.0}})
    text = " ".join(Page(report(config_of(fresh), fresh).read_text(encoding="utf-8")).text.split())
    assert (
        "an exact removal: 2 of them (`ablate.features` in the config), and of the controls 5, by the same limit"
        in text
    )
    assert (
        "50% of the tested features lie below the 5th percentile of the held-back controls, where chance would put 5%, to first"
        in text
    )
    assert "The 2 of lowest first-order z were removed exactly" in final_table(fresh)
    causal = gather(config_of(fresh), fresh).dictionaries[0].causal
    assert causal is not None
    assert sorted(causal.z["feature"]) == pytest.approx([-8.1, -8.1, 0.45, 1.17])
    assert len(causal.z["control"]) == 16 and len(causal.tested) == 2
