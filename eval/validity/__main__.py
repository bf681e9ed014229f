"""What is asked of a finished run beyond its own stages; writes RUN/validity.json, which the report shows.

    python -m eval.validity --run RUN [--data DIR] [--json FILE] [--only SECTION ...] [--again]

Every section is a module `eval.validity.SECTION` with `measured(asked) -> dict`; what it found lies in
RUN/validity/SECTION.json as soon as it is done, so that interrupted work goes on where it stopped. A section whose labels or
dictionary have changed since is measured again.
"""

import argparse
import sys
import time
from importlib import import_module
from pathlib import Path
from typing import Any

from eval.validity.asked import Asked
from sae_emotions.artefact import read_json, sha256_file, versions, write_json
from sae_emotions.config import config_hash
from sae_emotions.errors import UserError
from sae_emotions.machine import describe
from sae_emotions.progress import say
from sae_emotions.run_folder import config_of, is_done

SECTIONS: tuple[str, ...] = ("power", "vectors", "transfer", "steering", "causal", "human", "stability", "nulls")
"""In the order in which they run; the cheap ones come first."""


OF_DATA = ("vectors", "human")
"""Those that read --data."""


def made_from(asked: Asked, name: str) -> dict[str, str]:
    """What a section's figures depend on: config hash, sha256 of the dictionary's weights and labels, and which data is there."""
    files = {
        "dictionary": asked.run / "dictionaries" / asked.dictionary / "sae_weights.safetensors",
        "labels": asked.run / "labels" / asked.dictionary / "features.parquet",
    }
    hashes = {name: sha256_file(path) for name, path in files.items()}
    there = sorted(path.name for path in asked.data.iterdir()) if asked.data and name in OF_DATA else []
    return {"config": config_hash(config_of(asked.run)), **hashes, "data": ", ".join(there)}


def section(asked: Asked, name: str, again: bool) -> dict[str, Any]:
    """One section's figures, measured unless they lie there for this very run."""
    path, origin = asked.run / "validity" / f"{name}.json", made_from(asked, name)
    if path.is_file() and not again:
        found: dict[str, Any] = read_json(path)
        if found.get("made_from") == origin:
            say(f"validity: {name} is done")
            return found
    say(f"validity: {name}")
    started = time.perf_counter()
    measured = import_module(f"eval.validity.{name}").measured(asked)
    found = {**measured, "seconds": round(time.perf_counter() - started, 1), "made_from": origin}
    write_json(path, found)
    return found


def asked_of(run: Path, data: Path | None, dictionary: str | None) -> Asked:
    """Check what was asked for. Raises `UserError` where the run is not labelled or a name or folder is not there."""
    names = [one.name for one in config_of(run).dictionaries]
    name = dictionary or names[0]
    if name not in names:
        raise UserError(f"There is no dictionary '{name}' in {run}; it has {', '.join(names)}.")
    if not is_done(run, f"label:{name}"):
        raise UserError(f"The labels of '{name}' are not done in {run}; run the label stage first.")
    if data is not None and not data.is_dir():
        raise UserError(f"There is no folder {data}; give one that holds labelled tables, or leave --data out.")
    return Asked(run, name, data)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m eval.validity", description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--run", type=Path, required=True, help="finished run")
    parser.add_argument("--data", type=Path, help="folder of labelled tables; what is not there is skipped")
    parser.add_argument("--dictionary", help="dictionary (default: the run's first)")
    parser.add_argument("--json", type=Path, help="also write all figures to this file")
    parser.add_argument("--only", nargs="+", choices=SECTIONS, metavar="SECTION", help=f"of {', '.join(SECTIONS)}")
    parser.add_argument("--again", action="store_true", help="measure again what is done")
    return parser


def main(arguments: list[str] | None = None) -> int:
    """Entry point; 0, or 2 for bad input."""
    given = _parser().parse_args(arguments)
    try:
        asked = asked_of(given.run, given.data, given.dictionary)
        for name in given.only or SECTIONS:
            section(asked, name, given.again)
        there = {name: asked.run / "validity" / f"{name}.json" for name in SECTIONS}
        found = {name: read_json(path) for name, path in there.items() if path.is_file()}
        whole = {"dictionary": asked.dictionary, "machine": describe(), "versions": versions(), **found}
        write_json(asked.run / "validity.json", whole)
        if given.json:
            write_json(given.json, whole)
    except UserError as error:
        print(error, file=sys.stderr)
        return 2
    print(f"{asked.run / 'validity.json'} is written; sae-emotions report {asked.run} shows it.")
    return 0


if __name__ == "__main__":
    sys.exit(main())
