"""Steer a model along one or several features: doses, the concept's word, all other words, fluency, and the controls.

Shapes: T prompts, P doses, J directions, W words, K controls, D residual width.

Beside the features stand, equally long at every dose: the concept's dense vector (difference of means), random directions,
and matched features: unlabelled latents that fire about as often and as strongly in the general text.
"""

import math
from collections.abc import Sequence
from itertools import islice
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch

from sae_emotions.causal.profile import outside_of
from sae_emotions.errors import UserError
from sae_emotions.progress import Progress
from sae_emotions.steering.bench import Bench, bench, prompt_ids
from sae_emotions.steering.directions import Direction, Unit, matched, matched_units, of_features, random_units
from sae_emotions.steering.fluency import Continuation, continuations
from sae_emotions.steering.trend import Trend, share_as_high, trend
from sae_emotions.steering.words import Positions, site, word_changes

DOSES: dict[Unit, tuple[float, ...]] = {"norm": (0.05, 0.1, 0.2, 0.3, 0.5), "p99": (0.5, 1.0, 2.0, 4.0, 8.0)}
CONTROLS = 20
FLUENT = 5
"""controls of each kind that write a continuation"""


class Line(NamedTuple):
    """What one direction does at one dose."""

    effect: float | None
    """change of the concept's word less the mean change of the one-token words outside its family, nats, averaged over the
    prompts; None where no concept is asked after"""
    continuation: Continuation | None
    """after the first prompt; None for controls that wrote none"""


class Dose(NamedTuple):
    """What one dose does."""

    dose: float
    share_of_norm: float
    """length of what is added, in units of the residual norm"""
    features: Line
    dense: Line | None
    random: tuple[Line, ...]
    matched: tuple[Line, ...]
    p: float | None
    """share of effects at least as large (of a dose below 0: as low) among the controls' and the features' own"""
    rank: int | None
    """rank of the concept's word among all words by the change; 1 rose most"""
    words: dict[str, float]
    """concept -> change of its word's log P under the features, nats, averaged over the prompts"""


class Steered(NamedTuple):
    """One steering."""

    dictionary: str
    block: int
    features: tuple[int, ...]
    labels: tuple[str | None, ...]
    concept: str | None
    unit: Unit
    length: float
    """residual-stream units that a dose of 1 adds"""
    residual_norm: float
    """mean norm of the general text's rows"""
    positions: Positions
    prompts: tuple[str, ...]
    """as the model saw them"""
    readout: str
    unsteered: Continuation
    doses: tuple[Dose, ...]
    """in ascending order"""
    trend: Trend | None
    dense_trend: Trend | None
    matched_features: tuple[tuple[int, ...], ...]
    """one tuple a feature"""

    def to_dict(self) -> dict[str, Any]:
        """Plain mappings and lists all the way down."""
        found: dict[str, Any] = _plain(self)
        return found


def _plain(value: Any) -> Any:
    if hasattr(value, "_asdict"):
        value = value._asdict()
    if isinstance(value, dict):
        return {name: _plain(one) for name, one in value.items()}
    return [_plain(one) for one in value] if isinstance(value, (list, tuple)) else value


class _Added(NamedTuple):
    """Every direction, the features' first; then, where there is a concept, its dense vector; then the controls."""

    unit_JD: torch.Tensor
    kinds: tuple[str, ...]
    matches: tuple[tuple[int, ...], ...]

    def at(self, kind: str) -> list[int]:
        """Places of a kind among the J."""
        return [j for j, one in enumerate(self.kinds) if one == kind]

    def write(self) -> list[int]:
        """Places of those that write a continuation."""
        return sorted(j for kind in dict.fromkeys(self.kinds) for j in islice(self.at(kind), FLUENT))


def _added(
    found: Bench, own: Direction, features: Sequence[int], concept: int | None, controls: int, seed: int
) -> _Added:
    matches = matched(found.dictionary, found.scale, features, found.free, controls)
    parts = {
        "features": own.unit_D[None],
        "dense": found.dense_CD[[] if concept is None else [concept]],
        "random": random_units(controls, found.dictionary.d_in, seed),
        "matched": matched_units(found.dictionary, matches),
    }
    kinds = tuple(kind for kind, unit_KD in parts.items() for _ in range(len(unit_KD)))
    return _Added(torch.cat(list(parts.values())), kinds, tuple(tuple(one.tolist()) for one in matches))


class _Read(NamedTuple):
    words_PW: np.ndarray
    """change of every word under the features, averaged over the prompts"""
    effect_TJP: np.ndarray | None


def _read(
    found: Bench,
    ids: Sequence[Sequence[int]],
    readout: str,
    concept: int | None,
    added: _Added,
    size_P: np.ndarray,
    positions: Positions,
) -> _Read:
    """Every word under the features; of all directions the concept's word against the one-token words outside its family."""
    whole = found.tree(None, readout)
    sizes_P1 = torch.from_numpy(size_P).float()[:, None]
    own_PD = sizes_P1 * added.unit_JD[0]
    every_ND = (added.unit_JD[:, None] * sizes_P1).flatten(0, 1)
    few = None
    if concept is not None:
        families = [one.family for one in found.concepts.concepts]
        chosen = [concept, *outside_of(whole, families, concept).tolist()]
        few = found.tree([found.concepts.concepts[n].word for n in chosen], readout)
    words_TPW, effects = [], []
    with Progress("steer", len(ids) * (len(own_PD) + (len(every_ND) if few else 0)), "additions") as bar:
        for one in ids:
            at = site(found.upper, whole, one, found.special, positions)
            words_TPW.append(word_changes(found.upper, whole, at, own_PD, bar.advance))
            if few is not None:
                at = site(found.upper, few, one, found.special, positions)
                change_NW = word_changes(found.upper, few, at, every_ND, bar.advance)
                effects.append((change_NW[:, 0] - change_NW[:, 1:].mean(1)).reshape(-1, len(size_P)))
    return _Read(np.mean(words_TPW, axis=0), np.stack(effects) if effects else None)


def _checked(
    prompts: str | Sequence[str],
    features: Sequence[int],
    doses: Sequence[float],
    unit: str,
    positions: str,
    tokens: int,
    controls: int,
    temperature: float,
    seed: int,
    readout: str | None,
) -> list[str]:
    if unit not in DOSES or positions not in ("all", "prompt"):
        raise UserError("A dose is counted in 'norm' or 'p99', and what is steered is 'all' or 'prompt'.")
    if not features or len(set(features)) < len(features):
        raise UserError("Give at least one feature, and none twice.")
    if not doses or not all(math.isfinite(dose) and dose != 0 for dose in doses) or len(set(doses)) < len(doses):
        raise UserError("A dose must be a number other than 0 (which is the model itself), and none may come twice.")
    if tokens < 1 or controls < CONTROLS or not 0 <= temperature < math.inf:
        raise UserError(f"Give at least 1 token and {CONTROLS} controls, and a temperature of 0 or more.")
    if seed < 0:
        raise UserError("A seed is a whole number from 0 up.")
    if readout is not None and not readout.strip():
        raise UserError("The readout prompt is empty; give a text that a word can follow.")
    return [prompts] if isinstance(prompts, str) else list(prompts)


def steer(
    run: str | Path | Bench,
    prompts: str | Sequence[str],
    features: Sequence[int],
    doses: Sequence[float] | None = None,
    unit: Unit = "norm",
    *,
    dictionary: str | None = None,
    concept: str | None = None,
    positions: Positions = "all",
    readout: str | None = None,
    raw: bool = False,
    tokens: int = 30,
    controls: int = CONTROLS,
    temperature: float = 0.0,
    seed: int = 0,
) -> Steered:
    """Add `features` of a run's dictionary, together, to the residual stream after its block, and see what changes.

    Doses are counted in `unit` (see `steering.directions`); the default ones are `DOSES[unit]`. `concept` is whose word is
    asked after: the first label among the features unless given; without one there is no target and no dense vector. A
    prompt is a user's turn unless `raw` or the model has no chat template. `positions`: see `steering.words`. `readout`
    takes the place of the concept set's own. `controls` of each kind, at least 20. A `Bench` in the place of the run's
    folder saves loading it again. Raises `UserError` for bad input.
    """
    chosen = DOSES.get(unit, (1.0,)) if doses is None else doses
    asked = _checked(prompts, features, chosen, unit, positions, tokens, controls, temperature, seed, readout)
    found = run if isinstance(run, Bench) else bench(run, dictionary, seed, features, concept)
    own = of_features(found.dictionary, found.scale, features, unit)
    labels = tuple(found.labels[feature] for feature in features)
    name = concept or next((one for one in labels if one), None)
    number = None if name is None else found.number(name)
    ids = [prompt_ids(found.model, prompt, raw) for prompt in asked]
    if not ids:
        raise UserError("There is no prompt; give at least one text to steer.")
    dose_P = np.sort(np.asarray(chosen, np.float64))
    added = _added(found, own, features, number, controls, seed)
    phrase = found.concepts.readout if readout is None else readout
    read = _read(found, ids, phrase, number, added, own.length * dose_P, positions)
    written, base = _continued(found, ids[0], added, own.length * dose_P, positions, tokens, temperature, seed)
    trends = {kind: _trend(added, read.effect_TJP, dose_P, kind) for kind in ("features", "dense")}
    return Steered(
        found.dictionary.name,
        found.dictionary.block,
        tuple(int(one) for one in features),
        labels,
        name,
        unit,
        own.length,
        found.scale.norm,
        positions,
        tuple(found.model.tokenizer.decode(one) for one in ids),
        phrase,
        base,
        tuple(_dose(found, own, added, read, written, number, dose, p) for p, dose in enumerate(dose_P.tolist())),
        trends["features"],
        trends["dense"],
        added.matches,
    )


def _continued(
    found: Bench,
    ids: Sequence[int],
    added: _Added,
    size_P: np.ndarray,
    positions: Positions,
    tokens: int,
    temperature: float,
    seed: int,
) -> tuple[dict[tuple[int, int], Continuation], Continuation]:
    """(direction, dose) -> what it writes; and what the model itself writes."""
    keys = [(j, p) for j in added.write() for p in range(len(size_P))]
    vectors_ND = torch.stack([torch.zeros_like(added.unit_JD[0]), *(added.unit_JD[j] * size_P[p] for j, p in keys)])
    with Progress("write", len(vectors_ND), "continuations") as bar:
        some = continuations(
            found.model, found.dictionary.block, ids, vectors_ND.float(), found.special, positions, tokens, temperature,
            seed, bar.advance,
        )  # fmt: skip
    return dict(zip(keys, some[1:], strict=True)), some[0]


def _trend(added: _Added, effect_TJP: np.ndarray | None, dose_P: np.ndarray, kind: str) -> Trend | None:
    places = added.at(kind)
    if effect_TJP is None or not places:
        return None
    # The unsteered model is a dose too, and its effect is 0.
    at = int(np.searchsorted(dose_P, 0))
    with_0_TJP = np.insert(effect_TJP, at, 0.0, axis=2)
    controls_KP = with_0_TJP[:, added.at("random") + added.at("matched")].mean(0)
    return trend(np.insert(dose_P, at, 0.0), with_0_TJP[:, places[0]], controls_KP)


def _dose(
    found: Bench,
    own: Direction,
    added: _Added,
    read: _Read,
    written: dict[tuple[int, int], Continuation],
    concept: int | None,
    dose: float,
    p: int,
) -> Dose:
    effect_J = None if read.effect_TJP is None else read.effect_TJP[:, :, p].mean(0)

    def lines(kind: str) -> tuple[Line, ...]:
        return tuple(
            Line(None if effect_J is None else float(effect_J[j]), written.get((j, p))) for j in added.at(kind)
        )

    words_W, sign = read.words_PW[p], math.copysign(1, dose)
    controls = added.at("random") + added.at("matched")
    names = [one.name for one in found.concepts.concepts]
    return Dose(
        dose,
        abs(dose) * own.length / found.scale.norm,
        lines("features")[0],
        next(iter(lines("dense")), None),
        lines("random"),
        lines("matched"),
        None if effect_J is None else share_as_high(sign * effect_J[0], sign * effect_J[controls]),
        None if concept is None else 1 + int((words_W > words_W[concept]).sum()),
        dict(zip(names, words_W.tolist(), strict=True)),
    )
