"""Processes at the same time: their words, their failures, and that nobody is left behind."""

import contextlib
import os
import signal
import subprocess
import sys
import textwrap
import threading
import time
from collections.abc import Callable
from pathlib import Path

import psutil
import pytest

from tools.chapters import together
from tools.chapters.together import Command, run_together
from tools.failures import Interrupted, RunFailed
from tools.run.signals import waiting_signals

FOREVER = "import time\nwhile True: time.sleep(0.05)"


def python(program: str, name: str = "", **variables: str) -> Command:
    return Command([sys.executable, "-c", program], "script.py", name, variables)


def deaf(signum: str, ready: Path) -> Command:
    """A process that makes a file once it ignores a signal."""
    ignore = f"import signal\nsignal.signal(signal.{signum}, signal.SIG_IGN)"
    return python(f"{ignore}\nopen({str(ready)!r}, 'w').close()\n{FOREVER}")


def run(*commands: Command) -> None:
    with waiting_signals() as wish:
        run_together(commands, wish)


def children() -> list[psutil.Process]:
    """Those that this test began; a test's process may have others."""
    found = []
    for each in psutil.Process().children(recursive=True):
        with contextlib.suppress(psutil.Error, IndexError):  # one that has ended has no command line
            if "time.sleep(0.05)" in each.cmdline()[-1]:
                found.append(each)
    return found


def kill_when(met: Callable[[], object], signum: int) -> None:
    """Send this process a signal as soon as a condition is met."""

    def watch() -> None:
        deadline = time.monotonic() + 60
        while not met() and time.monotonic() < deadline:
            time.sleep(0.02)
        os.kill(os.getpid(), signum)

    threading.Thread(target=watch, daemon=True).start()


def test_lines_are_handed_on_with_names_and_variables(capsys: pytest.CaptureFixture[str]) -> None:
    program = "import os; print('one'); print(os.environ['MINE'])"
    run(python(program, "a: ", MINE="x"), python(program, "b: ", MINE="y"))
    said = sorted(capsys.readouterr().out.splitlines())
    assert said == ["    a: one", "    a: x", "    b: one", "    b: y"]


def test_a_failure_names_what_the_script_said_and_ends_the_others() -> None:
    failing = "print('script.py: no such file'); print('launcher: much more'); raise SystemExit(2)"
    with pytest.raises(RunFailed, match=r"ended with 2: script\.py: no such file\."):
        run(python(FOREVER), python(failing))
    assert not children()


def test_one_that_does_not_stop_is_killed(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(together, "PATIENCE_S", 0.5)
    ready = tmp_path / "ready"
    failing = f"import os\nwhile not os.path.exists({str(ready)!r}): pass\nraise SystemExit(3)"
    with pytest.raises(RunFailed, match="ended with"):
        run(deaf("SIGTERM", ready), python(failing))
    assert not children()


def test_a_pipe_that_another_holds_open_is_not_waited_for(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(together, "LAST_WORDS_S", 0.5)
    leaves = "import subprocess, sys; subprocess.Popen([sys.executable, '-c', 'import time; time.sleep(60)'])"
    begun = time.monotonic()
    run(python(leaves))
    assert time.monotonic() - begun < 50
    for process in psutil.process_iter(["cmdline"]):
        if process.info["cmdline"] and process.info["cmdline"][-1] == "import time; time.sleep(60)":
            process.kill()
    time.sleep(0.5)  # the pipe is closed, and its reader ends


@pytest.mark.parametrize("signum", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_a_signal_reaches_all_and_is_told(signum: int) -> None:
    before = signal.signal(signal.SIGHUP, signal.SIG_DFL)  # under nohup it is ignored, as it should be
    kill_when(lambda: len(children()) == 2, signum)
    with pytest.raises(Interrupted) as caught:
        run(python(FOREVER), python(FOREVER))
    assert signal.signal(signal.SIGHUP, before) == signal.SIG_DFL
    assert caught.value.signum == (signal.SIGTERM if signum == signal.SIGHUP else signum)
    assert not children()


def test_asked_twice_nobody_is_left_behind(tmp_path: Path) -> None:
    ready = tmp_path / "ready"

    def asked_again() -> bool:
        time.sleep(0.5)  # two signals at once would be one
        return True

    kill_when(ready.exists, signal.SIGINT)
    kill_when(lambda: ready.exists() and asked_again(), signal.SIGINT)
    with pytest.raises(KeyboardInterrupt):
        run(deaf("SIGINT", ready))
    assert not children()


def test_when_nobody_listens_it_ends(tmp_path: Path) -> None:
    program = textwrap.dedent("""
        import sys
        from tools.run.signals import waiting_signals
        from tools.chapters.together import Command, run_together
        endless = "while True: print('x' * 1000)"
        with waiting_signals() as wish:
            run_together([Command([sys.executable, "-c", endless], "script.py")], wish)
    """)
    (tmp_path / "listened_to.py").write_text(program)
    line = f"PYTHONPATH=. {sys.executable} {tmp_path}/listened_to.py 2> {tmp_path}/said | head -n 3"
    done = subprocess.run(["bash", "-c", line], capture_output=True, text=True, timeout=100)
    assert len(done.stdout.splitlines()) == 3
    assert "nobody reads the output" in (tmp_path / "said").read_text()
