"""Pictures of steering: a dose-response curve among its controls, every word at every dose, and who raises whose word.

W words, P doses, C concepts. Concepts stand in the order given, which puts those of a family side by side.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from sae_emotions.artefact import written
from sae_emotions.errors import UserError
from sae_emotions.steering.steer import Line, Steered

INK, MUTED, OWN, DENSE, NULL = "#1d2125", "#5d666e", "#1f6f8b", "#6d5a9c", "#8d959b"
NAMED = 16  # words named in a curve's heat map
ROOM = 100  # names that fit beside each other


def check_picture(path: Path) -> None:
    """Raise `UserError` for an ending that no picture has, before anything long is done."""
    if path.suffix != ".png":
        raise UserError(f"A picture of steering ends with .png, not with '{path.suffix}'.")


def _save(figure: Any, path: Path) -> Path:
    check_picture(path)
    with written(path) as beside:
        figure.savefig(beside, format="png", dpi=150, facecolor="white", metadata={"Software": None})
    return path


def _heat(axes: Any, values: np.ndarray, label: str) -> None:
    most = float(np.abs(values).max()) or 1.0
    drawn = axes.imshow(values, cmap="RdBu_r", vmin=-most, vmax=most, aspect="auto", interpolation="nearest")
    bar = axes.figure.colorbar(drawn, ax=axes, pad=0.01)
    bar.set_label(label, fontsize=8, color=MUTED)
    bar.ax.tick_params(labelsize=7)


def steer_picture(found: Steered, path: str | Path) -> Path:
    """Dose-response curve with the controls' range (where there is a concept), above all words' changes at all doses."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(10, 6.4), layout="constrained", facecolor="white")
    panels = ["curve", "words"] if found.concept else ["words"]
    axes: dict[str, Any] = figure.subplot_mosaic([[one] for one in panels])
    if found.concept:
        _curve(axes["curve"], found)
    names = list(found.doses[0].words)
    change_PW = np.array([[one.words[name] for name in names] for one in found.doses])
    shown = named(np.abs(change_PW).max(0))
    _heat(axes["words"], change_PW, "change of log P, nats")
    axes["words"].set_yticks(range(len(found.doses)), [f"{one.dose:g}" for one in found.doses], fontsize=8)
    axes["words"].set_ylabel("dose", fontsize=8, color=MUTED)
    axes["words"].set_xticks(shown, [names[n] for n in shown], rotation=90, fontsize=7)
    axes["words"].set_title(f"All {len(names)} words; those named move most", loc="left", fontsize=9, color=INK)
    return _save(figure, Path(path))


def named(size_W: np.ndarray) -> list[int]:
    """The `NAMED` words of largest `size_W` whose names do not cover a larger one's, ascending."""
    found: list[int] = []
    for word in np.argsort(-size_W, kind="stable").tolist():
        if len(found) < NAMED and all(abs(word - other) * ROOM >= len(size_W) for other in found):
            found.append(word)
    return sorted(found)


def _curve(axes: Any, found: Steered) -> None:
    doses = [one.dose for one in found.doses]

    def effects(lines: Sequence[Line | None]) -> list[float]:
        return [float(one.effect) for one in lines if one is not None and one.effect is not None]

    for kind, colour in (("random", NULL), ("matched", "#c9a227")):
        spread = np.array([effects(getattr(one, kind)) for one in found.doses])
        if spread.size:
            axes.fill_between(
                doses, spread.min(1), spread.max(1), color=colour, alpha=0.25, label=f"{kind} controls, range"
            )
    own = f"feature{'s' * (len(found.features) > 1)} {' + '.join(map(str, found.features))}"
    for name, label, colour in (("features", own, OWN), ("dense", "dense vector", DENSE)):
        line = effects([getattr(one, name) for one in found.doses])
        axes.plot(doses, line, "o-", color=colour, label=label)
    axes.axhline(0, color=MUTED, linewidth=0.6)
    axes.set_xlabel(
        f"dose, {'residual norms' if found.unit == 'norm' else '99th percentiles'}", fontsize=8, color=MUTED
    )
    axes.set_ylabel("effect, nats", fontsize=8, color=MUTED)
    axes.set_title(f"'{found.concept}' against words outside its family", loc="left", fontsize=9, color=INK)
    axes.tick_params(labelsize=8)
    axes.legend(fontsize=8, frameon=False)


def confusion_picture(changes: dict[str, np.ndarray], names: Sequence[str], path: str | Path, subtitle: str) -> Path:
    """One heat map for each of `changes` (C x C: steered concept, word read), concepts in the order of `names`."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(11 * len(changes), 10), layout="constrained", facecolor="white")
    for axes, (title, change_CC) in zip(
        figure.subplots(1, len(changes), squeeze=False)[0], changes.items(), strict=True
    ):
        _heat(axes, change_CC, "change of log P less its mean over steered concepts and over words, nats")
        axes.set_xticks(range(len(names)), names, rotation=90, fontsize=3)
        axes.set_yticks(range(len(names)), names, fontsize=3)
        axes.set_xlabel("word read", fontsize=8, color=MUTED)
        axes.set_ylabel("steered towards", fontsize=8, color=MUTED)
        axes.set_title(f"{title}: {subtitle}", loc="left", fontsize=9, color=INK)
    return _save(figure, Path(path))
