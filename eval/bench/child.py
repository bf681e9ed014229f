"""One process of the scaling benchmark, so that its peak memory is its own: python -m eval.bench.child TASK.

TASK is JSON; the answer is written to the file that it names.
"""

import json
import resource
import sys
import threading
import time
from pathlib import Path
from typing import Any

import torch

from sae_emotions.artefact import read_json, write_json
from sae_emotions.config import RunConfig
from sae_emotions.dictionary.data import shuffled, training_rows
from sae_emotions.dictionary.train import named, train_together
from sae_emotions.harvest.harvest import describe_texts, write_shards
from sae_emotions.harvest.plan import make_plan
from sae_emotions.harvest.readers import Reading
from sae_emotions.machine import compute_dtype, tune_allocator
from sae_emotions.run_folder import config_of
from sae_emotions.sources.models import load_model
from sae_emotions.sources.text import documents


def _status() -> dict[str, int]:
    """/proc/self/status in bytes; empty where there is none."""
    try:
        lines = Path("/proc/self/status").read_text(encoding="utf-8").splitlines()
    except OSError:
        return {}
    pairs = [line.split(":") for line in lines if line.endswith(" kB")]
    return {name: int(value.split()[0]) * 1024 for name, value in pairs}


class Peak:
    """The most memory this process held while the block ran, asked for fifty times a second.

    `own` is anonymous memory; `mapped` counts the pages of memory-mapped files too, which the kernel takes back as it likes.
    """

    def __init__(self) -> None:
        self.own = self.mapped = 0
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._watch, daemon=True)

    def _watch(self) -> None:
        while True:
            now = _status()
            self.own, self.mapped = max(self.own, now.get("RssAnon", 0)), max(self.mapped, now.get("VmRSS", 0))
            if self._over.wait(0.02):
                return

    def __enter__(self) -> "Peak":
        self._thread.start()
        return self

    def __exit__(self, *error: object) -> None:
        self._over.set()
        self._thread.join()
        if not self.mapped:
            self.own = self.mapped = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def trained(task: dict[str, Any]) -> dict[str, Any]:
    """Run the train stage on `rows` of the store in `run`, then read every other row of it in training's own order.

    "pace": rows a second between the first and the last step that are noted, past the first steps and what they compile.
    """
    run = Path(task["run"])
    config = config_of(run)
    name = config.dictionaries[0].name
    start = time.perf_counter()
    noted = [(start, 0.0)]
    for _ in train_together(config, run, [name], lambda _, found: noted.append((time.perf_counter(), found["rows"]))):
        pass
    seconds = time.perf_counter() - start
    (begun, before), (ended, after) = noted[min(1, len(noted) - 2)], noted[-1]
    steps = read_json(run / "dictionaries" / name / "quality.json")["steps"]
    settings = named(config, name)
    rows = training_rows(run, config, settings)
    whole = len(rows.train) // settings.batch
    start = time.perf_counter()
    for _ in shuffled([rows], config.seed, settings.batch, whole, steps):
        pass
    return {
        "seconds": seconds,
        "trained": steps * settings.batch,
        "pace": (after - before) / (ended - begun),
        "read_only": max(0, whole - steps) * settings.batch,
        "read_only_seconds": time.perf_counter() - start,
    }


def harvested(task: dict[str, Any]) -> dict[str, Any]:
    """Plan and harvest `tokens` of the recipe's text, shard by shard."""
    tune_allocator()
    config = RunConfig.model_validate(task["config"])
    folder = Path(task["run"]) / "activations" / "text"
    torch.set_num_threads(config.harvest.threads or torch.get_num_threads())
    model = load_model(config.model, compute_dtype(config.model))
    texts = documents(config.text, model.tokenizer, config.seed)
    start = time.perf_counter()
    reading = Reading(model.model, config.harvest)
    plan = make_plan(config, folder, model, texts, task["tokens"], describe_texts(config, "text"), reading.of)
    planned = time.perf_counter()
    write_shards(folder, plan, list(range(len(plan["shards"]))), reading.of(plan["tokens"]).reader)
    reading.close()
    return {
        "seconds": time.perf_counter() - start,
        "planning_seconds": planned - start,
        "tokens": plan["tokens"],
        "shards": len(plan["shards"]),
    }


def main() -> None:
    """Do the task and answer."""
    task = json.loads(sys.argv[1])
    with Peak() as peak:
        found = {"train": trained, "harvest": harvested}[task["what"]](task)
    write_json(Path(task["answer"]), found | {"own_bytes": peak.own, "mapped_bytes": peak.mapped})


if __name__ == "__main__":
    main()
