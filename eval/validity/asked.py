"""What a section of the validity check is given."""

from pathlib import Path
from typing import NamedTuple


class Asked(NamedTuple):
    """One finished run, and where labelled tables lie."""

    run: Path
    """run folder"""
    dictionary: str
    """name of the dictionary"""
    data: Path | None
    """folder of labelled tables, or None; a table that is not there is named and skipped"""
