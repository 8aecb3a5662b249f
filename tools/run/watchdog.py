"""This module lets the processes of a run watch each other: one that dies or hangs ends the run in one line.

Each process writes a pulse once a second to a store that rank 0 hosts, and watches the pulse of the next
rank.
"""

import json
import os
import socket
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass, field
from datetime import timedelta
from functools import cache
from pathlib import Path
from threading import Event, Thread
from typing import Any, Literal, NoReturn

import psutil
import torch.distributed
from torch.distributed import DistError, TCPStore  # type: ignore[attr-defined]

from tools.failures import Interrupted, RunFailed

BEAT = 1.0
STARTING = 600.0  # the first steps may compile
LINGER = 5.0  # a rank that leaves waits this long until all saw it, and so does one that looks for the dead
CONNECT = timedelta(seconds=60)
# A request may wait without limit, because another thread watches the time. Giving it up would be worse: its
# late answer would be taken for the next request's, and torch would complain about it on stderr.
UNLIMITED = timedelta(days=7)

Kind = Literal["silent", "dead", "stuck", "error"]


@cache
def _place() -> str:
    """Return where a process's number means the same; a machine's name may not be unique."""
    try:
        boot = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
        return f"{boot} {os.readlink('/proc/self/ns/pid')}"
    except OSError:
        return socket.gethostname()


@dataclass(kw_only=True)
class Pulse:
    """A `Pulse` is what a rank reports about itself."""

    pid: int = field(default_factory=os.getpid)
    host: str = field(default_factory=socket.gethostname)
    place: str = field(default_factory=_place)
    created: float = field(default_factory=lambda: float(psutil.Process().create_time()))
    beat: int = 0
    waiting: bool = False
    what: str = ""
    noted: int = 0
    longest: float = 0.0  # seconds of work between two notes of progress
    left: bool = False


class Watched:
    """A `Watched` is what is known about one rank from looks at its pulse."""

    def __init__(self) -> None:
        self.pulse: Pulse | None = None
        self.silent, self.idle, self.dead = 0.0, 0.0, False
        self._process: psutil.Process | None = None

    def see(self, pulse: Pulse, *, gone: bool, seconds: float) -> None:
        """Take in a look at a rank's pulse, this many seconds after the one before.

        `gone` was determined before the pulse was read.
        """
        before, self.pulse = self.pulse or pulse, pulse
        self.dead = gone and not pulse.left
        beats = pulse.beat != before.beat
        self.silent = 0.0 if beats or before is pulse else self.silent + seconds
        progress = pulse.waiting or pulse.noted != before.noted
        self.idle = 0.0 if progress else self.idle + seconds * beats
        if before is pulse and pulse.place == _place():
            with suppress(psutil.NoSuchProcess):
                process = psutil.Process(pulse.pid)
                self._process = process if abs(process.create_time() - pulse.created) < 1 else None

    def gone(self) -> bool:
        """Return whether the process has ended; for a process on another machine this is not known."""
        one = self._process
        try:
            return bool(one and (not one.is_running() or one.status() == psutil.STATUS_ZOMBIE))
        except psutil.NoSuchProcess:
            return True

    def kill(self) -> None:
        """Kill a process that cannot end itself; psutil refuses if its number is now another process's."""
        with suppress(psutil.Error):
            if self._process:
                self._process.kill()


class Watchdog:
    """A `Watchdog` watches over all processes of torch's process group, which all make one at the same time.

    Arguments:
        describe: Says what a rank does in the run; a thread calls it.
        last_good: Says what is kept; a thread calls it.
        patience: The seconds without a sign of life after which a rank counts as silent.
        early: The number of first steps that may take long.
    """

    def __init__(
        self,
        *,
        describe: Callable[[int], str],
        last_good: Callable[[], str],
        patience: float = 28.0,
        early: int = 2,
    ) -> None:
        self._rank, self._ranks = torch.distributed.get_rank(), torch.distributed.get_world_size()
        self._describe, self._last_good, self._patience = describe, last_good, patience
        self._watched = {rank: Watched() for rank in range(self._ranks)}
        self._early, self._waited = early, 0.0
        self._pulse, self._next, self._peer = Pulse(), (self._rank + 1) % self._ranks, -1
        self._noted_at = self._left_at = self._looked_at = time.monotonic()
        self._store_lost, self._broken, self._unanswered = False, False, 0.0
        self._news: dict[str, Any] | None = None
        self._failure: dict[str, Any] | None = None
        self._closed, self._wake = Event(), Event()
        self._store = self._meet()
        self._talker, self._judge = (
            Thread(target=target, daemon=True) for target in (self._talk, self._watch)
        )
        self._talker.start()
        self._judge.start()

    def __enter__(self) -> "Watchdog":
        return self

    def __exit__(self, kind: object, error: BaseException | None, trace: object) -> None:
        together = isinstance(error, Interrupted) or (isinstance(error, RunFailed) and error.everyone)
        if error is None or together:
            self.close()
        else:
            self.fail(str(error))

    def note(self, step: int) -> None:
        """Note that progress was made and that this rank now works on a step."""
        pulse, now = self._pulse, time.monotonic()
        worked, self._noted_at, self._waited = now - self._noted_at - self._waited, now, 0.0
        pulse.longest = max(pulse.longest, worked) if pulse.noted >= self._early else 0.0
        pulse.what, pulse.noted = f"step {step}", pulse.noted + 1

    @contextmanager
    def waiting(self) -> Iterator[None]:
        """Mark, inside this context, that this rank waits for others and is not itself slow."""
        before, self._pulse.waiting, begun = self._pulse.waiting, True, time.monotonic()
        try:
            yield
        finally:
            self._pulse.waiting = before
            self._waited += 0.0 if before else time.monotonic() - begun

    def explain(self, error: BaseException, peer: int | None = None) -> str:
        """Return why communication with a peer failed, or end this process if another one is to blame."""
        # The connections of a dying process close a moment before the system shows it as dead.
        # Asking it in that moment would make torch complain on stderr.
        time.sleep(BEAT / 4)
        self._peer, self._broken = -1 if peer is None else peer, True
        self._wake.set()
        until = time.monotonic() + 2 * LINGER
        with self.waiting():
            while self._judge.is_alive() and (self._news or self._failure or time.monotonic() < until):
                self._judge.join(BEAT / 10)
        self._broken = False
        reason = (str(error).splitlines() or [""])[0][:200]
        return f"lost contact with another process ({reason})"

    def fail(self, message: str) -> None:
        """End by an error of this rank, which the caller reports; the other ranks leave silently."""
        if not self._closed.is_set():
            self._closed.set()
            self._announce(self._rank, "error", message)
            self._await_others()

    def close(self) -> None:
        """Leave in good order."""
        if not self._closed.is_set():
            self._left_at, self._pulse.left = time.monotonic(), True
            self._closed.set()
            self._wake.set()
        self._talker.join(LINGER + BEAT)
        self._judge.join(LINGER + BEAT)

    def _meet(self) -> TCPStore:
        address, port = os.environ.get("MASTER_ADDR", "127.0.0.1"), [0]
        if self._rank == 0:
            store = TCPStore(address, 0, is_master=True, wait_for_workers=False, timeout=CONNECT)
            port = [store.port]
        torch.distributed.broadcast_object_list(port)
        if self._rank > 0:
            store = TCPStore(address, port[0], is_master=False, wait_for_workers=False, timeout=CONNECT)
        store.set(f"pulse/{self._rank}", json.dumps(asdict(self._pulse)))
        store.wait([f"pulse/{rank}" for rank in self._watched], CONNECT)
        store.set_timeout(UNLIMITED)
        return store

    def _talk(self) -> None:
        # Only this thread calls the store, so no other thread is blocked when rank 0 hangs.
        try:
            while not self._round():
                self._wake.wait(BEAT / 10 if self._failure or self._pulse.left else BEAT)
                self._wake.clear()
        except DistError:
            self._store_lost = True

    def _round(self) -> bool:
        """Exchange news with the store, and return whether everything has been exchanged."""
        if self._rank > 0 and self._watched[0].gone():
            raise DistError  # a call would only make torch complain on stderr
        self._pulse.beat += 1
        self._store.set(f"pulse/{self._rank}", json.dumps(asdict(self._pulse)))
        if self._pulse.left and not self._failure:
            late = time.monotonic() > self._left_at + LINGER
            return late or self._rank > 0 or all(self._read_pulse(rank).left for rank in self._watched)
        before, self._looked_at = self._looked_at, time.monotonic()
        for rank in set(self._watched if self._broken else (self._next, 0)) - {self._rank}:
            gone, seconds = self._watched[rank].gone(), min(self._looked_at - before, 2 * BEAT)
            self._watched[rank].see(self._read_pulse(rank), gone=gone, seconds=seconds)
        if self._news:
            self._store.compare_set("failure", "", json.dumps(self._news))
        if not self._failure and self._store.check(["failure"]):
            self._store.add("seen", 1)
            self._failure = json.loads(self._store.get("failure"))
        self._unanswered = 0.0
        if not self._failure:
            return False
        able = self._ranks - (self._failure["kind"] in ("silent", "dead"))
        return self._store.add("seen", 0) >= able

    def _read_pulse(self, rank: int) -> Pulse:
        return Pulse(**json.loads(self._store.get(f"pulse/{rank}")))

    def _watch(self) -> None:
        # This thread has the time, judges, and ends the process. It counts its own turns, and a look counts
        # at most two beats, because a rank that was suspended itself must not blame others for the time.
        while not self._closed.wait(BEAT / 4):
            self._unanswered += BEAT / 4
            if self._failure:
                return self._leave(self._failure)
            if self._rank > 0 and (self._store_lost or self._unanswered > self._patience):
                return self._leave_without_store("dead" if self._store_lost else "silent")
            if not self._news and (culprit := self._culprit()):
                self._announce(*culprit, self._line(*culprit))

    def _culprit(self) -> tuple[int, Kind] | None:
        for rank in sorted(self._watched, key=lambda rank: rank != self._peer):
            one, is_next = self._watched[rank], rank == self._next
            if one.pulse is None or one.pulse.left:
                continue
            if (one.dead and (is_next or self._broken)) or (self._broken and one.silent > LINGER):
                return rank, "dead"
            if is_next and one.silent > self._patience:
                return rank, "silent"
            # Twice, because a rank that waits in an all-reduce for a silent one seems to be stuck too.
            usual = 20 * one.pulse.longest if one.pulse.noted > self._early else STARTING
            limit = max(2 * self._patience, min(usual, STARTING))
            if is_next and one.idle > limit:
                return rank, "stuck"
        return None

    def _line(self, rank: int, kind: Kind) -> str:
        one, name = self._watched[rank], Path(sys.argv[0]).name
        process = f", process {one.pulse.pid} on {one.pulse.host}" if one.pulse else ""
        last = f"last in {one.pulse.what}" if one.pulse and one.pulse.what else "before its first step"
        causes = {"dead": "was killed or crashed"}
        causes["silent"] = f"has given no sign of life for {self._patience:.0f} s"
        causes["stuck"] = f"is stuck: it lives, but made no progress for {one.idle:.0f} s"
        message = f"rank {rank} ({self._describe(rank)}{process}) {causes[kind]}, {last}; {self._last_good()}"
        return f"{name}: rank {self._rank}: {message}. The same command continues from there."

    def _announce(self, rank: int, kind: Kind, line: str) -> None:
        self._news = {"by": self._rank, "rank": rank, "kind": kind, "line": line}
        self._wake.set()

    def _leave(self, failure: dict[str, Any]) -> None:
        # An error that all ranks share may be under way here too, and ends this process in its own way.
        if failure["kind"] == "error" and self._closed.wait(2 * BEAT):
            return
        if failure["kind"] != "error" and failure["by"] == self._rank:
            _say(failure["line"])
            if failure["kind"] == "silent":
                self._watched[failure["rank"]].kill()
        self._await_others()
        _end()

    def _leave_without_store(self, kind: Kind) -> None:
        if (first := self._watched[0].pulse) and first.left:
            return
        # The others cannot be asked who reports the failure, so one process on each machine does.
        if self._rank == 1 or os.environ.get("LOCAL_RANK") == "0":
            _say(self._line(0, kind))
            if kind == "silent":
                time.sleep(LINGER)  # all are equally patient; a rank that is not done yet would see a crash
                self._watched[0].kill()
        _end()

    def _await_others(self) -> None:
        """Let all ranks see the failure before this process breaks a connection; the store closes last."""
        self._talker.join(LINGER)
        time.sleep(0 if self._rank else BEAT / 2)


def _say(line: str) -> None:
    # Bypass Python's buffer, whose lock the main thread may hold, and on a terminal bypass a progress bar.
    os.write(2, ("\n" * os.isatty(2) + line + "\n").encode())


def _end() -> NoReturn:
    (flush := Thread(target=sys.stdout.flush, daemon=True)).start()
    flush.join(BEAT)
    os._exit(1)
