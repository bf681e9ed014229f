"""One mean a story: of every feature, and of the residual stream, over the tokens after the opening.

Shapes: N rows of the store, B rows a batch, T texts, F features, D residual width.
"""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple, Protocol

import numpy as np
import torch

from sae_emotions.errors import UserError

BATCH = 4096


class RowStore(Protocol):
    """What this room reads of `harvest.rows.Rows`."""

    document_N: np.ndarray
    position_N: np.ndarray
    token_N: np.ndarray

    def __len__(self) -> int: ...
    def read(self, index_N: np.ndarray) -> np.ndarray: ...


class Encoder(Protocol):
    """What this room reads of `dictionary.encode.Dictionary`."""

    @property
    def d_sae(self) -> int: ...
    @property
    def W_dec_FD(self) -> torch.Tensor: ...
    @property
    def active(self) -> Callable[[torch.Tensor], Any]: ...


class StoryMeans(NamedTuple):
    """Means over a text's tokens from position `skip_tokens` on."""

    acts_TF: np.ndarray
    """mean activation, float32"""
    resid_TD: np.ndarray
    """mean residual stream, float32"""
    tokens_T: np.ndarray
    """tokens averaged over; 0 for a text that was not asked for"""


class Firing(NamedTuple):
    """Rows and latents that fire, in the order of both, and their activations (P pairs)."""

    row_P: np.ndarray
    feature_P: np.ndarray
    value_P: np.ndarray


def encoded(dictionary: Encoder, x_BD: np.ndarray) -> Firing:
    """What fires in rows read from a store."""
    found = dictionary.active(torch.from_numpy(x_BD).to(dictionary.W_dec_FD.device))
    row_P, feature_P, value_P = (one.cpu().numpy() for one in (found.rows(), found.index_P, found.value_P))
    fires_P = value_P > 0
    return Firing(row_P[fires_P], feature_P[fires_P], value_P[fires_P])


def story_means(
    rows: RowStore,
    keys: Sequence[str],
    dictionary: Encoder,
    text_ids: Sequence[str],
    skip_tokens: int,
    wanted: np.ndarray | None = None,
    advance: Callable[[int], None] = lambda rows: None,
) -> StoryMeans:
    """Stream the concept texts' rows through the dictionary and average them per text.

    `keys` names the store's documents in order, `text_ids` the texts in the order of the answer; `wanted` (T, bool)
    leaves the other texts unread. Raises `UserError` for a text that is not in the store or is too short.
    """
    index_N = _wanted_rows(rows, keys, text_ids, skip_tokens, wanted)
    document_text = _document_text(keys, text_ids)
    count, width = len(text_ids), rows.read(index_N[:1]).shape[1]
    acts_TF, resid_TD = np.zeros((count, dictionary.d_sae), np.float32), np.zeros((count, width), np.float32)
    for start in range(0, len(index_N), BATCH):
        some = index_N[start : start + BATCH]
        x_BD = rows.read(some)
        texts, local = np.unique(document_text[rows.document_N[some]], return_inverse=True)
        local = local.reshape(-1)
        firing = encoded(dictionary, x_BD)
        pair_P = local[firing.row_P] * dictionary.d_sae + firing.feature_P
        sums = np.bincount(pair_P, firing.value_P, len(texts) * dictionary.d_sae)
        acts_TF[texts] += sums.reshape(len(texts), dictionary.d_sae).astype(np.float32)
        total_TD = torch.zeros(len(texts), width).index_add_(0, torch.from_numpy(local), torch.from_numpy(x_BD))
        resid_TD[texts] += total_TD.numpy()
        advance(len(some))
    tokens_T = np.bincount(document_text[rows.document_N[index_N]], minlength=count)
    divisor = np.maximum(tokens_T, 1)[:, None].astype(np.float32)
    return StoryMeans(acts_TF / divisor, resid_TD / divisor, tokens_T)


def residual_means(
    rows: RowStore,
    keys: Sequence[str],
    text_ids: Sequence[str],
    skip_tokens: int,
    advance: Callable[[int], None] = lambda rows: None,
) -> np.ndarray:
    """Mean residual stream of each text over its tokens from position `skip_tokens` on, without a dictionary.

    (T, D), float32. See `story_means` for the arguments and what is raised.
    """
    index_N = _wanted_rows(rows, keys, text_ids, skip_tokens, None)
    text_N = torch.from_numpy(_document_text(keys, text_ids)[rows.document_N[index_N]])
    total_TD = torch.zeros(len(text_ids), rows.read(index_N[:1]).shape[1])
    for start in range(0, len(index_N), BATCH):
        some = slice(start, start + BATCH)
        total_TD.index_add_(0, text_N[some], torch.from_numpy(rows.read(index_N[some])))
        advance(len(text_N[some]))
    return (total_TD / torch.bincount(text_N, minlength=len(text_ids))[:, None]).numpy()


def embedding_means(
    rows: RowStore,
    keys: Sequence[str],
    text_ids: Sequence[str],
    skip_tokens: int,
    token_n: np.ndarray,
    W_E_nD: np.ndarray,
) -> np.ndarray:
    """Mean input embedding over the same tokens as `story_means`: a bag of words in the model's own terms. (T, D).

    `W_E_nD` holds the embeddings of the tokens `token_n`, in rising order. Raises `UserError` where one is lacking.
    """
    from scipy.sparse import csr_array

    index_N = _wanted_rows(rows, keys, text_ids, skip_tokens, None)
    text_N, token_N = _document_text(keys, text_ids)[rows.document_N[index_N]], rows.token_N[index_N]
    column_N = np.minimum(np.searchsorted(token_n, token_N), len(token_n) - 1)
    if (token_n[column_N] != token_N).any():
        raise UserError(
            "embedding.safetensors lacks tokens of the concept texts; delete it and run the harvest stage again."
        )
    counts_Tn = csr_array((np.ones(len(index_N), np.float32), (text_N, column_N)), (len(text_ids), len(token_n)))
    return np.asarray(counts_Tn @ W_E_nD / counts_Tn.sum(1)[:, None], np.float32)


def document_means(rows: RowStore, skip_tokens: int, documents: int) -> np.ndarray:
    """Mean residual stream of the store's first `documents` documents after their opening. (M, D), float32.

    Documents that end within the opening are left out.
    """
    index_N = np.flatnonzero((rows.position_N >= skip_tokens) & (rows.document_N < documents))
    _, local_N = np.unique(rows.document_N[index_N], return_inverse=True)
    local_N = local_N.reshape(-1)
    count_M = np.bincount(local_N)
    total_MD = torch.zeros(len(count_M), rows.read(index_N[:1]).shape[1])
    for start in range(0, len(index_N), BATCH):
        some = slice(start, start + BATCH)
        total_MD.index_add_(0, torch.from_numpy(local_N[some]), torch.from_numpy(rows.read(index_N[some])))
    return np.asarray(total_MD.numpy() / count_M[:, None].astype(np.float32))


def rows_to_read(
    rows: RowStore, keys: Sequence[str], text_ids: Sequence[str], skip_tokens: int, wanted: np.ndarray | None = None
) -> int:
    """How many rows `story_means` will read."""
    return len(_wanted_rows(rows, keys, text_ids, skip_tokens, wanted))


def _document_text(keys: Sequence[str], text_ids: Sequence[str]) -> np.ndarray:
    number = {name: i for i, name in enumerate(text_ids)}
    return np.array([number.get(key, -1) for key in keys], np.int64)


def _wanted_rows(
    rows: RowStore, keys: Sequence[str], text_ids: Sequence[str], skip_tokens: int, wanted: np.ndarray | None
) -> np.ndarray:
    document_text = _document_text(keys, text_ids)
    read_T = np.ones(len(text_ids), bool) if wanted is None else wanted
    lacking = np.flatnonzero(read_T & ~np.isin(np.arange(len(text_ids)), document_text))
    if len(lacking):
        raise UserError(f"The harvested concept texts lack '{text_ids[lacking[0]]}'; harvest this concept set again.")
    text_N = document_text[rows.document_N]
    keep_N = (text_N >= 0) & (rows.position_N >= skip_tokens)
    keep_N &= read_T[text_N]
    short = np.flatnonzero(read_T & (np.bincount(text_N[keep_N], minlength=len(text_ids)) == 0))
    if len(short):
        raise UserError(
            f"The concept text '{text_ids[short[0]]}' has no token after the first {skip_tokens}; "
            "lengthen it or lower label.skip_tokens."
        )
    return np.flatnonzero(keep_N)
