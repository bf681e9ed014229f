"""Which dictionaries train together: those that read the same rows in the same order, as many as memory holds.

D residual width, M latents, B rows of a batch.
"""

from collections.abc import Iterable

from sae_emotions.config import DictionaryConfig
from sae_emotions.machine import training_memory_gb

SHARE = 0.5
"""Of the memory there is, what the dictionaries of one group may take."""
SPARSE = {"topk", "batchtopk", "matryoshka_batchtopk"}
"""Architectures that the sparse step trains."""
SPARSE_ROOM, DENSE_ROOM = 8, 17
"""Arrays of B x M that a step is given room for: the most seen at D 576, M 8,192, B 2,048 (batchtopk 7.2, gated 16.8)."""
UNKNOWN_GB = 8.0
"""Memory of a machine that does not tell."""


def training_bytes(dictionary: DictionaryConfig, width: int) -> int:
    """About what one SAE takes while it trains, in bytes; 0 for one that is loaded.

    Eight arrays of D x M (encoder and decoder: weights, two moments, gradients), and what a step makes of a
    batch, counted in arrays of B x M.
    """
    if dictionary.pretrained is not None:
        return 0
    room = SPARSE_ROOM if dictionary.architecture in SPARSE else DENSE_ROOM
    return 4 * dictionary.d_sae * (8 * width + room * dictionary.batch)


def groups(dictionaries: Iterable[DictionaryConfig], width: int) -> list[list[DictionaryConfig]]:
    """Cut dictionaries into groups that train in one pass each, in order; one that is loaded stands alone."""
    most = SHARE * (training_memory_gb() or UNKNOWN_GB) * 2**30
    found: list[list[DictionaryConfig]] = []
    for one in dictionaries:
        for group in found:
            fits = sum(training_bytes(other, width) for other in [*group, one]) <= most
            if one.pretrained is None and fits and reads(one) == reads(group[0]):
                group.append(one)
                break
        else:
            found.append([one])
    return found


def reads(one: DictionaryConfig) -> tuple[object, ...]:
    """What decides which rows come in which order, beside the run's seed: alike for all of a group."""
    return one.pretrained is None, one.batch, one.epochs, one.holdout, one.concept_rows
