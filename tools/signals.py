"""Signals as a wish that is heeded where it suits the work."""

import signal
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

from tools.failures import Interrupted


class Wish:
    """Whether SIGINT or SIGTERM came."""

    def __init__(self) -> None:
        self.signum = 0

    def heed(self, what_is_kept: str) -> None:
        """End the work if a signal came."""
        if self.signum:
            name = signal.Signals(self.signum).name
            raise Interrupted(
                self.signum, f"stopped by {name}; {what_is_kept}, and the same command continues"
            )

    def _note(self, signum: int, frame: FrameType | None) -> None:
        if self.signum == signal.SIGINT == signum:  # asked twice: at once
            raise KeyboardInterrupt
        self.signum = signum


@contextmanager
def waiting_signals() -> Iterator[Wish]:
    """Inside, SIGINT and SIGTERM are noted instead of obeyed."""
    wish = Wish()
    signals = (signal.SIGINT, signal.SIGTERM)
    before = [signal.signal(signum, wish._note) for signum in signals]
    try:
        yield wish
    finally:
        for signum, handler in zip(signals, before, strict=True):
            signal.signal(signum, handler)
