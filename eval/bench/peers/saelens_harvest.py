"""SAELens' ActivationsStore over a Hugging Face model, as its runner builds both.

`default` has the runner's own settings; `best` reads with a bfloat16 model, in our batches, and does not mix. On one core,
which others used too, that gave 901 tokens/s, batches of 32 windows 476, and its own autocast 86.
"""

import datasets
import numpy as np
import torch
from reading import Task, Windows, kept, serve, task, windows
from sae_lens.config import LanguageModelSAERunnerConfig
from sae_lens.load_model import load_model
from sae_lens.training.activations_store import ActivationsStore

DEFAULTS = LanguageModelSAERunnerConfig.__dataclass_fields__


def built(given: Task) -> ActivationsStore:
    """The store at one of its settings."""
    every = windows(given)
    length, best = len(every[0]), given.variant == "best"
    model = load_model(
        "AutoModelForCausalLM",
        given.model,
        device=given.device,
        model_from_pretrained_kwargs={"dtype": torch.bfloat16 if best else torch.float32},
        hook_names=[given.hook],
    )
    prompts = max(1, given.batch_tokens // length) if best else int(DEFAULTS["store_batch_size_prompts"].default)
    return ActivationsStore(
        model=model,
        dataset=datasets.Dataset.from_dict({"input_ids": every}),
        streaming=False,
        hook_name=given.hook,
        hook_head_index=None,
        context_size=length,
        d_in=given.width,
        n_batches_in_buffer=prompts if best else int(DEFAULTS["n_batches_in_buffer"].default),
        total_training_tokens=len(every),
        store_batch_size_prompts=prompts,
        train_batch_size_tokens=prompts * length if best else int(DEFAULTS["train_batch_size_tokens"].default),
        prepend_bos=False,
        normalize_activations="none",
        device=torch.device(given.device),
        dtype="float32",
        activations_mixing_fraction=0.0 if best else float(DEFAULTS["activations_mixing_fraction"].default),
    )


def main() -> None:
    """Serve one task."""
    given = task()
    store = built(given)
    forward = store.store_batch_size_prompts * store.context_size
    tokens = max(forward, given.step_windows * store.context_size)

    def step(some: Windows) -> None:
        """The store goes through the same windows by itself."""
        for _ in range(tokens // store.train_batch_size_tokens):
            next(store)

    def rows(some: Windows) -> np.ndarray:
        ids_WS = torch.tensor(some)
        parts = [store.get_activations(part_WS) for part_WS in ids_WS.split(store.store_batch_size_prompts)]
        return kept(torch.cat(parts), torch.ones_like(ids_WS)).numpy()

    serve(given, step, rows, note="bfloat16" if given.variant == "best" else "float32", tokens=tokens)


if __name__ == "__main__":
    main()
