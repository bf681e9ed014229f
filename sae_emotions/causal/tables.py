"""Results of the causal test as tables and as a summary. F: features under test, K: controls, L: latents."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from sae_emotions.causal.controls import FIRES_IN, SHARE_FACTOR, SIZE_FACTOR, traits
from sae_emotions.causal.effects import Design, Effects
from sae_emotions.causal.joint import redundancy
from sae_emotions.causal.material import Material
from sae_emotions.causal.profile import FEWEST, Readings
from sae_emotions.causal.screen import Agreement, Screened, agreement
from sae_emotions.causal.texts import LEAST, STRONGEST, Firing
from sae_emotions.causal.verdict import DENSE_P, Judged
from sae_emotions.config import AblateConfig
from sae_emotions.schema import TABLES, write_table

LOWEST = 20  # latents a concept in the screen's table, beside its labelled features


class Collateral(NamedTuple):
    """Mean KL on neutral texts, nats a token."""

    kl_F: np.ndarray
    limit: float | None
    """the controls' 95th percentile"""
    controls: int
    texts: int
    positions: float
    """of one whole pass for each latent and text in which it fires"""


class Outcome(NamedTuple):
    """All that the stage found."""

    settings: AblateConfig
    firing: Firing
    uses: Sequence[np.ndarray]
    """texts of every labelled feature, tested or not"""
    enough: np.ndarray
    """numbers of the labelled features that fire in enough texts; F of them"""
    design: Design
    effects: Effects
    held_groups: Sequence[np.ndarray]
    """per group: which of its control groups are held back"""
    judged: Judged
    groups: Judged
    """the joint removals of the design's groups"""
    collateral: Collateral
    screened: Screened


def _number(value: float) -> float | None:
    return float(value) if np.isfinite(value) else None


def _effect_rows(material: Material, outcome: Outcome) -> list[dict[str, Any]]:
    rows = []
    design, found, judged = outcome.design, outcome.effects, outcome.judged
    for f, place in enumerate(design.features_F):
        texts = design.uses[f]
        seen = traits(outcome.firing, material.norms_L, texts)
        unit = judged.unit_F[f]
        shared = {
            "feature": int(material.latents_L[place]),
            "concept": material.concepts.concepts[int(material.own_F[place])].name,
            "texts": len(texts),
        }

        def row(kind: str, of: dict[str, Any], share: float, norm: float, *one: float) -> None:
            word, profile, specific, z = map(float, one)
            rows.append(
                {
                    **shared,  # noqa: B023 - called within this turn of the loop alone
                    "kind": kind,
                    **of,
                    "active_share": share,
                    "removed_norm": norm,
                    "effect": word,
                    "profile": profile,
                    "specific": specific,
                    "z": _number(z),
                }
            )

        share, size = float(seen.share_L[place]), float(seen.size_L[place])
        row("feature", {}, share, size, *_figures(found.feature, f, unit))
        *dense, _ = _figures(found.dense, f, unit)
        row("dense", {}, 1.0, _dense_norm(design, f), *dense, judged.dense_z_F[f])
        for k, control in enumerate(design.matches[f].controls_K):
            roles = design.roles[f]
            half = "reference" if roles.reference_K[k] else "held_back" if roles.held_K[k] else "further"
            of = {"control": int(material.latents_L[control]), "half": half, "let_through": bool(roles.let_K[k])}
            traits_of = float(seen.share_L[control]), float(seen.size_L[control])
            row("control", of, *traits_of, *_figures(found.controls[f], k, unit))
        for k in range(len(found.random[f].word_N)):
            row("random", {}, share, size, *_figures(found.random[f], k, unit))
    return rows


def _figures(found: Readings, n: int, unit: float) -> tuple[float, float, float, float]:
    specific = float(found.specific_N[n])
    return float(found.word_N[n]), float(found.profile_N[n]), specific, specific / unit


def _dense_norm(design: Design, f: int) -> float:
    """Mean length of what the projection on the concept's dense vector removes."""
    vector_D = design.dense_CD[int(design.own_F[f])]
    lengths = []
    for t in design.uses[f]:
        text = design.texts[int(t)]
        away_PD = (text.x_QD[text.keep_Q].float() - design.usual_D).cpu()
        lengths.append(float((away_PD @ vector_D).abs().mean()))
    return float(np.mean(lengths))


def _verdict(judged: Judged, specific: float, f: int, q: float) -> tuple[str, str]:
    if not np.isfinite(judged.z_F[f]):
        return "not testable", "too few matched controls fire on its texts"
    if not judged.tested_F[f]:
        p = judged.dense_p_F[f]
        return "not testable", f"removing its concept's dense vector does not move the words either (p = {p:.2g})"
    if judged.confirmed_F[f]:
        return "causal", f"q = {judged.q_F[f]:.2g} <= {q:g}"
    if specific >= 0:
        return "not shown", "its removal does not lower the words"
    return "not shown", f"q = {judged.q_F[f]:.2g} > {q:g}"


def _verdict_rows(material: Material, outcome: Outcome) -> list[dict[str, Any]]:
    rows = []
    place_of = {int(number): f for f, number in enumerate(outcome.enough)}
    first = outcome.screened.of(material.own_F, material.latents_L[: len(material.own_F)])
    for number, own in enumerate(material.own_F[: material.chosen]):
        shared = {
            "feature": int(material.latents_L[number]),
            "concept": material.concepts.concepts[int(own)].name,
            "texts": len(outcome.uses[number]),
            "first_order": float(first[0][number]),
            "first_order_score": float(first[1][number]),
        }
        if number not in place_of:
            reason = f"fires in {len(outcome.uses[number])} held-out texts; {outcome.settings.min_texts} are needed"
            rows.append(shared | {"verdict": "not testable", "reason": reason})
            continue
        f = place_of[number]
        verdict, reason = _verdict(outcome.judged, outcome.effects.feature.specific_N[f], f, outcome.settings.q)
        limit, kl = outcome.collateral.limit, float(outcome.collateral.kl_F[f])
        known = outcome.collateral.texts > 0
        rows.append(
            shared
            | {
                "verdict": verdict,
                "reason": reason,
                "effect": float(outcome.effects.feature.word_N[f]),
                "profile": float(outcome.effects.feature.profile_N[f]),
                "specific": float(outcome.effects.feature.specific_N[f]),
                "z": _number(outcome.judged.z_F[f]),
                "p": _number(outcome.judged.p_F[f]),
                "q": _number(outcome.judged.q_F[f]),
                "rank": int(outcome.effects.rank_F[f]),
                "dense_effect": float(outcome.effects.dense.word_N[f]),
                "dense_profile": float(outcome.effects.dense.profile_N[f]),
                "dense_p": _number(outcome.judged.dense_p_F[f]),
                "kl": kl if known else None,
                "kl_flag": kl > limit if known and limit is not None else None,
            }
        )
    return rows


def _joint_rows(material: Material, outcome: Outcome) -> list[dict[str, Any]]:
    rows = []
    found, judged = outcome.effects.joint, outcome.groups
    for g, group in enumerate(outcome.design.groups):
        verdict, reason = _verdict(judged, found.joint.specific_N[g], g, outcome.settings.q)
        held_K = outcome.held_groups[g]
        rows.append(
            {
                "concept": material.concepts.concepts[group.own].name,
                "features": material.latents_L[group.members_M].tolist(),
                "verdict": verdict,
                "reason": reason,
                "texts": len(group.texts),
                "effect": float(found.joint.word_N[g]),
                "profile": float(found.joint.profile_N[g]),
                "sum_of_single": float(found.sum_G[g]),
                "specific": float(found.joint.specific_N[g]),
                "z": _number(judged.z_F[g]),
                "p": _number(judged.p_F[g]),
                "q": _number(judged.q_F[g]),
                "dense_profile": float(found.dense.profile_N[g]),
                "dense_p": _number(judged.dense_p_F[g]),
                "reference": found.controls[g].specific_N[~held_K].tolist(),
                "held_back": found.controls[g].specific_N[held_K].tolist(),
            }
        )
    return rows


def _screen_rows(material: Material, outcome: Outcome) -> list[dict[str, Any]]:
    rows = []
    found, labelled = outcome.screened, material.latents_L[: len(material.own_F)]
    for row, concept in enumerate(found.concepts_C):
        own = set(labelled[material.own_F == concept].tolist())
        lowest = np.argsort(found.score_CL[row], kind="stable")[:LOWEST]
        rows += [
            {
                "concept": material.concepts.concepts[int(concept)].name,
                "feature": latent,
                "labelled": latent in own,
                "fires": int(found.fires_CL[row, latent]),
                "texts": int(found.texts_C[row]),
                "first_order": float(found.effect_CL[row, latent]),
                "first_order_score": float(found.score_CL[row, latent]),
            }
            for latent in sorted(own | {int(n) for n in lowest if found.score_CL[row, n] < 0})
        ]
    return rows


def write_tables(folder: Path, material: Material, outcome: Outcome | None) -> None:
    """Write effects, verdicts, joint and screen; without an outcome they have no rows."""
    writers = {"effects": _effect_rows, "verdicts": _verdict_rows, "joint": _joint_rows, "screen": _screen_rows}
    found = {name: rows(material, outcome) if outcome else [] for name, rows in writers.items()}
    for table, rows in found.items():
        names = [column.name for column in TABLES[table]]
        write_table(folder / f"{table}.parquet", table, {name: [row.get(name) for row in rows] for name in names})


def rule_text(settings: AblateConfig, words: int, single: int) -> str:
    """The rule in words."""
    compared = f"its concept's word and the {single} one-token words" if single >= 20 else "all words"
    return (
        "A labelled feature is removed (x - a·d, the SAE's error kept) at every position of a held-out text where it is "
        f"active, the readout prompt left alone, on {settings.min_texts} to {settings.max_texts} texts of any concept, "
        f"of the {STRONGEST} in which it fires most (of {LEAST} or more looked at). "
        f"Read: the changes of log P of {compared} (of {words} in all) after the prompt, averaged over texts and summed with "
        "the cosines of their concepts' dense vectors with its own concept's as weights (centred), in units of how far the "
        f"words outside its family scatter under the same removal (unscaled where these are fewer than {FEWEST}). z: that in "
        "units of the "
        "root mean square of the same quantity for its reference controls, moderated with equal weight by the median "
        "feature's (which keeps a unit from being small by luck); controls are unlabelled features that fire on the same "
        f"texts (in at least {FIRES_IN:.0%} of them, active at the same share of tokens within a factor "
        f"{SHARE_FACTOR:g}, adding the same mean norm within {SIZE_FACTOR:g}; the nearest where these are too few). p: "
        "share of all features' held-back controls with a z at least as low. Causal: Benjamini-Hochberg q over the "
        f"tested features <= {settings.q:g} and a negative sum. Not testable: fires in too few texts, or setting the "
        "text's reading along its concept's dense vector to the mean of all texts, at every position, does not lower "
        f"the sum of changes (p > {DENSE_P:g} by the same rule, in nats). Where features are left out, those are tested that "
        "first-order attribution on selection texts of their concept finds strongest, for as much as they add. This choice is "
        "part of the test: the others count among the tested ones with p = 1; controls, further ones included, go through the "
        "same screen, and one that it keeps out counts in p as one whose z is not as low. Together: all "
        "labelled features of a concept are removed at once, from the texts in which they add most, against groups of "
        "controls, each matched with one of them; the same rule, with a false discovery rate over concepts."
    )


_COUNTS = ("tested", "confirmed", "not_testable", "controls_tested", "controls_confirmed", "random_tested")


def empty_summary(settings: AblateConfig, seconds: float) -> dict[str, Any]:
    """Summary of a dictionary without labelled features."""
    counts = dict.fromkeys((*_COUNTS, "random_confirmed", "left_out", "removals", "texts"), 0)
    return counts | {"labelled": 0, "rule": "There is no labelled feature, so nothing was tested.", "seconds": seconds}


def summarise(outcome: Outcome, material: Material, same_texts: Agreement) -> dict[str, Any]:
    """Counts of verdicts and of stand-ins that the same rule would confirm, how well controls match, and the screen.

    `same_texts`: agreement of first-order with exact effects on the texts of the exact test.
    """
    judged, matches = outcome.judged, outcome.design.matches
    tested = int(judged.tested_F.sum())
    within = np.concatenate([one.within_K for one in matches] or [np.zeros(0)])
    distinct = {int(place) for one in matches for place in one.controls_K}
    return {
        "labelled": len(material.own_F),
        "left_out": len(material.own_F) - material.chosen,
        "tested": tested,
        "confirmed": int(judged.confirmed_F.sum()),
        "not_testable": material.chosen - tested,
        "controls_tested": judged.controls_tested,
        "controls_confirmed": judged.controls_confirmed,
        "random_tested": judged.random_tested,
        "random_confirmed": judged.random_confirmed,
        "held_back": int(sum(one.held_K.sum() for one in outcome.design.roles)),
        "distinct_controls": len(distinct),
        "controls_within_tolerance": float(within.mean()) if len(within) else None,
        "lowered_most": int(((outcome.effects.rank_F == 1) & judged.tested_F).sum()),
        "kl_flagged": int((outcome.collateral.kl_F > outcome.collateral.limit).sum())
        if outcome.collateral.limit is not None
        else 0,
        "kl_limit": outcome.collateral.limit,
        "kl_controls": outcome.collateral.controls,
        "kl_texts": outcome.collateral.texts,
        "joint": _joint_summary(outcome),
        "screen": _screen_summary(outcome, material, same_texts),
    }


def _joint_summary(outcome: Outcome) -> dict[str, Any]:
    judged, found = outcome.groups, outcome.effects.joint
    groups = outcome.design.groups
    sums = redundancy(found.joint.profile_N, found.sum_G)
    return {
        "concepts": len(groups),
        "features": int(sum(len(one.members_M) for one in groups)),
        "tested": int(judged.tested_F.sum()),
        "confirmed": int(judged.confirmed_F.sum()),
        "control_groups_tested": judged.controls_tested,
        "control_groups_confirmed": judged.controls_confirmed,
        "median_effect": sums.joint,
        "median_sum_of_single": sums.single,
        "p_joint_differs_from_sum": sums.p,
        "beyond_sum": int((found.joint.profile_N < found.sum_G).sum()),
    }


def _screen_summary(outcome: Outcome, material: Material, same_texts: Agreement) -> dict[str, Any]:
    """The screen's rank agreement with exact effects, and what it did to controls of the tested features."""
    first, judged = outcome.screened, outcome.judged
    own_F, number_F = material.own_F[outcome.enough], material.latents_L[outcome.enough]
    tested = [roles for roles, tested in zip(outcome.design.roles, judged.tested_F, strict=True) if tested]
    return {
        "features": material.dictionary.d_sae,
        "texts": int(first.texts_C.sum()),
        "rank_agreement_same_texts": same_texts._asdict(),
        "rank_agreement_held_out": agreement(first.of(own_F, number_F)[0], outcome.effects.feature.profile_N)._asdict(),
        "rank_agreement_held_out_score": agreement(first.of(own_F, number_F)[1], judged.z_F)._asdict(),
        "controls_let_through": int(sum((one.let_K & ~one.reference_K).sum() for one in tested)),
        "controls_let_through_confirmed": judged.controls_confirmed,
    }
