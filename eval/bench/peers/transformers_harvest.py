"""transformers' own forward pass with a hook: `bf16` and `fp32` stop after the block that is read, as ours does; `plain` is
bfloat16 to the last logit, which is what a hook alone gives; `compiled` is bfloat16 under torch.compile, cut after the block.
"""

from contextlib import suppress
from typing import Any

import numpy as np
import torch
from reading import Windows, batches, kept, serve, task
from transformers import AutoModelForCausalLM


class _Read(Exception):
    """Raised by the hook: nothing above is needed."""


def main() -> None:
    """Serve one task."""
    given = task()
    dtype = torch.float32 if given.variant == "fp32" else torch.bfloat16
    model = AutoModelForCausalLM.from_pretrained(given.model, dtype=dtype).eval().to(given.device)
    found: dict[str, torch.Tensor] = {}

    def hook(module: Any, arguments: Any, output: Any) -> None:
        found["x_WSD"] = output[0] if isinstance(output, tuple) else output
        if given.variant != "plain":
            raise _Read

    def read(ids_WS: torch.Tensor, mask_WS: torch.Tensor) -> torch.Tensor:
        with suppress(_Read):
            model(input_ids=ids_WS, attention_mask=mask_WS, use_cache=False)
        return found["x_WSD"]

    if given.variant == "compiled":
        inner = model.get_submodule(given.hook.split(".")[0])
        inner.layers = inner.layers[: given.block + 1]
        inner.norm = torch.nn.Identity()
        compiled = torch.compile(inner)

        def read_compiled(ids_WS: torch.Tensor, mask_WS: torch.Tensor) -> torch.Tensor:
            x_WSD: torch.Tensor = compiled(input_ids=ids_WS, attention_mask=mask_WS, use_cache=False).last_hidden_state
            return x_WSD

        forward = read_compiled
    else:
        model.get_submodule(given.hook).register_forward_hook(hook)
        forward = read

    def step(some: Windows) -> list[torch.Tensor]:
        with torch.inference_mode():
            return [kept(forward(ids_WS, mask_WS), mask_WS) for ids_WS, mask_WS in batches(given, some)]

    def rows(some: Windows) -> np.ndarray:
        """In the order of the windows: they were read shorter ones first."""
        order = sorted(range(len(some)), key=lambda i: len(some[i]))
        pieces = torch.cat(step(some)).split([len(some[i]) - 1 for i in order])
        return torch.cat(
            [piece for _, piece in sorted(zip(order, pieces, strict=True), key=lambda one: one[0])]
        ).numpy()

    serve(given, step, rows, note=str(dtype).removeprefix("torch."))


if __name__ == "__main__":
    main()
