"""The exception that means "your input, not our bug"."""

from collections.abc import Mapping


class UserError(Exception):
    """What is wrong and what to do, in one sentence. The command line prints it and exits with code 2."""


class Diverged(UserError):
    """Trainings that left the numbers, by name; what trained beside them is finished."""

    def __init__(self, lost: Mapping[str, UserError]) -> None:
        super().__init__(" ".join(f"{name}: {error}" for name, error in lost.items()))
        self.lost = dict(lost)
