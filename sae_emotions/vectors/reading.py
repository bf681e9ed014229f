"""What the model carries over stretches of texts: means of any view of its rows, harvested or read now.

Shapes: N rows, T texts, S spans, D residual width, V vocabulary, X width of a view.
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import closing
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch

from sae_emotions.config import HarvestConfig
from sae_emotions.errors import UserError
from sae_emotions.harvest.harvest import ShardRows, shard_rows
from sae_emotions.harvest.plan import special_ids
from sae_emotions.harvest.readers import Reading
from sae_emotions.harvest.rows import Rows, open_rows, read_documents
from sae_emotions.label.means import residual_means, rows_to_read
from sae_emotions.progress import Progress
from sae_emotions.sources.models import Model

EMBEDDINGS = "embeddings"
"""The place below the first block: a token's embedding, which knows nothing of its context."""
View = Callable[[ShardRows], np.ndarray]
"""Something said of each row: x_NX."""
_GROUP = 8  # forward passes' worth of tokens between two looks at the progress bar


class Span(NamedTuple):
    """Tokens `start` to `stop` (exclusive) of one text."""

    text: int
    start: int
    stop: int


class TokenRows:
    """Rows of a harvest with each row's token embedding in the place of its residual stream."""

    def __init__(self, rows: Rows, embedding_VD: torch.Tensor) -> None:
        self.document_N, self.position_N, self.token_N = rows.document_N, rows.position_N, rows.token_N
        self._embedding_VD = embedding_VD

    def __len__(self) -> int:
        return len(self.token_N)

    def read(self, index_N: np.ndarray) -> np.ndarray:
        """x_ND, float32."""
        return self._embedding_VD[torch.from_numpy(self.token_N[index_N].astype(np.int64))].numpy()


def embeddings(model: Model) -> torch.Tensor:
    """The token embeddings (V, D), float32, on the CPU."""
    found: torch.Tensor = model.model.get_input_embeddings().weight.detach().float().cpu()
    return found


def views(model: Model, blocks: Sequence[int]) -> dict[str, View]:
    """The residual stream after each block, and the embeddings, each by its name."""
    embedding_VD = embeddings(model)

    def at(block: int) -> View:
        return lambda rows: rows.rows[block].numpy()

    def embedded(rows: ShardRows) -> np.ndarray:
        return embedding_VD[torch.from_numpy(np.asarray(rows.token, np.int64))].numpy()

    return {str(block): at(block) for block in blocks} | {EMBEDDINGS: embedded}


def streamed(
    model: Model, ids: Sequence[Sequence[int]], blocks: Sequence[int], settings: HarvestConfig, title: str
) -> Iterator[tuple[int, int, ShardRows]]:
    """Rows of texts at `blocks`, group after group: first text, text behind the last, and their rows."""
    wanted = settings.model_copy(update={"blocks": tuple(blocks)})
    special, total = special_ids(model.tokenizer), sum(map(len, ids))
    with closing(Reading(model.model, wanted)) as reading, Progress(title, total, "tok") as progress:
        reader, start = reading.of(total).reader, 0
        while start < len(ids):
            stop, held = start, 0
            while stop < len(ids) and held < _GROUP * settings.batch_tokens:
                held += len(ids[stop])
                stop += 1
            yield start, stop, shard_rows(model, start, ids[start:stop], wanted, special, reader)
            progress.advance(held)
            start = stop


def span_means(
    model: Model,
    ids: Sequence[Sequence[int]],
    spans: Sequence[Span],
    blocks: Sequence[int],
    seen: dict[str, View],
    settings: HarvestConfig,
    title: str,
) -> dict[str, np.ndarray]:
    """Mean of each view over each span's rows: name -> x_SX, float32.

    The first token of a window and special tokens have no row and do not count. Raises `UserError` for a span that has
    no row at all.
    """
    found: dict[str, np.ndarray] = {}
    of_text: dict[int, list[int]] = {}
    for number, span in enumerate(spans):
        of_text.setdefault(span.text, []).append(number)
    for start, stop, rows in streamed(model, ids, blocks, settings, title):
        values = {name: view(rows) for name, view in seen.items()}
        first_T = np.searchsorted(rows.document, np.arange(start, stop + 1))
        for text in range(start, stop):
            position = rows.position[first_T[text - start] : first_T[text - start + 1]]
            for number in of_text.get(text, ()):
                low, high = first_T[text - start] + np.searchsorted(position, spans[number][1:])
                if low == high:
                    raise UserError(
                        f"Text {text} of '{title}' has no token to read from position {spans[number].start} on."
                    )
                for name, x_NX in values.items():
                    whole = found.setdefault(name, np.zeros((len(spans), x_NX.shape[1]), np.float32))
                    whole[number] = x_NX[low:high].mean(0)
    return found


def covariances(
    model: Model,
    ids: Sequence[Sequence[int]],
    skip_tokens: int,
    blocks: Sequence[int],
    settings: HarvestConfig,
    title: str,
) -> dict[str, np.ndarray]:
    """Covariance of the rows from position `skip_tokens` on, over all texts: place -> (D, D), float64."""
    sums: dict[str, tuple[int, np.ndarray, np.ndarray]] = {}
    seen = views(model, blocks)
    for _, _, rows in streamed(model, ids, blocks, settings, title):
        keep_N = np.asarray(rows.position) >= skip_tokens
        for name, view in seen.items():
            x_ND = view(rows)[keep_N].astype(np.float64)
            n, total_D, square_DD = sums.get(name, (0, np.zeros(x_ND.shape[1]), np.zeros((x_ND.shape[1],) * 2)))
            sums[name] = (n + len(x_ND), total_D + x_ND.sum(0), square_DD + x_ND.T @ x_ND)
    found = {}
    for name, (n, total_D, square_DD) in sums.items():
        if n < 2:
            raise UserError(f"The neutral texts have no tokens after the first {skip_tokens}; lengthen them.")
        found[name] = square_DD / n - np.outer(total_D / n, total_D / n)
    return found


def story_means(
    run: Path, model: Model, texts: Sequence[Any], skip_tokens: int, blocks: Sequence[int], settings: HarvestConfig
) -> dict[str, np.ndarray]:
    """Mean residual stream of concept texts over their tokens from position `skip_tokens` on: place -> x_TD, float32.

    Blocks that were harvested come from RUN/activations/concepts, the others from a forward pass.
    """
    folder, names = run / "activations" / "concepts", [text.id for text in texts]
    documents = read_documents(folder)
    keys = documents["key"].to_pylist()
    stored = [block for block in blocks if block in settings.blocks]
    there = {str(block): open_rows(folder, block) for block in stored or settings.blocks[:1]}
    stores: dict[str, Any] = {str(block): there[str(block)] for block in stored}
    stores[EMBEDDINGS] = TokenRows(next(iter(there.values())), embeddings(model))
    found: dict[str, np.ndarray] = {}
    each = rows_to_read(stores[EMBEDDINGS], keys, names, skip_tokens)
    with Progress("vectors: stories", len(stores) * each, "rows") as progress:
        for name, rows in stores.items():
            found[name] = residual_means(rows, keys, names, skip_tokens, progress.advance)
    if others := [block for block in blocks if block not in stored]:
        tokens = dict(zip(keys, documents["token_ids"].to_pylist(), strict=True))
        ids = [tokens[name] for name in names]
        spans = [Span(number, skip_tokens, len(one)) for number, one in enumerate(ids)]
        seen = {name: view for name, view in views(model, others).items() if name != EMBEDDINGS}
        found |= span_means(model, ids, spans, others, seen, settings, "vectors: stories at blocks not harvested")
    return found
