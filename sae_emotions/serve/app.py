"""The look-up API over one run folder: read only, no model, no database; files are read again when they change.

Every endpoint is one look-up of `lookup.run.Run`; its answer's shape stands in `models.py`.
"""

import socket
from pathlib import Path
from typing import Annotated, Any

from fastapi import FastAPI, Query
from fastapi import Path as InPath

from sae_emotions.errors import UserError
from sae_emotions.lookup.run import Run
from sae_emotions.lookup.run import open as open_run
from sae_emotions.lookup.tables import Row
from sae_emotions.progress import say
from sae_emotions.serve.errors import handle_errors
from sae_emotions.serve.models import models
from sae_emotions.serve.paging import DEFAULT, LARGEST, Page, page

ABOUT = """
Features of the dictionaries of one run: what they are labelled with, how well, and whether they cause anything.

**Ids** of features are opaque strings: take them from an answer's `id`, and pass them with the same `?dictionary=`.
**Lists** come in pages: `?limit=` (1 to 200), then `?cursor=` with the answer's `next_cursor`, until that is null.
**Errors** all have one shape: `{"error": {"status", "code", "message"}}`.
"""

Name = Annotated[str | None, Query(description="name of a dictionary; the run's first one by default")]
Cursor = Annotated[str | None, Query(description="next_cursor of the page before")]
Limit = Annotated[int, Query(ge=1, le=LARGEST, description="items a page")]
FeatureId = Annotated[str, InPath(description="a feature's id, from another answer")]


def create_app(run_path: str | Path) -> FastAPI:
    """The API of one run folder. Raises `UserError` where it is none, or where no dictionary is labelled yet."""
    run = open_run(run_path)
    shapes = models(_cells(run))
    app = FastAPI(
        title=f"Features of the run {run.info['config']['name']}",
        description=ABOUT,
        version="1",
        docs_url=None,  # the usual page loads its scripts from another host
        redoc_url=None,
        redirect_slashes=False,
        responses={status: {"model": shapes.error} for status in (400, 404, 405, 422, 500, 503)},
    )
    handle_errors(app)

    def listed(items: list[Any], name: str, of: tuple[Any, ...], cursor: str | None, limit: int) -> Page:
        files = (f"labels/{name}/{t}.parquet" for t in ("features", "concepts", "examples"))
        return page(items, (of, name, run._folder.stamp(*files, f"causal/{name}/verdicts.parquet")), cursor, limit)

    @app.get("/healthz", summary="Whether the server answers", responses={200: {"description": "It does."}})
    def healthz() -> dict[str, str]:
        return {"status": "ok"}

    @app.get("/v1/run", response_model=shapes.run, summary="The run: config, model, stages and dictionaries")
    def about(dictionary: Name = None) -> Row:
        names = run.dictionaries if dictionary is None else (run.dictionary(dictionary),)
        return _about(run, names)

    @app.get("/v1/concepts", response_model=shapes.concepts, summary="All concepts and their chosen features")
    def concepts(dictionary: Name = None, cursor: Cursor = None, limit: Limit = DEFAULT) -> Page:
        name = run.dictionary(dictionary)
        found = [one | {"id": None if one["feature"] is None else str(one["feature"])} for one in run.concepts(name)]
        return listed(found, name, ("concepts",), cursor, limit)

    @app.get("/v1/concepts/{name}/features", response_model=shapes.findings, summary="A concept's features, best first")
    def features(
        name: Annotated[str, InPath(description="a concept or a family")],
        dictionary: Name = None,
        cursor: Cursor = None,
        limit: Limit = DEFAULT,
    ) -> Page:
        chosen = run.dictionary(dictionary)
        found = [one.finding for one in run.find(name, chosen)]
        return listed(found, chosen, ("features", name), cursor, limit)

    @app.get("/v1/features/{id}", response_model=shapes.feature, summary="One feature: scores, logit lens, verdict")
    def feature(id: FeatureId, dictionary: Name = None) -> Row:  # noqa: A002 - the path's own name
        return run.feature(id, dictionary).to_dict()

    @app.get("/v1/features/{id}/examples", response_model=shapes.examples, summary="Its top contexts, token by token")
    def examples(
        id: FeatureId,  # noqa: A002 - the path's own name
        dictionary: Name = None,
        cursor: Cursor = None,
        limit: Limit = DEFAULT,
    ) -> Page:
        found = run.feature(id, dictionary)
        items = [{"id": found.id} | one.to_dict() for one in found.examples()]
        return listed(items, found.dictionary, ("examples", found.id), cursor, limit)

    @app.get("/v1/search", response_model=shapes.hits, summary="Concepts, families, labels and logit-lens tokens")
    def search(
        q: Annotated[str, Query(min_length=1, max_length=200, description="part of a name, or the start of a token")],
        dictionary: Name = None,
        cursor: Cursor = None,
        limit: Limit = DEFAULT,
    ) -> Page:
        name = run.dictionary(dictionary)
        return listed(run.search(q, name), name, ("search", q), cursor, limit)

    return app


def serve(run: str | Path, port: int) -> None:
    """Serve a run's API on loopback until interrupted. Raises `UserError` where the port is taken or is none."""
    import uvicorn

    app = create_app(run)
    with _listening(port) as listener:
        address = f"http://127.0.0.1:{listener.getsockname()[1]}"
        say(f"Serving {run} to this machine at {address}/v1/run; {address}/openapi.json describes it. Ctrl-C ends.")
        config = uvicorn.Config(app, log_level="warning", access_log=False)
        uvicorn.Server(config).run(sockets=[listener])


def _listening(port: int) -> socket.socket:
    """A socket on loopback alone; port 0 takes a free one."""
    listener = socket.socket(socket.AF_INET, socket.SOCK_STREAM)
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        listener.bind(("127.0.0.1", port))
        listener.listen(128)
    except OverflowError:
        listener.close()
        raise UserError(f"There is no port {port}; give one from 1 to 65535.") from None
    except OSError:
        listener.close()
        raise UserError(f"Port {port} is taken or not allowed; give another one with --port.") from None
    return listener


def _labelled(run: Run, name: str) -> bool:
    return run._folder.has(f"labels/{name}/features.parquet") and run._folder.has(f"labels/{name}/concepts.parquet")


def _cells(run: Run) -> tuple[str, ...]:
    for name in run.dictionaries:
        if _labelled(run, name):
            return run.cells(name)
    raise UserError(f"No dictionary of {run.path} is labelled yet; run the label stage first.")


def _about(run: Run, names: tuple[str, ...]) -> Row:
    info = run.info
    config = {key: info["config"].get(key) for key in ("name", "note")}
    kept = {key: info[key] for key in ("config_hash", "config", "versions", "model", "stages")}
    return config | kept | {"dictionaries": [_dictionary(run, name) for name in names]}


def _dictionary(run: Run, name: str) -> Row:
    quality = f"dictionaries/{name}/quality.json"
    held = run._folder.json(quality) if run._folder.has(quality) else {}
    wanted = next(one for one in run.info["config"]["dictionaries"] if one["name"] == name)
    facts = {key: held.get(key) for key in ("architecture", "d_in", "d_sae", "l0", "fvu", "dead", "ce_recovered")}
    found = {"name": name, "block": wanted["block"], **facts, "cells": [], "labelled_features": None}
    found |= {"confirmed_concepts": None, "causal_features": None}
    if _labelled(run, name):
        labels = run._folder.table(f"labels/{name}/features.parquet")["label"]
        found |= {"cells": list(run.cells(name)), "labelled_features": len(labels) - labels.null_count}
        found["confirmed_concepts"] = sum(bool(one["confirmed"]) for one in run.concepts(name))
    if run._folder.has(f"causal/{name}/verdicts.parquet"):
        verdicts = run._folder.table(f"causal/{name}/verdicts.parquet")["verdict"].to_pylist()
        found["causal_features"] = verdicts.count("causal")
    return found
