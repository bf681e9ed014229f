"""The page's sections, top to bottom."""

import json

import yaml

from sae_emotions.lookup.run import Run
from sae_emotions.lookup.tables import Row
from sae_emotions.lookup.text import number, p_value, visible
from sae_emotions.report import html, plots, story
from sae_emotions.report.findings import Causal, Findings, Found, Labels
from sae_emotions.report.summary import causal_numbers, label_numbers, mean

OPEN_CARDS, CONTEXTS, TOKENS = 8, 4, 8


def head(found: Findings) -> str:
    """Title, the run in short, the large numbers, and where to go."""
    stored = (found.info.get("model") or {}).get("stored")
    kicker = story.model_name(found) + (f" · weights stored as {stored}" if stored else "")
    links = "".join(f'<li><a href="#{one.name}">{html.escaped(one.name)}</a></li>' for one in found.dictionaries)
    links += '<li><a href="#validity">Validity</a></li>' if found.validity else ""
    links += '<li><a href="#provenance">Provenance</a></li>'
    parts = [
        f"<h1>{html.escaped(found.config.name)}</h1>",
        html.paragraphs([kicker], "kicker"),
        html.paragraphs(story.in_short(found), "lead"),
        html.tiles(_tiles(found)),
        f'<nav aria-label="Sections"><ul>{links}</ul></nav>',
    ]
    return f"<header>{''.join(parts)}</header>"


def _tiles(found: Findings) -> list[tuple[str, str]]:
    items = [(f"{found.tokens:,}", "tokens of general text")] if found.tokens else []
    first = next((one for one in found.dictionaries if one.labels), None)
    if first and first.labels:
        numbers, concepts = label_numbers(first.labels), len(first.labels.concepts)
        permuted = f"labelled features; {number(numbers['null_features'], 2)} with permuted labels"
        items += [(f"{numbers['features']:,}", permuted)]
        items += [(f"{numbers['confirmed_concepts']:,}", f"of {concepts} concepts confirmed on held-out topics")]
        items += [(number(numbers[f"auroc_{c}"]), f"mean held-out AUROC, {c}") for c in first.labels.cells]
    if first and first.causal:
        done = causal_numbers(first.causal)
        items += [(f"{done['confirmed']:,}", f"causal of {done['tested']:,} tested features")]
    return items


def dictionary(one: Found, run: Run) -> str:
    """Everything about one dictionary."""
    parts = [f'<h2 id="{one.name}">{html.escaped(one.name)}</h2>', html.paragraphs(story.dictionary(one))]
    if one.training is not None and len(one.training) > 1:
        caption = "Each step's batch while training. The first steps lie above the picture."
        label = "Training curves: loss, variance unexplained and share of dead latents against rows seen."
        parts.append(html.figure(plots.training(one.training), f"{one.name}-t-", label, caption))
    if one.labels:
        parts += [_labels(one.labels, one.name), _comparison(one.labels, one.name), _concepts(one.labels, one.name)]
    else:
        parts.append("<p>It is not labelled yet.</p>")
    if one.causal:
        parts.append(_causal(one.causal, one.name))
    elif one.labels:
        parts.append("<h3>Causal test</h3><p>The causal stage was not run for this dictionary.</p>")
    if one.labels and one.labels.labelled:
        parts.append(_cards(one, run))
    if one.labels and one.labels.rule:
        parts.append(html.folded("The labelling rule", html.bullets(one.labels.rule)))
    if one.causal and one.causal.rule:
        parts.append(html.folded("The causal rule", html.bullets(one.causal.rule)))
    return "".join(parts)


def _labels(labels: Labels, name: str) -> str:
    numbers = label_numbers(labels)
    label = (
        f"{numbers['features']} labelled features and {numbers['confirmed_concepts']} confirmed concepts; permuted "
        f"labels give {number(numbers['null_features'], 2)} and {number(numbers['null_confirmed_concepts'], 2)} on "
        "average."
    )
    caption = (
        "Left: how well the chosen features read their concepts. Right: what the whole rule finds in permuted labels."
    )
    return (
        "<h3>Labels, against permuted labels</h3>"
        + html.paragraphs(story.labels(labels))
        + html.figure(plots.null(labels), f"{name}-n-", label, caption)
    )


def _comparison(labels: Labels, name: str) -> str:
    lines = story.comparison(labels)
    caption = "Every method read the same held-out texts. Dashed line: chance."
    return (
        "<h3>Beside simpler methods</h3>"
        + html.paragraphs(lines)
        + html.figure(plots.baselines(labels), f"{name}-b-", " ".join(lines), caption)
    )


def _concepts(labels: Labels, name: str) -> str:
    header = ["concept", "family", "feature", "AUROC", *labels.cells, "dense", "TF-IDF", "q", "confirmed", "causal"]
    body = []
    for one in labels.concepts:
        averages = [mean(one[f"{kind}_{cell}"] for cell in labels.cells) for kind in ("dense", "tfidf")]
        body.append(
            [
                html.escaped(one["concept"]),
                html.escaped(one["family"] or "–"),
                html.escaped(one["feature"] if one["feature"] is not None else "–"),
                number(one["auroc_held_out"]),
                *(number(one[f"auroc_{cell}"]) for cell in labels.cells),
                *map(number, averages),
                p_value(one["q"]),
                "yes" if one["confirmed"] else "no",
                html.verdict(one["verdict"]),
            ]
        )
    caption = (
        f"All {len(labels.concepts)} concepts with the one feature chosen for each on the selection texts. AUROC is "
        "held out: the mean over cells, then each cell; dense and TF-IDF are means over cells. The causal verdict is "
        "a dash where the feature was not tested for this very concept, as when it is labelled with another."
    )
    last = len(header) - 1
    weak = (not one["confirmed"] for one in labels.concepts)
    return "<h3>Concepts</h3>" + html.table(
        f"{name}-concepts", caption, header, body, frozenset({0, 1, last - 1, last}), weak
    )


def _causal(causal: Causal, name: str) -> str:
    lines = story.causal(causal)
    figure = ""
    if causal.tested:
        caption = (
            "Above: the removal's effect on the concept's words, for labelled features and for controls matched on the same "
            "texts and positions, to first order where not all were removed exactly. Below: causal features, and the strongest "
            "others, by name and number."
        )
        figure = html.figure(plots.effects(causal), f"{name}-c-", " ".join(lines), caption)
    header = ["feature", "label", "verdict", "texts", "effect", "z", "q", "own word's rank", "KL", "reason"]
    body = [
        [
            str(one["feature"]),
            html.escaped(one["concept"]),
            html.verdict(one["verdict"]),
            number(one["texts"], 0),
            html.signed(one["effect"]),
            html.signed(one["z"], 1),
            p_value(one["q"]),
            number(one["rank"], 0),
            number(one["kl"], 4) + (" !" if one["kl_flag"] else ""),
            html.escaped(one["reason"] or ""),
        ]
        for one in causal.verdicts
    ]
    caption = (
        "All labelled features, strongest effect first. Effect: change of the word's log-probability in nats, less "
        "that of words outside its family. KL: nats a token on neutral text; ! marks more than 95% of the controls "
        "have."
    )
    rest = html.table(f"{name}-effects", caption, header, body, frozenset({0, 1, 2, 9}))
    return "<h3>Causal test</h3>" + html.paragraphs(lines) + figure + rest


def _cards(one: Found, run: Run) -> str:
    assert one.labels is not None
    verdicts = {v["feature"]: v for v in one.causal.verdicts} if one.causal else {}
    cards = [_card(row, one, run, verdicts.get(row["feature"])) for row in one.labels.labelled]
    shown = f'<h3>Labelled features</h3><div class="cards">{"".join(cards[:OPEN_CARDS])}</div>'
    rest = cards[OPEN_CARDS:]
    if rest:
        title = f"{len(rest)} more labelled features"
        shown += html.folded(title, f'<div class="cards">{"".join(rest)}</div>')
    return shown


def _card(row: Row, one: Found, run: Run, tested: Row | None) -> str:
    assert one.labels is not None
    cells = ", ".join(f"{cell} {number(row[f'auroc_{cell}'])}" for cell in one.labels.cells)
    facts = f"held-out AUROC {number(row['auroc_held_out'])} ({cells}) · q {p_value(row['q'])}"
    if row["grain"] != "concept":
        facts = (
            f"a {row['grain']}: held-out AUROC {number(row['auroc_scope'])} · nearest concept {row['label']}: {facts}"
        )
    if row["explained_by"]:
        facts += f" · explained as well by {', '.join(story.CONTROLS.get(one, one) for one in row['explained_by'])}"
    facts += f" · active in {100 * (row['density'] or 0):.2f}% of tokens"
    if tested and tested["effect"] is not None:
        facts += f" · effect {html.signed(tested['effect'])} nats, z {html.signed(tested['z'], 1)}"
    mark = f'<p class="facts">causal test: {html.verdict(tested["verdict"])}</p>' if tested else ""
    lines = [
        f"<li><b>{example.value:.2f}</b><span>{html.context(example.tokens, example.values)}</span></li>"
        for example in run.feature(row["feature"], one.name).examples()[:CONTEXTS]
    ]
    lens = [_lens(name, row[f"{side}_tokens"]) for side, name in (("top", "raises"), ("bottom", "lowers"))]
    return (
        f'<article class="card"><h4>{html.escaped(row["scope"])} · feature {row["feature"]}</h4>'
        f'<p class="facts">{html.escaped(facts)}</p>{mark}{"".join(lens)}<ol>{"".join(lines)}</ol></article>'
    )


def _lens(name: str, tokens: list[str] | None) -> str:
    if not tokens:
        return ""
    shown = " ".join(f"<code>{html.escaped(visible(token))}</code>" for token in tokens[:TOKENS])
    return f'<p class="lens">{name} {shown}</p>'


def provenance(found: Findings) -> str:
    """Model, versions, seconds and the whole config."""
    model = found.info.get("model") or {}
    items: list[tuple[str, object]] = [("config sha256", found.info["config_hash"]), ("seed", found.config.seed)]
    items += [(f"model {key}", value if not isinstance(value, float) else f"{value:g}") for key, value in model.items()]
    items += [(name, version) for name, version in found.info["versions"].items()]
    stages = ((key, f"{one['seconds']:,.1f} s") for key, one in found.info["stages"].items() if key != "report")
    config = yaml.safe_dump(json.loads(found.config.model_dump_json()), sort_keys=False, allow_unicode=True)
    return (
        '<h2 id="provenance">Provenance</h2>'
        + html.definitions(items)
        + "<h3>Time spent</h3>"
        + html.definitions(stages)
        + html.folded("The whole config", f"<pre>{html.escaped(config)}</pre>")
    )
