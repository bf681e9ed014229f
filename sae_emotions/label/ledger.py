"""The ledger of looks at the held-out set: one JSON line a look, never rewritten."""

import json
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from sae_emotions.artefact import disk_errors


def note_look(path: Path, entry: dict[str, Any]) -> None:
    """Append `entry` (config hash, dictionary, cells, summary ...) and the date to the ledger at `path`."""
    line = json.dumps({"date": datetime.now(UTC).isoformat(timespec="seconds"), **entry}, allow_nan=False)
    path.parent.mkdir(parents=True, exist_ok=True)
    with disk_errors(path), path.open("a", encoding="utf-8") as file:
        file.write(line + "\n")


def looks(path: Path) -> list[dict[str, Any]]:
    """All looks noted so far, oldest first; none where there is no ledger."""
    if not path.is_file():
        return []
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines() if line]
