"""Compare a run's dictionaries by cross-validation over topics of the selection set; held-out texts are never read.

    python -m eval.choose RUN [--dictionary NAME ...] [--folds 3] [--json FILE]

Prints, per dictionary, the mean AUROC in each register of each concept's feature chosen on the other folds' topics.
"""

import argparse
import sys
from pathlib import Path

from sae_emotions.artefact import write_json
from sae_emotions.concepts.concept_set import load_concepts
from sae_emotions.dictionary.encode import load_dictionary
from sae_emotions.errors import UserError
from sae_emotions.label.choose import cross_validated
from sae_emotions.label.label import concept_means
from sae_emotions.label.layout import layout
from sae_emotions.run_folder import config_of


def compare(run: Path, names: list[str], folds: int) -> list[dict[str, object]]:
    """One row a dictionary: name, block, d_sae, folds and the cross-validated mean AUROC of each register."""
    config = config_of(run)
    found = layout(load_concepts(config.concepts))
    rows: list[dict[str, object]] = []
    for name in names or [dictionary.name for dictionary in config.dictionaries]:
        dictionary = load_dictionary(run, name)
        scores = cross_validated(
            concept_means(config, run, dictionary, selection_only=True), found, folds, config.label
        )
        row = {"dictionary": name, "block": dictionary.block, "d_sae": dictionary.d_sae, "folds": folds}
        rows.append({**row, **{f"auroc_{register}": score for register, score in scores.items()}})
    return rows


def main(arguments: list[str] | None = None) -> int:
    """Entry point; 0, or 2 for bad input."""
    parser = argparse.ArgumentParser(
        prog="python -m eval.choose", description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("run", type=Path, help="run folder")
    parser.add_argument(
        "--dictionary", action="append", default=[], help="dictionary name; may be repeated (default: all)"
    )
    parser.add_argument("--folds", type=int, default=3, help="folds of topics (default: 3)")
    parser.add_argument("--json", type=Path, help="also write the table to this file")
    given = parser.parse_args(arguments)
    try:
        rows = compare(given.run, given.dictionary, given.folds)
        if given.json:
            write_json(given.json, rows)
    except UserError as error:
        print(error, file=sys.stderr)
        return 2
    for row in rows:
        print(
            "  ".join(
                f"{key} {value:.3f}" if isinstance(value, float) else f"{key} {value}" for key, value in row.items()
            )
        )
    return 0


if __name__ == "__main__":
    sys.exit(main())
