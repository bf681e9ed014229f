"""Results of the causal test as tables and as a summary. F: features under test, K: controls, L: latents."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from sae_emotions.causal.controls import FIRES_IN, SHARE_FACTOR, SIZE_FACTOR, Traits, traits
from sae_emotions.causal.effects import Design, Effects
from sae_emotions.causal.joint import redundancy
from sae_emotions.causal.linear import HELD
from sae_emotions.causal.material import Material
from sae_emotions.causal.profile import FEWEST, Readings
from sae_emotions.causal.screen import Agreement, agreement
from sae_emotions.causal.texts import LEAST, STRONGEST, Firing
from sae_emotions.causal.verdict import DENSE_P, Judged
from sae_emotions.config import AblateConfig
from sae_emotions.schema import TABLES, write_table


class Collateral(NamedTuple):
    """Mean KL on neutral texts, nats a token."""

    kl_F: np.ndarray
    """NaN where the screen kept a feature out"""
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


def _number(value: float) -> float | None:
    return float(value) if np.isfinite(value) else None


def _effect_rows(material: Material, outcome: Outcome) -> list[dict[str, Any]]:
    rows = []
    design, found, judged = outcome.design, outcome.effects, outcome.judged
    screened = design.screened
    for f, place in enumerate(design.features_F):
        texts = design.uses[f]
        seen = traits(outcome.firing, material.norms_L, texts)
        unit = judged.unit_F[f]
        shared = {
            "feature": int(material.latents_L[place]),
            "concept": material.concepts.concepts[int(material.own_F[place])].name,
            "texts": len(texts),
        }
        own = _traits(seen, int(place))
        rows.append(
            shared | {"kind": "feature"} | own | _figures(found.feature, f, unit) | _first(screened.feature, f, unit)
        )
        dense = _figures(found.dense, f, np.nan) | {
            "active_share": 1.0,
            "removed_norm": _dense_norm(design, f) if screened.feature_F[f] else None,
            "first_order": _number(screened.dense.profile_N[f]),
            "first_order_z": _number(judged.dense_z_F[f]),
        }
        rows.append(shared | {"kind": "dense"} | dense)
        for k, control in enumerate(design.matches[f].controls_K):
            held, let = bool(design.held[f][k]), bool(screened.held[f][k])
            of = {"control": int(material.latents_L[control]), "half": "held_back" if held else "reference"}
            figures = _figures(found.controls[f], k, unit) | _first(screened.controls[f], k, unit)
            let_through = {"let_through": let} if held else {}
            rows.append(shared | {"kind": "control"} | of | let_through | _traits(seen, int(control)) | figures)
        rows += [
            shared | {"kind": "random"} | own | _figures(found.random[f], k, unit)
            for k in range(len(found.random[f].word_N))
        ]
    return rows


def _traits(seen: Traits, place: int) -> dict[str, Any]:
    return {"active_share": float(seen.share_L[place]), "removed_norm": float(seen.size_L[place])}


def _figures(found: Readings, n: int, unit: float) -> dict[str, Any]:
    """Of an exact removal; null where none was run."""
    return {
        "effect": _number(found.word_N[n]),
        "profile": _number(found.profile_N[n]),
        "specific": _number(found.specific_N[n]),
        "z": _number(found.specific_N[n] / unit),
    }


def _first(found: Readings, n: int, unit: float) -> dict[str, Any]:
    return {"first_order": _number(found.profile_N[n]), "first_order_z": _number(found.specific_N[n] / unit)}


def _dense_norm(design: Design, f: int) -> float:
    """Mean length of what the projection on the concept's dense vector removes."""
    vector_D = design.removable.dense_CD[int(design.own_F[f])]
    lengths = []
    for t in design.uses[f]:
        text = design.texts[int(t)]
        away_PD = (text.x_QD[text.keep_Q].float() - design.removable.usual_D).cpu()
        lengths.append(float((away_PD @ vector_D).abs().mean()))
    return float(np.mean(lengths))


def _verdict(judged: Judged, specific: float, f: int, q: float) -> tuple[str, str]:
    if not np.isfinite(judged.unit_F[f]):
        return "not testable", "too few matched controls fire on its texts, or they do nothing"
    if not judged.tested_F[f]:
        p = judged.dense_p_F[f]
        return "not testable", f"its concept's dense vector does not move the words either (p = {p:.2g})"
    if judged.confirmed_F[f]:
        return "causal", f"q = {judged.q_F[f]:.2g} <= {q:g}"
    if np.isnan(specific):
        return "not shown", "its first-order z is not among the lowest, so it was not removed exactly"
    if specific >= 0:
        return "not shown", "its removal does not lower the words"
    return "not shown", f"q = {judged.q_F[f]:.2g} > {q:g}"


def _verdict_rows(material: Material, outcome: Outcome) -> list[dict[str, Any]]:
    rows = []
    place_of = {int(number): f for f, number in enumerate(outcome.enough)}
    for number, own in enumerate(material.own_F):
        shared = {
            "feature": int(material.latents_L[number]),
            "concept": material.concepts.concepts[int(own)].name,
            "texts": len(outcome.uses[number]),
        }
        if number not in place_of:
            reason = f"fires in {len(outcome.uses[number])} held-out texts; {outcome.settings.min_texts} are needed"
            rows.append(shared | {"verdict": "not testable", "reason": reason})
            continue
        rows.append(shared | _verdict_row(outcome, place_of[number]))
    return rows


def _verdict_row(outcome: Outcome, f: int) -> dict[str, Any]:
    found, judged, screened = outcome.effects, outcome.judged, outcome.design.screened
    verdict, reason = _verdict(judged, found.feature.specific_N[f], f, outcome.settings.q)
    limit, kl, unit = outcome.collateral.limit, float(outcome.collateral.kl_F[f]), judged.unit_F[f]
    known = outcome.collateral.texts > 0 and np.isfinite(kl)
    return {
        "verdict": verdict,
        "reason": reason,
        **_first(screened.feature, f, unit),
        "removed": bool(screened.feature_F[f]),
        **_figures(found.feature, f, unit),
        "p": _number(judged.p_F[f]),
        "q": _number(judged.q_F[f]),
        "rank": int(found.rank_F[f]) or None,
        "dense_effect": _number(found.dense.word_N[f]),
        "dense_profile": _number(found.dense.profile_N[f]),
        "dense_first_order": _number(screened.dense.profile_N[f]),
        "dense_p": _number(judged.dense_p_F[f]),
        "kl": kl if known else None,
        "kl_flag": kl > limit if known and limit is not None else None,
    }


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


def write_tables(folder: Path, material: Material, outcome: Outcome | None) -> None:
    """Write effects, verdicts and joint; without an outcome they have no rows."""
    writers = {"effects": _effect_rows, "verdicts": _verdict_rows, "joint": _joint_rows}
    found = {name: rows(material, outcome) if outcome else [] for name, rows in writers.items()}
    for table, rows in found.items():
        names = [column.name for column in TABLES[table]]
        write_table(folder / f"{table}.parquet", table, {name: [row.get(name) for row in rows] for name in names})


def rule_text(settings: AblateConfig, words: int, single: int, screened: bool) -> str:
    """The rule in words; `screened`: not all testable features were removed."""
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
        f"the sum of changes (p > {DENSE_P:g} by the same rule, in nats and to first order). z's units are of first order, "
        f"too: gradients along the fewest directions among the words' first tokens that hold {HELD:.0%} of all concepts' "
        "weights. "
        + (
            f"The {settings.features} testable features of lowest first-order z are removed exactly, and the others count "
            "among the tested ones with p = 1; a held-back control is removed exactly where its first-order z is as low, and "
            "else counts in p as one whose z is not as low. "
            if screened
            else ""
        )
        + "Together: all "
        "labelled features of a concept are removed at once, from the texts in which they add most, against groups of "
        "controls, each matched with one of them; the same rule, with a false discovery rate over concepts."
    )


_COUNTS = (
    "removed", "tested", "confirmed", "not_testable", "controls_removed", "controls_tested", "controls_confirmed",
    "random_tested", "random_confirmed", "removals", "texts",
)  # fmt: skip


def empty_summary(settings: AblateConfig, seconds: float) -> dict[str, Any]:
    """Summary of a dictionary without labelled features."""
    counts = dict.fromkeys(_COUNTS, 0)
    return counts | {"labelled": 0, "rule": "There is no labelled feature, so nothing was tested.", "seconds": seconds}


def summarise(outcome: Outcome, material: Material, same_texts: Agreement) -> dict[str, Any]:
    """Counts of verdicts and of stand-ins that the same rule would confirm, how well controls match, and the screen.

    `same_texts`: agreement of first-order with exact effects on the texts of the exact test.
    """
    judged, matches, screened = outcome.judged, outcome.design.matches, outcome.design.screened
    tested = int(judged.tested_F.sum())
    within = np.concatenate([one.within_K for one in matches] or [np.zeros(0)])
    distinct = {int(place) for one in matches for place in one.controls_K}
    limit, kl_F = outcome.collateral.limit, outcome.collateral.kl_F
    let = [let_K for let_K, known in zip(screened.held, judged.tested_F, strict=True) if known]
    return {
        "labelled": len(material.own_F),
        "removed": int((screened.feature_F & judged.tested_F).sum()),
        "tested": tested,
        "confirmed": int(judged.confirmed_F.sum()),
        "not_testable": len(material.own_F) - tested,
        "controls_removed": int(sum(let_K.sum() for let_K in let)),
        "controls_tested": judged.controls_tested,
        "controls_confirmed": judged.controls_confirmed,
        "random_tested": judged.random_tested,
        "random_confirmed": judged.random_confirmed,
        "distinct_controls": len(distinct),
        "controls_within_tolerance": float(within.mean()) if len(within) else None,
        "lowered_most": int(((outcome.effects.rank_F == 1) & judged.tested_F).sum()),
        "kl_flagged": int((kl_F[np.isfinite(kl_F)] > limit).sum()) if limit is not None else 0,
        "kl_limit": limit,
        "kl_controls": outcome.collateral.controls,
        "kl_texts": outcome.collateral.texts,
        "joint": _joint_summary(outcome),
        "screen": _screen_summary(outcome, same_texts),
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


def _screen_summary(outcome: Outcome, same_texts: Agreement) -> dict[str, Any]:
    """What the screen let through, and how its effects rank against exact ones."""
    screened, found = outcome.design.screened, outcome.effects
    first = [screened.z_F[screened.feature_F]]
    exact = [outcome.judged.z_F[screened.feature_F]]
    for f, let_K in enumerate(screened.held):
        first.append(screened.controls[f].specific_N[let_K] / screened.unit_F[f])
        exact.append(found.controls[f].specific_N[let_K] / screened.unit_F[f])
    return {
        "limit": _number(screened.limit),
        "rank_agreement": same_texts._asdict(),
        "rank_agreement_of_z": agreement(np.concatenate(first), np.concatenate(exact))._asdict(),
    }
