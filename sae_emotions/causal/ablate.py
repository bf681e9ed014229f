"""The ablation stage: does the model use a labelled feature to say what its texts show?

Each labelled feature is removed (its own contribution alone, at every position where it is active) from held-out texts in
which it fires; the change of its concept's word after a readout prompt is compared with that of other words, and judged
against matched controls. The prompt is the measuring instrument and is left alone: a latent that is active at its last
token acts on the next word directly, whatever the text says, and a handful of such controls would drown every effect.
Shapes: F features under test, L latents, T texts, S positions, K controls.
"""

import time
from collections import Counter
from collections.abc import Sequence
from contextlib import closing
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch

from sae_emotions.artefact import write_json, written_folder
from sae_emotions.causal.attribute import attribution, slopes, words_asked
from sae_emotions.causal.collateral import CONTROLS, TOKENS, acts_of, kl_of_removal
from sae_emotions.causal.controls import FURTHER, Matched, controls_each, dealt, halves, match
from sae_emotions.causal.effects import Design, Effects, Measured, amount, effects, measure
from sae_emotions.causal.estimate import counted
from sae_emotions.causal.joint import groups_of
from sae_emotions.causal.material import Material, Story, gather
from sae_emotions.causal.profile import Profile, Readings, profile_of, read
from sae_emotions.causal.readouts import WordTree, word_tree
from sae_emotions.causal.runners import Runner, Whole, runner_for
from sae_emotions.causal.runs import Text, enter
from sae_emotions.causal.screen import Agreement, Screened, agreement, chosen, screen
from sae_emotions.causal.tables import Collateral, Outcome, empty_summary, rule_text, summarise, write_tables
from sae_emotions.causal.texts import Firing, choose, scan, strongest
from sae_emotions.causal.verdict import Judged, Screening, judge
from sae_emotions.config import RunConfig
from sae_emotions.progress import Progress, say
from sae_emotions.sources.models import load_model
from sae_emotions.upper import Upper

PAIRS = 75  # features and texts on which first-order effects are compared with exact ones
SPARE = 1  # texts a feature more than it must fire in, as stored rows differ a little from the model's own


class Entered(NamedTuple):
    """The common texts, run up to the hook."""

    texts: list[Text]
    acts: list[torch.Tensor]
    firing: Firing


def _pool(config: RunConfig, material: Material) -> list[Story]:
    """Held-out texts to test on, common to all features."""
    count, settings = material.chosen, config.ablate
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
    profiles: dict[int, Profile],
    screened: Screened,
    limit: float,
    entered: Entered,
    enough: np.ndarray,
    uses: list[np.ndarray],
) -> Design:
    """Controls, random directions and groups of the features that fire in enough texts."""
    rng = np.random.default_rng([config.seed, 1])
    settings, width = config.ablate, material.dictionary.d_in
    each = controls_each(settings.controls, len(enough))
    count = each + (FURTHER * each // 2 if np.isfinite(limit) else 0)
    matches = match(entered.firing, material.norms_L, enough, uses, material.candidates_C, count)
    cards, run = np.random.default_rng([config.seed, 3]), []
    for one, own in zip(matches, material.own_F[enough], strict=True):
        _, score_K = screened.of(np.full(len(one.controls_K), own), material.latents_L[one.controls_K])
        run.append(dealt(one, score_K, limit, each, cards))
    random_FD = torch.nn.functional.normalize(
        torch.from_numpy(rng.standard_normal((len(enough), width))).float(), dim=1
    )
    some = rng.permutation(len(enough))[: settings.random_directions]
    groups = groups_of(entered.firing, material.norms_L, material.own_F, material.candidates_C)
    return Design(
        entered.texts,
        entered.acts,
        enough,
        uses,
        [matched for matched, _ in run],
        [roles for _, roles in run],
        material.own_F[enough],
        profiles,
        material.dictionary.W_dec_FD[torch.from_numpy(material.latents_L)],
        material.dense_CD,
        {int(f): random_FD[f] for f in np.sort(some)},
        torch.cat([text.x_QD[text.keep_Q].float() for text in entered.texts]).mean(0),
        groups,
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
        kl_L, positions = kl_of_removal(
            upper, runner, material.dictionary, texts, material.special, material.latents_L[places_L], bar.advance
        )
    controls_K = kl_L[len(enough) :]
    limit = float(np.quantile(controls_K, 0.95)) if len(texts) and len(controls_K) else None
    return Collateral(kl_L[: len(enough)], limit, len(controls_K), len(texts), positions)


def _measured(runner: Runner, tree: WordTree, design: Design, runs: int) -> tuple[Measured, Effects]:
    with Progress("ablate", runs, "removals") as bar:
        measured = measure(runner, tree, design, bar.advance)
    return measured, effects(measured, design)


def _screened(
    config: RunConfig, material: Material, upper: Upper, tree: WordTree, profiles: dict[int, Profile]
) -> tuple[Material, Screened, float]:
    """Screen all labelled features; those to be tested come first in the material. With the highest score that is let through:
    infinite where nothing is left out.
    """
    found = screen(upper, tree, material, profiles, config.ablate.screen_texts)
    numbers_X = material.latents_L[: len(material.own_F)]
    score_X = found.of(material.own_F, numbers_X)[1]
    most = len(score_X) if config.ablate.features is None else min(len(score_X), config.ablate.features)
    order_X = chosen(score_X, most)
    limit = float(score_X[order_X[:most]].max()) if most < len(score_X) else np.inf
    return material.ordered(order_X, most), found, limit


def _same_texts(
    config: RunConfig,
    material: Material,
    upper: Upper,
    tree: WordTree,
    design: Design,
    measured: Measured,
    pool: list[Story],
) -> Agreement:
    """How first-order effects rank against exact ones of the same features in the same texts: what the approximation costs."""
    pairs = [(f, int(t)) for f, texts in enumerate(design.uses) for t in texts]
    rng = np.random.default_rng([config.seed, 5])
    some = [pairs[n] for n in np.sort(rng.permutation(len(pairs))[:PAIRS])]
    asked = [words_asked(tree, pool[t].ids, design.profiles[int(design.own_F[f])]) for f, t in some]
    first_N = np.zeros(len(some))
    with Progress("compare with first order", len(some), "texts") as bar:
        for n, slope in slopes(upper, asked, material.special):
            number = int(material.latents_L[design.features_F[some[n][0]]])
            first_N[n] = attribution(material.dictionary, slope).effect_of(number)
            bar.advance(1)
    exact = [
        read([measured.changes["feature", int(design.features_F[f])]], [t], design.profiles[int(design.own_F[f])])
        for f, t in some
    ]
    return agreement(first_N, np.array([one.profile_N[0] for one in exact]))


def _judged(
    config: RunConfig, design: Design, found: Effects, left_out: int
) -> tuple[list[np.ndarray], Judged, Judged]:
    """Which control groups are held back; verdicts on features and groups, each with an FDR of its own."""
    rng = np.random.default_rng([config.seed, 4])
    joint, q, roles = found.joint, config.ablate.q, design.roles
    held_groups = [halves(len(one.word_N), rng) for one in joint.controls]
    reference, held = [one.reference_K for one in roles], [one.held_K for one in roles]
    screening = Screening(
        [one.let_K[one.held_K] for one in roles],
        [one.specific_N[~(of.reference_K | of.held_K)] for one, of in zip(found.controls, roles, strict=True)],
        [one.kept_out for one in roles],
        left_out,
    )
    random = [one.specific_N for one in found.random]
    nothing = [np.zeros(0)] * len(joint.controls)
    rest = [~one for one in held_groups]
    return (
        held_groups,
        _judge(found.feature, found.dense, found.controls, reference, held, random, q, screening),
        _judge(joint.joint, joint.dense, joint.controls, rest, held_groups, nothing, q),
    )


def _judge(
    feature: Readings,
    dense: Readings,
    controls: Sequence[Readings],
    reference_K: Sequence[np.ndarray],
    held_K: Sequence[np.ndarray],
    random: Sequence[np.ndarray],
    q: float,
    screening: Screening | None = None,
) -> Judged:
    """A dense vector moves all words far, so the positive control is judged in nats, beside the controls in nats."""
    reference, held_back = (
        [one.some(side) for one, side in zip(controls, sides, strict=True)] for sides in (reference_K, held_K)
    )
    gate = ([one.profile_N for one in reference], [one.profile_N for one in held_back])
    specific = ([one.specific_N for one in reference], [one.specific_N for one in held_back])
    return judge(feature.specific_N, dense.profile_N, *specific, random, q, gate, screening)


def ablate(config: RunConfig, run: Path, name: str) -> Path:
    """Test the labelled features of dictionary `name` and write `causal/<name>/`; returns that folder.

    Writes effects.parquet, verdicts.parquet, joint.parquet, screen.parquet (see `schema.py`) and summary.json: counts of
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
    profiles = {int(own): profile_of(tree, families, material.dense_CD, int(own)) for own in np.unique(material.own_F)}
    material, screened, limit = _screened(config, material, upper, tree, profiles)
    screening = upper.block_tokens
    pool = _pool(config, material)
    entered = _enter(upper, tree, material, pool)
    uses = _uses(entered.firing, material.chosen, config.ablate.max_texts)
    enough = np.array([f for f, texts in enumerate(uses) if len(texts) >= config.ablate.min_texts], dtype=np.int64)
    design = _design(config, material, profiles, screened, limit, entered, enough, [uses[f] for f in enough])
    entering = upper.block_tokens - screening
    runs = amount(design, tree)
    places = max(TOKENS, *(len(text.packed.ids_Q) for text in design.texts))
    above = upper.last - upper.block
    with closing(runner_for(upper, runs.positions * above, places, getattr(torch, material.dtype))) as runner:
        measured, found = _measured(runner, tree, design, runs.removals)
        spent = {"screening": screening, "entering": entering, "removals": runner.block_tokens}
        before = upper.block_tokens
        collateral = _collateral(config, material, upper, runner, model.tokenizer, enough, list(design.matches))
        on_neutral = runner.block_tokens - spent["removals"]
        if not isinstance(runner, Whole):
            on_neutral += upper.block_tokens - before
    before = upper.block_tokens
    same_texts = _same_texts(config, material, upper, tree, design, measured, pool)
    spent |= {"neutral texts": on_neutral, "comparison with first order": upper.block_tokens - before}
    cost = counted(runs.unshared + collateral.positions, runs.whole + collateral.positions, upper.last + 1, spent)
    judged = _judged(config, design, found, len(material.own_F) - material.chosen)
    outcome = Outcome(config.ablate, entered.firing, uses, enough, design, found, *judged, collateral, screened)
    took = {
        "removals": runs.removals,
        "how": runner.how,
        "texts": len(pool),
        "texts_per_cell": dict(sorted(Counter(one.cell for one in pool).items())),
        "largest_change_by_removing_nothing": measured.nothing,
    }
    with written_folder(out) as folder:
        write_tables(folder, material, outcome)
        rule = rule_text(config.ablate, len(tree.paths), int(tree.single().sum()))
        counts = summarise(outcome, material, same_texts)
        write_json(
            folder / "summary.json", counts | took | cost | {"rule": rule, "seconds": time.perf_counter() - started}
        )
    return out
