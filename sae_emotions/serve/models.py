"""Shapes of the API's answers, made from the columns that `schema.py` documents: a column is described once."""

from typing import Any, NamedTuple

import pyarrow as pa
from pydantic import BaseModel, ConfigDict, Field, create_model

from sae_emotions.schema import TABLES, schema

Model = type[BaseModel]


class Models(NamedTuple):
    """All answers of the API, for the cells of one run's concept set."""

    run: Model
    concepts: Model
    findings: Model
    feature: Model
    examples: Model
    hits: Model
    error: Model


def models(cells: tuple[str, ...]) -> Models:
    """Response models; `<cell>` columns stand once for each of `cells`."""
    identity = {
        "id": (str, Field(description="opaque name of the feature within its dictionary")),
        "dictionary": (str, Field(description="name of the dictionary")),
    }
    verdict = _model("Verdict", _columns("verdicts"))
    score = _model("Score", _columns("scores", leave=("feature",)))
    dictionary = _model("Dictionary", _DICTIONARY)
    concept = _columns("concepts", cells=cells) | {"id": identity["id"]} | _columns("verdicts", ("verdict",))
    hit = _HIT | _columns("features", ("label", "status", "auroc_held_out")) | _columns("verdicts", ("verdict",))
    feature = {
        "scores": _list(score, "AUROC with interval and exact p, by concept, cell and split"),
        "verdict": (verdict | None, Field(description="the causal test; null where none was made")),
    }
    error = _model("ErrorBody", _ERROR)
    return Models(
        _model("Run", _RUN | {"dictionaries": _list(dictionary, "in the config's order")}),
        _page("ConceptPage", _model("Concept", concept)),
        _page(
            "FindingPage",
            _model("Finding", identity | _finding(cells) | _columns("verdicts", ("verdict", "effect", "z"))),
        ),
        _model("Feature", identity | _columns("features", cells=cells) | feature),
        _page("ExamplePage", _model("Example", {"id": identity["id"]} | _columns("examples"))),
        _page("HitPage", _model("Hit", hit)),
        _model("Error", {"error": (error, Field(description="what went wrong"))}),
    )


def _list(item: Model, text: str) -> Any:
    return (list[item], Field(description=text))  # type: ignore[valid-type]


def _model(name: str, fields: dict[str, Any]) -> Model:
    return create_model(name, __config__=ConfigDict(extra="forbid"), **fields)


def _page(name: str, item: Model) -> Model:
    fields = {
        "items": _list(item, "this page's items, in order"),
        "next_cursor": (str | None, Field(description="pass it as ?cursor= for the next page; null on the last one")),
        "total": (int, Field(description="items on all pages together")),
    }
    return _model(name, fields)


def _columns(
    table: str, names: tuple[str, ...] | None = None, cells: tuple[str, ...] = (), leave: tuple[str, ...] = ()
) -> dict[str, Any]:
    """Pydantic fields of a table's columns: nullable, required, with the column's own description."""
    docs = {}
    for column in TABLES[table]:
        for cell in cells if "<cell>" in column.name else ("",):
            docs[column.name.replace("<cell>", cell)] = f"{column.doc} ({cell})" if cell else column.doc
    types = {field.name: field.type for field in schema(table, cells)}
    wanted = [name for name in types if (names is None or name in names) and name not in leave]
    return {name: (_python(types[name]) | None, Field(description=docs[name])) for name in wanted}


def _python(kind: pa.DataType) -> Any:
    if pa.types.is_list(kind):
        return list[_python(kind.value_type)]  # type: ignore[misc]
    if pa.types.is_boolean(kind):
        return bool
    if pa.types.is_integer(kind):
        return int
    return float if pa.types.is_floating(kind) else str


def _finding(cells: tuple[str, ...]) -> dict[str, Any]:
    about = ("feature", "family", "label", "status", "grain", "scope", "auroc_held_out", "p", "q")
    names = (*about, *(f"auroc_{cell}" for cell in cells))
    own = _columns("features", names, cells)
    return own | {
        "concept": (str, Field(description="the concept that was asked for; scores are for it")),
        "chosen": (bool, Field(description="it is the one feature chosen for the concept on the selection set")),
        "q_concept": (float | None, Field(description="chosen feature alone: Benjamini-Hochberg q over all concepts")),
    }


_RUN: dict[str, Any] = {
    "name": (str, Field(description="the run's name")),
    "note": (str, Field(description="free text of the config")),
    "config_hash": (str, Field(description="sha256 of the config's canonical JSON")),
    "config": (dict[str, Any], Field(description="the whole config")),
    "versions": (dict[str, str], Field(description="versions of the packages that made the run")),
    "model": (dict[str, Any] | None, Field(description="the language model: source, sha256, how it was stored, sizes")),
    "stages": (dict[str, dict[str, Any]], Field(description="state and seconds of every stage")),
}
_DICTIONARY: dict[str, Any] = {
    "name": (str, Field(description="pass it as ?dictionary=")),
    "block": (int, Field(description="0-based block after which it reads the residual stream")),
    "architecture": (str | None, Field(description="kind of sparse autoencoder")),
    "d_in": (int | None, Field(description="residual width")),
    "d_sae": (int | None, Field(description="latents")),
    "l0": (float | None, Field(description="mean active latents a held-out row")),
    "fvu": (float | None, Field(description="fraction of variance unexplained on held-out rows")),
    "dead": (float | None, Field(description="share of latents that did not fire at the end of training")),
    "ce_recovered": (float | None, Field(description="cross-entropy recovered when spliced in; 1 is all")),
    "cells": (list[str], Field(description="cells with an AUROC; empty before labelling")),
    "labelled_features": (int | None, Field(description="features with a label; null before labelling")),
    "confirmed_concepts": (int | None, Field(description="confirmed concepts; null before labelling")),
    "causal_features": (int | None, Field(description="causal features; null before that stage")),
}
_HIT: dict[str, Any] = {
    "kind": (str, Field(description="concept, family, label or token: what of the feature matched")),
    "match": (str, Field(description="what matched: the concept, the family, the label or the token")),
    "id": (str | None, Field(description="opaque name of the feature; null for concepts and families")),
    "feature": (int | None, Field(description="latent number; null for concepts and families")),
}
_ERROR: dict[str, Any] = {
    "status": (int, Field(description="HTTP status")),
    "code": (str, Field(description="short name of the kind of error, for programs")),
    "message": (str, Field(description="what is wrong and what to do, for people")),
}
