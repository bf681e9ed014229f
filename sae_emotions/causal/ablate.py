"""The ablation stage: does the model use a labelled feature to say what its texts show?

Each labelled feature is removed (its own contribution alone, at every position where it is active) from held-out texts in
which it fires; the change of its concept's word after a readout prompt is compared with that of other words, and judged
against matched controls. The prompt is the measuring instrument and is left alone: a latent that is active at its last
token acts on the next word directly, whatever the text says, and a handful of such controls would drown every effect.
Shapes: F features under test, L latents, T texts, S positions, K controls.
"""

import time
from collections import Counter
from contextlib import closing
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch

from sae_emotions.artefact import write_json, written_folder
from sae_emotions.causal.collateral import CONTROLS, TOKENS, acts_of, kl_of_removal
from sae_emotions.causal.controls import Matched, controls_each, halves, match
from sae_emotions.causal.effects import Design, Effects, Measured, amount, effects, measure, words_of
from sae_emotions.causal.material import HeldOut, Material, gather
from sae_emotions.causal.readouts import WordTree, word_tree
from sae_emotions.causal.runners import Runner, runner_for
from sae_emotions.causal.runs import Text, enter
from sae_emotions.causal.tables import Collateral, Outcome, empty_summary, rule_text, summarise, write_tables
from sae_emotions.causal.texts import Firing, choose, scan, strongest
from sae_emotions.causal.verdict import judge
from sae_emotions.config import RunConfig
from sae_emotions.progress import Progress
from sae_emotions.sources.models import load_model
from sae_emotions.upper import Upper

SPARE = 1  # texts a feature more than it must fire in, as stored rows differ a little from the model's own


class Read(NamedTuple):
    """The common texts, run up to the hook."""

    texts: list[Text]
    acts: list[torch.Tensor]
    firing: Firing


def _pool(config: RunConfig, material: Material) -> list[HeldOut]:
    """Held-out texts to test on, common to all features."""
    count, settings = len(material.own_F), config.ablate
    documents = [text.document for text in material.held_out]
    texts = settings.min_texts + SPARE
    with Progress("choose texts", len(documents), "texts") as bar:
        firing = scan(material.rows, material.dictionary, documents, material.latents_L, count, texts, bar.advance)
    chosen = choose(strongest(firing.amount_TL[:, :count]), firing.tokens_T, texts)
    # Where nothing fires anywhere, one text keeps the rest of the stage from having to know.
    return [material.held_out[n] for n in (chosen if len(chosen) else [0])]


def _read(upper: Upper, tree: WordTree, material: Material, pool: list[HeldOut]) -> Read:
    """Run the pool to the hook; what fires is decided on the model's own residual, not on stored rows."""
    texts, acts = [], []
    with Progress("read texts", len(pool), "texts") as bar:
        for one in pool:
            texts.append(enter(upper, tree, one.ids, material.special))
            acts.append(acts_of(material.dictionary, texts[-1], material.latents_L))
            bar.advance(1)
    shape = (len(texts), len(material.latents_L))
    active_TL = np.array([(acts_SL > 0).sum(0).numpy() for acts_SL in acts], np.float32).reshape(shape)
    amount_TL = np.array([acts_SL.sum(0).numpy() for acts_SL in acts], np.float32).reshape(shape)
    return Read(texts, acts, Firing(active_TL, amount_TL, np.array([int(text.keep_Q.sum()) for text in texts])))


def _uses(firing: Firing, features: int, most: int) -> list[np.ndarray]:
    """Texts of the pool in which each feature fires; where there are more than `most`, those in which it fires most."""
    found = []
    for amount_T in firing.amount_TL[:, :features].T:
        order = np.argsort(-amount_T, kind="stable")[:most]
        found.append(np.sort(order[amount_T[order] > 0]))
    return found


def _design(
    config: RunConfig, material: Material, tree: WordTree, read: Read, enough: np.ndarray, uses: list[np.ndarray]
) -> Design:
    """Controls, random directions and words of the features that fire in enough texts."""
    rng = np.random.default_rng([config.seed, 1])
    features, width = len(material.own_F), material.dictionary.d_in
    count = controls_each(config.ablate.controls, len(enough))
    candidates_C = np.arange(features, len(material.latents_L))
    matches = match(read.firing, material.norms_L, enough, uses, candidates_C, count)
    random_FD = torch.nn.functional.normalize(
        torch.from_numpy(rng.standard_normal((len(enough), width))).float(), dim=1
    )
    some = rng.permutation(len(enough))[: config.ablate.random_directions]
    return Design(
        read.texts,
        read.acts,
        enough,
        uses,
        matches,
        words_of(tree, [concept.family for concept in material.concepts.concepts], material.own_F[enough]),
        material.dictionary.W_dec_FD[torch.from_numpy(material.latents_L)],
        material.dense_CD,
        {int(f): random_FD[f] for f in np.sort(some)},
        torch.cat([text.x_QD[text.keep_Q].float() for text in read.texts]).mean(0),
    )


def _collateral(
    config: RunConfig,
    material: Material,
    upper: Upper,
    runner: Runner,
    tokenizer: Any,
    enough: np.ndarray,
    matches: list[Matched],
) -> Collateral:
    """KL on neutral texts, of the features under test and of some of their controls."""
    used = np.unique(np.concatenate([one.controls_K for one in matches] or [np.zeros(0, np.int64)]))
    rng = np.random.default_rng([config.seed, 2])
    places_L = np.concatenate([enough, np.sort(rng.permutation(used)[:CONTROLS])]).astype(np.int64)
    texts = [ids for ids in (tokenizer(t)["input_ids"] for t in material.concepts.neutral) if len(ids) > 1]
    texts = texts[: config.ablate.neutral_texts]
    with Progress("collateral", len(texts), "texts") as bar:
        kl_L = kl_of_removal(
            upper, runner, material.dictionary, texts, material.special, material.latents_L[places_L], bar.advance
        )
    controls_K = kl_L[len(enough) :]
    limit = float(np.quantile(controls_K, 0.95)) if len(texts) and len(controls_K) else None
    return Collateral(kl_L[: len(enough)], limit, len(controls_K), len(texts))


def _runner(dtype: str, upper: Upper, tree: WordTree, design: Design) -> tuple[Runner, int]:
    """What runs the removals, and how many there are."""
    found = amount(design, tree)
    places = max(TOKENS, *(len(text.packed.ids_Q) for text in design.texts))
    blocks = upper.last - upper.block
    return runner_for(upper, found.positions * blocks, places, getattr(torch, dtype)), found.removals


def _measured(runner: Runner, last: int, tree: WordTree, design: Design, runs: int) -> tuple[Measured, Effects]:
    with Progress("ablate", runs, "removals") as bar:
        measured = measure(runner, last, tree, design, bar.advance)
    return measured, effects(measured, design)


def ablate(config: RunConfig, run: Path, name: str) -> Path:
    """Test the labelled features of dictionary `name` and write `causal/<name>/`; returns that folder.

    Writes effects.parquet, verdicts.parquet (see `schema.py`) and summary.json: counts of verdicts, of held-back controls
    and random directions that the same rule would call causal, the rule in words, and what it took. Raises `UserError`
    where labels or dictionary are missing, or where the model's blocks cannot be run on their own.
    """
    started = time.perf_counter()
    material = gather(config, run, name)
    out = run / "causal" / name
    if not len(material.own_F):
        with written_folder(out) as folder:
            write_tables(folder, material, None)
            write_json(folder / "summary.json", empty_summary(config.ablate, time.perf_counter() - started))
        return out
    pool = _pool(config, material)
    dtype = torch.bfloat16 if config.model.dtype == "bfloat16" else torch.float32
    model = load_model(config.model, dtype)
    upper = Upper(model.model, material.dictionary.block)
    tree = word_tree(model.tokenizer, material.concepts.readout, [one.word for one in material.concepts.concepts])
    read = _read(upper, tree, material, pool)
    uses = _uses(read.firing, len(material.own_F), config.ablate.max_texts)
    enough = np.array([f for f, texts in enumerate(uses) if len(texts) >= config.ablate.min_texts], dtype=np.int64)
    design = _design(config, material, tree, read, enough, [uses[f] for f in enough])
    runner, runs = _runner(material.dtype, upper, tree, design)
    with closing(runner):
        measured, found = _measured(runner, upper.last, tree, design, runs)
        block_tokens = runner.block_tokens
        collateral = _collateral(config, material, upper, runner, model.tokenizer, enough, list(design.matches))
    rng = np.random.default_rng([config.seed, 3])
    held = [halves(len(one.controls_K), rng) for one in design.matches]
    judged = judge(
        found.feature_F,
        found.dense_F,
        [effect_K[~held_K] for effect_K, held_K in zip(found.controls, held, strict=True)],
        [effect_K[held_K] for effect_K, held_K in zip(found.controls, held, strict=True)],
        found.random,
        config.ablate.q,
    )
    cost = {
        "removals": runs,
        "how": runner.how,
        "texts": len(pool),
        "texts_per_cell": dict(sorted(Counter(one.cell for one in pool).items())),
        "block_tokens": block_tokens,
        "block_tokens_of_full_forwards": measured.full_block_tokens,
        "largest_change_by_removing_nothing": measured.nothing,
    }
    with written_folder(out) as folder:
        outcome = Outcome(config.ablate, read.firing, uses, enough, design, found, held, judged, collateral)
        write_tables(folder, material, outcome)
        counts = summarise(outcome, material)
        rule = rule_text(config.ablate, len(tree.paths), int(tree.single().sum()))
        write_json(folder / "summary.json", counts | cost | {"rule": rule, "seconds": time.perf_counter() - started})
    return out
