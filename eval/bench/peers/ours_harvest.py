"""This package's harvest: `default` is a whole shard, from token ids to rows on disk; `forward` keeps the rows in memory."""

from pathlib import Path

import numpy as np
import torch
from reading import Windows, serve, task

from sae_emotions.artefact import write_json
from sae_emotions.config import parse_config
from sae_emotions.harvest.harvest import shard_rows, write_shards
from sae_emotions.harvest.plan import special_ids
from sae_emotions.harvest.readers import Reading
from sae_emotions.harvest.rows import open_rows
from sae_emotions.machine import compute_dtype, tune_allocator
from sae_emotions.schema import write_table
from sae_emotions.sources.models import load_model


def main() -> None:
    """Serve one task."""
    given = task()
    config = parse_config(given.config, "the benchmark")
    tune_allocator()
    dtype = compute_dtype(config.model)
    model = load_model(config.model, dtype)
    folder = Path(given.folder)
    # As in a long harvest, where compiling pays.
    reader = Reading(model.model, config.harvest).of(10**10).reader
    plan = {
        "shards": [{"first_document": 0, "rows": 0}],
        "blocks": [given.block],
        "d_in": given.width,
        "special_ids": special_ids(model.tokenizer),
        "store": config.harvest.store,
        "context": config.harvest.context,
        "batch_tokens": config.harvest.batch_tokens,
        "dtype": str(dtype).removeprefix("torch."),
    }

    def stored(some: Windows) -> None:
        held = sum(map(len, some))
        write_shards(folder, plan | {"tokens": held, "rows": held}, [0], reader)

    def forward(some: Windows) -> torch.Tensor:
        return shard_rows(model, 0, some, config.harvest, plan["special_ids"], reader).rows[given.block]

    def planned(some: Windows) -> None:
        texts = range(len(some))
        columns = {"document": list(texts), "key": [str(n) for n in texts], "source": ["windows"] * len(some)}
        write_table(
            folder / "documents-00000.parquet", "documents", columns | {"shard": [0] * len(some), "token_ids": some}
        )

    def whole(some: Windows) -> None:
        planned(some)
        stored(some)

    def rows(some: Windows) -> np.ndarray:
        if given.variant == "forward":
            return forward(some).numpy()
        whole(some)
        write_json(folder / "plan.json", plan)
        store = open_rows(folder, given.block)
        return store.slice(0, len(store))

    serve(given, forward if given.variant == "forward" else whole, rows, note=plan["dtype"])


if __name__ == "__main__":
    main()
