"""How a run ends when it does not end well.

A user's mistake is a ValueError. What happens to a run under way is one of these two.
"""

from tools.options.config import flag


class RunFailed(Exception):
    """The run cannot go on; the message says why and what to do. Exit code 1.

    `everyone` says that all processes of the run raise the same, so that one of them may speak for all.
    """

    def __init__(self, message: str, *, everyone: bool = False) -> None:
        super().__init__(message)
        self.everyone = everyone


class Interrupted(Exception):
    """A signal asked the run to stop, and all its processes did so in good order. Exit code 128 + signal."""

    def __init__(self, signum: int, message: str) -> None:
        super().__init__(message)
        self.signum = signum


SMALLER = f"lower {flag('recipe.batch_size')}, or in retraining raise {flag('recipe.accumulate')}"


def known_cause(error: RuntimeError, num_processes: int, *, smaller: str = SMALLER) -> str:
    """What a torch error most likely means to the user; empty where that is not known.

    `smaller` is what needs less memory.
    """
    text = str(error).lower()
    reason = (str(error).splitlines() or [""])[0][:200]
    if type(error).__name__ == "OutOfMemoryError" or "can't allocate memory" in text:
        return f"out of memory; {smaller} ({reason})"
    broken = ("gloo", "nccl", "connection", "peer", "socket", "timed out", "timeout")
    if num_processes > 1 and any(word in text for word in broken):
        return f"lost contact with another process ({reason})"
    return ""
