"""The drawings of a report, on axes that the caller gives: the page's and the picture's are the same."""

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa

from sae_emotions.report.findings import Causal, Labels
from sae_emotions.report.summary import mean

Axes = Any
ROWS = 40
"""features named in the drawing of causal effects, at most"""


class Palette(NamedTuple):
    """Colours of a drawing, as matplotlib takes them."""

    ink: str
    muted: str
    grid: str
    feature: str
    dense: str
    tfidf: str
    null: str
    causal: str


def tidy(axes: Axes, palette: Palette, grid: str = "x") -> None:
    """No frame but the base line, a faint grid along one axis."""
    for side in ("top", "right", "left"):
        axes.spines[side].set_visible(False)
    axes.spines["bottom"].set_color(palette.grid)
    axes.tick_params(colors=palette.muted, labelcolor=palette.muted, length=0, labelsize=8)
    axes.grid(axis=grid, color=palette.grid, linewidth=0.6)
    axes.set_axisbelow(True)
    axes.patch.set_alpha(0)


def title(axes: Axes, text: str, palette: Palette, pad: float = 8) -> None:
    """A left-aligned title, `pad` points above the axes."""
    axes.set_title(text, loc="left", fontsize=9, color=palette.ink, pad=pad)


def training(axes: Sequence[Axes], table: pa.Table, palette: Palette) -> None:
    """Loss, unexplained variance and dead share against rows seen; one of `axes` each."""
    rows = np.array(table["rows"].to_pylist()) / 1e6
    names = {"loss": "training loss", "fvu": "variance unexplained", "dead": "share of dead latents"}
    for one, (name, text) in zip(axes, names.items(), strict=True):
        values = np.array(table[name].to_pylist(), dtype=float)
        one.plot(rows, values, color=palette.feature, linewidth=1.2)
        tidy(one, palette, "y")
        title(one, text, palette)
        one.set_xlabel("million rows", fontsize=8, color=palette.muted)
        shown = values[np.isfinite(values)]
        if len(shown):
            # The first steps are far above all others and would flatten the curve.
            top = max(float(np.quantile(shown, 0.97)) * 1.15, 0.01)
            one.set_ylim(0 if name != "loss" else max(0.0, float(shown.min()) - 0.1 * (top - float(shown.min()))), top)


def auroc_histogram(axes: Axes, labels: Labels, palette: Palette) -> None:
    """Held-out AUROC of the feature chosen for each concept; permuted labels beside it where they were kept."""
    bins = np.arange(0.2, 1.0001, 0.025)
    every = [one["auroc_held_out"] for one in labels.concepts if one["auroc_held_out"] is not None]
    good = [one["auroc_held_out"] for one in labels.concepts if one["confirmed"]]
    by_cell = labels.null.get("chosen_auroc", {}).values()  # one number a concept and permutation, in the same order
    null = [value for value in map(mean, zip(*by_cell, strict=True)) if value is not None]
    axes.hist(every, bins, color=palette.feature, alpha=0.3, label="all concepts")
    axes.hist(good, bins, color=palette.feature, label="confirmed concepts")
    if null:
        weights = np.full(len(null), len(every) / len(null))
        axes.hist(
            null, bins, weights=weights, histtype="step", color=palette.null, linewidth=1.3, label="permuted labels"
        )
    axes.axvline(0.5, color=palette.muted, linewidth=0.8, linestyle=(0, (3, 3)))
    tidy(axes, palette, "y")
    low = min([0.5, *every, *null])
    axes.set_xlim(max(0.2, np.floor(low * 20) / 20 - 0.025), 1)
    title(axes, "Held-out AUROC of each concept's chosen feature", palette, 22)
    axes.set_xlabel("AUROC, mean over cells (dashed: chance)", fontsize=8, color=palette.muted)
    axes.set_ylabel("concepts", fontsize=8, color=palette.muted)
    axes.yaxis.get_major_locator().set_params(integer=True)
    # Above the axes: the bars may reach every corner.
    look = {"frameon": False, "fontsize": 8, "labelcolor": palette.ink, "handlelength": 1.2, "columnspacing": 1.2}
    axes.legend(loc="lower left", bbox_to_anchor=(-0.02, 0.98), ncols=3, borderpad=0.2, **look)


def null_counts(axes: Axes, labels: Labels, palette: Palette) -> None:
    """Labelled features and confirmed concepts: one dot a permutation, one for the real labels."""
    real = {
        "labelled\nfeatures": (len(labels.labelled), labels.null.get("labelled_features", [])),
        "confirmed\nconcepts": (
            sum(bool(one["confirmed"]) for one in labels.concepts),
            labels.null.get("confirmed_concepts", []),
        ),
    }
    for row, (count, permuted) in enumerate(real.values()):
        times = {value: permuted.count(value) for value in set(permuted)}
        for value, seen in times.items():
            # Area for frequency: equal counts would hide behind each other.
            axes.plot(
                value, row, "o", color=palette.null, markersize=3 + 6 * (seen / len(permuted)) ** 0.5, linestyle=""
            )
        if times:
            value = max(times, key=times.__getitem__)
            text = f"{times[value]} of {len(permuted)}"
            axes.annotate(
                text, (value, row), (0, -13), textcoords="offset points", ha="center", fontsize=7.5, color=palette.muted
            )
        axes.plot(count, row, "o", color=palette.feature, markersize=7)
        axes.annotate(
            f"{count:,}", (count, row), (0, 7), textcoords="offset points", ha="center", fontsize=8, color=palette.ink
        )
    tidy(axes, palette)
    axes.set_yticks(range(len(real)), list(real), color=palette.ink)
    axes.set_ylim(len(real) - 0.6, -0.75)
    largest = max([1, *(count for count, _ in real.values())])
    axes.set_xlim(-0.12 * largest, largest * 1.12)
    axes.set_xlabel("count (grey: permutations of the labels)", fontsize=8, color=palette.muted)
    title(axes, "Real labels against permuted ones", palette, 22)


def baselines(axes: Axes, labels: Labels, palette: Palette) -> None:
    """By cell: how the concepts' AUROC spread for the single feature, the dense vector and TF-IDF."""
    kinds = [
        ("single feature", "auroc", palette.feature),
        ("dense vector", "dense", palette.dense),
        ("TF-IDF", "tfidf", palette.tfidf),
    ]
    ticks = []
    for group, cell in enumerate(labels.cells):
        for row, (text, prefix, colour) in enumerate(kinds):
            y = group * 4 + row
            known = [one[f"{prefix}_{cell}"] for one in labels.concepts if one[f"{prefix}_{cell}"] is not None]
            ticks.append((y, text))
            _spread(axes, y, known, colour, palette)
        values = labels.null.get("chosen_auroc", {}).get(cell)
        centre = mean(values) if values else None
        if centre is not None:
            axes.plot([centre] * 2, [group * 4 - 0.4, group * 4 + 2.4], color=palette.null, linewidth=1.2)
        heading = {"fontsize": 8.5, "weight": "bold", "ha": "right", "va": "center", "color": palette.ink}
        axes.text(-0.008, group * 4 - 0.95, cell, transform=axes.get_yaxis_transform(), **heading)
    axes.axvline(0.5, color=palette.muted, linewidth=0.8, linestyle=(0, (3, 3)))
    tidy(axes, palette)
    axes.set_yticks([y for y, _ in ticks], [text for _, text in ticks], color=palette.ink)
    axes.set_ylim(len(labels.cells) * 4 - 1.2, -1.3)
    axes.set_xlim(right=1.012)
    title(axes, "Held-out AUROC over all concepts", palette)
    axes.set_xlabel("dot: mean; bars: middle 50% and 80% of concepts", fontsize=8, color=palette.muted)


def _spread(axes: Axes, y: float, values: list[float], colour: str, palette: Palette) -> None:
    if not values:
        return
    far_low, low, high, far_high = np.quantile(values, [0.1, 0.25, 0.75, 0.9])
    axes.plot([far_low, far_high], [y, y], color=colour, linewidth=1.4, alpha=0.45, solid_capstyle="butt")
    axes.plot([low, high], [y, y], color=colour, linewidth=5, alpha=0.45, solid_capstyle="butt")
    centre = float(np.mean(values))
    axes.plot(centre, y, "o", color=colour, markersize=5.5, clip_on=False)
    axes.annotate(
        f"{centre:.3f}", (centre, y), (0, 6), textcoords="offset points", ha="center", fontsize=7.5, color=palette.ink
    )


def how(causal: Causal) -> str:
    """What the histogram shows."""
    return "z" if causal.shown == "z" else "z, to first order"


def _largest(causal: Causal) -> float:
    named = [one[causal.shown] for one in causal.tested]
    return max([4.0, *(abs(z) for z in (*causal.z["feature"], *causal.z["control"], *named))])


def scale_z(axes: Axes, causal: Causal) -> None:
    """A linear axis of z, or one that is linear near 0 alone where single features lie far out."""
    largest = _largest(causal)
    if largest > 14:
        from matplotlib.ticker import FixedLocator, NullLocator, ScalarFormatter

        axes.set_xscale("symlog", linthresh=4, linscale=1.2)
        ticks = [z for z in (-300, -100, -30, -10, -4, -2, 0, 2, 4, 10, 30, 100, 300) if abs(z) <= largest * 1.1]
        axes.xaxis.set_major_locator(FixedLocator(ticks))
        axes.xaxis.set_minor_locator(NullLocator())
        axes.xaxis.set_major_formatter(ScalarFormatter())
    axes.set_xlim(-largest * 1.15, largest * 1.15)


def effect_histogram(axes: Axes, causal: Causal, palette: Palette) -> None:
    """z of controls that were judged, and of labelled features, each as a share of its own kind."""
    largest = _largest(causal) * 1.15
    inner = np.arange(-4, 4.001, 0.5)
    bins = np.linspace(-largest, largest, 49)
    if largest > 14 * 1.15:
        outer = np.geomspace(4, largest, 14)[1:]
        bins = np.concatenate([-outer[::-1], inner, outer])
    for kind, text, style in (
        ("control", "matched controls", {"color": palette.null, "alpha": 0.55}),
        ("feature", "labelled features", {"color": palette.causal, "histtype": "step", "linewidth": 1.4}),
    ):
        z = causal.z[kind]
        if z:
            axes.hist(z, bins, weights=np.full(len(z), 100 / len(z)), label=f"{len(z):,} {text}", **style)
    scale_z(axes, causal)
    tidy(axes, palette, "y")
    axes.set_ylabel("% of them", fontsize=8, color=palette.muted)
    axes.set_ylim(top=1.3 * axes.get_ylim()[1])  # room for the legend
    axes.legend(frameon=False, fontsize=8, labelcolor=palette.ink, loc="upper right")
    title(axes, f"Effect of removal on the concept's words, in spreads of matched controls ({how(causal)})", palette)


def effects(axes: Axes, causal: Causal, palette: Palette, rows: int = ROWS) -> None:
    """The removed features by z, causal ones first, on the band that holds 95 % of the held-back controls."""
    tested = sorted(causal.tested, key=lambda one: (one["verdict"] != "causal", one[causal.shown]))[:rows]
    if causal.z["control"]:
        low, high = np.quantile(causal.z["control"], [0.025, 0.975])
        axes.axvspan(low, high, color=palette.null, alpha=0.22, linewidth=0)
    axes.axvline(0, color=palette.muted, linewidth=0.8)
    for y, one in enumerate(tested):
        shown = one["verdict"] == "causal"
        axes.plot(
            [0, one[causal.shown]], [y, y], color=palette.causal if shown else palette.grid, linewidth=1, alpha=0.7
        )
        axes.plot(
            one[causal.shown], y, "o", markersize=5, markeredgewidth=1.1, markeredgecolor=palette.causal,
            markerfacecolor=palette.causal if shown else "none",
        )  # fmt: skip
    scale_z(axes, causal)
    tidy(axes, palette)
    names = [f"{one['concept']}  {one['feature']}" for one in tested]
    axes.set_yticks(range(len(tested)), names, color=palette.ink, fontsize=7.5)
    axes.set_ylim(max(len(tested), 1) - 0.3, -0.7)
    axes.set_xlabel(
        f"{how(causal)}; left: the words become less likely. Filled: causal. Band: 95% of the controls",
        fontsize=8,
        color=palette.muted,
    )
