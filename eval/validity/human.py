"""Other people's labels: every labelled table in --data that a mapping file describes.

Mappings of known sets lie in eval/validity/mappings; one of your own is a mapping.yaml beside its table (see
sae_emotions/tables/mapping.py). A table's figures lie in RUN/validity/human/NAME.json as soon as they are there, until all
are: interrupted work goes on with the next table.
"""

import hashlib
import json
import shutil
from pathlib import Path
from typing import Any

from eval.validity.asked import Asked
from sae_emotions.artefact import read_json, sha256_file, write_json
from sae_emotions.concepts.concept_set import load_concepts
from sae_emotions.progress import say
from sae_emotions.run_folder import config_of
from sae_emotions.tables.evaluate import evaluate, open_reader, prepare
from sae_emotions.tables.mapping import Mapping, tables

MAPPINGS = Path(__file__).with_name("mappings")
HOW = [
    "Training and test rows are samples of the table's own splits; a test row whose text is also a training row is left out. "
    "Training rows of rare classes are drawn more often, for all methods alike.",
    "All is chosen by cross-validation on the training rows: how tokens are pooled, how many of the opening are left out, "
    "penalties. The test rows are scored once. The block is the dictionary's.",
    "zero_shot_*: a label is scored by the features (or dense vectors) of the concepts it is mapped to, chosen on the concept "
    "texts; several by their mean rank (or summed, each of length one). Pooled by the mean over all tokens but the first.",
    "Numbers are read by ridge regression and scored by Pearson's r on the test rows; classes by logistic regression, one label "
    "against the rest, and AUROC. Single features and dimensions may have either sign.",
    "Intervals: 95 %, bootstrap over test rows (over the dialogues or topics they are of, where the split is by these), the "
    "same resamples for every method; minus_tfidf_interval is that of the difference from TF-IDF fitted on the same rows.",
]


def measured(asked: Asked) -> dict[str, Any]:
    """Figures of every table that is there; the others are named."""
    if asked.data is None:
        return {"sets": {}, "skipped": {"all": "no --data was given"}}
    config = config_of(asked.run)
    there = tables(MAPPINGS, asked.data)
    skipped = {one.mapping.name: f"no folder {one.mapping.folder}" for one in there if not one.is_there}
    for name, why in skipped.items():
        say(f"  {name} is skipped: {why}")
    folder = asked.run / "validity" / "human"
    origins = {one.mapping.name: _origin(asked, one.mapping) for one in there if one.is_there}
    found = {name: held for name, origin in origins.items() if (held := _held(folder / f"{name}.json", origin))}
    todo = [one for one in there if one.is_there and one.mapping.name not in found]
    if todo:
        reader = open_reader(config, asked.run, asked.dictionary, load_concepts(config.concepts).name)
        ready = [prepare(reader, one) for one in todo]
        say(
            f"  {sum(one.tokens for one in ready):,} tokens of {len(ready)} tables through {reader.dictionary.block + 1} blocks"
        )
        for one in ready:
            name = one.table.mapping.name
            say(
                f"  {name}: {len(one.drawn.train_N):,} training and {len(one.drawn.test_N):,} test rows, {one.tokens:,} tokens"
            )
            found[name] = evaluate(reader, one)
            write_json(folder / f"{name}.json", found[name] | {"origin": origins[name]})
    shutil.rmtree(folder, ignore_errors=True)
    sets = {name: {key: value for key, value in found[name].items() if key != "origin"} for name in origins}
    return {"how": HOW, "sets": sets, "skipped": skipped}


def _origin(asked: Asked, mapping: Mapping) -> str:
    """sha256 of what a table's figures depend on, but for the table itself."""
    parts = [
        sha256_file(asked.run / "dictionaries" / asked.dictionary / "sae_weights.safetensors"),
        sha256_file(asked.run / "labels" / asked.dictionary / "concepts.parquet"),
        json.dumps(mapping.model_dump(mode="json"), sort_keys=True),
    ]
    return hashlib.sha256("\n".join(parts).encode()).hexdigest()


def _held(path: Path, origin: str) -> dict[str, Any] | None:
    if not path.is_file():
        return None
    found: dict[str, Any] = read_json(path)
    return found if found["origin"] == origin else None
