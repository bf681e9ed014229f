"""Benchmarks beside the field's libraries: python -m eval.bench train --run RUN --json FILE.

Each library is installed into an environment of its own, trains on the same rows from disk, and takes its steps while the
others wait.
"""

import argparse
import sys
from pathlib import Path
from typing import Any

from eval.bench import train
from sae_emotions.artefact import versions, write_json
from sae_emotions.errors import UserError
from sae_emotions.machine import describe

PEERS = ("ours", "saelens", "dictionary_learning", "sparsify", "bounds")


def _parser() -> argparse.ArgumentParser:
    top = argparse.ArgumentParser(
        prog="python -m eval.bench", description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    kinds = top.add_subparsers(dest="what", required=True)
    one = kinds.add_parser("train", help="training steps, vectors a second")
    one.add_argument("--run", type=Path, required=True, help="finished run whose rows are trained on")
    one.add_argument("--block", type=int, help="block (default: the first dictionary's)")
    one.add_argument("--d-sae", type=int, nargs="+", default=[4608, 16384], help="latents (default: 4608 16384)")
    one.add_argument("--k", type=int, default=32, help="active latents a row (default: 32)")
    one.add_argument("--batch", type=int, default=4096, help="rows a step (default: 4096)")
    one.add_argument("--kinds", nargs="+", default=["topk"], choices=list(train.CANDIDATES), help="default: topk")
    one.add_argument("--peers", nargs="+", default=list(PEERS), choices=PEERS, help="default: all")
    one.add_argument("--rounds", type=int, default=5, help="turns of each library (default: 5)")
    one.add_argument("--vectors", type=int, default=0, help="measure quality after this many vectors (default: not)")
    one.add_argument("--stock-allocator", dest="tuned", action="store_false", help="leave glibc's allocator as it is")
    one.add_argument("--json", type=Path, help="also write the figures to this file")
    return top


def main(arguments: list[str] | None = None) -> int:
    """Entry point; 0, or 2 for bad input."""
    options: dict[str, Any] = vars(_parser().parse_args(arguments))
    try:
        found = train.run(options)
        report = {"machine": describe(), "versions": versions(), "allocator_tuned": options["tuned"], **found}
        if options["json"]:
            write_json(options["json"], report)
    except (UserError, RuntimeError) as error:
        print(error, file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
