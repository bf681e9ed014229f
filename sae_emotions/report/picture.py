"""One picture that shows a run at a glance: how well single features read, and whether they cause anything."""

from pathlib import Path
from typing import Any

from sae_emotions.artefact import written
from sae_emotions.errors import UserError
from sae_emotions.report import draw
from sae_emotions.report.findings import Causal, Labels, gather
from sae_emotions.report.summary import label_numbers
from sae_emotions.run_folder import config_of

PAPER = "#ffffff"
PALETTE = draw.Palette(
    ink="#1d2125", muted="#5d666e", grid="#d9dbd6", feature="#1f6f8b", dense="#6d5a9c", tfidf="#a4731a",
    null="#8d959b", causal="#b8432f",
)  # fmt: skip
FEATURES = 14
"""features named in the picture"""


def picture(run: str | Path, path: str | Path, dictionary: str | None = None) -> Path:
    """Draw AUROC beside the baselines, and causal effects against controls where they were tested; returns `path`.

    `path` ends with .png or .svg; the picture has a white ground of its own. The first labelled dictionary is drawn
    unless one is named. Raises `UserError` for another ending, or where that dictionary is not labelled.
    """
    path = Path(path)
    if path.suffix not in (".png", ".svg"):
        raise UserError(f"A picture ends with .png or .svg, not with '{path.suffix}'.")
    found = gather(config_of(Path(run)), Path(run)).dictionaries
    drawn = [one for one in found if one.labels and dictionary in (None, one.name)]
    if not drawn or drawn[0].labels is None:
        raise UserError(f"There is no labelled dictionary{f' {dictionary}' if dictionary else ''} in {run} to draw.")
    labels, causal = drawn[0].labels, drawn[0].causal
    if causal and not causal.tested:
        causal = None
    from matplotlib import rc_context
    from matplotlib.figure import Figure
    from matplotlib.layout_engine import ConstrainedLayoutEngine

    with rc_context({"svg.hashsalt": "picture", "font.family": "DejaVu Sans"}):
        layout = ConstrainedLayoutEngine(w_pad=0.12, h_pad=0.1, wspace=0.04)
        figure = Figure(figsize=(10.5 if causal else 6.5, 4.3), layout=layout, facecolor=PAPER)
        rooms: Any = [["auroc", "spread"], ["auroc", "names"]] if causal else [["auroc"]]
        axes: dict[str, Any] = figure.subplot_mosaic(rooms, height_ratios=[1.1, 2.2][: len(rooms)])
        draw.baselines(axes["auroc"], labels, PALETTE)
        draw.title(axes["auroc"], _title(labels), PALETTE)
        if causal:
            _effects(axes["spread"], axes["names"], causal)
        metadata = {"Software": None} if path.suffix == ".png" else {"Date": None, "Creator": None}
        with written(path) as beside:
            figure.savefig(beside, format=path.suffix[1:], dpi=150, facecolor=PAPER, metadata=metadata)
    return path


def _title(labels: Labels) -> str:
    numbers = label_numbers(labels)
    permuted = "" if numbers["null_features"] is None else f" (permuted labels: {numbers['null_features']:.2f})"
    return f"Held-out AUROC over all {len(labels.concepts)} concepts\n{numbers['features']} labelled features{permuted}"


def _effects(above: Any, below: Any, causal: Causal) -> None:
    draw.effect_histogram(above, causal, PALETTE)
    above.set_title(
        f"Effect of removal on the concept's words ({draw.how(causal)})",
        loc="left", fontsize=9, color=PALETTE.ink,
    )  # fmt: skip
    above.tick_params(labelbottom=False)
    draw.effects(below, causal, PALETTE, FEATURES)
    below.set_xlabel("filled: causal, removed exactly; band: 95% of the controls", fontsize=8, color=PALETTE.muted)
