"""A wish to stop, by signal or by the launcher's end, that is heeded where it suits the work."""

import os
import signal
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

import psutil

from tools.failures import Interrupted


class Wish:
    """Whether SIGINT or SIGTERM came; that a launcher is gone counts as the latter."""

    def __init__(self) -> None:
        self._noted = 0
        self._launcher = os.getppid() if _was_launched() else 0

    @property
    def signum(self) -> int:
        """The signal, or 0."""
        orphaned = self._launcher and os.getppid() != self._launcher
        return self._noted or (signal.SIGTERM if orphaned else 0)

    def heed(self, what_is_kept: str) -> None:
        """End the work if it is wished."""
        if signum := self.signum:
            name = signal.Signals(signum).name
            raise Interrupted(signum, f"stopped by {name}; {what_is_kept}, and the same command continues")

    def note(self, signum: int) -> None:
        """Take it as if this signal had come."""
        self._noted = self._noted or signum

    def _note(self, signum: int, frame: FrameType | None) -> None:
        if self._noted == signal.SIGINT == signum:  # asked twice: at once
            raise KeyboardInterrupt
        self._noted = signum


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


def _was_launched() -> bool:
    """Whether the parent is a launcher, without which the ranks should not go on; a shell may well end."""
    try:
        words = psutil.Process(os.getppid()).cmdline()
    except psutil.Error:
        return False
    return any(name in word for word in words[:4] for name in ("accelerate", "torchrun", "torch.distributed"))
