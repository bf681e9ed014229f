"""One labelled table, from its mapping to figures: what `measure` finds, and what has to be known to read it."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch

from sae_emotions.config import RunConfig
from sae_emotions.dictionary.encode import Dictionary, load_dictionary
from sae_emotions.errors import UserError
from sae_emotions.machine import compute_dtype, device
from sae_emotions.progress import say
from sae_emotions.schema import read_table as read_parquet
from sae_emotions.sources.models import Model, load_model
from sae_emotions.tables.choosing import folds_of
from sae_emotions.tables.mapping import Mapping, Table
from sae_emotions.tables.measure import Labels, Rows, chance, measure
from sae_emotions.tables.pooled import pooled, token_ids
from sae_emotions.tables.rows import Labelled, Sample, read_table, sample, scored


class Reader(NamedTuple):
    """A run's model, one of its dictionaries, and what that one's labels say."""

    config: RunConfig
    model: Model
    dictionary: Dictionary
    labels: Labels
    concept_set: str
    """name of the concept set that the labels are of"""


class Prepared(NamedTuple):
    """A table whose sample is tokenised: what it costs is known before anything is read."""

    table: Table
    found: Labelled
    drawn: Sample
    ids: list[list[int]]
    label_N: np.ndarray
    """labels that are scored"""
    left_out: dict[str, str]
    """the others, and why"""
    unread: int
    """rows of the sample without a token after the first"""

    @property
    def tokens(self) -> int:
        """Tokens to read."""
        return sum(map(len, self.ids))


def open_reader(config: RunConfig, run: Path, name: str, concept_set: str) -> Reader:
    """Load what reads tables. Raises `UserError` where the dictionary's labels are missing."""
    dictionary = load_dictionary(run, name)
    model = load_model(config.model, compute_dtype(config.model))
    model.model.to(device())
    return Reader(config, model, dictionary, labels_of(run, name), concept_set)


def labels_of(run: Path, name: str) -> Labels:
    """The chosen features and dense vectors of RUN/labels/NAME."""
    from safetensors.numpy import load_file

    folder = run / "labels" / name
    table = read_parquet(folder / "concepts.parquet")
    path = folder / "dense.safetensors"
    if not path.is_file():
        raise UserError(f"{path} is missing; run the label stage again.")
    return Labels(tuple(table["concept"].to_pylist()), table["feature"].to_numpy(), load_file(path)["dense_CD"])


def prepare(reader: Reader, table: Table) -> Prepared:
    """Read a table and tokenise a sample of it. Raises `UserError` for a mapping that does not fit table or concepts."""
    mapping, seed = table.mapping, reader.config.seed
    if mapping.concepts == reader.concept_set:
        _check_words(mapping, reader.labels.concepts)
    found = read_table(table, seed)
    drawn = sample(found, mapping, seed)
    some = np.concatenate([drawn.train_N, drawn.test_N])
    ids, read_N = token_ids([found.texts[i] for i in some], reader.model, reader.config.harvest.context)
    train = len(drawn.train_N)
    kept = Sample(drawn.train_N[read_N[:train]], drawn.test_N[read_N[train:]])
    label_N, left = scored(found, kept, mapping)
    folds_of(found.values_TL[np.ix_(kept.train_N, label_N)], found.group_T[kept.train_N], seed)
    ids = [one for one, read in zip(ids, read_N, strict=True) if read]
    return Prepared(table, found, kept, ids, label_N, left, int((~read_N).sum()))


def _check_words(mapping: Mapping, concepts: Sequence[str]) -> None:
    for label, own in mapping.map.items():
        wrong = [word for word in (*own.up, *own.down) if word not in concepts]
        if wrong:
            raise UserError(
                f"The mapping '{mapping.name}' maps '{label}' to '{wrong[0]}', which is no concept of the set "
                f"'{mapping.concepts}'; correct it."
            )


def evaluate(reader: Reader, ready: Prepared) -> dict[str, Any]:
    """Read a prepared table and measure every method on it. JSON-able."""
    mapping, found, drawn = ready.table.mapping, ready.found, ready.drawn
    torch.set_num_threads(reader.config.harvest.threads or torch.get_num_threads())
    read = pooled(ready.ids, reader.model, reader.dictionary, reader.config.harvest, f"read {mapping.name}")
    some = np.concatenate([drawn.train_N, drawn.test_N])
    whole = np.flatnonzero(~found.test_T)
    rows = Rows(
        mapping.kind,
        tuple(found.labels[n] for n in ready.label_N),
        found.values_TL[np.ix_(some, ready.label_N)],
        found.test_T[some],
        found.group_T[some],
        [found.texts[i] for i in some],
        [found.texts[i] for i in whole],
        found.values_TL[np.ix_(whole, ready.label_N)],
        found.group_T[whole],
    )
    speaks = mapping.concepts == reader.concept_set
    if mapping.map and not speaks:
        say(
            f"  {mapping.name} is mapped to the concept set '{mapping.concepts}', not this run's: nothing is carried over"
        )
    methods = measure(rows, read, reader.labels, mapping.map if speaks else {}, reader.config.seed)
    return {
        "about": mapping.about,
        **chance(mapping.kind),
        "train_rows": len(drawn.train_N),
        "test_rows": len(drawn.test_N),
        "tokens": ready.tokens,
        "block": reader.dictionary.block,
        "unread_rows": ready.unread,
        "test_rows_repeated_in_training": found.repeated,
        "labels_left_out": ready.left_out,
        "rows_with_label": _counts(rows) if mapping.kind == "classes" else None,
        "methods": methods,
    }


def _counts(rows: Rows) -> dict[str, dict[str, int]]:
    return {
        split: dict(zip(rows.labels, rows.values_TL[there].sum(0).astype(int).tolist(), strict=True))
        for split, there in (("train", ~rows.test_T), ("test", rows.test_T))
    }
