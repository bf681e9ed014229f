"""What was asked of the run beyond its own stages (RUN/validity.json), shown as it stands: every figure under its key."""

from collections.abc import Iterator
from typing import Any

from sae_emotions.lookup.tables import Row
from sae_emotions.lookup.text import number
from sae_emotions.report import html

META = ("dictionary", "machine", "versions", "made_from", "seconds")
DEEP = 5
"""levels below a section that are written out; what lies deeper is for programs"""
MANY = 200
"""figures of one section in the open; the rest stay in the file"""


def sections(found: Row) -> str:
    """One folded table of figures a section; nothing where the run has no such file."""
    names = [name for name in found if name not in META and isinstance(found[name], dict)]
    if not names:
        return ""
    parts = [
        '<h2 id="validity">Validity</h2>',
        html.paragraphs(
            [f"Measured beside the run, on the dictionary {found.get('dictionary', '')}: `validity.json`."]
        ),
    ]
    for name in names:
        figures = list(_figures(found[name], DEEP))
        body = [[html.escaped(key), html.escaped(value)] for key, value in figures[:MANY]]
        caption = f"{min(len(figures), MANY)} of {len(figures)} figures." if len(figures) > MANY else "All figures."
        table = html.table(f"validity-{name}", caption, ["figure", "value"], body, frozenset({0, 1}))
        parts.append(html.folded(name, table))
    return "".join(parts)


def _figures(found: Any, deep: int, path: str = "") -> Iterator[tuple[str, str]]:
    if isinstance(found, dict):
        if deep:
            for key, value in found.items():
                if path or key not in META:
                    yield from _figures(value, deep - 1, f"{path} · {key}" if path else str(key))
    elif isinstance(found, list):
        if len(found) <= 8 and not any(isinstance(one, dict | list) for one in found):
            yield path, ", ".join(_shown(one) for one in found)
    elif found is not None:
        yield path, _shown(found)


def _shown(value: Any) -> str:
    return number(value) if isinstance(value, float) else str(value)
