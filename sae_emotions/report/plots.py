"""The page's plots as inline SVG that takes colours and font from the page, so that it is read by day and night."""

import io
import re
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pyarrow as pa

from sae_emotions.report import draw
from sae_emotions.report.findings import Causal, Labels

# Colours that no drawing would use stand for the page's own: they are put in after matplotlib has written the SVG.
_STANDS_FOR = {name: f"#0102{number:02x}" for number, name in enumerate(draw.Palette._fields, start=16)}
PALETTE = draw.Palette(**_STANDS_FOR)


@contextmanager
def figure(width: float, height: float, **grid: Any) -> Iterator[tuple[Any, Any, list[str]]]:
    """A figure of `width` x `height` inches with its axes, and a list that holds its SVG at the end."""
    from matplotlib import rc_context
    from matplotlib.figure import Figure

    made: list[str] = []
    with rc_context({"svg.fonttype": "none", "svg.hashsalt": "report", "font.family": "DejaVu Sans"}):
        drawn = Figure(figsize=(width, height), layout="constrained")
        yield drawn, drawn.subplots(squeeze=False, **grid), made
        buffer = io.StringIO()
        drawn.savefig(buffer, format="svg", transparent=True, metadata={"Date": None, "Creator": None})
    made.append(_inline(buffer.getvalue()))


def training(table: pa.Table) -> str:
    """Loss, unexplained variance and dead latents over training."""
    with figure(7.6, 2.1, ncols=3) as (_, axes, made):
        draw.training(axes[0], table, PALETTE)
    return made[0]


def null(labels: Labels) -> str:
    """AUROC of the chosen features, and counts against permuted labels."""
    with figure(7.6, 2.7, ncols=2, width_ratios=[3, 2]) as (_, axes, made):
        draw.auroc_histogram(axes[0][0], labels, PALETTE)
        draw.null_counts(axes[0][1], labels, PALETTE)
    return made[0]


def baselines(labels: Labels) -> str:
    """Single features beside the dense vector and TF-IDF, cell by cell."""
    with figure(7.6, 0.7 + 1.05 * len(labels.cells)) as (_, axes, made):
        draw.baselines(axes[0][0], labels, PALETTE)
    return made[0]


def effects(causal: Causal) -> str:
    """Causal effects against controls: both distributions, and the strongest features by name."""
    tested = min(len(causal.tested), draw.ROWS)
    below = 0.6 + 0.19 * max(tested, 2)
    with figure(7.6, 1.9 + below, nrows=2, height_ratios=[1.9, below], sharex=True) as (_, axes, made):
        draw.effect_histogram(axes[0][0], causal, PALETTE)
        draw.effects(axes[1][0], causal, PALETTE)
    return made[0]


def _inline(svg: str) -> str:
    """Only the element itself, scaling with the page, with the page's colours and font, and ids of its own."""
    svg = svg[svg.index("<svg") :].strip()
    svg = re.sub(r"<metadata>.*?</metadata>", "", svg, flags=re.DOTALL)
    for name, colour in _STANDS_FOR.items():
        svg = svg.replace(colour, f"var(--{name})")
    svg = svg.replace("font-family: 'DejaVu Sans'", "font-family: var(--font)")
    svg = re.sub(r"<style.*?</style>", "", svg, flags=re.DOTALL)
    head, _, rest = svg.partition(">")
    head = re.sub(r' (width|height|version|xmlns(:xlink)?)="[^"]*"', "", head)
    return f'{head} aria-hidden="true" focusable="false">{rest}'


def with_own_ids(svg: str, prefix: str) -> str:
    """All ids of an SVG, and what points to them, with `prefix`: several may stand on one page."""
    svg = re.sub(r'\bid="([^"]+)"', rf'id="{prefix}\1"', svg)
    svg = re.sub(r"url\(#([^)]+)\)", rf"url(#{prefix}\1)", svg)
    return re.sub(r'xlink:href="#([^"]+)"', rf'href="#{prefix}\1"', svg)
