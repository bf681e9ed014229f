"""What RUN/vectors says, as two short tables for the terminal."""

from pathlib import Path
from typing import Any

from sae_emotions.artefact import read_json
from sae_emotions.lookup.text import number, p_value, table

_FIRST = "own concept comes first"


def vectors_table(run: str | Path) -> str:
    """Geometry and read-outs place by place, then every battery's first figure, each with its chance level and n."""
    found = read_json(Path(run) / "vectors" / "vectors.json")
    parts = [_geometry(found), *(_ratings(found, name) for name in found["read_out"]["vectors"]), _batteries(found)]
    parts.append(f"Everything lies in {Path(run) / 'vectors'}: vectors.json holds all figures, each beside its null.")
    return "\n\n".join(part for part in parts if part)


def _arrangements(found: dict[str, Any]) -> list[tuple[str, dict[str, Any]]]:
    """Name and geometry of the arrangements that are shown."""
    shown = [(_named(place), one["arrangements"]["vectors"]) for place, one in found["places"].items()]
    shown.append(("word embeddings", found["places"]["embeddings"]["arrangements"]["words"]))
    if "dictionary" in found:
        block = found["dictionary"]["block"]
        shown += [(f"{kind}, block {block}", one) for kind, one in found["dictionary"]["arrangements"].items()]
    return shown


def _named(place: str) -> str:
    return f"block {place}" if place.isdigit() else f"story {place}"


def _geometry(found: dict[str, Any]) -> str:
    body = []
    for name, one in _arrangements(found):
        cut, variance = one.get("clusters", {}), one.get("explained_variance", [])
        body.append(
            [
                name,
                str(one["n"]),
                number(cut.get("adjusted_rand_index")),
                number(cut.get("permuted_95th_percentile")),
                p_value(cut.get("p")),
                ", ".join(f"{share:.0%}" for share in variance[:3]) or "–",
            ]
        )
    recipe = found["recipe"]
    title = (
        f"{recipe['concepts']} concepts from {recipe['stories']} selection stories; k-means against "
        f"{recipe['clusters_from']} (adjusted Rand index), variance of the leading components"
    )
    return f"{title}\n\n" + table(["vectors", "n", "ARI", "null 95 %", "p", "components"], body, frozenset({0}))


def _ratings(found: dict[str, Any], name: str) -> str:
    """Read-outs and leading components against one set of ratings."""
    body = []
    for dimension, chosen in found["read_out"]["vectors"][name].items():
        if "left_out" in chosen:
            continue
        nulls, labelled = found["read_out"]["embedding-only null"], found["read_out"].get("labelled concepts", {})
        own = "vectors, "
        rows = {place.removeprefix(own): one for place, one in chosen["places"].items() if place.startswith(own)}
        rows |= {f"chosen within the folds: {group}": one for group, one in chosen["chosen_within_folds"].items()}
        for others in (nulls, labelled):
            rows |= others.get(name, {}).get(dimension, {}).get("places", {})
        leading = {
            label.partition(", ")[0]: one["components_against_ratings"][name][dimension]
            for label, one in _arrangements(found)
            if "components_against_ratings" in one
        }
        for label, one in rows.items():
            best: dict[str, Any] = leading.get(label, {})
            shown = f"{best['best_abs_r']:.3f} (component {best['best_component']})" if "best_abs_r" in best else "–"
            body.append([dimension, label, str(one["n"]), number(one["r"]), p_value(one["p"]), shown])
    if not body:
        return ""
    header = ["", "vectors", "n", "ridge r", "p", "best |r| of a leading component"]
    return f"Ratings '{name}': ridge read-out cross-validated over words\n\n" + table(header, body, frozenset({0, 1}))


def _batteries(found: dict[str, Any]) -> str:
    columns = {_named(place): one["batteries"] for place, one in found["places"].items()}
    columns |= found.get("dictionary", {}).get("batteries", {})
    body = []
    for battery, scores in next(iter(columns.values())).items():
        for n, one in enumerate(scores):
            if one["measure"].startswith(_FIRST) and battery != "scenarios":
                continue
            chance = f"{one['chance']:.3f}"
            body.append(
                [battery, f"{one['measure']} ({one['place']})", str(one["n"]), chance]
                + [number(column[battery][n]["score"]) for column in columns.values()]
            )
    if not body:
        return ""
    short = [name.replace(" of chosen features", "") for name in columns]
    return "Batteries\n\n" + table(["", "measure", "n", "chance", *short], body, frozenset({0, 1}))
