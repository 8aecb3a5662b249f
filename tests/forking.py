"""This module lets a process that has imported torch start its Python programs as forks of itself.

`subprocess.Popen` and the forkserver of multiprocessing would start a new Python instead, and wait for its
imports. A fork has the arguments, environment, open files and session that the caller asks for. Functions
registered with `atexit` do not run at its end.
"""

import contextlib
import faulthandler
import logging
import multiprocessing.forkserver
import multiprocessing.util
import os
import runpy
import signal
import subprocess
import sys
import threading
import traceback
import warnings
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any, cast

from torch.distributed.elastic.multiprocessing.subprocess_handler import subprocess_handler

_BY_EXEC = multiprocessing.util.spawnv_passfds


def begin_by_forks() -> None:
    """Make this process fork itself where it would start a new Python."""
    subprocess.Popen = Popen  # type: ignore[misc]
    subprocess_handler.Popen = Popen  # type: ignore[attr-defined]
    # A rank's fork would take itself for that rank.
    is_rank = "RANK" in os.environ
    multiprocessing.util.spawnv_passfds = _BY_EXEC if is_rank else cast(Any, _fork_server)


@contextlib.contextmanager
def server_by_fork() -> Iterator[None]:
    """Inside this context, a server of forks that is started is a fork of this process."""
    multiprocessing.util.spawnv_passfds = cast(Any, _fork_server)
    try:
        yield
    finally:
        multiprocessing.util.spawnv_passfds = _BY_EXEC


def be_program(words: Sequence[str]) -> None:
    """Run a script, or a module after -m, as Python does with these arguments."""
    words = [word for word in words if word != "-u"]
    if words[0] == "-m":
        sys.argv = list(words[1:])
        sys.modules.pop(words[1], None)  # runpy warns of a module that is there already
        runpy.run_module(words[1], run_name="__main__", alter_sys=True)
    else:
        sys.argv = list(words)
        runpy.run_path(words[0], run_name="__main__")


class Popen(subprocess.Popen[Any]):
    """A `Popen` forks this process for a script or a module of this Python, and starts other programs as
    usual."""

    def _execute_child(self, args: Any, *others: Any) -> None:
        words = [os.fsdecode(args)] if isinstance(args, str | bytes) else [os.fsdecode(word) for word in args]
        if words[0] != sys.executable or "-c" in words:
            super()._execute_child(args, *others)  # type: ignore[misc]
            return
        passed, folder, environment = others[3:6]
        pipes, new_session, group = others[9:15], others[-2], others[-1]
        self.pid = os.fork()
        if self.pid:
            self._child_created = True
            self._close_pipe_fds(*pipes)  # type: ignore[attr-defined]
            return

        def become() -> None:
            for ours, theirs in enumerate((pipes[0], pipes[3], pipes[5])):
                if theirs != -1:
                    os.dup2(theirs, ours)
            _close_all_but(passed)
            if new_session:
                os.setsid()
            if group is not None and group >= 0:
                os.setpgid(0, group)
            os.chdir(folder or ".")
            if environment is not None:
                os.environ.clear()
                os.environ.update(environment)
            sys.stdout, sys.stderr = (os.fdopen(fd, "w", closefd=False) for fd in (1, 2))
            begin_by_forks()
            be_program(words[1:])

        _end_with(become)


def _fork_server(path: bytes, words: Sequence[Any], descriptors: Sequence[int]) -> int:
    """Start a server of forks or a tracker of resources, as `spawnv_passfds` does."""
    if "--multiprocessing-fork" in words:  # a process that is asked to be a new Python
        return _BY_EXEC(path, words, descriptors)
    if pid := os.fork():
        return pid

    def become() -> None:
        _close_all_but(descriptors)
        _leave_pytest()
        exec(words[-1], {"__name__": "__main__"})

    _end_with(become)
    return 0


def _leave_pytest() -> None:
    """Undo what pytest does to its process: it catches what is written, and makes errors of warnings."""
    sys.stdout, sys.stderr = (os.fdopen(fd, "w", closefd=False) for fd in (1, 2))
    for reference in logging._handlerList:  # type: ignore[attr-defined]
        handler = reference()
        if type(handler) is logging.StreamHandler:  # made when a library was imported
            handler.stream = sys.stderr
        elif type(handler).__module__.startswith("_pytest"):  # its file is closed, and others get its number
            handler.setLevel(logging.CRITICAL + 1)
    faulthandler.disable()
    warnings.resetwarnings()
    for ignored in (DeprecationWarning, PendingDeprecationWarning, ImportWarning, ResourceWarning):
        warnings.simplefilter("ignore", ignored)
    warnings.filterwarnings("default", category=DeprecationWarning, module="__main__")


def _close_all_but(descriptors: Iterable[int]) -> None:
    kept = sorted({0, 1, 2, *descriptors})
    for below, above in zip(kept, [*kept[1:], os.sysconf("SC_OPEN_MAX")], strict=True):
        os.closerange(below + 1, above)


def _end_with(become: Callable[[], None]) -> None:
    """Call `become` in a process just forked, and end the process as Python would."""
    code = 1
    multiprocessing.util._finalizer_registry.clear()  # type: ignore[attr-defined] # those are its parent's
    multiprocessing.forkserver._forkserver.__init__()  # type: ignore[misc] # its parent's is locked
    try:
        signal.signal(signal.SIGINT, signal.default_int_handler)
        for signum in (signal.SIGTERM, signal.SIGHUP):
            signal.signal(signum, signal.SIG_DFL)
        become()
        code = 0
    except SystemExit as error:
        code = error.code if isinstance(error.code, int) else int(error.code is not None)
        if isinstance(error.code, str):
            print(error.code, file=sys.stderr)
    except BaseException:
        traceback.print_exc()
    finally:
        try:
            threading._shutdown()  # type: ignore[attr-defined]
            multiprocessing.util._exit_function()  # type: ignore[attr-defined]
            for stream in (sys.stdout, sys.stderr):
                stream.flush()
        except BaseException:
            traceback.print_exc()
            code = code or 1
        finally:
            os._exit(code)
