"""A steering as text for a terminal; a pure function of what `steer` returns, which `--json` prints as it is."""

import textwrap
from collections.abc import Sequence
from statistics import median

from sae_emotions.lookup.text import columns, number, p_value, table
from sae_emotions.steering.fluency import GRAM, Continuation
from sae_emotions.steering.steer import Dose, Line, Steered

RISEN = 5
"""words named at each dose"""


def _highest(lines: Sequence[Line]) -> str:
    effects = [one.effect for one in lines if one.effect is not None]
    return number(max(effects), 2) if effects else "–"


def _row(one: Dose) -> list[str]:
    written = one.features.continuation
    perplexity = None if written is None else written.perplexity
    risen = sorted(one.words, key=lambda name: -one.words[name])[:RISEN]
    return [
        f"{one.dose:g}",
        number(one.share_of_norm, 2),
        number(one.features.effect, 2),
        number(None if one.dense is None else one.dense.effect, 2),
        _highest(one.random),
        _highest(one.matched),
        p_value(one.p),
        "–" if one.rank is None else str(one.rank),
        number(perplexity, 1),
        number(None if written is None else written.repetition, 2),
        ", ".join(f"{name} {one.words[name]:+.1f}" for name in risen),
    ]


_HEAD = (
    "dose",
    "of norm",
    "effect",
    "dense",
    "random",
    "matched",
    "p",
    "rank",
    "perplexity",
    "repeats",
    "words that rise most",
)


def _paragraph(head: str, found: Continuation, width: int) -> str:
    said = " ".join(found.text.split()) or "(nothing)"
    return textwrap.fill(said, width, initial_indent=f"{head:>10}  ", subsequent_indent=" " * 12)


def _beside(one: Dose) -> str:
    """Median perplexity and repetition of what stands beside the features at a dose."""
    parts = []
    for kind, lines in (("dense vector", [one.dense]), ("random", one.random), ("matched", one.matched)):
        said = [line.continuation for line in lines if line is not None and line.continuation is not None]
        perplexity = [each.perplexity for each in said if each.perplexity is not None]
        if perplexity:
            repeats = median(each.repetition for each in said)
            parts.append(f"{kind} {number(median(perplexity), 1)} and {number(repeats, 2)} (n = {len(said)})")
    return f"Perplexity and repeats at dose {one.dose:g}, medians: {', '.join(parts)}." if parts else ""


def steer_text(found: Steered) -> str:
    """The whole result: a table over doses, what was tested, and what was written."""
    width = columns()
    names = [f"{one} ({label or 'unlabelled'})" for one, label in zip(found.features, found.labels, strict=True)]
    unit = "of the mean residual norm" if found.unit == "norm" else "of the features' own 99th percentile"
    where = "prompt, readout and written tokens" if found.positions == "all" else "the prompt alone"
    head = (
        f"{found.dictionary}, block {found.block}: feature{'s' * (len(names) > 1)} {', '.join(names)} added at every position "
        f"of {where}; doses in units {unit} (1 is {found.length:.1f}; that norm is {found.residual_norm:.1f})."
    )
    parts = [textwrap.fill(head, width), table(_HEAD, [_row(one) for one in found.doses], frozenset({len(_HEAD) - 1}))]
    texts = f"{len(found.prompts)} prompt{'s' * (len(found.prompts) > 1)}"
    if found.concept is None:
        about = f"No label among these features, so no target: name one with --concept. Words after '{found.readout.strip()}'."
    else:
        count = len(found.doses[0].random), len(found.doses[0].matched)
        about = (
            f"effect: nats by which '{found.concept}' after '{found.readout.strip()}' rises more than other one-token words, "
            f"mean of {texts}; random, matched: the largest of {count[0]} random directions and {count[1]} matched "
            "unlabelled features, equally long; p: rank of the effect among all of those; rank: of the word among all."
        )
    parts.append(textwrap.fill(about, width))
    for name, one in (("features", found.trend), ("dense vector", found.dense_trend)):
        if one is not None:
            parts.append(
                textwrap.fill(
                    f"{name}: slope {one.slope:.2f} nats a dose, p {p_value(one.p_controls)} among the controls' slopes; "
                    f"{one.test}: p {p_value(one.p)} (says that it rises, not that others do not).",
                    width,
                )
            )
    parts += filter(None, [textwrap.fill(_beside(found.doses[-1]), width)])
    written = [_paragraph("unsteered", found.unsteered, width)]
    written += [
        _paragraph(f"{one.dose:g}", one.features.continuation, width)
        for one in found.doses
        if one.features.continuation
    ]
    perplexity = number(found.unsteered.perplexity, 1)
    parts.append(
        f"What it goes on to say (unsteered: perplexity {perplexity}, repeated {GRAM}-grams {found.unsteered.repetition:.2f}):\n"
        + "\n".join(written)
    )
    return "\n\n".join(parts)
