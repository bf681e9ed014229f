"""The causal rule on first-order effects: the same controls, null and false discovery rate as in the exact test.

Shapes: T texts, L latents (labelled features first, then candidates for controls), F features that are tested, C concepts.
"""

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np

from sae_emotions.causal.attribute import Attribution
from sae_emotions.causal.controls import halves, match
from sae_emotions.causal.material import Material
from sae_emotions.causal.texts import Firing
from sae_emotions.causal.verdict import Judged, judge


class Seen(NamedTuple):
    """One text with its concept's readout."""

    concept: int
    found: Attribution
    tokens: int
    """tokens at which a latent could be active"""
    dense: float
    """first-order effect of projecting out the concept's dense vector"""


class FirstOrder(NamedTuple):
    """Effects of the labelled features that fire in enough of their concept's texts, and of their matched controls."""

    features_F: np.ndarray
    """places among the latents"""
    uses: list[np.ndarray]
    """the texts of each"""
    effect_F: np.ndarray
    dense_F: np.ndarray
    controls: list[np.ndarray]
    judged: Judged


def judged_of(
    material: Material, seen: Sequence[Seen], fewest: int, controls: int, q: float, rng: np.random.Generator
) -> FirstOrder:
    """Judge each labelled feature on the texts of its concept in which it fires (`fewest` or more), against `controls`.

    Controls are matched on these texts and positions; half of them are the reference, the others are held back.
    """
    place_of = np.full(material.dictionary.d_sae, -1)
    place_of[material.latents_L] = np.arange(len(material.latents_L))
    active_TL, amount_TL, effect_TL = (np.zeros((len(seen), len(material.latents_L)), np.float32) for _ in range(3))
    for t, one in enumerate(seen):
        there = place_of[one.found.latent_N] >= 0
        places = place_of[one.found.latent_N[there]]
        active_TL[t, places] = one.found.active_N[there]
        amount_TL[t, places] = one.found.amount_N[there]
        effect_TL[t, places] = one.found.effect_N[there]
    firing = Firing(active_TL, amount_TL, np.array([one.tokens for one in seen]))
    concept_T = np.array([one.concept for one in seen])
    mine = [np.flatnonzero((concept_T == own) & (active_TL[:, f] > 0)) for f, own in enumerate(material.own_F)]
    features_F = np.array([f for f, texts in enumerate(mine) if len(texts) >= fewest], np.int64)
    uses = [mine[f] for f in features_F]
    matches = match(firing, material.norms_L, features_F, uses, material.candidates_C, controls)
    dense_T = np.array([one.dense for one in seen])
    effect_F = np.array([effect_TL[texts, f].mean() for f, texts in zip(features_F, uses, strict=True)], float)
    dense_F = np.array([dense_T[texts].mean() for texts in uses], float)
    effects = [
        effect_TL[np.ix_(texts, one.controls_K)].mean(0).astype(float) for one, texts in zip(matches, uses, strict=True)
    ]
    held = [halves(len(effect_K), rng) for effect_K in effects]
    reference = [effect_K[~held_K] for effect_K, held_K in zip(effects, held, strict=True)]
    held_back = [effect_K[held_K] for effect_K, held_K in zip(effects, held, strict=True)]
    judged = judge(effect_F, dense_F, reference, held_back, [np.zeros(0)] * len(uses), q)
    return FirstOrder(features_F, uses, effect_F, dense_F, effects, judged)


def numbers(found: FirstOrder) -> dict[str, Any]:
    """Counts and medians, with the controls' beside them. Effects are in the readout's unit; negative is lowered."""
    judged, tested_F = found.judged, found.judged.tested_F
    control_z = np.concatenate(
        [np.zeros(0), *(z for z, known in zip(judged.held_back, tested_F, strict=True) if known)]
    )
    control_z = control_z[np.isfinite(control_z)]
    low = np.quantile(control_z, 0.05) if len(control_z) else None
    return {
        "features_that_fire": len(found.features_F),
        "tested": int(tested_F.sum()),
        "confirmed": int(judged.confirmed_F.sum()),
        "controls_tested": judged.controls_tested,
        "controls_confirmed": judged.controls_confirmed,
        "share_below_5th_percentile_of_controls": None
        if low is None or not tested_F.any()
        else float((judged.z_F[tested_F] < low).mean()),
        "share_by_chance": 0.05,
        "median_effect": _median(found.effect_F),
        "median_effect_of_controls": _median(np.concatenate(found.controls or [np.zeros(0)])),
        "median_effect_of_dense_vectors": _median(found.dense_F),
    }


def _median(values: np.ndarray) -> float | None:
    return float(np.median(values)) if len(values) else None
