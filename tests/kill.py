"""An end in the middle of things."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest

from sae_emotions.dictionary import member


@contextmanager
def killed_after_saves(number: int) -> Iterator[None]:
    """What runs inside is killed, and has to be, right after it saved its `number`th checkpoint."""
    keep, calls = member.save_checkpoint, 0

    def killed(*args: Any) -> None:
        nonlocal calls
        keep(*args)
        calls += 1
        if calls == number:
            raise KeyboardInterrupt

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(member, "save_checkpoint", killed)
        with pytest.raises(KeyboardInterrupt):
            yield
