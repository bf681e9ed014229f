"""The table that ends a run on the terminal."""

from pathlib import Path

from sae_emotions.lookup.text import number, p_value, table
from sae_emotions.report.findings import Found, gather
from sae_emotions.report.summary import causal_numbers, label_numbers
from sae_emotions.run_folder import config_of


def final_table(run: str | Path, concepts: int = 12) -> str:
    """Top concepts of every dictionary: feature, held-out AUROC, q, causal verdict; and the counts beside the null."""
    found = gather(config_of(Path(run)), Path(run))
    return "\n\n".join(_dictionary(one, concepts) for one in found.dictionaries)


def _dictionary(one: Found, concepts: int) -> str:
    title = f"{one.name} (block {one.block})"
    if one.labels is None:
        return f"{title}: not labelled yet"
    cells, labels = one.labels.cells, one.labels
    confirmed = [concept for concept in labels.concepts if concept["confirmed"]]
    header = ["concept", "feature", "AUROC", *cells, "q", "causal"]
    body = [
        [
            concept["concept"],
            str(concept["feature"]),
            number(concept["auroc_held_out"]),
            *(number(concept[f"auroc_{cell}"]) for cell in cells),
            p_value(concept["q"]),
            concept["verdict"] or "–",
        ]
        for concept in confirmed[:concepts]
    ]
    lines = [table(header, body, frozenset({0})) if body else "No concept is confirmed."]
    if len(confirmed) > concepts:
        lines[0] += f"\n… and {len(confirmed) - concepts} more confirmed concepts"
    counts = label_numbers(labels)
    lines.append(
        f"{counts['features']} labelled features, {counts['concepts']} concepts among them that pass by themselves, and "
        f"{counts['confirmed_concepts']} confirmed concepts of {len(labels.concepts)}; permuted labels give "
        f"{number(counts['null_features'], 2)} labelled features on average ({counts['permutations'] or 0} permutations)."
    )
    if one.causal:
        causal = causal_numbers(one.causal)
        lines.append(
            f"{causal['confirmed']} of {causal['tested']} tested features are causal, "
            f"{_count(causal['controls_confirmed'])} of {causal['controls_tested']} matched controls by the same "
            f"rule; {causal['not_testable']} features are not testable."
            + ("" if one.causal.shown == "z" else _run(causal["removed"]))
        )
    return "\n".join([title, "", *lines])


def _run(removed: int) -> str:
    return f" The {removed} of lowest first-order z were removed exactly (`ablate.features`)."


def _count(value: int | None) -> str:
    return "an unknown number" if value is None else str(value)
