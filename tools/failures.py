"""How a run ends when it does not end well.

A user's mistake is a ValueError. What happens to a run under way is one of these two.
"""


class RunFailed(Exception):
    """The run cannot go on; the message says why and what to do. Exit code 1."""


class Interrupted(Exception):
    """A signal asked the run to stop, and it did so in good order. Exit code 128 + signal."""

    def __init__(self, signum: int, message: str) -> None:
        super().__init__(message)
        self.signum = signum
