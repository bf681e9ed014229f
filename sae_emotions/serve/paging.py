"""Cursor paging over a list that may change between two requests.

A cursor names the next item's place, the list it belongs to and the state of the files behind it. It is opaque: nobody
but this module reads it, and one that belongs to another list or state is refused.
"""

import base64
import binascii
import hashlib
import json
from collections.abc import Sequence
from typing import Any, NamedTuple

DEFAULT, LARGEST = 50, 200


class BadCursor(Exception):
    """The cursor is none of ours, belongs to another list, or the run has changed since."""


class Page(NamedTuple):
    """One page of a list."""

    items: list[Any]
    next_cursor: str | None
    total: int


def page(items: Sequence[Any], of: Any, cursor: str | None, limit: int) -> Page:
    """The page of `items` that `cursor` points to, the first one for None. `of` names the list and its state.

    Raises `BadCursor` for a cursor that does not belong to this list in this state.
    """
    tag = hashlib.sha256(repr(of).encode()).hexdigest()[:16]
    start = 0 if cursor is None else _start(cursor, tag)
    if start > len(items):
        raise BadCursor
    end = start + limit
    return Page(list(items[start:end]), _cursor(end, tag) if end < len(items) else None, len(items))


def _cursor(start: int, tag: str) -> str:
    return base64.urlsafe_b64encode(json.dumps([start, tag]).encode()).decode().rstrip("=")


def _start(cursor: str, tag: str) -> int:
    try:
        start, found = json.loads(base64.b64decode(cursor + "=" * (-len(cursor) % 4), altchars=b"-_", validate=True))
    except (binascii.Error, ValueError, TypeError):
        raise BadCursor from None
    if found != tag or not isinstance(start, int) or isinstance(start, bool) or start < 0:
        raise BadCursor
    return start
