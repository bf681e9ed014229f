"""sparsify through `Trainer.fit`: `default` (signum) or `adam`. Its loop calls a model, so the model hands out our rows.

The gap between two calls is one step; orders are read inside the call.
"""

import json
import sys
import time
from types import SimpleNamespace
from typing import Any

import torch
from common import answer, batches, finish, mean, quality, settings
from sparsify import SaeConfig, TrainConfig, Trainer


class Source(torch.nn.Module):
    """A model of one layer whose output is the next batch."""

    def __init__(self, width: int, device: str) -> None:
        super().__init__()
        self.layer = torch.nn.Identity()
        self.weight = torch.nn.Parameter(torch.zeros(1, width, device=device))
        self.config = SimpleNamespace(num_hidden_layers=1, hidden_size=width)
        self.device = torch.device(device)
        self.dtype = torch.float32
        self.give: Any = None

    @property
    def base_model(self) -> "Source":
        """Itself."""
        return self

    @property
    def dummy_inputs(self) -> dict[str, torch.Tensor]:
        """What sparsify sends through to learn the widths."""
        return {"input_ids": torch.zeros(1, 1, dtype=torch.long, device=self.device)}

    def forward(self, input_ids: torch.Tensor | None = None, **more: Any) -> torch.Tensor:
        """The next rows, through the layer that is read."""
        x_BD = self.weight.detach() if self.give is None else self.give()
        return self.layer(x_BD[None])


def main() -> None:
    """Serve one task."""
    task = settings()
    source, model = batches(task), Source(len(mean(task)), task.device)
    config = TrainConfig(
        SaeConfig(num_latents=task.d_sae, k=task.k),
        batch_size=1,
        optimizer="adam" if task.variant == "adam" else "signum",
        lr=task.lr if task.variant == "adam" else None,
        lr_warmup_steps=max(1, task.steps // 50),
        hookpoints=["layer"],
        log_to_wandb=False,
        save_every=10**9,
    )
    ids = torch.zeros(task.batch, dtype=torch.long)
    trainer = Trainer(config, [{"input_ids": ids}] * task.steps, model)
    sae = next(iter(trainer.saes.values()))
    left, seconds, start = 0, list[float](), 0.0

    def encode(x_BD: torch.Tensor) -> torch.Tensor:
        found = sae.encode(x_BD)
        return x_BD.new_zeros(len(x_BD), task.d_sae).scatter_(1, found.top_indices, found.top_acts)

    def decode(acts_BM: torch.Tensor) -> torch.Tensor:
        return acts_BM @ sae.W_dec + sae.b_dec

    def give() -> torch.Tensor:
        nonlocal left, seconds, start
        finish(task.device)
        if start:
            seconds.append(time.perf_counter() - start)
        if not left and seconds:
            answer({"seconds": seconds})
            seconds = []
        while not left:
            line = sys.stdin.readline()
            if not line.strip():
                sys.exit(0)
            order = json.loads(line)
            if "quality" in order:
                answer(quality(task, encode, decode))
            else:
                left = order["steps"]
        left -= 1
        x_BD = next(source)
        finish(task.device)
        start = time.perf_counter()
        return x_BD

    model.give = give
    answer({"ready": True})
    trainer.fit()


if __name__ == "__main__":
    main()
