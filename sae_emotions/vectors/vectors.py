"""One vector a concept at every requested block, and everything they say: RUN/vectors/.

vectors.safetensors  block<b>.vectors, block<b>.raw (C, D), block<b>.grand_mean (D), block<b>.neutral (N, D); the same
                     under `embeddings` for the token embeddings; see `recipe.Vectors`. Concepts stand in the set's order
tokens.parquet       what each vector's logit lens raises and lowers most
components.parquet   each concept's scores on the leading principal components
vectors.json         geometry, read-outs and batteries, each figure beside its null

Everything is made from the selection stories, neutral texts and probe sets; the held-out stories are not read.
Shapes: C concepts, D residual width, L labelled concepts.
"""

import hashlib
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch

from sae_emotions.artefact import read_json, sha256_file, write_json, written_folder
from sae_emotions.concepts.concept_set import ConceptSet, load_concepts
from sae_emotions.concepts.norms import Norms, own_norms, read_norms
from sae_emotions.concepts.probes import Probes, load_probes
from sae_emotions.config import RunConfig, config_hash
from sae_emotions.errors import UserError
from sae_emotions.label.lens import logit_lens, read_unembedding, read_vocabulary
from sae_emotions.label.probes import NEUTRAL_SHARE, leading_components
from sae_emotions.progress import Progress, say
from sae_emotions.run_folder import config_of, is_done
from sae_emotions.schema import write_table
from sae_emotions.sources.models import Model, check_blocks, load_model, model_info
from sae_emotions.vectors.arrangement import Known, described, known, read_clusters, read_out
from sae_emotions.vectors.batteries import centred_cosines, scored, standardised
from sae_emotions.vectors.features import Labelled, read_labelled
from sae_emotions.vectors.geometry import COMPONENTS, components, likeness
from sae_emotions.vectors.prompts import Plan, batteries, plan
from sae_emotions.vectors.reading import EMBEDDINGS, covariances, embeddings, span_means, story_means, views
from sae_emotions.vectors.recipe import Vectors, concept_vectors, within_topic
from sae_emotions.vectors.words import own_word, word_embeddings, word_ids

RECIPE, RAW = "vectors", "neutral components left in"
DECODER, SAME = "decoder directions", "vectors of the same concepts"


class Inputs(NamedTuple):
    """All that was asked for, read and checked."""

    config: RunConfig
    concepts: ConceptSet
    probes: Probes
    norms: list[Norms]
    clusters: dict[str, list[str]] | None
    blocks: list[int]
    dictionary: str | None


class Places(NamedTuple):
    """Vectors by place (a block's number, or the embeddings), and the variants beside them."""

    recipe: dict[str, Vectors]
    variants: dict[str, dict[str, np.ndarray]]
    """place to kind to vectors (C, D)"""


def vectors(
    run: str | Path,
    blocks: Sequence[int] = (),
    norms: Sequence[str] = (),
    clusters: str | Path | None = None,
    dictionary: str | None = None,
    again: bool = False,
) -> Path:
    """Make RUN/vectors and return it; done once for the same request, unless `again`.

    `blocks`: 0-based (default: those that were harvested; others are read now, which takes minutes). `norms`: see
    `concepts.norms.read_norms`. `clusters`: a JSON file (default: the concepts' families). `dictionary`: whose features
    are compared (default: the first that is labelled, if any). Raises `UserError` for anything that is not there.
    """
    run = Path(run)
    asked = _inputs(run, blocks, norms, clusters, dictionary)
    origin = _made_from(run, asked)
    folder = run / "vectors"
    if not again and (folder / "vectors.json").is_file() and read_json(folder / "vectors.json")["made_from"] == origin:
        say(f"The vectors of {run} are done; nothing was changed (--again makes them once more).")
        return folder
    plan_of = read_json(run / "activations" / "concepts" / "plan.json")
    torch.set_num_threads(plan_of["threads"])
    model = load_model(asked.config.model, getattr(torch, plan_of["dtype"]))
    labelled = asked.dictionary and read_labelled(run, asked.dictionary, [one.name for one in asked.concepts.concepts])
    found = _measured(run, asked, model, labelled or None)
    with written_folder(folder) as beside:
        _write(beside, run, asked, found.places)
        write_json(beside / "vectors.json", {"made_from": origin, **found.figures})
    return folder


def _inputs(
    run: Path, blocks: Sequence[int], norms: Sequence[str], clusters: str | Path | None, dictionary: str | None
) -> Inputs:
    config = config_of(run)
    if not is_done(run, "harvest"):
        raise UserError(f"The harvest is not done in {run}; run it first.")
    names = [one.name for one in config.dictionaries]
    if dictionary is not None and dictionary not in names:
        raise UserError(f"There is no dictionary '{dictionary}' in {run}; it has {', '.join(names)}.")
    labelled = [name for name in names if is_done(run, f"label:{name}")]
    if dictionary is not None and dictionary not in labelled:
        raise UserError(f"The labels of '{dictionary}' are not done in {run}; run the label stage first.")
    wanted = sorted(set(blocks or config.harvest.blocks))
    check_blocks(wanted, model_info(config.model)["blocks"])
    concepts = load_concepts(config.concepts)
    own = own_norms(config.concepts)
    read = [read_norms(one) for one in norms] + ([own] if own else [])
    if len({one.name for one in read}) < len(read):
        raise UserError("Two sets of word ratings have the same name; rename one of the files.")
    return Inputs(
        config,
        concepts,
        load_probes(config.concepts),
        read,
        None if clusters is None else read_clusters(Path(clusters), concepts),
        wanted,
        dictionary or (labelled[0] if labelled else None),
    )


def _digest(content: Any) -> str:
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()


def _made_from(run: Path, asked: Inputs) -> dict[str, Any]:
    name = asked.dictionary
    return {
        "config": config_hash(asked.config),
        "concepts": asked.concepts.sha256,
        "blocks": asked.blocks,
        "ratings": {one.name: _digest(one.ratings) for one in asked.norms},
        "probes": _digest(asked.probes),
        "clusters": asked.clusters,
        "dictionary": name,
        "labels": name and sha256_file(run / "labels" / name / "features.parquet"),
    }


class _Measured(NamedTuple):
    places: Places
    figures: dict[str, Any]


def _measured(run: Path, asked: Inputs, model: Model, labelled: Labelled | None) -> _Measured:
    concepts, seed = asked.concepts, asked.config.seed
    texts = [text for text in concepts.texts if text.split == "selection"]
    what = known(concepts, texts, asked.norms, asked.clusters)
    blocks = sorted({*asked.blocks, *([labelled.dictionary.block] if labelled else [])})
    say(f"vectors: {len(concepts.concepts)} concepts from {len(texts)} stories at blocks {', '.join(map(str, blocks))}")
    places = _places(run, asked, model, blocks)
    ids = word_ids([one.word for one in concepts.concepts], model.tokenizer)
    places.variants[EMBEDDINGS]["words"] = word_embeddings(ids, embeddings(model))
    read = _read_probes(asked, model, blocks, labelled)
    number = {one.name: n for n, one in enumerate(concepts.concepts)}
    W_U_VD = read_unembedding(run, len(next(iter(places.recipe.values())).grand_D))
    figures: dict[str, Any] = {"recipe": _recipe(asked, len(texts), what), "places": {}}
    with Progress("vectors: geometry", len(places.recipe), "places") as progress:
        for place, one in places.recipe.items():
            scores = {key: centred_cosines(x[place], one.vectors_CD) for key, x in read.items()}
            figures["places"][place] = {
                "neutral_components": len(one.neutral_ND),
                "arrangements": {kind: described(x_CD, what, seed) for kind, x_CD in places.variants[place].items()},
                "own_word": own_word(one.vectors_CD, ids, W_U_VD, seed),
                "batteries": scored(asked.probes, scores, number, seed),
            }
            progress.advance(1)
    if labelled is not None:
        figures["dictionary"] = _features(asked, labelled, places, read, what)
    figures["read_out"] = _read_outs(places, what, labelled, seed)
    figures["likeness"] = _likeness(places, seed)
    return _Measured(places, figures)


def _recipe(asked: Inputs, stories: int, what: Known) -> dict[str, Any]:
    return {
        "stories": stories,
        "split": "selection",
        "skip_tokens": asked.config.label.skip_tokens,
        "neutral_texts": len(asked.concepts.neutral),
        "neutral_share_of_variance": NEUTRAL_SHARE,
        "concepts": len(asked.concepts.concepts),
        "concepts_in_clusters": int((what.cluster_C >= 0).sum()),
        "clusters_from": "the concepts' families" if asked.clusters is None else "the given file",
    }


def _places(run: Path, asked: Inputs, model: Model, blocks: list[int]) -> Places:
    concepts, settings, skip = asked.concepts, asked.config.harvest, asked.config.label.skip_tokens
    number = {one.name: n for n, one in enumerate(concepts.concepts)}
    texts = [text for text in concepts.texts if text.split == "selection"]
    means = story_means(run, model, texts, skip, blocks, settings)
    if concepts.neutral:
        neutral = [model.tokenizer(text)["input_ids"] for text in concepts.neutral]
        spread = covariances(model, neutral, skip, blocks, settings, "vectors: neutral texts")
    else:
        say("vectors: the concept set has no neutral texts; nothing is projected out.")
        spread = {place: np.zeros((x_TD.shape[1],) * 2) for place, x_TD in means.items()}
    concept_T = np.array([number[text.concept] for text in texts])
    register_T = np.array([text.register for text in texts])
    topic_T = [f"{text.cell}/{text.topic}" for text in texts]
    found = Places({}, {})
    for place in [*map(str, blocks), EMBEDDINGS]:
        x_TD = means[place]
        axes_ND = leading_components(spread[place])
        one = concept_vectors(x_TD, concept_T, len(number), axes_ND)
        centred = concept_vectors(within_topic(x_TD, topic_T), concept_T, len(number), axes_ND)
        found.recipe[place] = one
        found.variants[place] = {
            RECIPE: one.vectors_CD,
            RAW: one.raw_CD,
            "each topic's mean taken out": centred.vectors_CD,
        }
        for register in concepts.registers:
            part_T = register_T == register
            part = concept_vectors(x_TD[part_T], concept_T[part_T], len(number), axes_ND)
            found.variants[place][f"{register} stories alone"] = part.vectors_CD
    return found


def _read_probes(
    asked: Inputs, model: Model, blocks: list[int], labelled: Labelled | None
) -> dict[tuple[str, str], dict[str, np.ndarray]]:
    """(battery, place to read) -> block, embeddings or "activations" -> x_IX."""
    made: Plan = plan(batteries(asked.probes), model.tokenizer)
    if not made.ids:
        say("vectors: the concept set has no probe sets; no battery is scored.")
        return {}
    seen = views(model, blocks) | ({"activations": labelled.view()} if labelled else {})
    found = span_means(model, made.ids, made.spans, blocks, seen, asked.config.harvest, "vectors: probe sets")
    return {
        key: {name: np.stack([x_SX[some].mean(0) for some in numbers]) for name, x_SX in found.items()}
        for key, numbers in made.spans_of.items()
    }


def _features(
    asked: Inputs, labelled: Labelled, places: Places, read: dict[tuple[str, str], dict[str, np.ndarray]], what: Known
) -> dict[str, Any]:
    place, some_L, seed = str(labelled.dictionary.block), labelled.concept_L, asked.config.seed
    number = {one.name: n for n, one in enumerate(asked.concepts.concepts)}
    directions = {key: centred_cosines(x[place], labelled.chosen_CD) for key, x in read.items()}
    acts = {key: standardised(x["activations"]) for key, x in read.items()}
    same = places.recipe[place].vectors_CD[some_L]
    return {
        "name": labelled.dictionary.name,
        "block": labelled.dictionary.block,
        "labelled_features": labelled.features,
        "labelled_concepts": len(some_L),
        "arrangements": {
            DECODER: described(labelled.directions_LD, what.of(some_L), seed),
            SAME: described(same, what.of(some_L), seed),
        },
        "batteries": {
            "decoder directions of chosen features": scored(asked.probes, directions, number, seed),
            "activations of chosen features": scored(asked.probes, acts, number, seed),
        },
    }


def _read_outs(places: Places, what: Known, labelled: Labelled | None, seed: int) -> dict[str, Any]:
    """Cross-validated read-outs of the ratings, from the vectors, from embeddings alone, and from labelled features."""
    say("vectors: ridge read-outs")
    blocks = [place for place in places.recipe if place != EMBEDDINGS]
    kinds = [kind for kind in places.variants[blocks[0]] if kind != RAW]
    made = {f"{kind}, block {place}": places.variants[place][kind] for kind in kinds for place in blocks}
    groups: dict[str, Sequence[str]] = {
        RECIPE: [f"{RECIPE}, block {place}" for place in blocks],
        "any stories, any block": list(made),
    }
    null = {
        "story embeddings": places.variants[EMBEDDINGS][RECIPE],
        "word embeddings": places.variants[EMBEDDINGS]["words"],
    }
    found: dict[str, Any] = {
        "vectors": read_out(made, groups, what, seed),
        "embedding-only null": read_out(null, {"either": list(null)}, what, seed),
    }
    if labelled is not None:
        some_L, place = labelled.concept_L, str(labelled.dictionary.block)
        both = {DECODER: labelled.directions_LD, SAME: places.recipe[place].vectors_CD[some_L]}
        found["labelled concepts"] = read_out(both, {DECODER: [DECODER]}, what.of(some_L), seed)
    return found


def _likeness(places: Places, seed: int) -> dict[str, dict[str, dict[str, float]]]:
    """How alike the vectors' pairwise cosines are from place to place."""
    arranged = {place: one.vectors_CD for place, one in places.recipe.items()}
    arranged["word embeddings"] = places.variants[EMBEDDINGS]["words"]
    names = list(arranged)
    return {
        one: {other: likeness(arranged[one], arranged[other], seed) for other in names[n + 1 :]}
        for n, one in enumerate(names[:-1])
    }


def _write(folder: Path, run: Path, asked: Inputs, places: Places) -> None:
    from safetensors.numpy import save_file

    tensors, tokens, scores = {}, [], []
    names, words = [one.name for one in asked.concepts.concepts], read_vocabulary(run)
    for place, one in places.recipe.items():
        prefix = place if place == EMBEDDINGS else f"block{place}"
        for key, value in zip(("vectors", "raw", "grand_mean", "neutral"), one, strict=True):
            tensors[f"{prefix}.{key}"] = np.ascontiguousarray(value, np.float32)
        lens = logit_lens(torch.from_numpy(one.unit()).float(), read_unembedding(run, len(one.grand_D)))
        leading_CK = components(one.vectors_CD).scores_CK
        for c, name in enumerate(names):
            tokens.append(
                {
                    "place": place,
                    "concept": name,
                    "norm": float(np.linalg.norm(one.vectors_CD[c])),
                    "top_tokens": [words[t] for t in lens.top_Fn[c]],
                    "top_logits": lens.top_logit_Fn[c].tolist(),
                    "bottom_tokens": [words[t] for t in lens.bottom_Fn[c]],
                    "bottom_logits": lens.bottom_logit_Fn[c].tolist(),
                }
            )
            scores.append({"place": place, "concept": name, "scores": leading_CK[c, :COMPONENTS].tolist()})
    save_file(tensors, folder / "vectors.safetensors")
    for table, rows in (("vector_tokens", tokens), ("vector_components", scores)):
        columns = {key: [row[key] for row in rows] for key in rows[0]}
        write_table(folder / f"{table.removeprefix('vector_')}.parquet", table, columns)
