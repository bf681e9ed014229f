"""A model that was never trained: the same architecture with weights that know nothing, as a null for what is found.

`random` draws every matrix anew from a normal distribution with the old root mean square, sets gains to their mean and
biases to zero, as a fresh initialisation would, at the trained model's scale. `permuted` keeps every tensor's values and
deals them to other places: scale and tails stay, and no token, head or direction is what it was. Embeddings are scrambled
too, so that words which the trained model knows as near are near no more. Heap et al. (2025) found that SAEs of models
with random weights have features that look as interpretable as others; hence this null.
"""

from typing import Any, Literal

import numpy as np
import torch


def scramble(model: Any, how: Literal["random", "permuted"], seed: int) -> None:
    """Scramble all parameters of a model in place; a matrix that several layers share is scrambled once.

    Every tensor has a stream of random numbers of its own, so the same seed gives the same weights on any device.
    """
    for number, (name, parameter) in enumerate(model.named_parameters()):
        values = parameter.detach().float().cpu().numpy().copy()
        rng = np.random.default_rng([seed, number])
        if how == "permuted":
            flat = values.reshape(-1)
            rng.shuffle(flat)
        elif values.ndim > 1:
            size = np.sqrt(np.mean(np.square(values, dtype=np.float64)))
            values = rng.standard_normal(values.shape, np.float32) * np.float32(size)
        else:
            values[:] = 0 if name.endswith("bias") else values.mean()
        with torch.no_grad():
            parameter.copy_(torch.from_numpy(values))
