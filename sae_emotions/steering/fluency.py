"""What a steered model goes on to say, and what is lost by steering: perplexity under the unsteered model, repetition.

Shapes: J additions (rows of a batch), S positions, D residual width, V vocabulary.
"""

from collections.abc import Callable, Collection, Sequence
from typing import Any, NamedTuple

import numpy as np
import torch

from sae_emotions.edit import add, edited
from sae_emotions.sources.models import Model
from sae_emotions.steering.words import Positions

GRAM = 3
ROWS, SCORED = 48, 8  # continuations written and scored at once


class Continuation(NamedTuple):
    """What follows the prompt."""

    ids: tuple[int, ...]
    """tokens, without the one that ends a text"""
    text: str
    perplexity: float | None
    """of these tokens after the prompt under the unsteered model; None where there is none"""
    repetition: float
    """share of its n-grams (n = `GRAM`) that have stood in it before"""


def repetition(ids: Sequence[int], n: int = GRAM) -> float:
    """Share of the n-grams that have stood there before: 0 for a text too short to have two."""
    grams = [tuple(ids[at : at + n]) for at in range(len(ids) - n + 1)]
    return 1 - len(set(grams)) / len(grams) if grams else 0.0


@torch.inference_mode()
def perplexities(model: Any, ids: Sequence[int], continued: Sequence[Sequence[int]]) -> list[float | None]:
    """exp of the mean negative log P of each continuation's tokens after the prompt `ids`; None for an empty one."""
    found: list[float | None] = [None] * len(continued)
    device = next(model.parameters()).device
    # Rows of one length at a time: nothing is padded.
    for length in sorted({len(more) for more in continued} - {0}):
        rows = [j for j, more in enumerate(continued) if len(more) == length]
        for start in range(0, len(rows), SCORED):
            some = rows[start : start + SCORED]
            ids_BS = torch.tensor([[*ids, *continued[j]] for j in some], device=device)
            logits_BSV = model(input_ids=ids_BS, use_cache=False, logits_to_keep=length + 1).logits[:, :-1]
            for j, logits_SV, ids_S in zip(some, logits_BSV, ids_BS, strict=True):
                found[j] = float(torch.nn.functional.cross_entropy(logits_SV.float(), ids_S[-length:]).exp())
    return found


@torch.inference_mode()
def _written(
    model: Any,
    block: int,
    ids: Sequence[int],
    vectors_JD: torch.Tensor,
    special: Collection[int],
    positions: Positions,
    draws_S: np.ndarray | None,
    temperature: float,
    tokens: int,
) -> np.ndarray:
    """Token ids, J x S: greedy without `draws_S`, else by inverting the distribution at one number a position."""
    from transformers import DynamicCache

    device = next(model.parameters()).device
    steer = add(vectors_JD.to(device)[:, None], 1) if vectors_JD.any() else None
    past, new_JS = DynamicCache(), torch.tensor([list(ids)] * len(vectors_JD), device=device)
    written = []
    for n in range(tokens):
        with edited(model, block, steer if n == 0 or positions == "all" else None, special):
            out = model(input_ids=new_JS, cache=past, use_cache=True, logits_to_keep=1)
        logits_JV = out.logits[:, -1].float()
        if draws_S is None:
            new_JS = logits_JV.argmax(1, keepdim=True)
        else:
            share_JV = torch.softmax(logits_JV.double() / temperature, dim=1).cumsum(1)
            new_JS = (share_JV < draws_S[n] * share_JV[:, -1:]).sum(1, keepdim=True)
        written.append(new_JS.cpu().numpy())
    return np.concatenate(written, axis=1)


def continuations(
    model: Model,
    block: int,
    ids: Sequence[int],
    vectors_JD: torch.Tensor,
    special: Collection[int],
    positions: Positions,
    tokens: int,
    temperature: float,
    seed: int,
    done: Callable[[int], None] = lambda n: None,
) -> list[Continuation]:
    """What the model writes after the prompt `ids` under each addition, up to `tokens` tokens.

    Greedy at temperature 0, else drawn with `seed`: the same random number at the same place for every addition, so that
    they differ by the addition alone. An addition of nothing is the model itself.
    """
    draws_S = np.random.default_rng([seed, 13]).random(tokens) if temperature > 0 else None
    ends = model.model.generation_config.eos_token_id
    stops = {model.tokenizer.eos_token_id, *(ends if isinstance(ends, list) else [ends])}
    found = []
    for start in range(0, len(vectors_JD), ROWS):
        some_JD = vectors_JD[start : start + ROWS]
        written_JS = _written(model.model, block, ids, some_JD, special, positions, draws_S, temperature, tokens)
        for row in written_JS.tolist():
            end = next((n for n, token in enumerate(row) if token in stops), len(row))
            found.append(tuple(row[:end]))
        done(len(some_JD))
    scores = perplexities(model.model, ids, found)
    return [
        Continuation(one, model.tokenizer.decode(one), score, repetition(one))
        for one, score in zip(found, scores, strict=True)
    ]
