"""The label stage's tables as columns, named as in schema.py. F features, C concepts, P pairs, W tokens a context."""

from collections import Counter
from typing import Any

import numpy as np
import pyarrow as pa
import torch

from sae_emotions.concepts.concept_set import ConceptSet
from sae_emotions.label.confounds import Controlled
from sae_emotions.label.contexts import Contexts
from sae_emotions.label.lens import Lens
from sae_emotions.label.linear import set_auroc
from sae_emotions.label.measure import Measured, cell_auroc
from sae_emotions.label.ranks import topic_mean
from sae_emotions.label.rule import tested_and_passed
from sae_emotions.label.uncertainty import critical_p


def _mean_of_cells(cells: dict[str, np.ndarray]) -> np.ndarray:
    table = np.stack(list(cells.values()))
    there = ~np.isnan(table)
    return np.where(there, table, 0).sum(0) / np.maximum(there.sum(0), 1)


def _nullable(values: np.ndarray) -> list[float | None]:
    return [None if np.isnan(value) else float(value) for value in values]


def statuses(measured: Measured, registers: tuple[str, str]) -> list[str]:
    """`labelled`, `<register> only` or `none` of every feature."""
    names = (f"{registers[0]} only", f"{registers[1]} only", "none")
    pairs = zip(measured.outcome.labelled_F, measured.outcome.only_F, strict=True)
    return ["labelled" if labelled else names[only] for labelled, only in pairs]


def feature_columns(
    measured: Measured,
    concepts: ConceptSet,
    W_dec_FD: torch.Tensor,
    contexts: Contexts,
    lens: Lens,
    words: list[str],
    rate: float,
) -> dict[str, Any]:
    """One row a feature. A feature that is silent in the selection texts has no concept."""
    outcome, choice = measured.outcome, measured.outcome.choice
    features = np.arange(len(choice.concept_F))
    cells = cell_auroc(measured, choice.concept_F, features)
    directions_FD = W_dec_FD.float().cpu().numpy()
    norm_F = np.linalg.norm(directions_FD, axis=1)
    dense_FD = measured.dense_CD[choice.concept_F]
    scale_F = np.maximum(norm_F * np.linalg.norm(dense_FD, axis=1), 1e-12)
    loudest_F = np.zeros(len(features), np.float32)
    loudest_F[contexts.feature_K[contexts.rank_K == 0]] = contexts.value_K[contexts.rank_K == 0]
    has_concept = outcome.labelled_F | (choice.auroc_F > 0.5 + 1e-6)
    known = [concepts.concepts[c] if there else None for c, there in zip(choice.concept_F, has_concept, strict=True)]
    names = [concept and concept.name for concept in known]
    labelled = {int(feature): i for i, feature in enumerate(measured.grain.feature_P)}
    at = [labelled.get(int(feature)) for feature in features]
    return {
        "feature": features,
        "concept": names,
        "family": [concept and concept.family for concept in known],
        "label": [name if labelled else None for name, labelled in zip(names, outcome.labelled_F, strict=True)],
        "status": statuses(measured, concepts.registers),
        **_grain_columns(measured, at, rate),
        "screened": outcome.concept.screened_F,
        "auroc_selection": choice.auroc_F,
        "p_selection_first": outcome.concept.p_selection_F2[:, 0],
        "p_selection_second": outcome.concept.p_selection_F2[:, 1],
        "auroc_held_out": _mean_of_cells(cells),
        **{f"auroc_{cell}": _nullable(cells[cell]) for cell in concepts.cells},
        "p_first": outcome.concept.p_F2[:, 0],
        "p_second": outcome.concept.p_F2[:, 1],
        "p": outcome.concept.p_F2.max(1),
        "q": _nullable(outcome.concept.q_F),
        "q_family": _nullable(outcome.family.q_F),
        "q_norm": _nullable(outcome.norm.q_F),
        "cosine_dense": (directions_FD * dense_FD).sum(1) / scale_F,
        "density": contexts.density_F,
        "max_activation": loudest_F,
        "decoder_norm": norm_F,
        "top_tokens": [[words[t] for t in row] for row in lens.top_Fn],
        "top_logits": lens.top_logit_Fn.tolist(),
        "bottom_tokens": [[words[t] for t in row] for row in lens.bottom_Fn],
        "bottom_logits": lens.bottom_logit_Fn.tolist(),
    }


def _grain_columns(measured: Measured, at: list[int | None], rate: float) -> dict[str, Any]:
    """What each label says, by both kinds of families, and what is left of it under each control."""
    given = {int(feature): i for i, feature in enumerate(measured.given_grain.feature_P)}
    given_at = [given.get(feature) for feature in range(len(at))]
    explained_P = explanations(measured, rate)
    return {
        "grain": _some(measured.grain.kind_P, at),
        "scope": _some(measured.grain.scope_P, at),
        "auroc_scope": _some(_nullable(scope_auroc(measured)), at),
        "p_within_family": _some(_nullable(measured.grain.p_within_P), at),
        "p_beyond_norms": _some(_nullable(measured.grain.p_beyond_P), at),
        "given_grain": _some(measured.given_grain.kind_P, given_at),
        "given_scope": _some(measured.given_grain.scope_P, given_at),
        **{f"auroc_without_{n}": _some(_nullable(one.auroc_P), at) for n, one in measured.controls.items()},
        **{f"p_without_{n}": _some(_nullable(_control_p(n, one)), at) for n, one in measured.controls.items()},
        "explained_by": _some(explained_P, at),
    }


def _some(values_P: Any, at: list[int | None]) -> list[Any]:
    return [None if i is None else values_P[i] for i in at]


def _control_p(name: str, one: Controlled) -> np.ndarray:
    """A label needs both registers, so the larger p counts; but a bag of words may read one register as well as can be, so
    that nothing is left there to be tested, and is held to explain a label only where it does so in both."""
    return np.asarray(one.p_PR.min(1) if name == "bag" else one.p_PR.max(1))


def explanations(measured: Measured, rate: float) -> list[list[str]]:
    """The controls that explain each label: with them taken out its p is no longer as small as a label's must be."""
    limit = critical_p(*tested_and_passed(measured.outcome, rate), rate)
    p = {name: _control_p(name, one) for name, one in measured.controls.items()}
    return [[name for name in p if p[name][i] > limit] for i in range(len(measured.grain.feature_P))]


def scope_auroc(measured: Measured) -> np.ndarray:
    """Held-out AUROC of the concepts that each label claims against the others, mean over strata. (P,)"""
    auroc_P, weights_PC = np.full(len(measured.grain.feature_P), np.nan), measured.grain.weights_PC
    for weights_C in np.unique(weights_PC, axis=0):
        here = np.flatnonzero((weights_PC == weights_C).all(1))
        features = measured.grain.feature_P[here]
        auroc_P[here] = set_auroc(measured.ranks_TF, measured.found.held_out, weights_C > 0, features)
    return auroc_P


def concept_columns(measured: Measured, concepts: ConceptSet) -> dict[str, Any]:
    """One row a concept."""
    outcome, choice = measured.outcome, measured.outcome.choice
    cells = cell_auroc(measured, np.arange(len(concepts.concepts)), choice.feature_C)
    labelled = np.flatnonzero(outcome.labelled_F)
    held_out = _mean_of_cells(cell_auroc(measured, choice.concept_F[labelled], labelled))
    best_first = labelled[np.argsort(-held_out, kind="stable")]
    return {
        "concept": [concept.name for concept in concepts.concepts],
        "family": [concept.family for concept in concepts.concepts],
        "feature": choice.feature_C,
        "auroc_selection": choice.auroc_C,
        **{f"auroc_{cell}": _nullable(cells[cell]) for cell in concepts.cells},
        "auroc_held_out": _mean_of_cells(cells),
        "p": outcome.p_C2.max(1),
        "q": outcome.q_C,
        "confirmed": outcome.confirmed_C,
        **{
            f"{name}_{cell}": _nullable(topic_mean(measured.baselines[name][cell]))
            for name in ("dense", "tfidf")
            for cell in concepts.cells
        },
        "labelled_features": [
            best_first[choice.concept_F[best_first] == c].tolist() for c in range(len(concepts.concepts))
        ],
    }


def example_columns(contexts: Contexts, documents: pa.Table, words: list[str], source: str) -> dict[str, Any]:
    """One row a context; tokens that would lie outside the document are left out."""
    ids = documents["token_ids"].combine_chunks()
    values, offsets = ids.values.to_numpy(), ids.offsets.to_numpy()
    tokens, acts = [], []
    for document, position, row_W in zip(contexts.document_K, contexts.position_K, contexts.values_KW, strict=True):
        first, last = offsets[document], offsets[document + 1]
        start = int(first) + int(position) - contexts.before
        low, high = max(start, int(first)), min(start + len(row_W), int(last))
        tokens.append([words[t] if t < len(words) else "" for t in values[low:high]])
        acts.append(row_W[low - start : high - start].tolist())
    return {
        "feature": contexts.feature_K,
        "rank": contexts.rank_K,
        "source": [source] * len(contexts.feature_K),
        "document": contexts.document_K,
        "position": contexts.position_K,
        "value": contexts.value_K,
        "tokens": tokens,
        "values": acts,
    }


def status_counts(measured: Measured, registers: tuple[str, str]) -> dict[str, int]:
    """How many features have each status."""
    counts = Counter(statuses(measured, registers))
    return {name: counts[name] for name in ("labelled", f"{registers[0]} only", f"{registers[1]} only", "none")}
