"""Steering towards each of the 16 emotions of the built-in scenarios: does its word rise above the 15 others?

Texts are scenarios of *other* emotions and neutral passages, followed by the concept set's readout prompt. A seed splits
them in two: on the choosing half features are picked and a dose is chosen, and everything under `reported` is of the other
half. At a dose all directions are equally long: a share of the mean residual norm. A concept scores where the log P of its
own word changes by more than that of the 15 others, on average over the texts; chance is 1/16.

Shapes: T texts, J directions, P doses, C = W = 16 concepts and words, D residual width, F latents.
"""

import gzip
import json
from importlib import resources
from pathlib import Path
from typing import Any

import numpy as np
import torch

from eval.validity.asked import Asked
from eval.validity.steering_picks import CRITERIA, READING, Picks, screened, selection_auroc, unscreened
from eval.validity.steering_scores import Texts, against_controls, best, own_change, score, trends
from sae_emotions.progress import Progress
from sae_emotions.schema import read_table
from sae_emotions.steering.bench import Bench, bench, prompt_ids
from sae_emotions.steering.directions import matched, of_features, random_units
from sae_emotions.steering.fluency import continuations
from sae_emotions.steering.picture import confusion_picture
from sae_emotions.steering.words import Positions, site, word_changes

SEED = 5
DOSES, P99_DOSES = (0.05, 0.1, 0.2, 0.4), (1.0, 2.0, 4.0)
CHOOSING, REPORTING = (6, 3), (8, 4)
"""scenarios and neutral texts in each half"""
NEUTRAL_TOKENS = 32
CONTROLS_EACH = 2
"""random directions, and matched features of each concept's feature, a concept"""
UNSCREENED = ("single chosen", "dense")
"""what is compared with these controls, which no screen chose either"""
CONFUSED = 2
"""texts of the table of all concepts"""
CONFUSED_AT = 0.1
PROMPT, TOKENS = "Write a short note about what you did this morning.", 20
FLUENT = 8
"""controls of each kind that write"""


def scenarios_by_concept() -> dict[str, list[str]]:
    """The built-in scenarios: emotion -> texts that imply it."""
    data = resources.files("sae_emotions.concepts") / "data" / "probes" / "scenarios.jsonl.gz"
    found: dict[str, list[str]] = {}
    for line in gzip.decompress(data.read_bytes()).decode("utf-8").splitlines():
        row = json.loads(line)
        found.setdefault(row["emotion"], []).append(row["text"])
    return found


def halves(found: Bench, scenarios: dict[str, list[str]]) -> tuple[Texts, Texts]:
    """The choosing and the reporting texts, dealt turn by turn over the emotions; no text is in both."""
    rng = np.random.default_rng([SEED, 1])
    names = list(scenarios)
    dealt = [[(c, text) for text in rng.permutation(scenarios[name])] for c, name in enumerate(names)]
    # Turn by turn, so that a few texts already show many emotions.
    turns = [[dealt[c][turn] for c in rng.permutation(len(names))] for turn in range(min(map(len, dealt)))]
    middle = len(turns) // 2
    neutral = [found.concepts.neutral[n] for n in rng.permutation(len(found.concepts.neutral))]
    made, start = [], 0
    for some, (count, plain) in ((turns[:middle], CHOOSING), (turns[middle:], REPORTING)):
        picked = [one for turn in some for one in turn][:count]
        ids = [prompt_ids(found.model, text, raw=True) for _, text in picked]
        ids += [prompt_ids(found.model, text, raw=True)[:NEUTRAL_TOKENS] for text in neutral[start : start + plain]]
        start += plain
        made.append(Texts(ids, np.array([c for c, _ in picked] + [-1] * (len(ids) - len(picked)))))
    return made[0], made[1]


class Steering:
    """The bench, the 16 words, and a memory of what was run: many criteria pick the same features."""

    def __init__(self, found: Bench, names: list[str]) -> None:
        self.found, self.names = found, names
        self.number_C = np.array([found.number(name) for name in names])
        self.tree = found.tree([found.concepts.concepts[n].word for n in self.number_C])

    def changes(
        self, what: str, texts: Texts, unit_JD: torch.Tensor, length_JP: np.ndarray, positions: Positions = "all"
    ) -> np.ndarray:
        """Change of every word's log P by every direction at every length, nats: T x J x P x W."""
        shape = (*length_JP.shape, len(self.names))
        same_KD, which_J = torch.unique(unit_JD, dim=0, return_inverse=True)
        if len(same_KD) < len(unit_JD) and (length_JP == length_JP[:1]).all():
            once = self.changes(what, texts, same_KD, length_JP[: len(same_KD)], positions)
            return once[:, which_J.numpy()]
        vectors_ND = (unit_JD[:, None] * torch.from_numpy(length_JP).float()[..., None]).flatten(0, 1)
        made = []
        with Progress(f"steering: {what}", len(texts.ids) * len(vectors_ND), "additions") as bar:
            for ids in texts.ids:
                at = site(self.found.upper, self.tree, ids, self.found.special, positions)
                made.append(word_changes(self.found.upper, self.tree, at, vectors_ND, bar.advance).reshape(shape))
        return np.stack(made)

    def lengths(self, directions: int) -> np.ndarray:
        """Every dose for each direction, J x P, residual-stream units."""
        return np.tile(np.array(DOSES) * self.found.scale.norm, (directions, 1))


def _units(steering: Steering, features: list[list[int]]) -> torch.Tensor:
    found = steering.found
    return torch.stack([of_features(found.dictionary, found.scale, some, "norm").unit_D for some in features])


def _lines(steering: Steering, picks: Picks) -> dict[str, torch.Tensor]:
    """C x D for `single CRITERION`, `top three CRITERION` and `dense`."""
    lines = {}
    for name, ranked in picks.items():
        lines[f"single {name}"] = _units(steering, [some[:1] for some in ranked])
        lines[f"top three {name}"] = _units(steering, [some[:3] for some in ranked])
    return lines | {"dense": steering.found.dense_CD[steering.number_C].cpu()}


def _run(
    steering: Steering, what: str, texts: Texts, lines: dict[str, torch.Tensor], at: Positions
) -> dict[str, np.ndarray]:
    """Changes T x C x P x W under each of the lines."""
    count = len(steering.names)
    all_JD = torch.cat(list(lines.values()))
    change_TJPW = steering.changes(what, texts, all_JD, steering.lengths(len(all_JD)), at)
    return {name: change_TJPW[:, n * count : (n + 1) * count] for n, name in enumerate(lines)}


def _controls(steering: Steering, singles: list[int]) -> tuple[dict[str, torch.Tensor], dict[str, np.ndarray]]:
    """Random directions and features matched with each concept's own; and whose they are. Nothing chose among them."""
    found, count = steering.found, len(singles)
    matches = matched(found.dictionary, found.scale, singles, found.free, CONTROLS_EACH)
    every = [[int(feature)] for some in matches for feature in some]
    random_KD = random_units(CONTROLS_EACH * count, found.dictionary.d_in, SEED)
    owners = {
        "random": np.repeat(np.arange(count), CONTROLS_EACH),
        "matched": np.array([c for c, some in enumerate(matches) for _ in some], np.int64),
    }
    return {"random": random_KD, "matched": _units(steering, every)}, owners


def _fluency(steering: Steering, lines: dict[str, torch.Tensor], at: int) -> dict[str, Any]:
    """Median perplexity and repetition of what is written, kind by kind and dose by dose; one example a concept."""
    found = steering.found
    ids = prompt_ids(found.model, PROMPT, raw=False)
    all_JD = torch.cat(list(lines.values()))
    vectors_ND = (all_JD[:, None] * torch.from_numpy(steering.lengths(len(all_JD))).float()[..., None]).flatten(0, 1)
    vectors_ND = torch.cat([torch.zeros_like(vectors_ND[:1]), vectors_ND])
    with Progress("steering: write", len(vectors_ND), "continuations") as bar:
        written = continuations(
            found.model, found.dictionary.block, ids, vectors_ND, found.special, "all", TOKENS, 0.0, SEED, bar.advance
        )
    own, rest = written[0], iter(written[1:])
    kinds = {name: [[next(rest) for _ in DOSES] for _ in unit_KD] for name, unit_KD in lines.items()}

    def medians(some: list[Any]) -> dict[str, Any]:
        perplexity = [one.perplexity for one in some if one.perplexity is not None]
        return {
            "perplexity": float(np.median(perplexity)) if perplexity else None,
            "repetition": float(np.median([one.repetition for one in some])),
            "n": len(some),
        }

    by_dose = {name: [medians([row[p] for row in rows]) for p in range(len(DOSES))] for name, rows in kinds.items()}
    examples = {
        name: {concept: kinds[name][c][at].text for c, concept in enumerate(steering.names)}
        for name in lines
        if name not in ("random", "matched")
    }
    return {
        "prompt": PROMPT,
        "tokens": TOKENS,
        "unsteered": medians([own]) | {"text": own.text},
        "medians": by_dose,
        "examples_dose": DOSES[at],
        "examples": examples,
    }


def _confusion(steering: Steering, texts: Texts, features: list[int], picture: Path) -> dict[str, Any]:
    """Every concept steered and every word read, for the features of concepts.parquet and the dense vectors."""
    found = steering.found
    tree, concepts = found.tree(), found.concepts.concepts
    order = sorted(range(len(concepts)), key=lambda n: (concepts[n].family or "", concepts[n].name))
    single_CD = _units(steering, [[feature] for feature in features])
    units = {"single chosen": single_CD, "dense": found.dense_CD.cpu()}
    vectors_ND = torch.cat(list(units.values())) * (CONFUSED_AT * found.scale.norm)
    picked = [
        *np.flatnonzero(texts.concept_T >= 0)[: CONFUSED // 2],
        *np.flatnonzero(texts.concept_T < 0)[: CONFUSED // 2],
    ]
    total = np.zeros((len(vectors_ND), len(concepts)))
    with Progress("steering: all concepts", len(picked) * len(vectors_ND), "additions") as bar:
        for t in picked:
            at = site(found.upper, tree, texts.ids[t], found.special, "all")
            total += word_changes(found.upper, tree, at, vectors_ND, bar.advance) / len(picked)
    result: dict[str, Any] = {"dose": CONFUSED_AT, "texts": len(picked), "chance": 1 / len(concepts)}
    drawn = {}
    for n, name in enumerate(units):
        change_CC = total[n * len(concepts) : (n + 1) * len(concepts)]
        # Less what any steering does to a word, and less what this steering does to all words.
        centred_CC = change_CC - change_CC.mean(0)
        centred_CC -= centred_CC.mean(1, keepdims=True)
        rank_C = 1 + (centred_CC > np.diag(centred_CC)[:, None]).sum(1)
        raw_rank_C = 1 + (change_CC > np.diag(change_CC)[:, None]).sum(1)
        family = [one.family for one in concepts]
        kin = [
            family[int(row.argmax())] is not None and family[int(row.argmax())] == family[c]
            for c, row in enumerate(centred_CC)
        ]
        kin_chance = np.mean([family.count(one) / len(family) if one is not None else 0 for one in family])
        result[name] = {
            "share_whose_word_rises_most": float((raw_rank_C == 1).mean()),
            "share_less_what_all_raise": float((rank_C == 1).mean()),
            "median_rank_less_what_all_raise": float(np.median(rank_C)),
            "share_whose_family_rises_most": float(np.mean(kin)),
            "share_whose_family_rises_most_by_chance": float(kin_chance),
            "concepts": {
                one.name: {
                    "rank": int(rank_C[c]),
                    "rises_most": [concepts[w].name for w in np.argsort(-centred_CC[c])[:3]],
                }
                for c, one in enumerate(concepts)
            },
        }
        drawn[name] = centred_CC[np.ix_(order, order)]
    confusion_picture(drawn, [concepts[n].name for n in order], picture, f"dose {CONFUSED_AT:g} of the residual norm")
    return result | {"picture": picture.name}


def measured(asked: Asked) -> dict[str, Any]:
    """All figures of this section; writes RUN/validity/steering.png too."""
    scenarios = scenarios_by_concept()
    found = bench(asked.run, asked.dictionary, SEED)
    lacking = set(scenarios) - {one.name for one in found.concepts.concepts}
    if lacking:
        return {"skipped": f"the concept set has no '{min(lacking)}', which the built-in scenarios show"}
    steering = Steering(found, list(scenarios))
    choosing, reporting = halves(found, scenarios)
    chosen_all = read_table(asked.run / "labels" / asked.dictionary / "concepts.parquet")["feature"].to_pylist()
    auroc_CF = selection_auroc(asked, found, steering.number_C)
    picks = unscreened(asked, found, steering.number_C, chosen_all, auroc_CF)
    picks |= screened(steering, choosing, picks, auroc_CF)
    lines = _lines(steering, picks)
    choose = {
        name: score(own_change(change, choosing))
        for name, change in _run(steering, "choose", choosing, lines, "all").items()
    }
    chosen = {
        kind: best(
            {name: choose[name] for name in ([f"{kind} {one}" for one in READING] if kind != "dense" else [kind])}
        )
        for kind in ("single", "top three", "dense")
    }
    found_all = _run(steering, "report", reporting, lines, "all")
    own = {name: own_change(change, reporting) for name, change in found_all.items()}
    # The best of dozens of tries has no p against the chance of one.
    reported = {
        name: {key: value for key, value in score(one).items() if "screened" not in name or key != "p_against_chance"}
        for name, one in own.items()
    }
    names = {kind: name for kind, (name, _) in chosen.items()}
    singles = [some[0] for some in picks[names["single"].removeprefix("single ")]]
    controls, owners = _controls(steering, [some[0] for some in picks["chosen"]])
    ran = {
        kind: steering.changes(kind, reporting, unit_KD, steering.lengths(len(unit_KD)))
        for kind, unit_KD in controls.items()
    }
    some = {name: lines[name] for name in names.values()}
    prompt_alone = {
        name: score(own_change(change, reporting))
        for name, change in _run(steering, "the text alone", reporting, some, "prompt").items()
    }
    return {
        "concepts": steering.names,
        "chance": 1 / len(steering.names),
        "doses_of_residual_norm": list(DOSES),
        "residual_norm": found.scale.norm,
        "texts": {
            half: {"scenarios_of_others": int((one.concept_T >= 0).sum()), "neutral": int((one.concept_T < 0).sum())}
            for half, one in (("choosing", choosing), ("reporting", reporting))
        },
        "criteria": CRITERIA,
        "criteria_chosen_among": list(READING),
        "features": {name: dict(zip(steering.names, ranked, strict=True)) for name, ranked in picks.items()},
        "chosen": {
            kind: {
                "line": name,
                "dose": DOSES[p],
                "share_on_choosing_texts": choose[name]["share_whose_word_rises_most"][p],
                **{key: value[p] for key, value in reported[name].items()},
            }
            for kind, (name, p) in chosen.items()
        },
        "reported": reported,
        "choosing": choose,
        "text_alone": prompt_alone,
        "in_own_99th_percentiles": _in_p99(steering, reporting, singles),
        "controls": against_controls(reporting, {name: own[name] for name in UNSCREENED}, ran, owners),
        "trends": {UNSCREENED[0]: trends(reporting, found_all[UNSCREENED[0]], ran, steering.names, DOSES)},
        "words": {name: own[name][:, chosen[kind][1]].round(4).tolist() for kind, name in names.items()},
        "fluency": _fluency(
            steering, some | {kind: unit_KD[:FLUENT] for kind, unit_KD in controls.items()}, chosen["single"][1]
        ),
        "all_concepts": _confusion(
            steering, reporting, [int(one) for one in chosen_all], asked.run / "validity" / "steering.png"
        ),
    }


def _in_p99(steering: Steering, texts: Texts, singles: list[int]) -> dict[str, Any]:
    """The single features again, each dosed by its own 99th percentile; nothing where one is silent in the general text."""
    found = steering.found
    silent = [feature for feature in singles if not found.scale.active_F[feature]]
    if silent:
        return {"skipped": f"feature {silent[0]} never fires in the general text"}
    own = [of_features(found.dictionary, found.scale, [feature], "p99") for feature in singles]
    length_CP = np.array([[dose * one.length for dose in P99_DOSES] for one in own])
    change = steering.changes("own percentiles", texts, torch.stack([one.unit_D for one in own]), length_CP)
    shares = (length_CP / found.scale.norm).mean(0).tolist()
    return {"doses": list(P99_DOSES), "mean_share_of_residual_norm": shares} | score(own_change(change, texts))
