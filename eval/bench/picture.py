"""Pictures of a benchmark's figures, drawn from its JSON alone, on a white ground of their own as the report's are."""

from pathlib import Path
from typing import Any

from sae_emotions.artefact import written
from sae_emotions.errors import UserError
from sae_emotions.report import draw as drawing
from sae_emotions.report.picture import PALETTE, PAPER

Axes = Any
KINDS = {"topk": "TopK", "batchtopk": "BatchTopK", "matryoshka": "Matryoshka"}
BAR, HEAD = 0.25, 0.6
"""inches: a bar, and what a panel has above and below its bars"""


def check(path: Path | None) -> None:
    """Raise `UserError` for a picture that is neither .png nor .svg, before anything is measured."""
    if path is not None and path.suffix not in (".png", ".svg"):
        raise UserError(f"A picture ends with .png or .svg, not with '{path.suffix}'.")


def draw(what: str, found: dict[str, Any], path: Path) -> None:
    """Draw the figures of `python -m eval.bench WHAT` into `path`."""
    from matplotlib import rc_context
    from matplotlib.figure import Figure
    from matplotlib.layout_engine import ConstrainedLayoutEngine

    with rc_context({"svg.hashsalt": "picture", "font.family": "DejaVu Sans"}):
        figure = Figure(layout=ConstrainedLayoutEngine(w_pad=0.12, h_pad=0.08, wspace=0.04), facecolor=PAPER)
        {"train": _train, "harvest": _harvest, "scaling": _scaling}[what](figure, found)
        metadata = {"Software": None} if path.suffix == ".png" else {"Date": None, "Creator": None}
        with written(path) as beside:
            figure.savefig(beside, format=path.suffix[1:], dpi=150, facecolor=PAPER, metadata=metadata)


def _train(figure: Any, found: dict[str, Any]) -> None:
    """A row of panels a kind of SAE, a column a number of latents."""
    tables = [table for table in found["tables"] if table["kind"] in KINDS]
    kinds = [kind for kind in KINDS if any(table["kind"] == kind for table in tables)]
    widths = sorted({table["d_sae"] for table in tables})
    heights = [BAR * max(len(table["candidates"]) for table in tables if table["kind"] == kind) for kind in kinds]
    figure.set_size_inches(1.2 + 4.4 * max(1, len(widths)), sum(heights) + HEAD * len(kinds))
    axes = figure.subplots(len(kinds), len(widths), squeeze=False, height_ratios=heights)
    for row, kind in enumerate(kinds):
        for column, d_sae in enumerate(widths):
            shown = [table for table in tables if (table["kind"], table["d_sae"]) == (kind, d_sae)]
            if not shown:
                axes[row][column].set_axis_off()
                continue
            bars(axes[row][column], shown[0]["candidates"], "vectors_per_second")
            drawing.title(axes[row][column], f"{KINDS[kind]}, {d_sae:,} latents: rows a second", PALETTE)


def _harvest(figure: Any, found: dict[str, Any]) -> None:
    figure.set_size_inches(7.6, HEAD + BAR * len(found["candidates"]))
    axes = figure.subplots()
    bars(axes, found["candidates"], "tokens_per_second")
    drawing.title(axes, f"{found['model']} to block {found['block']}: harvested tokens a second", PALETTE)


def bars(axes: Axes, rows: list[dict[str, Any]], key: str) -> None:
    """Horizontal bars, one a candidate in the order given, with their rate and how many times as fast ours is."""
    colours = [_colour(row["name"]) for row in rows]
    rates = [row[key] for row in rows]
    empty = [row["name"].startswith("bounds") for row in rows]
    axes.barh(
        range(len(rows)),
        rates,
        height=0.66,
        color=[PAPER if one else colour for one, colour in zip(empty, colours, strict=True)],
        edgecolor=colours,
        linewidth=1.1,
    )
    for y, row in enumerate(rows):
        text, colour = _ratio(row)
        axes.annotate(
            f"{row[key]:,.0f}{text}",
            (row[key], y),
            (5, 0),
            textcoords="offset points",
            va="center",
            fontsize=8,
            color=colour,
        )
    drawing.tidy(axes, PALETTE)
    axes.grid(visible=False)
    axes.set_xticks([])
    axes.set_yticks(range(len(rows)), [shown(row["name"]) for row in rows], color=PALETTE.ink)
    axes.set_ylim(len(rows) - 0.4, -0.6)
    axes.set_xlim(0, max(rates) * 1.45)


def _ratio(row: dict[str, Any]) -> tuple[str, str]:
    """What stands behind a rate, and its colour: who is faster than ours stands out."""
    ratio = row.get("ours_is_faster_by")
    if ratio is None or row["name"].startswith("ours"):
        return "", PALETTE.ink
    if ratio < 1 and not row["name"].startswith("bounds"):
        return f"  ({1 / ratio:.2f}× as fast as ours)", PALETTE.causal
    return f"  (ours {ratio:.2f}×)" if ratio < 2 else f"  (ours {ratio:.1f}×)", PALETTE.ink


def shown(name: str) -> str:
    """A candidate's name for a reader."""
    return name.replace("bounds", "products alone").replace("_", " ")


def _colour(name: str) -> str:
    if name.startswith("ours"):
        return PALETTE.feature
    return PALETTE.muted if name.startswith("bounds") else PALETTE.null


def _scaling(figure: Any, found: dict[str, Any]) -> None:
    """Time, memory, and cost by latents, side by side; a panel without points is left out."""
    panels = [
        (_times, bool(found["train"] or found["harvest"])),
        (_memory, bool(found["train"] or found["harvest"])),
        (_latents, bool(found["latents"])),
    ]
    shown = [paint for paint, there in panels if there]
    figure.set_size_inches(3.7 * max(1, len(shown)), 3.3)
    axes = figure.subplots(1, max(1, len(shown)), squeeze=False)[0]
    for one, paint in zip(axes, shown, strict=False):
        paint(one, found)


def _series(found: dict[str, Any]) -> list[tuple[str, str, str, list[dict[str, Any]], str]]:
    """Name, colour, key of the count, points and key of the seconds."""
    every = [
        ("training, rows", PALETTE.feature, "rows", found["train"], "seconds_for_all"),
        ("harvest, tokens", PALETTE.tfidf, "tokens", found["harvest"], "seconds"),
    ]
    return [one for one in every if one[3]]


def _times(axes: Axes, found: dict[str, Any]) -> None:
    for name, colour, count, points, seconds in _series(found):
        x, y = [one[count] for one in points], [one[seconds] for one in points]
        axes.plot(x, y, color=colour, linewidth=1.3, label=name)
        for one in points:
            face = colour if one["measured_whole"] else PAPER
            axes.plot(one[count], one[seconds], "o", color=colour, markerfacecolor=face, markersize=5)
    axes.set_xscale("log")
    _log_y(axes)
    _finish(axes, "Seconds by rows or tokens", "hollow: from the rate over a part")


def _memory(axes: Axes, found: dict[str, Any]) -> None:
    for name, colour, count, points, _ in _series(found):
        axes.plot(
            [one[count] for one in points],
            [one["own_bytes"] / 2**30 for one in points],
            "o-",
            color=colour,
            linewidth=1.3,
            markersize=5,
            label=name,
        )
    axes.set_xscale("log")
    axes.set_ylim(0, 1.15 * max(one["own_bytes"] for _, _, _, points, _ in _series(found) for one in points) / 2**30)
    _finish(axes, "Peak memory of the process, GiB", "without mapped files")


def _latents(axes: Axes, found: dict[str, Any]) -> None:
    names = list(dict.fromkeys(row["name"] for point in found["latents"] for row in point["candidates"]))
    styles = {"saelens": "-", "saelens (autocast)": "--", "saelens (sparse)": ":"}
    for name in names:
        points = [
            (point["d_sae"], row["step_ms"])
            for point in found["latents"]
            for row in point["candidates"]
            if row["name"] == name
        ]
        colour = PALETTE.feature if name == "ours" else PALETTE.muted
        axes.plot(
            *zip(*points, strict=True), "o", linestyle=styles.get(name, "-"), color=colour, markersize=4, label=name
        )
    axes.set_xscale("log", base=2)
    _log_y(axes)
    ticks = [point["d_sae"] for point in found["latents"]]
    axes.set_xticks(ticks, [f"{one // 1024}k" if one >= 1024 else str(one) for one in ticks])
    _finish(axes, f"Milliseconds a step of {found['batch']:,} rows", "latents")


def _log_y(axes: Axes) -> None:
    """A logarithmic axis with plain numbers."""
    from matplotlib.ticker import FuncFormatter, LogLocator

    axes.set_yscale("log")
    axes.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    axes.yaxis.set_major_formatter(FuncFormatter(lambda value, place: f"{value:,g}"))


def _finish(axes: Axes, title: str, below: str) -> None:
    axes.minorticks_off()
    drawing.tidy(axes, PALETTE, "y")
    drawing.title(axes, title, PALETTE)
    axes.set_xlabel(below, fontsize=8, color=PALETTE.muted)
    axes.legend(frameon=False, fontsize=8, labelcolor=PALETTE.ink)
