"""dictionary_learning's ActivationBuffer over nnsight: float32 (`default`) or `bf16`.

Its own buffer of 30,000 contexts and its forward passes of 512 would not end within a benchmark: the buffer holds one
step's windows, and a pass takes one batch of ours. The texts are token ids written out, so that all read the same windows.
"""

import itertools
from typing import Any

import numpy as np
import torch
from dictionary_learning.buffer import ActivationBuffer
from nnsight import LanguageModel
from reading import Task, Windows, serve, task, windows
from transformers import AutoModelForCausalLM, BatchEncoding


class Ids:
    """What nnsight takes for a tokenizer: it reads numbers, and pads on the right as ours does."""

    pad_token = "0"

    def __call__(self, texts: list[str], **more: Any) -> BatchEncoding:
        return self.pad([{"input_ids": [int(one) for one in text.split()]} for text in texts])

    def pad(self, some: list[dict[str, Any]], **more: Any) -> BatchEncoding:
        """Ids and mask as tensors."""
        ids = [torch.as_tensor(one["input_ids"]) for one in some]
        mask = [torch.ones_like(one) for one in ids]
        padded = [torch.nn.utils.rnn.pad_sequence(parts, batch_first=True) for parts in (ids, mask)]
        return BatchEncoding({"input_ids": padded[0], "attention_mask": padded[1]})


def submodule(model: Any, hook: str) -> Any:
    """nnsight's handle on the module called `hook`."""
    for part in hook.split("."):
        model = model[int(part)] if part.isdigit() else getattr(model, part)
    return model


def buffer(given: Task, some: Windows, model: Any) -> Any:
    """A buffer that goes through `some` without end."""
    longest = max(map(len, some))
    texts = itertools.cycle([" ".join(map(str, window)) for window in some])
    return ActivationBuffer(
        texts,
        model,
        submodule(model, given.hook),
        d_submodule=given.width,
        n_ctxs=given.step_windows,
        ctx_len=longest,
        refresh_batch_size=max(1, given.batch_tokens // longest),
        out_batch_size=given.step_windows * longest // 2,
        remove_bos=True,
    )


def main() -> None:
    """Serve one task."""
    given = task()
    dtype = torch.bfloat16 if given.variant == "bf16" else torch.float32
    model = AutoModelForCausalLM.from_pretrained(given.model, torch_dtype=dtype).eval()
    traced = LanguageModel(model, tokenizer=Ids())
    every = buffer(given, windows(given), traced)

    def step(some: Windows) -> None:
        """One refresh, and all of its rows handed out."""
        next(every)
        next(every)

    def rows(some: Windows) -> np.ndarray:
        one = buffer(given, some, traced)
        one.refresh()
        return one.activations[: sum(len(window) - 1 for window in some)].float().numpy()

    serve(given, step, rows, note=str(dtype).removeprefix("torch."), tokens=every.activation_buffer_size)


if __name__ == "__main__":
    main()
