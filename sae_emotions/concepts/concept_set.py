"""A concept set: concepts, texts that show them in two registers, and which of those texts may be chosen on.

`load_concepts` opens a built-in set or a folder; `concept_named` finds one concept by name or word; `some_concepts` leaves
out the others.
"""

from collections.abc import Collection
from itertools import compress
from pathlib import Path

from sae_emotions.concepts.builtin import BUILT_IN, load_builtin
from sae_emotions.concepts.checks import checked, content_hash
from sae_emotions.concepts.folder import load_folder
from sae_emotions.concepts.shape import Concept, ConceptSet, ConceptText, Norm
from sae_emotions.errors import UserError

__all__ = ["Concept", "ConceptSet", "ConceptText", "concept_named", "load_concepts", "some_concepts"]


def load_concepts(source: str) -> ConceptSet:
    """Open `builtin:NAME` or a concept-set folder (see `folder.py` for its files).

    Raises `UserError` on an unknown set, a missing or broken file, an unknown concept, register, cell or split in
    a text, two texts of one concept on one topic, and too few topics or concepts to compare within topics.
    """
    if source.startswith("builtin:"):
        name = source.removeprefix("builtin:")
        if name not in BUILT_IN:
            raise UserError(f"There is no built-in concept set '{name}'; the built-in ones are: {', '.join(BUILT_IN)}.")
        return checked(load_builtin(name), source)
    folder = Path(source)
    if not folder.is_dir():
        raise UserError(
            f"There is no concept set '{source}'; give builtin:{BUILT_IN[0]} or a folder that holds "
            "set.json, concepts.csv and texts.jsonl."
        )
    return checked(load_folder(folder), source)


def concept_named(concepts: ConceptSet, word: str) -> Concept:
    """The concept whose name or word is `word`, case and outer spaces ignored. `UserError` suggests near names."""
    wanted = " ".join(word.casefold().split())
    for concept in concepts.concepts:
        if wanted in (concept.name.casefold(), concept.word.casefold()):
            return concept
    import difflib

    near = difflib.get_close_matches(wanted, [c.name for c in concepts.concepts], n=5, cutoff=0.5)
    hint = f"did you mean {', '.join(near)}?" if near else f"it has {len(concepts.concepts)} others."
    raise UserError(f"The concept set '{concepts.name}' has no concept '{word}'; {hint}")


def some_concepts(concepts: ConceptSet, names: Collection[str]) -> ConceptSet:
    """The set with the concepts in `names` and their texts alone. Raises `UserError` where too few are left to compare."""
    there = [one.name in names for one in concepts.concepts]
    kept = concepts._replace(
        name=f"{concepts.name}, {len(names)} concepts",
        concepts=tuple(one for one in concepts.concepts if one.name in names),
        texts=tuple(text for text in concepts.texts if text.concept in names),
        norms=tuple(Norm(norm.name, tuple(compress(norm.values, there))) for norm in concepts.norms),
        sha256="",
    )
    return checked(kept._replace(sha256=content_hash(kept)), kept.name)
