"""The ablation stage: does the model use a labelled feature to say what its texts show?

Each labelled feature is removed (its own contribution alone, at every position where it is active) from held-out texts in
which it fires; the change of its concept's word after a readout prompt is compared with that of other words, and judged
against matched controls. What a removal does to first order comes for all at once, and decides which are run (`screen`).
The prompt is the measuring instrument and is left alone: a latent that is active at its last
token acts on the next word directly, whatever the text says, and a handful of such controls would drown every effect.
Shapes: F features that fire in enough texts, L latents, T texts, S positions, K controls.
"""

import time
from collections import Counter
from collections.abc import Mapping
from contextlib import closing
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch

from sae_emotions.artefact import write_json, written_folder
from sae_emotions.causal.collateral import CONTROLS, TOKENS, acts_of, kl_of_removal
from sae_emotions.causal.controls import controls_each, halves, match
from sae_emotions.causal.effects import Design, Effects, Measured, amount, effects, measure
from sae_emotions.causal.estimate import counted
from sae_emotions.causal.joint import groups_of
from sae_emotions.causal.linear import Linear, Removable, basis_of, linear
from sae_emotions.causal.material import Material, Story, gather
from sae_emotions.causal.profile import Profile, halved, in_nats, profile_of, read
from sae_emotions.causal.readouts import WordTree, word_tree
from sae_emotions.causal.runners import Runner, Whole, runner_for
from sae_emotions.causal.runs import Text, enter
from sae_emotions.causal.screen import FEWEST, Agreement, agreement, screen
from sae_emotions.causal.tables import Collateral, Outcome, empty_summary, rule_text, summarise, write_tables
from sae_emotions.causal.texts import Firing, choose, scan, strongest
from sae_emotions.causal.verdict import Judged, judge
from sae_emotions.config import RunConfig
from sae_emotions.progress import Progress, say
from sae_emotions.sources.models import load_model
from sae_emotions.upper import Upper

SPARE = 1  # texts a feature more than it must fire in, as stored rows differ a little from the model's own


class Entered(NamedTuple):
    """The common texts, run up to the hook."""

    texts: list[Text]
    acts: list[torch.Tensor]
    firing: Firing


def _pool(config: RunConfig, material: Material) -> list[Story]:
    """Held-out texts to test on, common to all features."""
    count, settings = len(material.own_F), config.ablate
    documents = [text.document for text in material.held_out]
    texts = settings.min_texts + SPARE
    with Progress("choose texts", len(documents), "texts") as bar:
        firing = scan(material.rows, material.dictionary, documents, material.latents_L, count, texts, bar.advance)
    found = choose(strongest(firing.amount_TL[:, :count]), firing.tokens_T, texts)
    # Where nothing fires anywhere, one text keeps the rest of the stage from having to know.
    return [material.held_out[n] for n in (found if len(found) else [0])]


def _enter(upper: Upper, tree: WordTree, material: Material, pool: list[Story]) -> Entered:
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
    return Entered(texts, acts, Firing(active_TL, amount_TL, np.array([int(text.keep_Q.sum()) for text in texts])))


def _uses(firing: Firing, features: int, most: int) -> list[np.ndarray]:
    """Texts of the pool in which each feature fires; where there are more than `most`, those in which it fires most."""
    found = []
    for amount_T in firing.amount_TL[:, :features].T:
        order = np.argsort(-amount_T, kind="stable")[:most]
        found.append(np.sort(order[amount_T[order] > 0]))
    return found


def _design(
    config: RunConfig,
    material: Material,
    upper: Upper,
    tree: WordTree,
    profiles: Mapping[int, Profile],
    entered: Entered,
    enough: np.ndarray,
    uses: list[np.ndarray],
) -> tuple[Design, Linear]:
    """Controls, random directions and groups of the features that fire in enough texts, and what the screen says of them."""
    settings, own_F, width = config.ablate, material.own_F[enough], material.dictionary.d_in
    each = controls_each(settings.controls, len(enough))
    matches = match(entered.firing, material.norms_L, enough, uses, material.candidates_C, each)
    cards = np.random.default_rng([config.seed, 3])
    held = [halves(len(one.controls_K), cards) for one in matches]
    rng = np.random.default_rng([config.seed, 1])
    random_FD = torch.nn.functional.normalize(
        torch.from_numpy(rng.standard_normal((len(enough), width))).float(), dim=1
    )
    some = rng.permutation(len(enough))[: settings.random_directions]
    removable = Removable(
        material.dictionary.W_dec_FD[torch.from_numpy(material.latents_L)],
        material.dense_CD,
        torch.cat([text.x_QD[text.keep_Q].float() for text in entered.texts]).mean(0),
        {int(f): random_FD[f] for f in np.sort(some)},
    )
    with Progress("screen", len(entered.texts), "texts") as bar:
        basis_RW = basis_of(list(profiles.values()))
        first = linear(upper, tree, entered.texts, entered.acts, removable, enough, uses, basis_RW, bar.advance)
    screened = screen(first, enough, own_F, profiles, uses, matches, held, settings.features)
    groups = groups_of(entered.firing, material.norms_L, material.own_F, material.candidates_C)
    texts = (entered.texts, entered.acts)
    return Design(*texts, enough, uses, matches, held, own_F, profiles, removable, screened, groups), first


def _collateral(
    config: RunConfig, material: Material, upper: Upper, runner: Runner, tokenizer: Any, design: Design
) -> Collateral:
    """KL on neutral texts, of the features that are run and of some of their controls."""
    run_F = design.screened.feature_F
    used = np.unique(np.concatenate([one.controls_K for one in design.matches] or [np.zeros(0, np.int64)]))
    rng = np.random.default_rng([config.seed, 2])
    places_L = np.concatenate([design.features_F[run_F], np.sort(rng.permutation(used)[:CONTROLS])]).astype(np.int64)
    texts = [ids for ids in (tokenizer(t)["input_ids"] for t in material.concepts.neutral) if len(ids) > 1]
    texts = texts[: config.ablate.neutral_texts]
    with Progress("collateral", len(texts), "texts") as bar:
        kl_L, positions = kl_of_removal(
            upper, runner, material.dictionary, texts, material.special, material.latents_L[places_L], bar.advance
        )
    kl_F, controls_K = np.full(len(run_F), np.nan), kl_L[run_F.sum() :]
    kl_F[run_F] = kl_L[: run_F.sum()]
    limit = float(np.quantile(controls_K, 0.95)) if len(texts) and len(controls_K) else None
    return Collateral(kl_F, limit, len(controls_K), len(texts), positions)


def _measured(runner: Runner, tree: WordTree, design: Design, runs: int) -> tuple[Measured, Effects]:
    with Progress("ablate", runs, "removals") as bar:
        measured = measure(runner, tree, design, bar.advance)
    return measured, effects(measured, design)


def _agreement(material: Material, design: Design, measured: Measured, first: Linear) -> Agreement:
    """How first-order effects rank against exact ones of the same features on the same texts: what approximating costs.

    Of the features that were run as members of groups alone, which no screen chose; of all that were run where those are few.
    """
    run = {place: by_text for (kind, place), by_text in measured.changes.items() if kind == "feature"}
    chosen = set(design.features_F[design.screened.feature_F].tolist())
    rest = [place for place in run if place not in chosen]
    pairs = []
    for place in rest if len(rest) >= FEWEST else run:
        profile, texts = design.profiles[int(material.own_F[place])], sorted(run[place])
        exact = read([run[place]], texts, profile)
        approximate = first.read(first.latents_TRL[texts].mean(0, dtype=np.float64)[:, [place]], profile)
        pairs.append((approximate.specific_N[0], exact.specific_N[0]))
    return agreement(*np.array(pairs).reshape(-1, 2).T)


def _judged(config: RunConfig, design: Design, found: Effects) -> tuple[list[np.ndarray], Judged, Judged]:
    """Which control groups are held back; verdicts on features and groups, each with an FDR of its own."""
    rng = np.random.default_rng([config.seed, 4])
    joint, q, first = found.joint, config.ablate.q, design.screened
    single = halved(first.controls, design.held)
    exact = [_let(one.specific_N[held_K]) for one, held_K in zip(found.controls, design.held, strict=True)]
    judged = judge(
        np.where(first.feature_F, found.feature.specific_N, np.inf),
        first.dense.profile_N,
        [one.specific_N for one in single[0]],
        exact,
        [_let(one.specific_N) for one in found.random],
        q,
        in_nats(single),
    )
    held_groups = [halves(len(one.word_N), rng) for one in joint.controls]
    together = halved(joint.controls, held_groups)
    groups = judge(
        joint.joint.specific_N,
        joint.dense.profile_N,
        [one.specific_N for one in together[0]],
        [one.specific_N for one in together[1]],
        [np.zeros(0)] * len(joint.controls),
        q,
        in_nats(together),
    )
    return held_groups, judged, groups


def _let(specific_N: np.ndarray) -> np.ndarray:
    """Infinite where nothing was run: the screen kept it out."""
    return np.where(np.isnan(specific_N), np.inf, specific_N)


def ablate(config: RunConfig, run: Path, name: str) -> Path:
    """Test the labelled features of dictionary `name` and write `causal/<name>/`; returns that folder.

    Writes effects.parquet, verdicts.parquet, joint.parquet (see `schema.py`) and summary.json: counts of
    verdicts, of held-back controls and random directions that the same rule would call causal, the rule in words, and what
    it took. Raises `UserError` where labels or dictionary are missing, or where the model's blocks cannot be run on their
    own.
    """
    started = time.perf_counter()
    material = gather(config, run, name)
    out = run / "causal" / name
    if not len(material.own_F):
        with written_folder(out) as folder:
            write_tables(folder, material, None)
            write_json(folder / "summary.json", empty_summary(config.ablate, time.perf_counter() - started))
        return out
    dtype = torch.bfloat16 if config.model.dtype == "bfloat16" else torch.float32
    if dtype == torch.bfloat16:
        say(
            "model.dtype is bfloat16: logits are rounded to .06 and more, and most effects are smaller; `auto` tests in float32."
        )
    model = load_model(config.model, dtype)
    upper = Upper(model.model, material.dictionary.block)
    tree = word_tree(model.tokenizer, material.concepts.readout, [one.word for one in material.concepts.concepts])
    families = [concept.family for concept in material.concepts.concepts]
    profiles = {own: profile_of(tree, families, material.dense_CD, own) for own in range(len(families))}
    pool = _pool(config, material)
    entered = _enter(upper, tree, material, pool)
    uses = _uses(entered.firing, len(material.own_F), config.ablate.max_texts)
    enough = np.array([f for f, texts in enumerate(uses) if len(texts) >= config.ablate.min_texts], dtype=np.int64)
    entering = upper.block_tokens
    design, first = _design(config, material, upper, tree, profiles, entered, enough, [uses[f] for f in enough])
    spent = {"entering": entering, "screening": upper.block_tokens - entering}
    runs = amount(design, tree)
    places = max(TOKENS, *(len(text.packed.ids_Q) for text in design.texts))
    above = upper.last - upper.block
    with closing(runner_for(upper, runs.positions * above, places, getattr(torch, material.dtype))) as runner:
        measured, found = _measured(runner, tree, design, runs.removals)
        spent["removals"] = runner.block_tokens
        before = upper.block_tokens
        collateral = _collateral(config, material, upper, runner, model.tokenizer, design)
        spent["neutral texts"] = runner.block_tokens - spent["removals"]
        if not isinstance(runner, Whole):
            spent["neutral texts"] += upper.block_tokens - before
    cost = counted(runs.judged + collateral.positions, runs.whole + collateral.positions, upper.last + 1, spent)
    judged = _judged(config, design, found)
    same_texts = _agreement(material, design, measured, first)
    outcome = Outcome(config.ablate, entered.firing, uses, enough, design, found, *judged, collateral)
    took = {
        "removals": runs.removals,
        "how": runner.how,
        "texts": len(pool),
        "directions_among_words": len(first.basis_RW),
        "texts_per_cell": dict(sorted(Counter(one.cell for one in pool).items())),
        "largest_change_by_removing_nothing": measured.nothing,
    }
    with written_folder(out) as folder:
        write_tables(folder, material, outcome)
        rule = rule_text(config.ablate, len(tree.paths), int(tree.single().sum()), np.isfinite(design.screened.limit))
        counts = summarise(outcome, material, same_texts)
        write_json(
            folder / "summary.json", counts | took | cost | {"rule": rule, "seconds": time.perf_counter() - started}
        )
    return out
