"""Look things up in a finished run: `run = sae_emotions.open("runs/demo"); run.find("afraid")[0].examples()`.

Everything is read from the run folder when it is asked for; only `read` loads the model and the dictionary. D: residual
width. Whatever is returned as a mapping is what `--json` prints and what the API answers: one truth for all three.
"""

import difflib
from collections.abc import Iterator
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
import pyarrow.compute as pc

from sae_emotions.lookup.rows import decoder_row
from sae_emotions.lookup.shapes import Example, LogitLens, Reading
from sae_emotions.lookup.tables import Row, RunFolder, Unknown, cells_of, plain, row, rows

if TYPE_CHECKING:
    from sae_emotions.lookup.read import Reader


class _Index(NamedTuple):
    """What finding needs of one dictionary, made once per state of its files."""

    cells: tuple[str, ...]
    row_of: dict[int, int]
    features_of: dict[str, list[int]]
    """concept -> features that stand for it: screened ones, those with evidence in one register, the chosen one"""
    concepts: dict[str, Row]
    verdicts: dict[int, Row]
    tokens: dict[str, list[tuple[int, int]]]
    """lower-cased token without spaces -> (rank in a feature's logit lens, feature)"""

    def verdict(self, number: int | None, concept: str, *names: str) -> Row:
        """Columns of the verdict on a feature for `concept`; None each where it was tested for another one or not."""
        found = self.verdicts.get(-1 if number is None else number, {})
        return {name: found.get(name) if found.get("concept") == concept else None for name in names}


def open(path: str | Path) -> "Run":  # noqa: A001 - read as sae_emotions.open
    """Open a run folder for reading. Raises `UserError` where it is none."""
    return Run(path)


class Feature:
    """One feature of one dictionary. `asked` is the concept it was found for, its own best concept by default."""

    def __init__(self, run: "Run", dictionary: str, number: int, asked: str | None = None) -> None:
        self.run, self.dictionary, self.number = run, dictionary, number
        self.asked: str | None = asked or self._row["concept"]

    @cached_property
    def _row(self) -> Row:
        return self.run._feature_row(self.number, self.dictionary)

    @property
    def id(self) -> str:
        """Name of the feature within its dictionary, as the API takes it."""
        return str(self.number)

    @property
    def label(self) -> str | None:
        """The concept it is labelled with, or None."""
        return self._row["label"]

    @property
    def concept(self) -> str | None:
        """Its best concept on the selection set, labelled or not."""
        return self._row["concept"]

    @property
    def status(self) -> str:
        """labelled, '<register> only' or none."""
        return self._row["status"]

    @property
    def auroc(self) -> float | None:
        """Held-out AUROC for the concept it was found for: the mean over cells."""
        return self.finding["auroc_held_out"]

    @property
    def q(self) -> float | None:
        """Benjamini-Hochberg q over the screened features; None if it was not screened."""
        return self.finding["q"]

    @property
    def verdict(self) -> str | None:
        """causal, not shown or not testable; None where no causal test was made."""
        return (self.causal or {}).get("verdict")

    @property
    def causal(self) -> Row | None:
        """Its whole row of verdicts.parquet, or None."""
        return self.run._index(self.dictionary).verdicts.get(self.number)

    @property
    def logit_lens(self) -> LogitLens:
        """The decoder direction through the unembedding."""

        def side(name: str) -> tuple[tuple[str, float], ...]:
            return tuple(zip(self._row[f"{name}_tokens"] or [], self._row[f"{name}_logits"] or [], strict=True))

        return LogitLens(side("top"), side("bottom"))

    @property
    def scores(self) -> list[Row]:
        """Its rows of scores.parquet: AUROC, interval and exact p by concept, cell and split."""
        table = self.run._folder.table(f"labels/{self.dictionary}/scores.parquet")
        found = table.filter(pc.equal(table["feature"], self.number))
        return [{k: v for k, v in one.items() if k != "feature"} for one in rows(found)]

    @property
    def direction(self) -> np.ndarray:
        """Decoder direction (D), float32: what one unit of activation adds to the residual stream."""
        return decoder_row(self.run.path / "dictionaries" / self.dictionary / "sae_weights.safetensors", self.number)

    def examples(self) -> list[Example]:
        """Its strongest contexts in the general text, strongest first."""
        found = self.run._examples(self.number, self.dictionary)
        return [Example(**one | {"tokens": tuple(one["tokens"]), "values": tuple(one["values"])}) for one in found]

    @property
    def finding(self) -> Row:
        """One line of a find table."""
        return self.run._finding(self.number, str(self.asked), self.dictionary)

    def to_dict(self) -> Row:
        """All that is known of it but its examples and its direction: the columns of features.parquet and more."""
        known = {"id": self.id, "dictionary": self.dictionary, **self._row}
        return known | {"scores": self.scores, "verdict": self.causal}

    def __repr__(self) -> str:
        auroc = "" if self.auroc is None else f", AUROC {self.auroc:.3f}"
        return f"<Feature {self.number} of {self.dictionary}: {self.label or self.status}{auroc}>"


class Run:
    """A finished run. `dictionary` is everywhere the name of one of `dictionaries`; the first one by default."""

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)
        self._folder = RunFolder(path)
        self._readers: dict[str, Reader] = {}

    def __repr__(self) -> str:
        return f"<Run {self.info['config']['name']} at {self.path}: {', '.join(self.dictionaries)}>"

    @property
    def info(self) -> Row:
        """run.json: config, its hash, versions, model, state and seconds of every stage."""
        found: Row = self._folder.json("run.json")
        return found

    @property
    def dictionaries(self) -> tuple[str, ...]:
        """Names of the run's dictionaries, in the config's order."""
        return tuple(one["name"] for one in self.info["config"]["dictionaries"])

    def dictionary(self, name: str | None = None) -> str:
        """`name` if the run has it, the first one for None. Raises `UserError` that lists them otherwise."""
        if name is not None and name not in self.dictionaries:
            raise Unknown(f"There is no dictionary '{name}' in this run; it has {', '.join(self.dictionaries)}.")
        return name or self.dictionaries[0]

    def cells(self, dictionary: str | None = None) -> tuple[str, ...]:
        """Cells of the concept set in which held-out AUROC is reported."""
        return self._index(self.dictionary(dictionary)).cells

    def concepts(self, dictionary: str | None = None) -> list[Row]:
        """One mapping a concept, in the set's order: the columns of concepts.parquet, and the verdict on its feature.

        The verdict is None where the feature was not tested for this very concept.
        """
        index = self._index(self.dictionary(dictionary))
        return [{**one, **index.verdict(one["feature"], name, "verdict")} for name, one in index.concepts.items()]

    def resolve(self, word: str, dictionary: str | None = None) -> list[str]:
        """Concepts that `word` names: a concept; else all of a family; else those with a word that starts with it.

        Case, hyphens and underscores do not matter. Raises `UserError` with suggestions where there is none.
        """
        concepts = self._index(self.dictionary(dictionary)).concepts
        wanted = _folded(word)
        exact = [name for name in concepts if _folded(name) == wanted]
        family = [name for name, one in concepts.items() if _folded(one["family"] or "") == wanted and wanted]
        if exact or family:
            return exact or family
        for spelling in (lambda one: str(one["concept"]), lambda one: one["family"] or ""):
            near = [n for n, one in concepts.items() if len(wanted) > 2 and _starts_a_word(wanted, spelling(one))]
            if near:
                return near
        known = list(dict.fromkeys([*concepts, *(one["family"] for one in concepts.values() if one["family"])]))
        close = difflib.get_close_matches(wanted, [_folded(name) for name in known], n=4, cutoff=0.5)
        names = [name for fold in close for name in known if _folded(name) == fold]
        hint = f"Did you mean {_listed(names)}?" if names else "The concepts command or /v1/concepts lists all of them."
        raise Unknown(f"There is no concept or family '{word}' in this run. {hint}")

    def find(self, word: str, dictionary: str | None = None) -> list[Feature]:
        """Features of a concept (or family), best held-out AUROC first. Raises `UserError` for an unknown word.

        A concept's features are those that passed its screen, those with evidence in one register, and the one feature
        chosen for it on the selection set, which may have another label.
        """
        name = self.dictionary(dictionary)
        best: dict[int, tuple[float, str]] = {}
        for concept in self.resolve(word, name):
            for number in self._index(name).features_of.get(concept, []):
                auroc = self._finding(number, concept, name)["auroc_held_out"]
                rank = (-1.0 if auroc is None else auroc, concept)
                if number not in best or rank[0] > best[number][0]:
                    best[number] = rank
        order = sorted(best, key=lambda number: (-best[number][0], number))
        return [Feature(self, name, number, best[number][1]) for number in order]

    def feature(self, number: int | str, dictionary: str | None = None) -> Feature:
        """One feature by its number. Raises `UserError` for a number that the dictionary does not have."""
        name = self.dictionary(dictionary)
        row_of = self._index(name).row_of
        try:
            known = int(number) in row_of
        except ValueError:
            known = False
        if not known:
            raise Unknown(f"There is no feature {number} in {name}; give a number from {min(row_of)} to {max(row_of)}.")
        return Feature(self, name, int(number))

    def show(self, number: int | str, dictionary: str | None = None) -> str:
        """One feature as a card for the terminal."""
        from sae_emotions.lookup.text import feature_card

        return feature_card(self.feature(number, dictionary))

    def search(self, query: str, dictionary: str | None = None) -> list[Row]:
        """Concepts, families, labels and logit-lens tokens that hold `query`, in this order, exact hits first."""
        name, wanted = self.dictionary(dictionary), _folded(query)
        return list(self._hits(wanted, name)) if wanted else []

    def read(self, text: str, dictionary: str | None = None) -> Reading:
        """The tokens of `text`, each with the labelled features that are active there and their values.

        The model and the dictionary are loaded on the first call and kept. The first token of a window and special
        tokens are never read (`read` is False). Raises `UserError` for a text shorter than two tokens.
        """
        from sae_emotions.lookup.read import Reader

        name = self.dictionary(dictionary)
        if name not in self._readers:
            self._readers[name] = Reader(self, name)
        return self._readers[name].read(text)

    def _hits(self, wanted: str, name: str) -> Iterator[Row]:
        index = self._index(name)

        def ranked(names: list[str]) -> list[str]:
            found = [n for n in names if wanted in _folded(n)]
            return sorted(found, key=lambda n: (_folded(n) != wanted, not _starts_a_word(wanted, n), names.index(n)))

        def hit(kind: str, text: str, number: int | None = None) -> Row:
            own = {} if number is None else self._feature_row(number, name)
            about = {} if number is None else index.verdicts.get(number, {})
            found = {"kind": kind, "match": text, "id": None if number is None else str(number), "feature": number}
            shown = {key: own.get(key) for key in ("label", "status", "auroc_held_out")}
            return found | shown | {"verdict": about.get("verdict")}

        concepts = ranked(list(index.concepts))
        yield from (hit("concept", one) for one in concepts)
        families = dict.fromkeys(one["family"] for one in index.concepts.values() if one["family"])
        yield from (hit("family", one) for one in ranked(list(families)))
        for concept in concepts:
            numbers = (one.number for one in self.find(concept, name) if one.label == concept)
            yield from (hit("label", concept, number) for number in numbers)
        tokens = [t for t in index.tokens if t == wanted or (len(wanted) > 2 and t.startswith(wanted))]
        places = [(token != wanted, rank, number, token) for token in tokens for rank, number in index.tokens[token]]
        seen: set[int] = set()
        for _, _, number, token in sorted(places):
            if number not in seen:
                seen.add(number)
                yield hit("token", token, number)

    def _feature_row(self, number: int, name: str) -> Row:
        return row(self._folder.table(f"labels/{name}/features.parquet"), self._index(name).row_of[number])

    def _finding(self, number: int, concept: str, name: str) -> Row:
        index = self._index(name)
        own, about = self._feature_row(number, name), index.concepts.get(concept, {})
        chosen = about.get("feature") == number
        scores = own if own["concept"] == concept else about
        return plain(
            {
                "id": str(number),
                "dictionary": name,
                "feature": number,
                "concept": concept,
                "family": about.get("family"),
                "label": own["label"],
                "status": own["status"],
                "grain": own["grain"],
                "scope": own["scope"],
                "chosen": chosen,
                "auroc_held_out": scores.get("auroc_held_out"),
                **{f"auroc_{cell}": scores.get(f"auroc_{cell}") for cell in index.cells},
                "p": scores.get("p"),
                "q": own["q"] if own["concept"] == concept else None,
                "q_concept": about.get("q") if chosen else None,
                **index.verdict(number, concept, "verdict", "effect", "z"),
            }
        )

    def _examples(self, number: int, name: str) -> list[Row]:
        file = f"labels/{name}/examples.parquet"

        def by_feature() -> dict[int, list[int]]:
            found: dict[int, list[int]] = {}
            for at, one in enumerate(self._folder.table(file)["feature"].to_pylist()):
                found.setdefault(one, []).append(at)
            return found

        places = self._folder.derived(("examples", name), (file,), by_feature).get(number, [])
        return sorted((row(self._folder.table(file), at) for at in places), key=lambda one: one["rank"])

    def _index(self, name: str) -> _Index:
        files = tuple(f"{room}/{name}/{file}.parquet" for room, file in _INDEXED)
        return self._folder.derived(("index", name), files, lambda: _indexed(self._folder, name))


_INDEXED = (("labels", "features"), ("labels", "concepts"), ("causal", "verdicts"))


def _indexed(folder: RunFolder, name: str) -> _Index:
    features = folder.table(f"labels/{name}/features.parquet")
    concepts = folder.table(f"labels/{name}/concepts.parquet")
    numbers = features["feature"].to_pylist()
    about = {one["concept"]: one for one in rows(concepts)}
    features_of: dict[str, list[int]] = {concept: [] for concept in about}
    columns = (features[column].to_pylist() for column in ("concept", "screened", "status"))
    for number, concept, screened, status in zip(numbers, *columns, strict=True):
        if concept in about and (screened or status != "none"):
            features_of[concept].append(number)
    for concept, one in about.items():
        if one["feature"] is not None and one["feature"] not in features_of[concept]:
            features_of[concept].append(one["feature"])
    verdicts = f"causal/{name}/verdicts.parquet"
    tested = {one["feature"]: one for one in rows(folder.table(verdicts))} if folder.has(verdicts) else {}
    tokens: dict[str, list[tuple[int, int]]] = {}
    for number, top in zip(numbers, features["top_tokens"].to_pylist(), strict=True):
        for rank, token in enumerate(top or []):
            tokens.setdefault(token.strip().casefold(), []).append((rank, number))
    return _Index(cells_of(concepts), {n: at for at, n in enumerate(numbers)}, features_of, about, tested, tokens)


def _folded(name: str) -> str:
    return " ".join(name.casefold().replace("-", " ").replace("_", " ").split())


def _starts_a_word(wanted: str, name: str) -> bool:
    return f" {_folded(name)}".find(f" {wanted}") >= 0


def _listed(names: list[str]) -> str:
    return names[0] if len(names) == 1 else f"{', '.join(names[:-1])} or {names[-1]}"
