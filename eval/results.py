"""Collect a finished run's figures into eval/results/NAME.json, and its picture.

    python -m eval.results RUN [MINUTES]

MINUTES is what `time make run` showed, installation and downloads included, where that was measured.
Then `python -m eval.readme` puts them into the README.
"""

import json
import subprocess
import sys
from pathlib import Path

from eval.speed import machine
from sae_emotions.machine import describe
from sae_emotions.report.picture import picture
from sae_emotions.report.table import final_table

ROOT = Path(__file__).parents[1]
COMMANDS = (
    ("find", "afraid"),
    ("read", "She opened the letter from the hospital, and her hands began to shake."),
)


def main(run: Path, minutes: float | None = None) -> None:
    """Write the results file and the picture of `run`, which took `minutes` in all."""
    config = json.loads((run / "run.json").read_text(encoding="utf-8"))["config"]
    name, dictionary = config["name"], config["dictionaries"][0]["name"]
    commands = []
    for verb, what in COMMANDS:
        call = [sys.executable, "-m", "sae_emotions", verb, what, "--run", str(run)]
        output = subprocess.run(call, capture_output=True, text=True, check=True).stdout
        shown = what if " " not in what else f'"{what}"'
        commands.append({"command": f"sae-emotions {verb} {shown} --run runs/demo", "output": output})
    results = {
        "made_by": "python -m eval.results RUN [MINUTES]",
        "make_run_minutes": minutes,
        "machine": machine({"machine": describe()}),
        "summary": json.loads((run / "summary.json").read_text(encoding="utf-8")),
        "transfer": json.loads((run / "labels" / dictionary / "transfer.json").read_text(encoding="utf-8")),
        "table": final_table(run),
        "commands": commands,
    }
    path = ROOT / "eval" / "results" / f"{name}.json"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(results, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
    picture(run, ROOT / "eval" / "results" / f"{name}.png")
    print(f"{path.relative_to(ROOT)} and its picture are written; now run: python -m eval.readme")


if __name__ == "__main__":
    main(Path(sys.argv[1]), *map(float, sys.argv[2:3]))
