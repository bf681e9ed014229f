"""The one exception that means "your input, not our bug"."""


class UserError(Exception):
    """What is wrong and what to do, in one sentence. The command line prints it and exits with code 2."""
