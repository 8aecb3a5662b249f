import os
import re
import signal
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import psutil
import pytest

from tests import forked, script

Start = Callable[..., "Ranks"]

OF_A_LOST_STORE = re.compile(r"^\[rank\d\]:\[W[^\n]* TCPStore\.cpp.*?\n\n", re.DOTALL | re.MULTILINE)
PROGRAM = "tests/programs/vigil_ranks.py"


class Ranks:
    """Processes of one run, each told of the others as a launcher does it."""

    def __init__(self, folder: Path, *options: str, ranks: int = 3) -> None:
        folder.mkdir()
        self.folder = folder
        words = [PROGRAM, "--folder", str(folder), *options]
        self.processes = [
            forked.FORKS.Process(
                target=forked._be_script, args=(words, variables, "", folder / "stdout", folder / "stderr")
            )
            for variables in forked._environments(ranks)
        ]
        for process in self.processes:
            process.start()

    def strike(self, rank: int, signum: int) -> None:
        """Send a signal to a rank."""
        pid = self.processes[rank].pid
        assert pid is not None
        os.kill(pid, signum)

    def wait_for_step(self, step: int) -> None:
        """Wait until all have done a step."""
        deadline = time.monotonic() + 60
        while not all(step_of(self.folder, rank) >= step for rank in range(len(self.processes))):
            assert time.monotonic() < deadline, self.said()
            assert all(process.exitcode is None for process in self.processes), self.said()
            time.sleep(0.02)

    def ends(self) -> list[int | None]:
        """How the ranks ended."""
        for process in self.processes:
            process.join(60)
        return [process.exitcode for process in self.processes]

    def kill(self) -> None:
        """Leave none behind."""
        for process in self.processes:
            process.kill()
            process.join()

    def said(self) -> list[str]:
        """The lines on stderr, but for what torch says of a store that ends while it is asked."""
        path = self.folder / "stderr"
        return OF_A_LOST_STORE.sub("", path.read_text() if path.exists() else "").splitlines()


@pytest.fixture
def start(tmp_path: Path) -> Iterator[Start]:
    started: list[Ranks] = []

    def start_one(*options: str) -> Ranks:
        started.append(Ranks(tmp_path / str(len(started)), *options))
        return started[-1]

    yield start_one
    for run in started:
        run.kill()


def step_of(folder: Path, rank: int) -> int:
    path = folder / f"step-{rank}"
    return int((path.exists() and path.read_text()) or -1)


def assert_named(line: str, rank: int, cause: str, ranks: int = 3) -> None:
    speaker, _, told = line.removeprefix("vigil_ranks.py: ").partition(": ")
    assert speaker in {f"rank {other}" for other in range(ranks) if other != rank}, line
    assert told.startswith(f"rank {rank} (block {rank + 1} of {ranks}, process "), line
    assert cause in told
    assert "last in step " in told
    assert told.endswith("; the last checkpoint is step 10. The same command continues from there.")


@pytest.mark.slow
@pytest.mark.parametrize(
    ("signum", "cause"),
    [(signal.SIGKILL, "was killed or crashed"), (signal.SIGSTOP, "no sign of life for 6 s")],
)
def test_whoever_dies_or_stops_is_named_and_all_end(start: Start, signum: int, cause: str) -> None:
    runs = [start() for rank in range(3)]
    for rank, run in enumerate(runs):
        run.wait_for_step(150)  # some pulses later
        run.strike(rank, signum)
    for rank, run in enumerate(runs):
        codes = run.ends()
        (line,) = run.said()
        assert_named(line, rank, cause)
        assert codes == [-signal.SIGKILL if other == rank else 1 for other in range(3)]


@pytest.mark.slow
def test_a_rank_without_progress_is_named(start: Start) -> None:
    runs = [start("--mishap", "stuck", "--unlucky", str(rank)) for rank in (0, 1)]
    for rank, run in enumerate(runs):
        codes = run.ends()
        (line,) = run.said()
        assert_named(line, rank, "is stuck: it lives, but made no progress for ")
        assert "last in step 20; " in line
        assert codes == [1, 1, 1]


@pytest.mark.slow
def test_stalls_and_orderly_ends_are_no_failures(start: Start) -> None:
    runs = [start("--steps", "40") for rank in range(3)]
    for rank, run in enumerate(runs):
        run.wait_for_step(10)
        run.strike(rank, signal.SIGSTOP)
    time.sleep(3)
    for rank, run in enumerate(runs):
        assert step_of(run.folder, rank) < 39
        run.strike(rank, signal.SIGCONT)
    for run in runs:
        codes = run.ends()
        assert run.said() == []
        assert codes == [0, 0, 0]
        assert [step_of(run.folder, rank) for rank in range(3)] == [39, 39, 39]


@pytest.mark.slow
def test_a_run_that_stops_as_a_whole_goes_on(start: Start) -> None:
    run = start("--patience", "3")
    run.wait_for_step(10)
    for signum, seconds in ((signal.SIGSTOP, 6), (signal.SIGCONT, 3)):
        for rank in range(3):
            run.strike(rank, signum)
        time.sleep(seconds)
    assert run.said() == []
    before = step_of(run.folder, 0)
    run.wait_for_step(before + 10)
    run.strike(1, signal.SIGKILL)
    assert run.ends() == [1, -signal.SIGKILL, 1]


@pytest.mark.slow
def test_errors_of_its_own_are_told_once_and_nobody_is_blamed(start: Start) -> None:
    runs = [start("--mishap", "error", "--unlucky", str(rank)) for rank in (0, 1)]
    shared = start("--mishap", "late", "--unlucky", "3")
    for rank, run in enumerate(runs):
        codes = run.ends()
        assert run.said() == [f"vigil_ranks.py: rank {rank}: the disk is full"]
        assert codes == [1, 1, 1]
    codes = shared.ends()
    assert shared.said() == ["vigil_ranks.py: rank 0: the loss is not a finite number"]
    assert codes == [1, 1, 1]


@pytest.mark.slow
def test_a_launcher_that_ends_the_others_does_not_hide_who_died(tmp_path: Path) -> None:
    started: list[tuple[Path, subprocess.Popen[str]]] = []
    for name in ("killed", "stopped"):
        folder = tmp_path / name
        folder.mkdir()
        line = script.command(PROGRAM, "--folder", str(folder), ranks=2)
        started.append((folder, script.start(line)))
    causes = ("was killed or crashed", "no sign of life for 6 s")
    for rank, ((folder, process), signum) in enumerate(
        zip(started, (signal.SIGKILL, signal.SIGSTOP), strict=True)
    ):
        script.wait_until(lambda folder=folder: step_of(folder, 1) >= 150, process)  # type: ignore[misc]
        os.kill(int((folder / f"pid-{rank}").read_text()), signum)
    ended = [script.finish(process, timeout=60) for _, process in started]  # all, before one fails the test
    for rank, (done, cause) in enumerate(zip(ended, causes, strict=True)):
        assert done.returncode == 1
        (said,) = [line for line in done.stderr.splitlines() if line.startswith("vigil_ranks.py: ")]
        assert_named(said, rank, cause, ranks=2)
    assert not any(psutil.pid_exists(int(path.read_text())) for path in tmp_path.glob("*/pid-*"))
