"""Read a text with a run's own eyes: which labelled features are active at which of its tokens. The only look-up that
loads a model.

Shapes: B rows of the text, D residual width, F latents, L labelled ones.
"""

from typing import TYPE_CHECKING

import numpy as np
import torch

from sae_emotions.config import parse_config
from sae_emotions.dictionary.encode import load_dictionary
from sae_emotions.errors import UserError
from sae_emotions.harvest.harvest import shard_rows
from sae_emotions.harvest.plan import special_ids, tokenised
from sae_emotions.lookup.shapes import Active, Reading, ReadToken
from sae_emotions.lookup.tables import Row
from sae_emotions.machine import compute_dtype, device
from sae_emotions.sources.models import load_model
from sae_emotions.sources.text import Document

if TYPE_CHECKING:
    from sae_emotions.lookup.run import Run

CHUNK = 512
"""rows encoded at once: all latents of a row are held, if only for a moment"""


class Reader:
    """A model, one dictionary and its labels, kept between texts."""

    def __init__(self, run: "Run", name: str) -> None:
        config = parse_config(run.info["config"], str(run.path / "run.json"))
        self.name, self.labels = name, _labels(run, name)
        self.vocabulary = run._folder.table("vocabulary.parquet")["text"]
        self.dictionary = load_dictionary(run.path, name)
        self.settings = config.harvest.model_copy(update={"blocks": (self.dictionary.block,)})
        self.model = load_model(config.model, compute_dtype(config.model))
        self.model.model.to(device())

    def read(self, text: str) -> Reading:
        """The tokens of `text` with their labelled features. Raises `UserError` for a text shorter than two tokens."""
        found = list(tokenised([Document("text", "text", text)], self.model.tokenizer))
        if not found:
            raise UserError("The text is shorter than two tokens; give a longer one.")
        ids = found[0].ids
        got = shard_rows(self.model, 0, [ids], self.settings, special_ids(self.model.tokenizer))
        x_BD = got.rows[self.dictionary.block]
        parts = [self.dictionary.features(part)[:, list(self.labels)] for part in x_BD.split(CHUNK) if len(part)]
        acts_BL = torch.cat(parts).numpy() if parts else np.empty((0, len(self.labels)))
        at = {int(position): self._active(acts_L) for position, acts_L in zip(got.position, acts_BL, strict=True)}
        pieces = enumerate(self.vocabulary.take(ids).to_pylist())
        return Reading(self.name, text, tuple(ReadToken(n, piece, n in at, at.get(n, ())) for n, piece in pieces))

    def _active(self, acts_L: np.ndarray) -> tuple[Active, ...]:
        found = []
        for number, value in zip(self.labels, acts_L.tolist(), strict=True):
            if value > 0:
                own = self.labels[number]
                share = value / own["max_activation"] if own["max_activation"] else None
                found.append(Active(str(number), number, own["label"], own["scope"], value, share))
        return tuple(sorted(found, key=lambda one: (-(one.share or 0.0), one.feature)))


def _labels(run: "Run", name: str) -> dict[int, Row]:
    columns = ["feature", "label", "scope", "max_activation"]
    table = run._folder.table(f"labels/{name}/features.parquet").select(columns)
    found = {row["feature"]: row for row in table.filter(table["label"].is_valid()).to_pylist()}
    if not found:
        raise UserError(f"Dictionary '{name}' has no labelled feature, so there is nothing to read a text with.")
    return found
