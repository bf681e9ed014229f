"""Benchmarks of this package, beside the field's libraries where they do the same.

    python -m eval.bench train --run RUN      training steps beside SAELens, dictionary_learning and sparsify
    python -m eval.bench harvest              harvesting beside transformers, SAELens and dictionary_learning
    python -m eval.bench encode --run RUN     encoding and scoring beside the forward pass, and reading the store
    python -m eval.bench scaling --run RUN    memory and time from few tokens to many, and cost by latents

Each library is installed into an environment of its own, works on the same data, and takes its steps while the others wait.
"""

import argparse
import sys
from importlib import import_module
from pathlib import Path
from typing import Any

from eval.bench import picture
from sae_emotions.artefact import versions, write_json
from sae_emotions.errors import UserError
from sae_emotions.machine import describe

TRAIN_PEERS = ("ours", "saelens", "dictionary_learning", "sparsify", "bounds")
TRAIN_KINDS = ("topk", "batchtopk", "matryoshka", "auxk", "family")
HARVEST_PEERS = ("ours", "transformers", "saelens", "dictionary_learning", "sparsify", "bounds")


def _parser() -> argparse.ArgumentParser:
    top = argparse.ArgumentParser(
        prog="python -m eval.bench", description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    kinds = top.add_subparsers(dest="what", required=True)
    for name, add in {"train": _train, "harvest": _harvest, "encode": _encode, "scaling": _scaling}.items():
        one = kinds.add_parser(name)
        add(one)
        one.add_argument("--json", type=Path, help="also write the figures to this file")
        one.add_argument(
            "--stock-allocator", dest="tuned", action="store_false", help="leave glibc's allocator as it is"
        )
    return top


def _train(one: argparse.ArgumentParser) -> None:
    one.add_argument("--run", type=Path, required=True, help="finished run whose rows are trained on")
    one.add_argument("--block", type=int, help="block (default: the first dictionary's)")
    one.add_argument("--d-sae", type=int, nargs="+", default=[4608, 16384], help="latents (default: 4608 16384)")
    one.add_argument("--k", type=int, default=32, help="active latents a row (default: 32)")
    one.add_argument("--batch", type=int, default=4096, help="rows a step (default: 4096)")
    one.add_argument("--kinds", nargs="+", default=["topk"], choices=TRAIN_KINDS, help="default: topk")
    one.add_argument("--peers", nargs="+", default=list(TRAIN_PEERS), choices=TRAIN_PEERS, help="default: all")
    one.add_argument("--rounds", type=int, default=5, help="turns of each library (default: 5)")
    one.add_argument("--vectors", type=int, default=0, help="measure quality after this many vectors (default: not)")
    one.add_argument("--quality-d-sae", type=int, default=2048, help="latents for that (default: 2048)")
    _picture(one)


def _harvest(one: argparse.ArgumentParser) -> None:
    recipe = Path("train/smollm2-135m.yaml")
    one.add_argument("--config", type=Path, default=recipe, help=f"recipe with model and text (default: {recipe})")
    one.add_argument("--block", type=int, help="block (default: the recipe's first)")
    one.add_argument("--step-tokens", type=int, default=4096, help="tokens a step (default: 4096)")
    one.add_argument("--steps", type=int, default=4, help="steps before the same text comes again (default: 4)")
    one.add_argument("--ragged", action="store_true", help="windows as the texts give them, not full ones alone")
    one.add_argument("--peers", nargs="+", default=list(HARVEST_PEERS), choices=HARVEST_PEERS, help="default: all")
    one.add_argument("--rounds", type=int, default=3, help="turns of each library (default: 3)")
    _picture(one)


def _encode(one: argparse.ArgumentParser) -> None:
    one.add_argument("--run", type=Path, required=True, help="finished run")
    one.add_argument("--dictionary", help="dictionary (default: the first)")
    one.add_argument("--rows", type=int, default=200_000, help="rows to encode and to read, at most (default: 200,000)")
    one.add_argument("--tokens", type=int, default=16_384, help="tokens to run forward (default: 16,384)")


def _scaling(one: argparse.ArgumentParser) -> None:
    one.add_argument("--run", type=Path, required=True, help="finished run whose model, texts and rows are used")
    one.add_argument("--train", type=int, nargs="*", default=[10**5, 10**6, 10**7], help="rows (default: 1e5 1e6 1e7)")
    one.add_argument(
        "--whole", type=int, default=10**6, help="rows to train on at most; of more, a part (default: 1e6)"
    )
    one.add_argument("--harvest", type=int, nargs="*", default=[10_000, 30_000, 100_000], help="tokens")
    one.add_argument("--shard-tokens", type=int, default=8192, help="tokens a shard in the harvest (default: 8192)")
    one.add_argument("--d-sae", type=int, nargs="*", default=[4096, 8192, 16_384, 32_768, 65_536], help="latents")
    one.add_argument("--batch", type=int, default=2048, help="rows a step where latents are compared (default: 2048)")
    one.add_argument("--peers", nargs="+", default=["ours", "saelens"], choices=("ours", "saelens"))
    one.add_argument("--rounds", type=int, default=3, help="turns of each library (default: 3)")
    one.add_argument("--temp", type=Path, help="folder for a store of the largest size, some 590 bytes a row")
    _picture(one)


def _picture(one: argparse.ArgumentParser) -> None:
    one.add_argument("--picture", type=Path, help="also draw the figures into this .png or .svg")


def main(arguments: list[str] | None = None) -> int:
    """Entry point; 0, or 2 for bad input."""
    options: dict[str, Any] = vars(_parser().parse_args(arguments))
    try:
        picture.check(options.get("picture"))
        found = import_module(f"eval.bench.{options['what']}").run(options)
        report = {"machine": describe(), "versions": versions(), "allocator_tuned": options["tuned"], **found}
        if options["json"]:
            write_json(options["json"], report)
        if options.get("picture"):
            picture.draw(options["what"], report, options["picture"])
    except (UserError, RuntimeError) as error:
        print(error, file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
