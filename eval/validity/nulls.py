"""What is found where nothing can be: a model of random or permuted weights, and a dictionary of random weights.

All read the same documents and stories, train (or leave untrained) dictionaries of the same shape alike, and are labelled
by the same rule, beside the trained model on the very same rows. To keep the cost down these are the concepts of one group
that share their topics, as many tokens of general text as `TEXT_TOKENS`, and the dictionary's block: the trained model's
figures here are those to compare with, not those of the whole run. What is made lies in RUN/validity/nulls/DICTIONARY.
"""

from collections import Counter
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np

from eval.validity.asked import Asked
from eval.validity.common import derived, few_permutations, figures, look
from sae_emotions.artefact import read_json
from sae_emotions.concepts.concept_set import ConceptSet, load_concepts, some_concepts
from sae_emotions.concepts.folder import save_folder
from sae_emotions.config import RunConfig
from sae_emotions.dictionary.encode import load_dictionary
from sae_emotions.dictionary.twin import train_missing, twin
from sae_emotions.harvest.harvest import harvest
from sae_emotions.harvest.part import write_part
from sae_emotions.harvest.rows import read_documents
from sae_emotions.label.label import concept_means
from sae_emotions.label.layout import layout
from sae_emotions.label.measure import measure
from sae_emotions.progress import say
from sae_emotions.run_folder import config_of

TEXT_TOKENS = 50_000
SCRAMBLED = ("random", "permuted")


def measured(asked: Asked) -> dict[str, Any]:
    """The four models and dictionaries, by name: what was found with each."""
    config, work = config_of(asked.run), asked.run / "validity" / "nulls" / asked.dictionary
    concepts = shared_topics(load_concepts(config.concepts))
    save_folder(concepts, work / "concepts")
    plan = read_json(asked.run / "activations" / "text" / "plan.json")
    one = twin(config, asked.run, asked.dictionary, name="trained")
    small = derived(
        config,
        text={"tokens": min(TEXT_TOKENS, plan["tokens"]), "tokens_in_float32": None},
        concepts=str(work / "concepts"),
        harvest={"blocks": [one.block]},
        dictionaries=[one.model_dump(mode="json")],
    )
    _say_cost(asked.run, small, concepts, plan["tokens"])
    found: dict[str, Any] = {"concepts": len(concepts.concepts), "stories": len(concepts.texts)}
    for how in SCRAMBLED:
        scrambled = derived(small, model={"weights": how})
        harvest(scrambled, work / how)
        train_missing(scrambled, work / how)
    both = [one, twin(config, asked.run, asked.dictionary, name="untrained", epochs=0)]
    real = derived(small, dictionaries=[each.model_dump(mode="json") for each in both])
    _part_of_the_run(asked.run, work, one.block, [text.id for text in concepts.texts])
    train_missing(real, work / "trained")
    rows = read_json(work / "trained" / "activations" / "text" / "plan.json")
    found |= {"text_tokens": rows["tokens"], "block": one.block}
    found["trained"] = _found(asked.run, real, work / "trained", "trained", concepts)
    found["untrained_dictionary"] = _found(asked.run, real, work / "trained", "untrained", concepts)
    for how in SCRAMBLED:
        scrambled = derived(small, model={"weights": how})
        found[f"{how}_weights"] = _found(asked.run, scrambled, work / how, "trained", concepts)
    return found


def shared_topics(concepts: ConceptSet) -> ConceptSet:
    """The largest group of concepts that were written on the same topics throughout; all where there is none."""
    found = layout(concepts)
    keys = list(zip(*(whole.group_C.tolist() for whole in found.panels), strict=True))
    key, count = Counter(keys).most_common(1)[0]
    if count < 2 or count == len(keys):
        return concepts
    return some_concepts(concepts, {found.concepts[c] for c in range(len(keys)) if keys[c] == key})


def _say_cost(run: Path, small: RunConfig, concepts: ConceptSet, tokens: int) -> None:
    """Tokens through the scrambled models, and minutes by the rate of the run's own harvest."""
    stage = read_json(run / "run.json")["stages"]["harvest"]
    whole = tokens + read_json(run / "activations" / "concepts" / "plan.json")["tokens"]
    share = len(concepts.texts) / max(1, len(load_concepts(config_of(run).concepts).texts))
    asked = len(SCRAMBLED) * (small.text.tokens + share * (whole - tokens))
    say(
        f"nulls: about {asked:,.0f} tokens through models of scrambled weights, up to "
        f"{stage['seconds'] * asked / whole / 60:.0f} minutes by the run's own rate; then four small dictionaries"
    )


def _part_of_the_run(run: Path, work: Path, block: int, stories: Iterable[str]) -> None:
    """The trained model's rows of the documents that the scrambled models read, out of the run's harvest."""
    keys = read_documents(work / SCRAMBLED[0] / "activations" / "text")["key"].to_pylist()
    for source, wanted in (("text", keys), ("concepts", list(stories))):
        target = work / "trained" / "activations" / source
        if not (target / "plan.json").is_file():
            write_part(run / "activations" / source, target, wanted, [block])


def _found(run: Path, config: RunConfig, folder: Path, name: str, concepts: ConceptSet) -> dict[str, Any]:
    dictionary = load_dictionary(folder, name)
    means = concept_means(config, folder, dictionary)
    result = measure(concepts, layout(concepts), means, few_permutations(config), config.seed)
    look(run, config, f"{folder.name} weights, {name} dictionary", result.outcome)
    quality = read_json(folder / "dictionaries" / name / "quality.json")
    there = {key: quality[key] for key in ("fvu", "l0", "dead", "steps")}
    plan = read_json(folder / "activations" / "text" / "plan.json")
    firing = float(np.mean((means.acts_TF > 0).any(0)))
    return {
        "weights": plan["model"].get("weights", "trained"),
        **there,
        "share_firing": firing,
        **figures(result, config),
    }
