"""The README's figures on speed, from eval/results/speed-*.json, which `python -m eval.bench` writes."""

from pathlib import Path
from typing import Any

from eval.bench.checks import sentence
from sae_emotions.artefact import read_json

FOLDER = Path(__file__).parent / "results"
KINDS = {"topk": "TopK", "batchtopk": "BatchTopK", "matryoshka": "Matryoshka"}
COMMANDS = {
    "train": "--run runs/demo --kinds topk batchtopk matryoshka family --rounds 3 --vectors 102400",
    "harvest": "",
    "encode": "--run runs/demo",
    "scaling": "--run runs/demo --whole 10000000 --harvest 10000 30000 --peers ours saelens --rounds 2",
}


def read() -> dict[str, Any]:
    """All measurements: train, harvest, encode and scaling."""
    return {what: read_json(FOLDER / f"speed-{what}.json") for what in COMMANDS}


def command(what: str) -> str:
    """The command that makes a measurement's files."""
    picture = "" if what == "encode" else f" --picture eval/results/speed-{what}.png"
    return " ".join(
        f"python -m eval.bench {what} {COMMANDS[what]} --json eval/results/speed-{what}.json{picture}".split()
    )


def machine(found: dict[str, Any]) -> str:
    """What a measurement ran on, in words."""
    facts = found["machine"]
    if facts["cuda"]:
        return f"one {facts['cuda'][0]['name']}"
    units = (("AMX", "amx_bf16"), ("AVX-512-BF16", "avx512_bf16"), ("AVX-512", "avx512"), ("AVX2", "avx2"))
    names = [name for name, key in units if facts[key]]
    cores, threads = facts["cores"], facts["torch_threads"]
    used = f"{threads} of {cores} cores" if threads < cores else f"{cores} cores"
    return f"{used} with {names[0] if names else 'no wide vector unit'}"


NAMES = {
    "ours": "**ours**",
    "ours (forward)": "ours, rows kept in memory",
    "saelens": "SAELens",
    "saelens (autocast)": "SAELens (autocast)",
    "saelens (sparse)": "SAELens (sparse)",
    "bounds (lb2)": "*a sparse step's products without a screen, alone*",
    "bounds (bf16)": "*the model's products alone*",
    "bounds (fp32)": "*the model's products alone*",
    "transformers (plain)": "transformers, a hook, to the last logit",
    "transformers (bf16)": "transformers, stopped at the block",
    "transformers (fp32)": "transformers, stopped at the block",
    "transformers (compiled)": "transformers, cut at the block and compiled",
    "dictionary_learning (bf16)": "dictionary_learning",
}
"""a candidate's name for a reader, where it is another than its own"""


def ratio(row: dict[str, Any]) -> str:
    """How many times as fast ours is, in bold where a library is faster than ours."""
    if row["name"].startswith("ours"):
        return ""
    times = row["ours_is_faster_by"]
    if times < 1 and not row["name"].startswith("bounds"):
        return f"**{1 / times:.2f}x as fast as ours**"
    return f"{times:.2f}x" if times < 2 else f"{times:.1f}x"


def train(speed: dict[str, Any]) -> str:
    """Training steps, one table for all kinds and numbers of latents."""
    found = speed["train"]
    tables = [table for table in found["tables"] if table["kind"] in KINDS]
    widths = sorted({table["d_sae"] for table in tables})
    head = "".join(f" {width:,} latents | ours is faster by |" for width in widths)
    lines = [f"| rows trained a second |{head}", "|---|" + "---|" * 2 * len(widths)]
    for kind, title in KINDS.items():
        here = {
            table["d_sae"]: {row["name"]: row for row in table["candidates"]}
            for table in tables
            if table["kind"] == kind
        }
        for name in dict.fromkeys(name for rows in here.values() for name in rows):
            cells = [here.get(width, {}).get(name) for width in widths]
            text = " | ".join(f"{row['vectors_per_second']:,.0f} | {ratio(row)}" if row else " | " for row in cells)
            lines.append(f"| {title}: {NAMES.get(name, name)} | {text} |")
    one = tables[0]
    settings = f"{one['batch']:,} rows a step, k {one['k']}, on {machine(found)}"
    allocator = "; glibc told to keep what is freed, for all alike" if found["allocator_tuned"] else ""
    return "\n".join(
        [
            *lines,
            "",
            f"Medians of steps taken in turns: {settings}{allocator}.",
            "",
            *_quality(found["equal_data"]),
            *_checks(found),
            "",
        ]
    )


def _quality(tables: list[dict[str, Any]]) -> list[str]:
    """Unexplained variance after the same number of rows, where it was measured."""
    lines = []
    for table in tables:
        found = [f"{NAMES.get(name, name).strip('*')} {one['fvu']:.4f}" for name, one in table["quality"].items()]
        what = f"{KINDS[table['kind']]}, {table['d_sae']:,} latents"
        lines.append(f"* {what}, variance unexplained after {table['after']:,} rows: {', '.join(found)}")
    return lines


def harvest(speed: dict[str, Any]) -> str:
    """The harvest, with shares of what the products allow and errors."""
    found = speed["harvest"]
    lines = [
        "| tokens harvested a second | type | | ours is faster by | share of its products | relative error |",
        "|---|---|---|---|---|---|",
    ]
    names = NAMES | {"saelens": "SAELens' store, its defaults", "saelens (best)": "SAELens' store, faster settings"}
    for row in found["candidates"]:
        share = f"{row['share_of_products']:.0%}" if "share_of_products" in row else ""
        error = f"{row['relative_error']:.4f}" if "relative_error" in row else ""
        rate = f"{row['tokens_per_second']:,.0f}"
        lines.append(
            f"| {names.get(row['name'], row['name'])} | {row['type']} | {rate} | {ratio(row)} | {share} | {error} |"
        )
    lines += [f"| {one['name']} | | not run: {one['reason']} | | | |" for one in found["skipped"]]
    return "\n".join(
        [
            *lines,
            "",
            f"The recipe's model to block {found['block']}, the same windows of {found['context']} tokens for all, on "
            f"{machine(found)}. Ours ends with rows on disk as int8, the others with rows in memory. The error is that of the "
            "rows against transformers in float32; the share is against products of the same type.",
            "",
        ]
    )


def encode(speed: dict[str, Any]) -> str:
    """Encoding, scoring and the store in a few sentences."""
    found = speed["encode"]
    disk, encoded, scored = found["store"], found["encoding"], found["scoring"]
    return "\n".join(
        [
            f"Encoding: {encoded['rows_per_second']:,.0f} rows a second with {encoded['latents']:,} latents. Scoring "
            f"{scored['concepts']} concepts with baselines and {scored['permutations']} permutations: "
            f"{scored['seconds']:.1f} s. The store: {disk['bytes_per_row']:,.0f} bytes a row, "
            f"{disk['vectors_per_second'] / 1e6:.2f} million rows a second in shuffled order once they are in memory "
            f"({machine(found)}).",
            "",
            *_checks(found),
            "",
        ]
    )


def scaling(speed: dict[str, Any]) -> str:
    """What grows with tokens and with latents."""
    found = speed["scaling"]
    return "\n".join(
        [
            "| | time | memory of its own | with mapped files | how |",
            "|---|---|---|---|---|",
            *(_train_row(point) for point in found["train"]),
            *(_harvest_row(point) for point in found["harvest"]),
            "",
            *_checks(found),
            "",
            *_latents(found),
        ]
    )


def _train_row(point: dict[str, Any]) -> str:
    how = (
        "whole"
        if point["measured_whole"]
        else f"trained on {point['trained']:,} rows drawn from all, in {point['seconds']:,.0f} s, and read "
        f"{point['read_only']:,} more; the time has the others at the steps' pace"
    )
    return f"| train, {point['rows']:,} rows | {point['seconds_for_all']:,.0f} s | {_memory(point)} | {how} |"


def _harvest_row(point: dict[str, Any]) -> str:
    how = f"whole, {point['shards']} shards"
    return f"| harvest, {point['tokens']:,} tokens | {point['seconds']:,.0f} s | {_memory(point)} | {how} |"


def _memory(point: dict[str, Any]) -> str:
    return " | ".join(f"{point[name] / 2**30:.2f} GiB" for name in ("own_bytes", "mapped_bytes"))


def _latents(found: dict[str, Any]) -> list[str]:
    if not found["latents"]:
        return []
    names = list(dict.fromkeys(row["name"] for point in found["latents"] for row in point["candidates"]))
    lines = [
        f"| ms a step of {found['batch']:,} rows |" + "".join(f" {point['d_sae']:,} |" for point in found["latents"]),
        "|---|" + "---|" * len(found["latents"]),
    ]
    for name in names:
        cells = []
        for point in found["latents"]:
            row = next((row for row in point["candidates"] if row["name"] == name), None)
            cells.append(f"{row['step_ms']:,.0f}" if row else "does not fit into memory")
        lines.append(f"| {NAMES.get(name, name)} | {' | '.join(cells)} |")
    return [*lines, ""]


def _checks(found: dict[str, Any]) -> list[str]:
    """The claims of a measurement, each with what was found."""
    lines = [sentence(one) for one in found["checks"]]
    return [f"* {line[0].upper()}{line[1:]}" for line in lines]


def commands(speed: dict[str, Any]) -> str:
    """The commands behind all of it."""
    return "```\n" + "\n".join(command(what) for what in COMMANDS) + "\n```\n"


MAKERS = {
    "speed_train": train,
    "speed_harvest": harvest,
    "speed_encode": encode,
    "speed_scaling": scaling,
    "speed_commands": commands,
}
