"""Fill the README's figures from a committed results file: python -m eval.readme [--check].

A block of the README between `<!-- figures: NAME -->` and `<!-- end -->` is made here, from
eval/results/smollm2-135m.json, which `python -m eval.results RUN` makes from a finished run, and from the measurements
beside it (see eval/speed.py).
"""

import re
import sys
from pathlib import Path
from typing import Any

from eval import figures, speed
from sae_emotions.artefact import read_json, written

ROOT = Path(__file__).parents[1]
RESULTS = ROOT / "eval" / "results" / "smollm2-135m.json"
README = ROOT / "README.md"
BLOCK = re.compile(r"(<!-- figures: (\w+) -->\n).*?(<!-- end -->)", re.DOTALL)


def headline(results: dict[str, Any]) -> str:
    """The run in three sentences."""
    one = results["summary"]["dictionaries"][0]
    labels, causal = one["labels"], one.get("causal")
    tokens = results["summary"]["tokens"]
    found = (
        f"On SmolLM2-135M-Instruct, block {one['block']}, a dictionary of {one['d_sae']:,} features trained on "
        f"{tokens:,} tokens of reviews and prose and on the selection set's stories: **{labels['features']} features "
        f"labelled**, {_grains(labels)}, at a false discovery rate of 5 % over the {labels['hypotheses']['tested']:,} "
        f"concepts, families and norms tested, of which {labels['hypotheses']['passed']:,} pass; "
        f"**{labels['confirmed_concepts']} of 171 concepts confirmed** by their one chosen feature; of "
        f"{labels['permutations']} permutations of the labels within topics, {labels['permutations_with_any_label']} let the "
        "same rule label anything. "
    )
    if causal is None:
        return found + "The causal stage of that run is not finished yet.\n"
    share, removed = causal["below_most_controls"], causal["removed"]
    screened = causal["screen"]["limit"] is not None
    some = f"; the {removed} that come out lowest to first order were removed exactly" if screened else ""
    how = ", to first order" if some else ""
    group = (
        ""
        if share is None
        else f"; as a group, {share:.0%} of the tested features lie below the 5th percentile of their controls{how}"
    )
    return found + (
        f"**{causal['confirmed']} of {causal['tested']:,} tested features are causal** ({causal['not_testable']} could not be "
        f"tested{some}), and {causal['controls_confirmed']} of {causal['controls_tested']:,} matched controls by the same "
        f"rule{group}.{_together(causal.get('joint') or {})}\n"
    )


def _together(joint: dict[str, Any]) -> str:
    if not joint.get("tested"):
        return ""
    return (
        f" All labelled features of a concept removed together are causal for **{joint['confirmed']} of {joint['tested']} "
        f"concepts**, and {joint['control_groups_confirmed']} of {joint['control_groups_tested']} control groups."
    )


def _grains(labels: dict[str, Any]) -> str:
    found, untold = labels["grain"], labels["concepts_not_told_from_siblings"]
    names = {
        "concept": f"with one concept ({untold} of them not told from its siblings)",
        "family": "with a family",
        "norm": "with valence or arousal alone",
    }
    return ", ".join(f"{found[kind]} {says}" for kind, says in names.items() if kind in found)


def quality(results: dict[str, Any]) -> str:
    """The dictionary itself."""
    one = results["summary"]["dictionaries"][0]
    return (
        f"The dictionary itself: FVU {one['fvu']:.3f}, L0 {one['l0']:.1f}, dead {one['dead']:.1%}, cross-entropy recovered "
        f"{one['ce_recovered']:.1%}.\n"
    )


def concepts(results: dict[str, Any]) -> str:
    """The first rows of the table that a run ends with."""
    return "```\n" + results["table"].rstrip() + "\n```\n"


def cost(results: dict[str, Any]) -> str:
    """What the run took."""
    minutes = results["summary"]["wall_seconds"] / 60
    stages = ", ".join(f"{name} {seconds / 60:.1f}" for name, seconds in results["summary"]["seconds"].items())
    whole = results["make_run_minutes"]
    also = f"; `time make run` showed {whole:.1f}, installation and downloads included" if whole else ""
    return f"That run's stages took {minutes:.0f} minutes on {results['machine']} (minutes a stage: {stages}){also}.\n"


def commands(results: dict[str, Any]) -> str:
    """What `find` and `read` print."""
    return "".join(f"```\n$ {one['command']}\n{one['output'].rstrip()}\n```\n\n" for one in results["commands"])


OF_RUN = {"headline": headline, "quality": quality, "concepts": concepts, "cost": cost, "commands": commands}
MAKERS = (
    OF_RUN
    | {name: lambda results, make=make: make(results["speed"]) for name, make in speed.MAKERS.items()}
    | {
        name: lambda results, name=name: figures.made(name, results["validity"] | {"run": results})
        for name in figures.MAKERS
    }
)


def read() -> dict[str, Any]:
    """All committed figures."""
    return {**read_json(RESULTS), "speed": speed.read(), "validity": figures.read()}


def filled(text: str, results: dict[str, Any]) -> str:
    """The README's text with every block made anew."""
    return BLOCK.sub(lambda found: found[1] + MAKERS[found[2]](results) + found[3], text)


def main() -> int:
    """Write the README, or with --check say whether it is as this script would write it."""
    results = read()
    text = README.read_text(encoding="utf-8")
    made = filled(text, results)
    if "--check" in sys.argv[1:]:
        if made != text:
            print("README.md differs from eval/results; run: python -m eval.readme")
        return int(made != text)
    with written(README) as beside:
        beside.write_text(made, encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
