"""Look-ups as text for a terminal. Pure functions of what a look-up hands out, which `--json` prints as it is.

`colour` shades active tokens by their strength; without it they stand [like this]. `width` is in columns.
"""

import shutil
import textwrap
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from sae_emotions.lookup.shapes import Example, Reading
from sae_emotions.lookup.tables import Row

if TYPE_CHECKING:
    from sae_emotions.lookup.run import Feature

_CONTROLS = {
    "named": "the words that a text names",
    "person": "first-person narration",
    "length": "the text's length",
    "bag": "a bag of words (it reads the words)",
}
_SHADES = (230, 229, 222, 215, 208)  # 256-colour backgrounds from pale yellow to orange


def columns() -> int:
    """Width of the terminal, at most 110 columns so that lines stay readable."""
    return min(shutil.get_terminal_size((100, 24)).columns, 110)


def number(value: Any, digits: int = 3) -> str:
    """A number as people write it: `.912`, `-1.40`, `3e-07`, or a dash for None."""
    if value is None:
        return "–"
    if digits == 0:
        return f"{value:,.0f}"
    return f"{value:.{digits}f}"


def p_value(value: Any) -> str:
    """A p- or q-value: two digits, powers of ten where it is small."""
    if value is None:
        return "–"
    return f"{value:.0e}" if value < 1e-3 else f"{value:.3f}"


def visible(token: str) -> str:
    """A token on its own: without outer spaces, unless it is nothing else; line breaks and the like spelt out."""
    return repr(token)[1:-1].strip() or repr(token)


def table(header: Sequence[str], body: Sequence[Sequence[str]], left: frozenset[int]) -> str:
    """Aligned columns; those in `left` start at the left, the others end at the right."""
    widths = [max(len(line[i]) for line in (header, *body)) for i in range(len(header))]

    def line(cells: Sequence[str]) -> str:
        parts = [c.ljust(w) if i in left else c.rjust(w) for i, (c, w) in enumerate(zip(cells, widths, strict=True))]
        return "  ".join(parts).rstrip()

    return "\n".join([line(header), "  ".join("─" * w for w in widths), *map(line, body)])


def _cells(row: Row) -> list[str]:
    names = [key.removeprefix("auroc_") for key in row if key.startswith("auroc_")]
    return [name for name in names if name not in ("held_out", "selection")]


def find_table(word: str, found: Sequence["Feature"]) -> str:
    """What `Run.find(word)` found, in its order."""
    if not found:
        return f"No feature of this dictionary stands for '{word}'."
    lines = [one.finding for one in found]
    cells = _cells(lines[0])
    header = ["feature", "concept", "status", "AUROC", *cells, "q", "causal"]
    body = [
        [
            str(one["feature"]),
            str(one["concept"]),
            _status(one),
            number(one["auroc_held_out"]),
            *(number(one[f"auroc_{cell}"]) for cell in cells),
            p_value(one["q"]) if one["q"] is not None or one["q_concept"] is None else p_value(one["q_concept"]) + "*",
            one["verdict"] or "–",
        ]
        for one in lines
    ]
    notes = ["AUROC: held-out topics, mean over cells."]
    if any(line[-2].endswith("*") for line in body):
        notes.append("* q over concepts: the feature was chosen for the concept without passing the screen for it.")
    return table(header, body, frozenset({1, 2})) + "\n\n" + "\n".join(notes)


def _status(one: Row) -> str:
    if one["status"] == "labelled":
        return "labelled" if one["scope"] == one["concept"] else f"labelled {one['scope']}"
    return one["status"] if one["status"] != "none" else "chosen" if one.get("chosen") else "not confirmed"


def feature_card(found: "Feature", colour: bool = False, width: int | None = None) -> str:
    """All about one feature: label, scores by cell, verdict, logit lens, contexts with active tokens marked."""
    feature, examples, width = found.to_dict(), found.examples(), width or columns()
    title = f"Feature {feature['feature']} of {feature['dictionary']}"
    if feature["label"]:
        says = _label(feature)
    elif feature["status"] != "none":
        says = f"not labelled; evidence for {feature['concept']}: {feature['status']}"
    else:
        says = f"not labelled; its best concept on the selection set is {feature['concept']}"
    share, most = 100 * (feature["density"] or 0), number(feature["max_activation"], 2)
    facts = f"active in {share:.2f}% of general-text tokens, at most {most}"
    blocks = [f"{title}\n{says}\n{facts}", _scores(feature), _verdict(feature["verdict"], width), _lens(feature, width)]
    if examples:
        lines = [f"{number(one.value, 2).rjust(7)}  {_context(one, colour, width - 9)}" for one in examples]
        blocks.append("Strongest contexts in the general text\n" + "\n".join(lines))
    return "\n\n".join(block for block in blocks if block)


def _label(feature: Row) -> str:
    """What the label says, and what may explain it."""
    family = f" ({feature['family']})" if feature["family"] else ""
    if feature["grain"] == "concept":
        says = f"labelled {feature['label']}{family}"
    else:
        says = f"labelled {feature['scope']} (a {feature['grain']}); nearest concept {feature['label']}{family}"
    if explained := feature["explained_by"]:
        says += f"\nexplained as well by {', '.join(_CONTROLS.get(one, one) for one in explained)}"
    return says


def _scores(feature: Row) -> str:
    held = [one for one in feature["scores"] if one["split"] == "held_out"]
    held = held or [one for one in feature["scores"] if one["split"] == "selection"]
    held.sort(key=lambda one: (one["concept"] != feature["concept"], one["concept"]))
    body = [
        [
            one["concept"],
            one["cell"],
            number(one["auroc"]),
            f"{number(one['low'])} to {number(one['high'])}",
            p_value(one["p"]),
        ]
        for one in held
    ]
    if not body:
        cells = _cells(feature)
        body = [[str(feature["concept"]), cell, number(feature[f"auroc_{cell}"]), "–", "–"] for cell in cells]
    foot = f"p {p_value(feature['p'])}, q {p_value(feature['q'])} (larger register's p; q over all that was screened)"
    return table(["concept", "cell", "AUROC", "95% interval", "p"], body, frozenset({0, 1})) + "\n" + foot


def _verdict(verdict: Row | None, width: int) -> str:
    if verdict is None:
        return "Causal test: none was made for this feature."
    if verdict["effect"] is None:
        first = verdict["first_order_z"]
        seen = "" if first is None else f" Removing it, to first order: z {number(first, 1)} against matched controls."
        return "\n".join(textwrap.wrap(f"Causal test: {verdict['verdict']} ({verdict['reason']}).{seen}", width))
    says = (
        f"Causal test: {verdict['verdict']} ({verdict['reason']}). Removing it from {verdict['texts']} texts changes "
        f"the word's log-probability by {verdict['effect']:+.3f} nats, z {number(verdict['z'], 1)} against matched "
        f"controls, p {p_value(verdict['p'])}, q {p_value(verdict['q'])}; rank of its own word among all "
        f"{number(verdict['rank'], 0)}. Collateral: {number(verdict['kl'], 4)} nats a token"
        f"{', above the controls' if verdict['kl_flag'] else ''}."
    )
    return "\n".join(textwrap.wrap(says, width))


def _lens(feature: Row, width: int) -> str:
    lines = []
    for side, title in (("top", "raises"), ("bottom", "lowers")):
        tokens = [visible(token) for token in feature[f"{side}_tokens"] or []]
        if tokens:
            line = f"{title}  {' · '.join(tokens)}"
            lines.append(line if len(line) <= width else line[: width - 1] + "…")
    return "Logit lens\n" + "\n".join(lines) if lines else ""


def _context(example: Example, colour: bool, width: int) -> str:
    """A context on one line around its strongest token, active tokens marked."""
    tokens = [token.replace("\n", "↵") for token in example.tokens]
    values = example.values
    if not tokens:
        return ""
    first = last = max(range(len(values)), key=values.__getitem__)
    size = len(tokens[first]) + 2
    while True:
        grown = [i for i in (first - 1, last + 1) if 0 <= i < len(tokens) and size + len(tokens[i]) + 2 <= width]
        if not grown:
            break
        nearest = min(grown, key=lambda i: abs(i - (first + last) / 2 + (0.1 if i > last else 0)))
        size += len(tokens[nearest]) + (2 if values[nearest] > 0 else 0)
        first, last = min(first, nearest), max(last, nearest)
    shown = range(first, last + 1)
    return "".join(marked(tokens[i], values[i] / (max(values) or 1.0), colour) for i in shown).strip()


def marked(token: str, share: float, colour: bool) -> str:
    """A token as it stands in a text; an active one (`share` of the largest above 0) in brackets or shaded."""
    if share <= 0:
        return token
    lead = token[: len(token) - len(token.lstrip())]
    body = token[len(lead) :]
    if not colour:
        return f"{lead}[{body}]"
    shade = _SHADES[min(int(share * len(_SHADES)), len(_SHADES) - 1)]
    return f"{lead}\x1b[48;5;{shade}m\x1b[38;5;16m{body}\x1b[0m"


STRONGEST = 3
"""labelled features of a token that are printed"""


def read_table(reading: Reading, colour: bool = False, width: int | None = None) -> str:
    """What `Run.read` found: the text with its active tokens marked, then each token that carries something."""
    tokens, width = reading.tokens, width or columns()
    text = "".join(marked(t.text, max((f.share or 1.0 for f in t.features), default=0.0), colour) for t in tokens)
    lines: list[str] = []
    active = [token for token in tokens if token.features]
    for token in active:
        head = f"{token.position:>5}  {token.text.strip() or repr(token.text):<14}  "
        shown = ", ".join(f"{f.scope} {number(f.value, 2)} (feature {f.feature})" for f in token.features[:STRONGEST])
        if len(token.features) > STRONGEST:
            shown += f", {len(token.features) - STRONGEST} more"
        lines += textwrap.wrap(shown, width, initial_indent=head, subsequent_indent=" " * 23)
    if not lines:
        return f"{text}\n\nNo labelled feature of {reading.dictionary} is active in this text."
    unread = sum(not token.read for token in tokens)
    foot = (
        f"{len(active)} of {len(tokens)} tokens carry a labelled feature of {reading.dictionary}; "
        f"not read: {unread} (opening and special tokens)."
    )
    if any(len(token.features) > STRONGEST for token in active):
        foot += f" Shown: the {STRONGEST} strongest a token, against each one's largest activation; --json has all."
    foot = "\n".join(textwrap.wrap(foot, width))
    return "\n\n".join([text, "\n".join(lines), foot])


def search_table(hits: Sequence[Row]) -> str:
    """Hits of `Run.search`, in their order."""
    if not hits:
        return "Nothing in this run matches."
    body = [
        [
            one["kind"],
            one["match"],
            one["id"] or "–",
            one["label"] or "–",
            number(one["auroc_held_out"]),
            one["verdict"] or "–",
        ]
        for one in hits
    ]
    return table(["kind", "match", "feature", "label", "AUROC", "causal"], body, frozenset({0, 1, 3}))
