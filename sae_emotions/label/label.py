"""The label stage: from a dictionary and the harvested concept texts to RUN/labels/NAME/.

Writes features, scores, concepts and examples (see schema.py), null.json (the rule under permuted labels), rule.json
(the rule in words and numbers), summary.json (held-out means and counts) and dense.safetensors (`dense_CD`: each
concept's difference-of-means vector on the selection texts, residual-stream units, in the order of concepts.parquet).
transfer.json puts features beside other methods after every kind of training (see `transfer.figures`).
"""

from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import torch

from sae_emotions.artefact import write_json, written_folder
from sae_emotions.concepts.concept_set import ConceptSet, load_concepts
from sae_emotions.config import LabelConfig, RunConfig, config_hash
from sae_emotions.dictionary.encode import Dictionary, load_dictionary
from sae_emotions.errors import UserError
from sae_emotions.harvest.rows import open_rows, read_documents
from sae_emotions.label.choose import chosen
from sae_emotions.label.contexts import Contexts, top_contexts
from sae_emotions.label.layout import layout
from sae_emotions.label.ledger import note_look
from sae_emotions.label.lens import logit_lens, read_unembedding, read_vocabulary
from sae_emotions.label.material import material_of
from sae_emotions.label.means import StoryMeans, rows_to_read, story_means
from sae_emotions.label.measure import Measured, held_out_means, measure, pair_scores
from sae_emotions.label.methods import DESCRIBED, run_methods
from sae_emotions.label.rule import tested_and_passed
from sae_emotions.label.tables import concept_columns, example_columns, explanations, feature_columns, status_counts
from sae_emotions.label.transfer import training_cells, transfer
from sae_emotions.progress import Progress, say
from sae_emotions.schema import write_table


def label(config: RunConfig, run: Path, name: str) -> Path:
    """Label the features of dictionary `name`; returns RUN/labels/NAME.

    Looks at the held-out texts, and notes that look in RUN/ledger.jsonl. Raises `UserError` where the harvest or the
    dictionary is missing, does not fit, or was made from other concept texts.
    """
    concepts, settings = load_concepts(config.concepts), config.label
    dictionary = load_dictionary(run, name)
    means = concept_means(config, run, dictionary)
    say(f"label: {len(concepts.concepts)} concepts x {dictionary.d_sae} features, {settings.permutations} permutations")
    measured = measure(concepts, layout(concepts), means, settings, config.seed)
    contexts = _contexts(run, dictionary, settings)
    summary = _summary(measured, concepts, settings, config.seed)
    compared = _compared(config, run, dictionary.block, means, measured)
    with written_folder(run / "labels" / name) as folder:
        _write_tables(folder, run, measured, concepts, dictionary, contexts, settings.q)
        _write_dense(folder, measured)
        write_json(folder / "null.json", measured.null)
        write_json(folder / "rule.json", rule_in_words(settings, concepts.registers))
        write_json(folder / "summary.json", summary)
        write_json(folder / "transfer.json", compared)
    look = {"config_hash": config_hash(config), "dictionary": name, "cells": list(concepts.cells), "summary": summary}
    note_look(run / "ledger.jsonl", look)
    return run / "labels" / name


def concept_means(config: RunConfig, run: Path, dictionary: Dictionary, selection_only: bool = False) -> StoryMeans:
    """Story means of a run's concept texts; with `selection_only` the held-out texts are not read (and are zero)."""
    concepts, folder = load_concepts(config.concepts), run / "activations" / "concepts"
    rows = _rows(folder, dictionary)
    keys = read_documents(folder)["key"].to_pylist()
    ids = [text.id for text in concepts.texts]
    wanted = np.array([text.split == "selection" or not selection_only for text in concepts.texts])
    skip = config.label.skip_tokens
    with Progress("label: stories", rows_to_read(rows, keys, ids, skip, wanted), "rows") as progress:
        return story_means(rows, keys, dictionary, ids, skip, wanted, progress.advance)


def _rows(folder: Path, dictionary: Dictionary) -> Any:
    rows = open_rows(folder, dictionary.block)
    if rows.d_in != dictionary.d_in:
        raise UserError(f"{folder} is {rows.d_in} wide but dictionary '{dictionary.name}' reads {dictionary.d_in}.")
    return rows


def _contexts(run: Path, dictionary: Dictionary, settings: LabelConfig) -> Contexts:
    rows = _rows(run / "activations" / "text", dictionary)
    with Progress("label: contexts", len(rows), "rows") as progress:
        return top_contexts(rows, dictionary, settings.examples, settings.example_tokens, progress.advance)


def _write_tables(
    folder: Path,
    run: Path,
    measured: Measured,
    concepts: ConceptSet,
    dictionary: Dictionary,
    contexts: Contexts,
    rate: float,
) -> None:
    choice, words = measured.outcome.choice, read_vocabulary(run)
    lens = logit_lens(dictionary.W_dec_FD, read_unembedding(run, dictionary.d_in))
    features = feature_columns(measured, concepts, dictionary.W_dec_FD, contexts, lens, words, rate)
    screened = np.flatnonzero(measured.outcome.concept.screened_F | measured.outcome.labelled_F)
    pairs = np.stack(
        [
            np.append(choice.concept_F[screened], np.arange(len(choice.feature_C))),
            np.append(screened, choice.feature_C),
        ]
    )
    concept_P, feature_P = np.unique(pairs, axis=1)
    documents = read_documents(run / "activations" / "text")
    write_table(folder / "features.parquet", "features", features, concepts.cells)
    write_table(folder / "concepts.parquet", "concepts", concept_columns(measured, concepts), concepts.cells)
    write_table(folder / "scores.parquet", "scores", pair_scores(measured, concept_P, feature_P))
    write_table(folder / "examples.parquet", "examples", example_columns(contexts, documents, words, "text"))


def _compared(config: RunConfig, run: Path, block: int, means: StoryMeans, measured: Measured) -> dict[str, Any]:
    """What `transfer` says of the methods that every run compares."""
    methods = run_methods(
        material_of(config, run, block, means, measured.ranks_TF),
        lambda ranks_TF, panels: chosen(ranks_TF, panels, means.resid_TD, config.label),
    )
    with Progress("label: transfer", len(methods) * len(training_cells(measured.found)), "fits") as progress:
        figures = transfer(measured.found, methods, config.label.bootstraps, config.seed, progress.advance)
    return {"methods": {name: DESCRIBED[name] for name in methods}, "trained_on": figures}


def _write_dense(folder: Path, measured: Measured) -> None:
    from safetensors.torch import save_file

    save_file({"dense_CD": torch.from_numpy(measured.dense_CD).float().contiguous()}, folder / "dense.safetensors")


def _summary(measured: Measured, concepts: ConceptSet, settings: LabelConfig, seed: int) -> dict[str, Any]:
    outcome, null = measured.outcome, measured.null
    labelled = np.flatnonzero(outcome.labelled_F)
    return {
        "features": len(labelled),
        "concepts": len(np.unique(outcome.choice.concept_F[outcome.with_concept(settings.q)])),
        "confirmed_concepts": int(outcome.confirmed_C.sum()),
        "screened": int(outcome.concept.screened_F.sum()),
        "hypotheses": dict(zip(("tested", "passed"), tested_and_passed(outcome, settings.q), strict=True)),
        "grain": dict(sorted(Counter(measured.grain.kind_P).items())),
        "concepts_not_told_from_siblings": int((~measured.grain.told_P).sum()),
        "given_grain": dict(sorted(Counter(measured.given_grain.kind_P).items())),
        "explained_by": {
            name: sum(name in each for each in explanations(measured, settings.q)) for name in measured.controls
        },
        **held_out_means(measured, settings, seed),
        "null_features": null["mean_labelled_features"],
        "null_confirmed_concepts": null["mean_confirmed_concepts"],
        "null_permutations": null["permutations"],
        "null_permutations_with_any_label": null["permutations_with_any_label"],
        "status": status_counts(measured, concepts.registers),
        "skip_tokens": settings.skip_tokens,
        "texts": {
            split: dict(Counter(text.cell for text in concepts.texts if text.split == split))
            for split in ("selection", "held_out")
        },
        "concept_set": {"name": concepts.name, "sha256": concepts.sha256, "concepts": len(concepts.concepts)},
    }


def rule_in_words(settings: LabelConfig, registers: tuple[str, str]) -> dict[str, Any]:
    """The rule as sentences, with its numbers."""
    first, second = registers
    return {
        "rule": [
            f"Per text and feature: the mean activation over tokens after the first {settings.skip_tokens}.",
            "AUROC within topic, averaged over topics; p exact and one-sided, from the summed midrank over topics.",
            "A feature's concept has the highest sum of both registers' AUROC on the selection set; its family and its end of a "
            "norm have the greatest sum of both registers' standardised rank statistic.",
            f"Screened, each of the three: both registers' selection p below {settings.screen_p:g}, their product below "
            f"{settings.screen_product:g}.",
            f"Held-out p: the larger of the {first} and the {second} register's, each over all its cells together.",
            "Labelled: Benjamini-Hochberg q over all that was screened, concepts, families and norms together, at most "
            f"{settings.q:g} for any of the three.",
            "Grain: the concept, if its held-out texts also stand above those of its own family on the same topics; else the "
            "family, if it passed and stands above what the norms predict, or no norm passed; else the norm, if it passed; else "
            "the concept, not told from its siblings. Both claims of a step count by the larger p, Benjamini-Hochberg over all "
            "features screened for them.",
            f"'{first} only' or '{second} only': screened for a concept, not labelled, and Benjamini-Hochberg over the "
            "screened passes in that register alone and not in the other.",
            "A concept's feature has the greatest strength: the posterior mean of the AUROC of both registers under a normal "
            "prior in which concepts with similar difference-of-means vectors are alike "
            f"(own {settings.own:g}, apart {settings.apart:g}). The concept is confirmed if Benjamini-Hochberg q over all "
            f"concepts of the same held-out p is at most {settings.q:g}.",
            "Controls: the label's held-out p with the words named, first-person narration, length and a bag of words' score "
            "each taken out of the ranks within topic.",
            f"Null: {settings.permutations} permutations of the labels within topic and cell through all of this; vectors, "
            "neighbours and families are made again from the permuted labels.",
            "Interval of one AUROC: exact rank distribution, exponentially tilted, inverted at 2.5 % on each side. "
            "Interval of a mean: percentiles of a bootstrap over concepts and topics.",
        ],
        "skip_tokens": settings.skip_tokens,
        "own": settings.own,
        "apart": settings.apart,
        "families": settings.families,
        "screen_p": settings.screen_p,
        "screen_product": settings.screen_product,
        "q": settings.q,
        "permutations": settings.permutations,
        "bootstraps": settings.bootstraps,
        "registers": list(registers),
    }
