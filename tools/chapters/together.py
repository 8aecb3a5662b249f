"""This module runs processes at the same time, passes on what they print, and stops all when one fails."""

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
"""A process that was asked to stop has these seconds; the checkpoint of a large network takes a while."""
LAST_WORDS_S = 5.0
"""An ended process's output is read for these seconds, as another process may hold its pipe open."""
SAVED_IS_KEPT = "what was saved is kept"


@dataclass(frozen=True)
class Command:
    """A `Command` is a command line with the names under which its messages are shown."""

    words: Sequence[str]
    script: str
    """The command's own messages begin with this name."""
    name: str = ""
    """Each line that the command prints is shown after this prefix."""
    variables: Mapping[str, str] = field(default_factory=dict)
    """These environment variables are set for the command, besides our own."""


def run_together(commands: Sequence[Command], wish: Wish) -> None:
    """Run several commands at the same time until all have ended.

    Raises:
        RunFailed: A command failed, and the others were asked to stop; the message holds its last line.
        Interrupted: A stop was asked for, and all commands stopped.
    """
    speakers: list[_Speaker] = []
    before = _heed_hangup(wish)
    try:
        for command in commands:
            speakers.append(_Speaker(command))
        while any(speaker.process.poll() is None for speaker in speakers):
            if any(speaker.process.poll() or speaker.is_deaf for speaker in speakers) or wish.signum:
                break
            time.sleep(0.05)
        _end(speakers, wish.signum or signal.SIGTERM)
    except BaseException:  # a second Ctrl-C, or a process that could not start: leave no process behind
        _kill(speakers)
        for speaker in speakers:
            speaker.join(LAST_WORDS_S)
        raise
    finally:
        signal.signal(signal.SIGHUP, before)
    deadline = time.monotonic() + LAST_WORDS_S
    for speaker in speakers:
        speaker.join(max(0.0, deadline - time.monotonic()))
    if wish.signum:
        raise Interrupted(wish.signum, f"stopped; {SAVED_IS_KEPT}, and the same command continues")
    if any(speaker.is_deaf for speaker in speakers):
        raise RunFailed(f"nobody reads the output any more; {SAVED_IS_KEPT}, and the same command continues")
    for command, speaker in zip(commands, speakers, strict=True):
        # A command that was ended because another one failed has no message of its own.
        code = speaker.process.returncode
        if code and code not in (-signal.SIGTERM, 128 + signal.SIGTERM):
            raise RunFailed(
                f"{command.script} ended with {code}: {speaker.last or 'it said nothing'}. {SAVED_IS_KEPT}"
            )
    if any(speaker.process.returncode for speaker in speakers):
        raise RunFailed(f"{commands[0].script} was stopped; {SAVED_IS_KEPT}, and the same command continues")


class _Speaker(threading.Thread):
    """A thread that starts a process, prints its lines, and remembers the last line that its script wrote."""

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
        """Printing has failed; output is still read, so that the process does not wait forever."""
        self.start()

    def run(self) -> None:
        assert self.process.stdout is not None
        with self.process.stdout as output:
            for line in output:
                self._hand_on(line.rstrip())

    def _hand_on(self, line: str) -> None:
        script = self._command.script
        # A launcher prints much after the script's own last message.
        if line and (line.startswith(script) or not self.last.startswith(script)):
            self.last = line.strip()
        try:
            print(f"    {self._command.name}{line}", flush=True)
        except UnicodeError:
            print(ascii(line), flush=True)
        except OSError:
            self.is_deaf = True


def _end(speakers: Sequence[_Speaker], signum: int) -> None:
    """Ask the processes that still run to stop, wait for them, and kill those that do not."""
    for speaker in speakers:
        if speaker.process.poll() is None:
            with contextlib.suppress(ProcessLookupError):
                speaker.process.send_signal(signum)
    deadline = time.monotonic() + PATIENCE_S
    for speaker in speakers:
        with contextlib.suppress(subprocess.TimeoutExpired):
            speaker.process.wait(max(0.0, deadline - time.monotonic()))
    _kill(speakers)


def _kill(speakers: Sequence[_Speaker]) -> None:
    for speaker in speakers:
        if speaker.process.poll() is None:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(speaker.process.pid, signal.SIGKILL)
            speaker.process.wait()


def _heed_hangup(wish: Wish) -> Any:
    """Treat a closed terminal as a request to stop, unless started to outlive it; return the old handler."""
    before = signal.getsignal(signal.SIGHUP)

    def note(signum: int, frame: FrameType | None) -> None:
        wish.note(signal.SIGTERM)

    if before is not signal.SIG_IGN:
        signal.signal(signal.SIGHUP, note)
    return before
