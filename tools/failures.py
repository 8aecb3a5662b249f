"""This module defines how a run ends when it does not end well.

A user's mistake is a ValueError. A run that has begun ends with one of the two exceptions below.
"""

from tools.options.config import flag


class RunFailed(Exception):
    """A `RunFailed` ends a run that cannot go on; its message says why and what to do. The exit code is 1.

    `everyone` says that all processes of the run raise the same failure, so that one may report it for all.
    """

    def __init__(self, message: str, *, everyone: bool = False) -> None:
        super().__init__(message)
        self.everyone = everyone


class Interrupted(Exception):
    """An `Interrupted` ends a run that stopped in order after a signal; the exit code is 128 + signal."""

    def __init__(self, signum: int, message: str) -> None:
        super().__init__(message)
        self.signum = signum


SMALLER = f"lower {flag('recipe.batch_size')}, or in retraining raise {flag('recipe.accumulate')}"


def known_cause(error: RuntimeError, num_processes: int, *, smaller: str = SMALLER) -> str:
    """Return what a torch error most likely means to the user, or an empty text where that is not known.

    `smaller` is the advice to give where memory runs out.
    """
    text = str(error).lower()
    reason = (str(error).splitlines() or [""])[0][:200]
    if type(error).__name__ == "OutOfMemoryError" or "can't allocate memory" in text:
        return f"out of memory; {smaller} ({reason})"
    broken = ("gloo", "nccl", "connection", "peer", "socket", "timed out", "timeout")
    if num_processes > 1 and any(word in text for word in broken):
        return f"lost contact with another process ({reason})"
    return ""
