"""Section 5: the concepts' dense vectors, their geometry, what they read, and the features beside them.

Glasgow's norms are taken from DIR/glasgow where they are there, VADER's lexicon from its package where it is installed.
"""

from importlib.util import find_spec
from typing import Any

from eval.validity.asked import Asked
from sae_emotions.artefact import read_json
from sae_emotions.vectors.vectors import vectors

TARGETS = {"valence": 0.85, "arousal": 0.75}
"""Cross-validated ridge read-outs to reach."""


def measured(asked: Asked) -> dict[str, Any]:
    """Key figures of RUN/vectors; vectors.json there holds all of them."""
    norms, skipped = [], []
    glasgow = asked.data and asked.data / "glasgow" / "glasgow_norms.csv"
    if glasgow and glasgow.is_file():
        norms.append(str(glasgow))
    else:
        skipped.append("glasgow")
    if find_spec("vaderSentiment"):
        norms.append("vader")
    else:
        skipped.append("vader")
    found = read_json(vectors(asked.run, norms=norms, dictionary=asked.dictionary) / "vectors.json")
    arrangements = {place: one["arrangements"] for place, one in found["places"].items()}
    arrangements[f"dictionary {asked.dictionary}"] = found["dictionary"]["arrangements"]
    return {
        "skipped_norms": skipped,
        "recipe": found["recipe"],
        "read_out_of_ratings": _read_outs(found["read_out"]),
        "leading_components": {place: _leading(kinds) for place, kinds in arrangements.items()},
        "clusters_by_k_means": {
            place: {kind: one.get("clusters") for kind, one in kinds.items()} for place, kinds in arrangements.items()
        },
        "likeness_of_pairwise_cosines": found["likeness"],
        "logit_lens_of_own_word": {place: one["own_word"] for place, one in found["places"].items()},
        "batteries": {
            **{place: one["batteries"] for place, one in found["places"].items()},
            **found["dictionary"]["batteries"],
        },
    }


def _read_outs(read_out: dict[str, Any]) -> dict[str, Any]:
    """Per set of ratings and dimension: the figure, its target and null, and what knows no context or is a feature."""
    table: dict[str, Any] = {}
    for name, rated in read_out["vectors"].items():
        for dimension, one in rated.items():
            if "left_out" in one:
                continue
            chosen = one["chosen_within_folds"]["vectors"]
            beside = {
                kind: {place: score["r"] for place, score in read_out[kind][name][dimension].get("places", {}).items()}
                for kind in ("embedding-only null", "labelled concepts")
            }
            table.setdefault(name, {})[dimension] = {
                "r_block_chosen_within_folds": chosen["r"],
                "target": TARGETS[dimension],
                "reached": chosen["r"] >= TARGETS[dimension],
                **{key: chosen[key] for key in ("n", "p", "permuted_mean", "permuted_95th_percentile", "times_chosen")},
                "stories_and_block_chosen_within_folds": one["chosen_within_folds"]["any stories, any block"],
                "r_by_place": {place: score["r"] for place, score in one["places"].items()},
                "r_beside_it": beside,
                "against_other_ratings": one["against_other_ratings"],
            }
    return table


def _leading(kinds: dict[str, Any]) -> dict[str, Any]:
    """Per arrangement: variance carried, and the best of the leading components against each rating and nuisance."""
    return {
        kind: {
            "explained_variance": one.get("explained_variance"),
            "ratings": one.get("components_against_ratings"),
            "story_length": one.get("components_against_story_length"),
            "shared_topics": one.get("components_explained_by_shared_topics"),
        }
        for kind, one in kinds.items()
    }
