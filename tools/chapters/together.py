"""Processes that run at the same time: what they say is handed on, and all end when one fails or a "
"signal comes."""

import contextlib
import os
import signal
import subprocess
import threading
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from types import FrameType
from typing import Any

from tools.failures import Interrupted, RunFailed
from tools.run.signals import Wish

PATIENCE_S = 120.0
"""For those that were asked to stop; a checkpoint of a large network takes a while."""
LAST_WORDS_S = 5.0
"""For what is still in the pipe of a process that has ended; another may hold it open."""
KEPT = "what was saved is kept"


@dataclass(frozen=True)
class Command:
    """A command line, and how it is spoken of."""

    words: Sequence[str]
    script: str
    """What its own messages begin with."""
    name: str = ""
    """Before each line that it says."""
    variables: Mapping[str, str] = field(default_factory=dict)
    """Of its environment, beside ours."""


def run_together(commands: Sequence[Command], wish: Wish) -> None:
    """Run the commands to their ends.

    Raises:
        RunFailed: with the last that a command said, when it failed; the others were asked to stop.
        Interrupted: when a stop was wished, and all did.
    """
    speakers: list[_Speaker] = []
    before = _heed_hangup(wish)
    try:
        for command in commands:
            speakers.append(_Speaker(command))
        while any(each.process.poll() is None for each in speakers):
            if any(each.process.poll() or each.is_deaf for each in speakers) or wish.signum:
                break
            time.sleep(0.05)
        _end(speakers, wish.signum or signal.SIGTERM)
    except BaseException:  # asked twice, or no process more could be started: nobody is left behind
        _kill(speakers)
        for each in speakers:
            each.join(LAST_WORDS_S)
        raise
    finally:
        signal.signal(signal.SIGHUP, before)
    deadline = time.monotonic() + LAST_WORDS_S
    for each in speakers:
        each.join(max(0.0, deadline - time.monotonic()))
    if wish.signum:
        raise Interrupted(wish.signum, f"stopped; {KEPT}, and the same command continues")
    if any(each.is_deaf for each in speakers):
        raise RunFailed(f"nobody takes what is said any more; {KEPT}, and the same command continues")
    for command, each in zip(commands, speakers, strict=True):
        # Those that were ended for another's failure have nothing to tell.
        code = each.process.returncode
        if code and code not in (-signal.SIGTERM, 128 + signal.SIGTERM):
            raise RunFailed(f"{command.script} ended with {code}: {each.last or 'it said nothing'}. {KEPT}")
    if any(each.process.returncode for each in speakers):
        raise RunFailed(f"{commands[0].script} was stopped; {KEPT}, and the same command continues")


class _Speaker(threading.Thread):
    """A process; prints what it says, line by line, and remembers what it said last of itself."""

    def __init__(self, command: Command) -> None:
        super().__init__(daemon=True)
        self.process = subprocess.Popen(
            command.words,
            env={**os.environ, **command.variables},
            text=True,
            errors="replace",
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            process_group=0,  # a terminal's Ctrl-C reaches it through us, once
        )
        self._command = command
        self.last = ""
        self.is_deaf = False
        """Nobody listens to what is printed: it is read on, so that the process does not wait for ever."""
        self.start()

    def run(self) -> None:
        assert self.process.stdout is not None
        with self.process.stdout as said:
            for line in said:
                self._hand_on(line.rstrip())

    def _hand_on(self, line: str) -> None:
        script = self._command.script
        # A launcher says much behind what the script itself had to say.
        if line and (line.startswith(script) or not self.last.startswith(script)):
            self.last = line.strip()
        try:
            print(f"    {self._command.name}{line}", flush=True)
        except UnicodeError:
            print(ascii(line), flush=True)
        except OSError:
            self.is_deaf = True


def _end(speakers: Sequence[_Speaker], signum: int) -> None:
    """Ask those that still run to stop in good order, and wait until they have; then they are killed."""
    for each in speakers:
        if each.process.poll() is None:
            with contextlib.suppress(ProcessLookupError):
                each.process.send_signal(signum)
    deadline = time.monotonic() + PATIENCE_S
    for each in speakers:
        with contextlib.suppress(subprocess.TimeoutExpired):
            each.process.wait(max(0.0, deadline - time.monotonic()))
    _kill(speakers)


def _kill(speakers: Sequence[_Speaker]) -> None:
    for each in speakers:
        if each.process.poll() is None:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(each.process.pid, signal.SIGKILL)
            each.process.wait()


def _heed_hangup(wish: Wish) -> Any:
    """A terminal that is closed is a wish to stop, unless we were started to outlive it; what was before."""
    before = signal.getsignal(signal.SIGHUP)

    def note(signum: int, frame: FrameType | None) -> None:
        wish.note(signal.SIGTERM)

    if before is not signal.SIG_IGN:
        signal.signal(signal.SIGHUP, note)
    return before
