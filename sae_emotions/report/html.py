"""Building blocks of the page. Every text that comes from a run is escaped here and nowhere else."""

import html
from collections.abc import Iterable, Sequence
from importlib import resources

from sae_emotions.report import story
from sae_emotions.report.plots import with_own_ids


def escaped(text: object) -> str:
    """Text as it may stand in an element or an attribute."""
    return html.escape(str(text), quote=True)


def paragraphs(lines: Iterable[str], kind: str = "") -> str:
    """One paragraph of several sentences; nothing for none."""
    text = " ".join(lines)
    return f"<p{_class(kind)}>{escaped(text)}</p>" if text else ""


def signed(value: float | None, digits: int = 3) -> str:
    """A number with its sign, which is a real minus; a dash for None."""
    return "–" if value is None else story.signed(value, digits)


def tiles(items: Sequence[tuple[str, str]]) -> str:
    """The few large numbers at the top: (number, what it counts)."""
    cells = "".join(f"<li><b>{escaped(number)}</b><span>{escaped(text)}</span></li>" for number, text in items)
    return f'<ul class="tiles">{cells}</ul>'


def figure(svg: str, prefix: str, label: str, caption: str) -> str:
    """A plot with what it shows in words: `label` for those who cannot see it, `caption` for all."""
    return (
        f'<figure><div role="img" aria-label="{escaped(label)}">{with_own_ids(svg, prefix)}</div>'
        f"<figcaption>{escaped(caption)}</figcaption></figure>"
    )


def table(
    name: str,
    caption: str,
    header: Sequence[str],
    body: Iterable[Sequence[str]],
    text: frozenset[int],
    weak: Iterable[bool] = (),
) -> str:
    """A table in a box that scrolls, under its caption; `name` is its id on the page.

    Columns in `text` are left-aligned; cells are HTML already; the first is a heading; `weak` lines are faded.
    """

    def kind(column: int) -> str:
        return ' class="text"' if column in text else ""

    head = "".join(f'<th scope="col"{kind(n)}>{escaped(name)}</th>' for n, name in enumerate(header))
    lines = []
    faded = iter(weak)
    for cells in body:
        row = [
            f'<th scope="row">{cells[0]}</th>',
            *(f"<td{kind(n)}>{cell}</td>" for n, cell in enumerate(cells[1:], 1)),
        ]
        lines.append(f"<tr{_class('weak' if next(faded, False) else '')}>{''.join(row)}</tr>")
    return (
        f'<div class="wide"><p id="{name}">{escaped(caption)}</p>'
        f'<div class="scroll" tabindex="0" role="region" aria-labelledby="{name}"><table aria-labelledby="{name}">'
        f"<thead><tr>{head}</tr></thead><tbody>{''.join(lines)}</tbody></table></div></div>"
    )


def verdict(name: str | None) -> str:
    """A causal verdict with its mark."""
    if name is None:
        return "–"
    kind = {"causal": " causal", "not testable": " untestable"}.get(name, "")
    return f'<span class="verdict{kind}">{escaped(name)}</span>'


def context(tokens: Sequence[str], values: Sequence[float]) -> str:
    """A context with its active tokens marked, the stronger the darker."""
    top = max(values, default=0.0)
    parts = []
    for token, value in zip(tokens, values, strict=True):
        shown = escaped(token.replace("\n", "↵"))
        if value <= 0 or top <= 0:
            parts.append(shown)
            continue
        peak = ' class="peak"' if value == top else ""
        word = shown.lstrip()
        lead, share = shown[: len(shown) - len(word)], 0.12 + 0.5 * value / top
        parts.append(f'{lead}<mark{peak} style="--share:{share:.2f}" title="{value:.2f}">{word}</mark>')
    return "".join(parts).strip()


def definitions(items: Iterable[tuple[str, object]]) -> str:
    """Terms and what they are."""
    return f"<dl>{''.join(f'<dt>{escaped(k)}</dt><dd>{escaped(v)}</dd>' for k, v in items)}</dl>"


def bullets(lines: Iterable[str]) -> str:
    """The sentences of a rule."""
    return f'<ul class="rule">{"".join(f"<li>{escaped(line)}</li>" for line in lines)}</ul>'


def folded(title: str, inside: str) -> str:
    """What is shown when asked for."""
    return f"<details><summary>{escaped(title)}</summary>{inside}</details>"


def page(title: str, description: str, body: str) -> str:
    """The whole file: it needs nothing but itself."""
    style = resources.files("sae_emotions.report").joinpath("page.css").read_text(encoding="utf-8")
    return (
        '<!doctype html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        f'<title>{escaped(title)}</title>\n<meta name="description" content="{escaped(description)}">\n'
        f'<link rel="icon" href="data:,">\n<style>\n{style}</style>\n</head>\n<body>\n{body}\n</body>\n</html>\n'
    )


def _class(kind: str) -> str:
    return f' class="{kind}"' if kind else ""
