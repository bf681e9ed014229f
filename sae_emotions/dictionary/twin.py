"""Another dictionary of the same shape: with another seed, on other rows, or left untrained."""

from pathlib import Path
from typing import Any

from sae_emotions.artefact import read_json
from sae_emotions.config import DictionaryConfig, RunConfig
from sae_emotions.dictionary.group import groups
from sae_emotions.dictionary.train import named, train_together


def twin(config: RunConfig, run: Path, like: str, /, **changes: Any) -> DictionaryConfig:
    """Settings that train a dictionary of the shape of `like`, with `changes`.

    One that was made elsewhere has no settings of training: its twin is a TopK one with as many latents, of which as many
    are active as in the original on average.
    """
    one = named(config, like)
    if one.pretrained is None:
        shape = one.model_dump()
    else:
        quality = read_json(run / "dictionaries" / like / "quality.json")
        shape = {"block": one.block, "d_sae": quality["d_sae"], "k": max(1, round(quality["l0"]))}
    return DictionaryConfig.model_validate({"name": like, **shape, **changes})


def train_missing(config: RunConfig, run: Path) -> None:
    """Train those dictionaries of a config that are not in `run` yet, together where they read the same rows."""
    width = read_json(run / "activations" / "text" / "plan.json")["d_in"]
    missing = [one for one in config.dictionaries if not (run / "dictionaries" / one.name / "quality.json").is_file()]
    for group in groups(missing, width):
        for _ in train_together(config, run, [one.name for one in group]):
            pass
