"""What this machine can do, as a worker among the others: the products of the model's own shapes up to the block that is read,
and nothing between them (no attention, no norms), as torch takes them in `bf16` or `fp32`.
"""

from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from reading import Windows, serve, task
from transformers import AutoConfig, AutoModelForCausalLM


def weights(folder: str, blocks: str, count: int, dtype: torch.dtype, device: str) -> list[torch.Tensor]:
    """Random matrices of the linear layers of the first `count` of the module list `blocks`, every block's its own."""
    with torch.device("meta"):
        model: Any = AutoModelForCausalLM.from_config(AutoConfig.from_pretrained(folder))
    layers = [module for block in model.get_submodule(blocks)[:count] for module in block.modules()]
    shapes = [layer.weight.shape for layer in layers if isinstance(layer, torch.nn.Linear)]
    return [torch.randn(shape, device=device).to(dtype) for shape in shapes]


def main() -> None:
    """Serve one task."""
    given = task()
    dtype = torch.float32 if given.variant == "fp32" else torch.bfloat16
    blocks = given.hook.rpartition(".")[0]
    every = weights(given.model, blocks, given.block + 1, dtype, given.device)
    inputs = {
        W_OI.shape[1]: torch.randn(given.batch_tokens, W_OI.shape[1], device=given.device).to(dtype) for W_OI in every
    }

    def step(some: Windows) -> None:
        with torch.inference_mode():
            for at in range(0, sum(map(len, some)), given.batch_tokens):
                rows = min(given.batch_tokens, sum(map(len, some)) - at)
                for W_OI in every:
                    F.linear(inputs[W_OI.shape[1]][:rows], W_OI)

    serve(given, step, lambda some: np.zeros((0, given.width)), note=str(dtype).removeprefix("torch."))


if __name__ == "__main__":
    main()
