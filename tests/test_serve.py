"""The API: every answer has its documented shape, pages are complete, every error looks the same, changes are seen."""

import json
import socket
import threading
import time
import urllib.request

import numpy as np
import pytest
from fastapi.testclient import TestClient
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from sae_emotions.errors import UserError
from sae_emotions.schema import TABLES, read_table
from sae_emotions.serve.app import create_app, serve
from sae_emotions.serve.models import models
from sae_emotions.serve.paging import BadCursor, page
from tests.fake_run import CELLS, FIRST, LABELLED, SECOND, concepts, fake_run


@pytest.fixture(scope="module")
def client(tmp_path_factory):
    folder = fake_run(tmp_path_factory.mktemp("serve") / "run")
    with TestClient(create_app(folder), raise_server_exceptions=False) as client:
        yield client


def check(shape, answer):
    assert answer.status_code == 200, answer.text
    shape.model_validate_json(answer.text, strict=True)
    return answer.json()


@pytest.mark.parametrize("dictionary", [None, FIRST, SECOND])
def test_every_answer_has_its_documented_shape(client, dictionary):
    shapes = models(CELLS)
    extra = {} if dictionary is None else {"dictionary": dictionary}

    def get(path, **query):
        return client.get(path, params=query | extra)

    check(shapes.run, get("/v1/run"))
    check(shapes.concepts, get("/v1/concepts"))
    check(shapes.hits, get("/v1/search", q="joy"))
    for name, _ in concepts():
        check(shapes.findings, get(f"/v1/concepts/{name}/features"))
    for number in range(40):
        found = check(shapes.feature, get(f"/v1/features/{number}"))
        assert found["dictionary"] == (dictionary or FIRST) and found["feature"] == number
        assert found["label"] == LABELLED.get(number)
        examples = check(shapes.examples, get(f"/v1/features/{number}/examples"))["items"]
        assert [one["rank"] for one in examples] == [0, 1, 2]
        assert all(len(one["tokens"]) == len(one["values"]) for one in examples)


def test_answers_repeat_the_tables(client, tmp_path):
    table = read_table(fake_run(tmp_path / "run") / "labels" / FIRST / "features.parquet")
    for row in table.to_pylist():
        answer = client.get(f"/v1/features/{row['feature']}").json()
        expected = {k: None if isinstance(v, float) and np.isnan(v) else v for k, v in row.items()}
        assert {k: answer[k] for k in row} == expected


def test_openapi_describes_every_column(client):
    spec = client.get("/openapi.json").json()
    fields = spec["components"]["schemas"]["Feature"]["properties"]
    for column in TABLES["features"]:
        for cell in CELLS if "<cell>" in column.name else ("",):
            assert column.doc in fields[column.name.replace("<cell>", cell)]["description"]
    paths = {"/healthz", "/v1/run", "/v1/concepts", "/v1/concepts/{name}/features", "/v1/features/{id}"}
    assert paths | {"/v1/features/{id}/examples", "/v1/search"} == set(spec["paths"])
    for path in spec["paths"].values():
        assert path["get"]["responses"]["404"]["content"]["application/json"]["schema"] == {
            "$ref": "#/components/schemas/Error"
        }


def test_a_concepts_features_are_ranked_and_carry_q_and_verdict(client):
    items = client.get("/v1/concepts/afraid/features").json()["items"]
    scores = [one["auroc_held_out"] for one in items]
    assert scores == sorted(scores, reverse=True)
    by_number = {one["feature"]: one for one in items}
    assert by_number[3]["verdict"] == "causal" and by_number[5]["verdict"] == "not shown"
    assert by_number[3]["q"] == pytest.approx(4 * 4e-6)


def test_a_dictionary_without_causal_stage_has_null_verdicts(client):
    items = client.get("/v1/concepts/afraid/features", params={"dictionary": SECOND}).json()["items"]
    assert items and all(one["verdict"] is None for one in items)
    about = client.get("/v1/run").json()["dictionaries"]
    assert [one["causal_features"] for one in about] == [2, None]


def test_names_with_spaces_and_other_spellings(client):
    for name in ("ill%20at%20ease", "ILL-at-ease", "Fear and Overwhelm"):
        assert client.get(f"/v1/concepts/{name}/features").json()["total"] > 0


@pytest.mark.parametrize("limit", [1, 2, 3, 5, 200])
@pytest.mark.parametrize(
    "path", ["/v1/concepts", "/v1/concepts/fear/features", "/v1/features/3/examples", "/v1/search?q=tok"]
)
def test_pages_are_complete(client, path, limit):
    glue = "&" if "?" in path else "?"
    whole = client.get(f"{path}{glue}limit=200").json()
    assert whole["next_cursor"] is None and whole["total"] == len(whole["items"]) > 1
    items: list[object] = []
    cursor: str | None = ""
    while cursor is not None:
        found = client.get(f"{path}{glue}limit={limit}{cursor and '&cursor=' + cursor}").json()
        assert len(found["items"]) <= limit and found["total"] == whole["total"]
        items, cursor = items + found["items"], found["next_cursor"]
    assert items == whole["items"]


@given(count=st.integers(0, 60), limits=st.lists(st.integers(1, 9), min_size=1))
def test_any_pages_of_any_list_are_complete(count, limits):
    items: list[int] = []
    cursor, turn = None, 0
    while turn == 0 or cursor is not None:
        found = page(range(count), "list", cursor, limits[turn % len(limits)])
        items, cursor, turn = items + found.items, found.next_cursor, turn + 1
    assert items == list(range(count))
    assert turn <= max(1, count)


@given(cursor=st.text(max_size=40))
def test_a_made_up_cursor_is_refused(cursor):
    with pytest.raises(BadCursor):
        page(range(10), "list", cursor, 3)


def test_a_cursor_of_another_list_is_refused(client):
    cursor = client.get("/v1/concepts?limit=1").json()["next_cursor"]
    assert client.get("/v1/concepts", params={"cursor": cursor}).status_code == 200
    for path in ("/v1/search?q=tok", "/v1/concepts?dictionary=" + SECOND, "/v1/features/3/examples"):
        answer = client.get(path, params=dict(p.split("=") for p in path.split("?")[1:]) | {"cursor": cursor})
        assert answer.status_code == 400 and answer.json()["error"]["code"] == "bad_cursor"


@pytest.mark.parametrize(
    ("method", "path", "status", "says"),
    [
        ("GET", "/", 404, "There is nothing at /;"),
        ("GET", "/v1/nothing", 404, "/openapi.json"),
        ("GET", "/v1/concepts/", 404, "There is nothing"),
        ("POST", "/v1/run", 405, "POST is not answered"),
        ("DELETE", "/v1/features/3", 405, "GET"),
        ("GET", "/v1/features/40", 404, "from 0 to 39"),
        ("GET", "/v1/features/-1", 404, "from 0 to 39"),
        ("GET", "/v1/features/3.5", 404, "from 0 to 39"),
        ("GET", "/v1/features/x/examples", 404, "There is no feature x"),
        ("GET", "/v1/concepts/afriad/features", 404, "Did you mean afraid?"),
        ("GET", "/v1/concepts?dictionary=none", 404, f"it has {FIRST}, {SECOND}"),
        ("GET", "/v1/run?dictionary=none", 404, "There is no dictionary 'none'"),
        ("GET", "/v1/search", 422, "'q'"),
        ("GET", "/v1/search?q=", 422, "'q'"),
        ("GET", "/v1/concepts?limit=0", 422, "'limit'"),
        ("GET", "/v1/concepts?limit=201", 422, "got '201'"),
        ("GET", "/v1/concepts?limit=many", 422, "'limit'"),
        ("GET", "/v1/concepts?cursor=zzz", 400, "start again without a cursor"),
    ],
)
def test_every_error_has_one_shape(client, method, path, status, says):
    answer = client.request(method, path)
    assert answer.status_code == status
    models(CELLS).error.model_validate_json(answer.text, strict=True)
    assert answer.json()["error"]["status"] == status
    assert says in answer.json()["error"]["message"]


def test_a_bug_has_the_same_shape(client, monkeypatch, capsys):
    monkeypatch.setattr("sae_emotions.lookup.run.Run.search", lambda *_: 1 / 0)
    answer = client.get("/v1/search?q=x")
    assert answer.status_code == 500 and answer.json()["error"]["code"] == "internal"
    assert "ZeroDivisionError" in capsys.readouterr().err


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=60, deadline=None)
@given(q=st.text(min_size=1, max_size=12))
def test_any_search_is_answered(client, q):
    check(models(CELLS).hits, client.get("/v1/search", params={"q": q}))


def test_changed_files_are_seen(tmp_path):
    from sae_emotions.schema import write_table

    folder = fake_run(tmp_path / "run")
    client = TestClient(create_app(folder))
    before = client.get("/v1/concepts?limit=2").json()
    path = folder / "labels" / FIRST / "concepts.parquet"
    rows = read_table(path).to_pylist()[1:]
    write_table(path, "concepts", {name: [row[name] for row in rows] for name in rows[0]}, CELLS)
    after = client.get("/v1/concepts").json()
    assert after["total"] == before["total"] - 1
    assert client.get("/v1/concepts", params={"cursor": before["next_cursor"]}).status_code == 400


def test_a_table_that_is_gone_says_so(tmp_path):
    folder = fake_run(tmp_path / "run")
    client = TestClient(create_app(folder))
    (folder / "labels" / FIRST / "scores.parquet").unlink()
    answer = client.get("/v1/features/3")
    assert answer.status_code == 503 and "run the stage that makes it" in answer.json()["error"]["message"]


def test_no_run_and_no_labels(tmp_path):
    with pytest.raises(UserError, match="is no run folder"):
        create_app(tmp_path)
    folder = fake_run(tmp_path / "run")
    for name in (FIRST, SECOND):
        (folder / "labels" / name / "features.parquet").unlink()
    with pytest.raises(UserError, match="labelled yet"):
        create_app(folder)


def test_it_listens_on_loopback_and_names_a_taken_port(tmp_path, capsys):
    folder = fake_run(tmp_path / "run")
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
        probe.listen()
        with pytest.raises(UserError, match=f"Port {port} is taken"):
            serve(folder, port)
    with pytest.raises(UserError, match="There is no port 70000"):
        serve(folder, 70_000)
    threading.Thread(target=serve, args=(folder, port), daemon=True).start()
    for _ in range(600):
        try:
            with urllib.request.urlopen(f"http://127.0.0.1:{port}/healthz", timeout=5) as answer:
                assert json.load(answer) == {"status": "ok"}
            break
        except OSError:
            time.sleep(0.1)
    else:
        pytest.fail("the server never answered")
    assert f"http://127.0.0.1:{port}/v1/run" in capsys.readouterr().err
