import os
import re
import signal
import time
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import psutil
import pytest

from tests import script
from tests.forked import Script

OF_A_LOST_STORE = re.compile(r"^\[rank\d\]:\[W[^\n]* TCPStore\.cpp.*?\n\n", re.DOTALL | re.MULTILINE)
PROGRAM = "tests/programs/watchdog_ranks.py"
RANKS = 3

pytestmark = pytest.mark.slow


class Ranks(Script):
    """Processes of one run, each told of the others as a launcher does it."""

    def __init__(self, folder: Path, *options: str) -> None:
        folder.mkdir()
        self.folder = folder
        super().__init__(PROGRAM, "--folder", str(folder), *options, ranks=RANKS)

    def wait_for_step(self, step: int) -> None:
        """Wait until all have done a step."""
        script.wait_until(
            lambda: all(step_of(self.folder, rank) >= step for rank in range(RANKS)), self, timeout=60
        )

    def ends(self) -> list[int | None]:
        """How the ranks ended."""
        self.complaints = self.finish(timeout=60).stderr
        return [process.exitcode for process in self.ranks]

    def lines(self) -> list[str]:
        """The lines on stderr, but for what torch says of a store that ends while it is asked."""
        return OF_A_LOST_STORE.sub("", self.complaints).splitlines()


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[tuple[str, int], Ranks]]:
    """Runs with a mishap each, at a rank each, which ripen side by side."""
    mishaps = [("stuck", 0), ("stuck", 1), ("error", 0), ("error", 1), ("late", RANKS)]
    struck = {"killed": signal.SIGKILL, "stopped": signal.SIGSTOP}
    folder = tmp_path_factory.mktemp("runs")
    with ExitStack() as stack:
        begun = {
            (name, rank): stack.enter_context(
                Ranks(folder / f"{name}-{rank}", "--mishap", name, "--unlucky", str(rank))
            )
            for name, rank in mishaps
        }
        begun |= {
            (name, rank): stack.enter_context(Ranks(folder / f"{name}-{rank}"))
            for name in struck
            for rank in range(RANKS)
        }
        for name, signum in struck.items():
            for rank in range(RANKS):
                begun[name, rank].wait_for_step(30)  # some pulses later
                begun[name, rank].strike(rank, signum)
        yield begun


@pytest.fixture(scope="module")
def launched(tmp_path_factory: pytest.TempPathFactory) -> Iterator[list[tuple[Path, Script]]]:
    """Two runs under a launcher, in which rank 0 is killed, or rank 1 stopped."""
    with ExitStack() as stack:
        begun: list[tuple[Path, Script]] = []
        for signum in (signal.SIGKILL, signal.SIGSTOP):
            folder = tmp_path_factory.mktemp(signum.name)
            line = script.command(PROGRAM, "--folder", str(folder), ranks=2)
            begun.append((folder, stack.enter_context(script.start(line))))
        for rank, ((folder, process), signum) in enumerate(
            zip(begun, (signal.SIGKILL, signal.SIGSTOP), strict=True)
        ):
            script.wait_until(lambda folder=folder: step_of(folder, 1) >= 30, process)  # type: ignore[misc]
            os.kill(int((folder / f"pid-{rank}").read_text()), signum)
        yield begun


def step_of(folder: Path, rank: int) -> int:
    path = folder / f"step-{rank}"
    return int((path.exists() and path.read_text()) or -1)


def assert_named(line: str, rank: int, cause: str, ranks: int = RANKS) -> None:
    speaker, _, told = line.removeprefix("watchdog_ranks.py: ").partition(": ")
    assert speaker in {f"rank {other}" for other in range(ranks) if other != rank}, line
    assert told.startswith(f"rank {rank} (block {rank + 1} of {ranks}, process "), line
    assert cause in told
    assert "last in step " in told
    assert told.endswith("; the last checkpoint is step 10. The same command continues from there.")


@pytest.mark.usefixtures("runs", "launched")
def test_stalls_and_runs_that_stop_as_a_whole_go_on(tmp_path: Path) -> None:
    """The other tests' runs need not be here, but come to their ends meanwhile."""
    with ExitStack() as stack:
        stalling = [
            stack.enter_context(Ranks(tmp_path / str(rank), "--steps", "60")) for rank in range(RANKS)
        ]
        for rank, run in enumerate(stalling):
            run.wait_for_step(4)
            run.strike(rank, signal.SIGSTOP)
        whole = stack.enter_context(Ranks(tmp_path / "whole", "--patience", "1.5"))
        whole.wait_for_step(4)
        for rank in range(RANKS):
            whole.strike(rank, signal.SIGSTOP)
        time.sleep(1.5)
        for rank, run in enumerate(stalling):
            assert step_of(run.folder, rank) < 59
            run.strike(rank, signal.SIGCONT)
        for run in stalling:
            codes = run.ends()
            assert run.lines() == []
            assert codes == [0, 0, 0]
            assert [step_of(run.folder, rank) for rank in range(RANKS)] == [59, 59, 59]
        time.sleep(0.5)  # longer than its patience by now
        for rank in range(RANKS):
            whole.strike(rank, signal.SIGCONT)
        time.sleep(1.5)
        whole.wait_for_step(step_of(whole.folder, 0) + 4)
        whole.strike(1, signal.SIGKILL)
        assert whole.ends() == [1, -signal.SIGKILL, 1]
        (line,) = whole.lines()  # before, nothing was said
        assert_named(line, 1, "was killed or crashed")


@pytest.mark.parametrize(
    ("mishap", "cause"), [("killed", "was killed or crashed"), ("stopped", "no sign of life for 3 s")]
)
def test_whoever_dies_or_stops_is_named_and_all_end(
    runs: dict[tuple[str, int], Ranks], mishap: str, cause: str
) -> None:
    for rank in range(RANKS):
        codes = runs[mishap, rank].ends()
        (line,) = runs[mishap, rank].lines()
        assert_named(line, rank, cause)
        assert codes == [-signal.SIGKILL if other == rank else 1 for other in range(RANKS)]


def test_a_rank_without_progress_is_named(runs: dict[tuple[str, int], Ranks]) -> None:
    for rank in (0, 1):
        codes = runs["stuck", rank].ends()
        (line,) = runs["stuck", rank].lines()
        assert_named(line, rank, "is stuck: it lives, but made no progress for ")
        assert "last in step 8; " in line
        assert codes == [1, 1, 1]


def test_errors_of_its_own_are_told_once_and_nobody_is_blamed(runs: dict[tuple[str, int], Ranks]) -> None:
    for rank in (0, 1):
        codes = runs["error", rank].ends()
        assert runs["error", rank].lines() == [f"watchdog_ranks.py: rank {rank}: the disk is full"]
        assert codes == [1, 1, 1]
    codes = runs["late", RANKS].ends()
    assert runs["late", RANKS].lines() == ["watchdog_ranks.py: rank 0: the loss is not a finite number"]
    assert codes == [1, 1, 1]


def test_a_launcher_that_ends_the_others_does_not_hide_who_died(launched: list[tuple[Path, Script]]) -> None:
    causes = ("was killed or crashed", "no sign of life for 3 s")
    ended = [script.finish(process, timeout=60) for _, process in launched]  # all, before one fails the test
    for rank, (done, cause) in enumerate(zip(ended, causes, strict=True)):
        assert done.returncode == 1
        (said,) = [line for line in done.stderr.splitlines() if line.startswith("watchdog_ranks.py: ")]
        assert_named(said, rank, cause, ranks=2)
    paths = [path for folder, _ in launched for path in folder.glob("pid-*")]
    assert not any(psutil.pid_exists(int(path.read_text())) for path in paths)
