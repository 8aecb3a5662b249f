"""This module notes a request to stop, by a signal or the launcher's end, until it suits the work."""

import os
import signal
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

import psutil

from tools.failures import Interrupted


class Wish:
    """A `Wish` notes whether SIGINT or SIGTERM came; a launcher that is gone counts as SIGTERM."""

    def __init__(self) -> None:
        self._noted = 0
        self._launcher = os.getppid() if _was_launched() else 0

    @property
    def signum(self) -> int:
        """Return the signal, or 0 if none came."""
        orphaned = self._launcher and os.getppid() != self._launcher
        return self._noted or (signal.SIGTERM if orphaned else 0)

    def heed(self, what_is_kept: str) -> None:
        """End the work by an exception if a stop was asked for."""
        if signum := self.signum:
            name = signal.Signals(signum).name
            raise Interrupted(signum, f"stopped by {name}; {what_is_kept}, and the same command continues")

    def note(self, signum: int) -> None:
        """Act as if this signal had come."""
        self._noted = self._noted or signum

    def _note(self, signum: int, frame: FrameType | None) -> None:
        if self._noted == signal.SIGINT == signum:  # a second Ctrl-C stops at once
            raise KeyboardInterrupt
        self._noted = signum


@contextmanager
def waiting_signals() -> Iterator[Wish]:
    """Note SIGINT and SIGTERM inside this context instead of obeying them."""
    wish = Wish()
    signals = (signal.SIGINT, signal.SIGTERM)
    before = [signal.signal(signum, wish._note) for signum in signals]
    try:
        yield wish
    finally:
        for signum, handler in zip(signals, before, strict=True):
            signal.signal(signum, handler)


def _was_launched() -> bool:
    """Return whether the parent is a launcher, whose end should end the ranks; a shell's end should not."""
    try:
        words = psutil.Process(os.getppid()).cmdline()
    except psutil.Error:
        return False
    return any(name in word for word in words[:4] for name in ("accelerate", "torchrun", "torch.distributed"))
