"""Texts read as a run reads them, and pooled to one row a text as they come: no token's row is kept.

Shapes: N tokens (rows of the residual stream) of a batch, T texts, F features, D residual width, P pairs of a text and a
feature that fires in it.
"""

from collections.abc import Iterator, Sequence
from contextlib import closing
from typing import Any, NamedTuple

import numpy as np
import torch

from sae_emotions.config import HarvestConfig
from sae_emotions.dictionary.encode import Dictionary
from sae_emotions.harvest.batching import batches
from sae_emotions.harvest.harvest import cut_up
from sae_emotions.harvest.plan import special_ids
from sae_emotions.harvest.readers import Reading
from sae_emotions.label.means import encoded
from sae_emotions.progress import Progress
from sae_emotions.sources.models import Model

SKIPS = (1, 4)
"""Tokens of the opening that are left out, the first of all always; a text that would have none left keeps all but the first"""
POOLS = ("mean", "max", "root mean")
"""How a text's activations become one: mean, largest, or mean of square roots"""


class Pooled(NamedTuple):
    """One row a text, by how it was pooled."""

    acts: dict[tuple[str, int], Any]
    """(pool, tokens skipped) -> T x F, scipy's CSR, float32"""
    resid: dict[int, np.ndarray]
    """tokens skipped -> mean residual stream (T, D), float32"""
    embedding: np.ndarray
    """mean input embedding of all tokens (T, width), float32"""
    tokens_T: np.ndarray
    """tokens of each text that were read, the opening one included"""


class _Batch(NamedTuple):
    """Rows of whole texts, in order of text and position."""

    text_N: np.ndarray
    """text of each row, ascending"""
    position_N: np.ndarray
    x_ND: np.ndarray


def token_ids(texts: Sequence[str], model: Model, context: int) -> tuple[list[list[int]], np.ndarray]:
    """Token ids of each text, cut to one window of `context` tokens; and which texts can be read (T, bool).

    A text can be read if a token follows its first one, which carries nothing.
    """
    special = set(special_ids(model.tokenizer))
    found = [ids[:context] for ids in model.tokenizer(list(texts))["input_ids"]]
    return found, np.array([bool(set(ids[1:]) - special) for ids in found])


def pooled(
    ids: Sequence[Sequence[int]], model: Model, dictionary: Dictionary, settings: HarvestConfig, title: str
) -> Pooled:
    """Run the model over texts (see `token_ids`) up to the dictionary's block; pool its residual stream and features."""
    block, count = dictionary.block, len(ids)
    resid = {skip: np.zeros((count, dictionary.d_in), np.float32) for skip in SKIPS}
    parts: dict[tuple[str, int], list[tuple[np.ndarray, np.ndarray, np.ndarray]]] = {}
    with Progress(title, sum(map(len, ids)), "tok") as progress:
        for batch in _read(ids, model, settings.model_copy(update={"blocks": (block,)}), progress):
            firing = encoded(dictionary, batch.x_ND)
            for skip in SKIPS:
                kept_N = _kept(batch, skip)
                tokens_T = np.bincount(batch.text_N[kept_N], minlength=count)
                some = np.unique(batch.text_N)
                local_N = torch.from_numpy(np.searchsorted(some, batch.text_N[kept_N]))
                total = torch.zeros(len(some), dictionary.d_in).index_add_(
                    0, local_N, torch.from_numpy(batch.x_ND[kept_N])
                )
                resid[skip][some] = total.numpy() / tokens_T[some, None]
                in_P = kept_N[firing.row_P]
                text_P, feature_P = batch.text_N[firing.row_P[in_P]], firing.feature_P[in_P]
                pair_P, values = _by_pair(text_P * dictionary.d_sae + feature_P, firing.value_P[in_P])
                text, feature = pair_P // dictionary.d_sae, pair_P % dictionary.d_sae
                for pool, value in values.items():
                    shared = value if pool == "max" else value / tokens_T[text]
                    parts.setdefault((pool, skip), []).append((text, feature, shared.astype(np.float32)))
    acts = {key: _matrix(found, (count, dictionary.d_sae)) for key, found in parts.items()}
    return Pooled(acts, resid, _embedded(ids, model), np.array([len(one) for one in ids]))


def _read(ids: Sequence[Sequence[int]], model: Model, settings: HarvestConfig, progress: Progress) -> Iterator[_Batch]:
    """Every text is one window, so that a batch holds whole texts."""
    cut = cut_up(0, ids, settings.context, special_ids(model.tokenizer))
    (block,) = settings.blocks
    document_N, position_N = cut.columns["document"], cut.columns["position"]
    with closing(Reading(model.model, settings)) as reading:
        reader = reading.of(sum(map(len, ids))).reader

        def work(batch: list[int]) -> tuple[list[int], torch.Tensor, torch.Tensor]:
            place_N, found = cut.read(reader, batch, settings.blocks)
            return batch, place_N, found[block]

        for batch, place_N, x_ND in reader.each(work, batches(cut.windows, settings.batch_tokens, reader.pads)):
            order = np.argsort(place_N.numpy(), kind="stable")
            place = place_N.numpy()[order]
            yield _Batch(document_N[place].astype(np.int64), position_N[place], x_ND.numpy()[order])
            progress.advance(sum(len(cut.windows[i].tokens) for i in batch))


def _kept(batch: _Batch, skip: int) -> np.ndarray:
    """Rows from position `skip` on; all rows of a text that has none there."""
    later_N = batch.position_N >= skip
    return later_N | ~np.isin(batch.text_N, batch.text_N[later_N])


def _by_pair(pair_P: np.ndarray, value_P: np.ndarray) -> tuple[np.ndarray, dict[str, np.ndarray]]:
    """Distinct pairs in order, and over each one's values: the sum, the largest, the sum of square roots."""
    order = np.argsort(pair_P, kind="stable")
    pair_P, value_P = pair_P[order], value_P[order]
    first = np.flatnonzero(np.append(True, np.diff(pair_P) > 0)[: len(pair_P)])
    if not len(first):
        return pair_P, dict.fromkeys(POOLS, value_P)
    sums = (
        np.add.reduceat(value_P, first),
        np.maximum.reduceat(value_P, first),
        np.add.reduceat(np.sqrt(value_P), first),
    )
    return pair_P[first], dict(zip(POOLS, sums, strict=True))


def _matrix(parts: list[tuple[np.ndarray, np.ndarray, np.ndarray]], shape: tuple[int, int]) -> Any:
    from scipy.sparse import csr_array

    text, feature, value = (np.concatenate(some) for some in zip(*parts, strict=True))
    return csr_array((value, (text, feature)), shape=shape)


def _embedded(ids: Sequence[Sequence[int]], model: Model) -> np.ndarray:
    embedding_VD = model.model.get_input_embeddings().weight
    means = [embedding_VD[torch.tensor(list(one), device=embedding_VD.device)].float().mean(0) for one in ids]
    return np.asarray(torch.stack(means).cpu().numpy())
