"""The concepts' own words: their token embeddings, and whether a vector's logit lens speaks for its own.

Shapes: C concepts, D residual width, V vocabulary.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch

from sae_emotions.vectors.geometry import p_value

PERMUTATIONS = 1000


def word_ids(words: Sequence[str], tokenizer: Any) -> list[list[int]]:
    """Tokens of each word as it stands inside a text, after a space."""
    return [tokenizer(f" {word}", add_special_tokens=False)["input_ids"] for word in words]


def word_embeddings(ids: Sequence[Sequence[int]], embedding_VD: torch.Tensor) -> np.ndarray:
    """Mean embedding of each word's tokens, (C, D)."""
    return np.stack([embedding_VD[list(one)].mean(0).numpy() for one in ids])


def own_word(vectors_CD: np.ndarray, ids: Sequence[Sequence[int]], W_U_VD: torch.Tensor, seed: int) -> dict[str, Any]:
    """How high each concept's vector raises the first token of its own word.

    Its percentile among all concepts' vectors (chance .5), and the share of vectors with that token among the ten they
    raise most, beside the same share of vectors permuted among the concepts.
    """
    first_C = torch.tensor([one[0] for one in ids])
    unit_CD = torch.nn.functional.normalize(torch.from_numpy(vectors_CD).float(), dim=1)
    logits_CV = unit_CD @ W_U_VD.float().T
    tenth_C = logits_CV.topk(min(10, logits_CV.shape[1])).values[:, -1]
    of_CC = logits_CV[:, first_C]  # vector, word
    percentile_CC = (of_CC.argsort(0).argsort(0) / len(ids)).numpy()
    among_CC = (of_CC >= tenth_C[:, None]).numpy()
    rng, concepts = np.random.default_rng([seed, 40]), np.arange(len(ids))
    orders = [rng.permutation(len(ids)) for _ in range(PERMUTATIONS)]
    null_P = np.array([percentile_CC[order, concepts].mean() for order in orders])
    scale = len(ids) / (len(ids) - 1)  # a vector is not compared with itself
    score = float(np.diag(percentile_CC).mean() * scale)
    return {
        "n": len(ids),
        "percentile_of_own_word": score,
        "percentile_chance": 0.5,
        "p": p_value(score, null_P * scale),
        "own_word_in_top_10": float(np.diag(among_CC).mean()),
        "other_vectors_have_it_in_top_10": float(
            (among_CC.sum() - np.diag(among_CC).sum()) / (among_CC.size - len(ids))
        ),
    }
