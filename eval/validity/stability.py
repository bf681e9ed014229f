"""Which labelled concepts are found again: by another seed of the dictionary, and by two halves of the data.

`seeds`: the run's dictionary against one of another seed on the same rows. `halves_of_the_rows`: two dictionaries, each
trained on the rows of half the documents (general texts and selection stories) for as many steps as the run's, so that the
data alone differ; all stories label both. `halves_of_the_topics`: the run's dictionary labelled twice, each time with half
of the selection topics; the held-out texts are the same. What is made lies in RUN/validity/stability/DICTIONARY.
"""

from pathlib import Path
from typing import Any

import numpy as np

from eval.validity.asked import Asked
from eval.validity.common import derived, few_permutations, labels_of, linked, look
from sae_emotions.concepts.concept_set import ConceptSet, load_concepts
from sae_emotions.config import RunConfig
from sae_emotions.dictionary.encode import load_dictionary
from sae_emotions.dictionary.twin import train_missing, twin
from sae_emotions.harvest.part import write_part
from sae_emotions.harvest.rows import read_documents
from sae_emotions.label.agreement import Labels, agreement
from sae_emotions.label.choose import topic_folds
from sae_emotions.label.families import given_families
from sae_emotions.label.label import concept_means
from sae_emotions.label.layout import Layout, layout, part
from sae_emotions.label.means import StoryMeans
from sae_emotions.label.measure import measure
from sae_emotions.run_folder import config_of


def measured(asked: Asked) -> dict[str, Any]:
    """Three comparisons of two labellings each; see `label.agreement` for the figures and their chance levels."""
    config, work = config_of(asked.run), asked.run / "validity" / "stability" / asked.dictionary
    concepts = load_concepts(config.concepts)
    found, families_C = layout(concepts), given_families(concepts.concepts).of_C

    def told(folder: Path, name: str) -> tuple[Labels, StoryMeans]:
        dictionary = load_dictionary(folder, name)
        means = concept_means(config, asked.run, dictionary)
        result = measure(concepts, found, means, few_permutations(config), config.seed)
        look(asked.run, config, f"stability: {folder.name} {name}", result.outcome)
        return labels_of(result, dictionary, config.label.q), means

    seeds = _other_seeds(asked, config, work)
    halves = [_half(asked, config, work / f"half-{n}", n) for n in (0, 1)]
    first, means = told(*seeds[0])
    pairs = {
        "seeds": (first, told(*seeds[1])[0]),
        "halves_of_the_rows": (told(*halves[0])[0], told(*halves[1])[0]),
        "halves_of_the_topics": _by_topics(asked, config, seeds[0], concepts, found, means),
    }
    return {kind: agreement(*pair, config.seed, families_C) for kind, pair in pairs.items()}


def _other_seeds(asked: Asked, config: RunConfig, work: Path) -> list[tuple[Path, str]]:
    """Where two dictionaries lie that differ in their seed alone; the run's own is the first if it was trained here."""
    seed = twin(config, asked.run, asked.dictionary).seed
    own = config.seed if seed is None else seed
    folder = linked(work / "seeds", asked.run / "activations")
    own_is_trained = next(one for one in config.dictionaries if one.name == asked.dictionary).pretrained is None
    wanted = [own + 1] if own_is_trained else [own, own + 1]
    made = [twin(config, asked.run, asked.dictionary, name=f"seed-{one}", seed=one) for one in wanted]
    train_missing(derived(config, dictionaries=[one.model_dump(mode="json") for one in made]), folder)
    found = [(folder, one.name) for one in made]
    return [(asked.run, asked.dictionary), *found] if own_is_trained else found


def _half(asked: Asked, config: RunConfig, folder: Path, number: int) -> tuple[Path, str]:
    """A dictionary trained on half of the documents; which half they are in is seeded."""
    one = twin(config, asked.run, asked.dictionary, name="half")
    one = one.model_copy(update={"epochs": 2 * one.epochs})
    for source in ("text", "concepts"):
        whole, target = asked.run / "activations" / source, folder / "activations" / source
        if not (target / "plan.json").is_file():
            keys = np.array(read_documents(whole)["key"].to_pylist())
            order = np.random.default_rng([config.seed, 7]).permutation(len(keys))
            write_part(whole, target, keys[order[number::2]].tolist(), [one.block])
    train_missing(derived(config, dictionaries=[one.model_dump(mode="json")]), folder)
    return folder, one.name


def _by_topics(
    asked: Asked, config: RunConfig, where: tuple[Path, str], concepts: ConceptSet, found: Layout, means: StoryMeans
) -> tuple[Labels, Labels]:
    """One dictionary labelled by each half of the selection topics."""
    fold_of, dictionary = topic_folds(found.selection, 2), load_dictionary(*where)
    both = []
    for fold in (0, 1):
        first, second = (
            part(whole, np.array([fold_of[topic] == fold for topic in whole.topics_S])) for whole in found.selection
        )
        result = measure(
            concepts, found._replace(selection=(first, second)), means, few_permutations(config), config.seed
        )
        look(asked.run, config, f"stability: {where[1]}, half {fold} of the selection topics", result.outcome)
        both.append(labels_of(result, dictionary, config.label.q))
    return both[0], both[1]
