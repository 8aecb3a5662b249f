"""This module runs a root script: it parses options, runs, and turns every ending into a line and a code."""

import os
import signal
import sys
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any, NoReturn, TypeVar

from tools.failures import Interrupted, RunFailed
from tools.files.provenance import HOUSE
from tools.images.options import DataConfig
from tools.mistake import Mistake
from tools.options import plugins
from tools.options.config import flag, flatten, given, message_of, parse
from tools.options.help import HELP, HELP_ALL

_Config = TypeVar("_Config")

FLOORS = ("tools", "local_learning", "supernet", "search", "retrain")


def main(
    cls: type[_Config], run: Callable[[_Config], None], description: str | None, *, bare: bool = False
) -> None:
    """Parse the command line into a `cls` and hand it to `run`.

    The exit codes are 2 for a user's mistake, 1 for a run that cannot go on, and 128 + signal for an
    interrupted run.

    Arguments:
        cls: The class of the script's options.
        run: The work that the script does with its options.
        description: What the script does, with examples. Without any option only this is shown, because the
            defaults may be hours of work.
        bare: Whether the script may be called without any option.
    """
    try:
        if not (sys.argv[1:] or bare):
            raise ValueError(_usage(description or ""))
        plugins.load_asked(*given(sys.argv[1:], "plugins"))
        config = parse(cls, sys.argv[1:], prog=Path(sys.argv[0]).name, description=description or "")
        _check_files(config)
        run(config)
    except ValueError as error:
        if not is_ours(error):
            raise
        # Every process meets the same mistake, so one process on each machine reports it.
        _leave(message_of(error), 2, speaks=os.environ.get("LOCAL_RANK", "0") == "0")
    except RunFailed as error:
        _leave(str(error), 1, speaks=not error.everyone or _rank() == 0)
    except MemoryError as error:
        reason = f" ({error})" if str(error) else ""
        _leave(f"out of memory{reason}{_with_fewer_images(cls)}", 1)
    except Interrupted as error:
        _leave(str(error), 128 + error.signum, speaks=_rank() == 0)
    except KeyboardInterrupt:
        _leave("interrupted at once; what was saved is kept", 128 + signal.SIGINT)


def is_ours(error: ValueError) -> bool:
    """Return whether a ValueError is for the user; from others' code it is a bug to be shown in full."""
    frames = traceback.extract_tb(error.__traceback__)
    if not frames or isinstance(error, Mistake):
        return True
    raised_in = Path(frames[-1].filename).resolve()
    # Other libraries lie inside a checkout (.venv), and around an installed package.
    ours = raised_in.parent == HOUSE or any(raised_in.is_relative_to(HOUSE / floor) for floor in FLOORS)
    return ours and not plugins.is_plugin(raised_in)


def _check_files(config: Any) -> None:
    """Refuse files that are not there before torch is imported, which takes seconds.

    A run that exists may go on without them: it has copies of its own.
    """
    if Path(getattr(config, "run", ""), "config.toml").exists():
        return
    for option in getattr(config, "FILES", ()):
        value = getattr(config, option)
        for name in (value,) if isinstance(value, str) else value:
            if name and not os.path.exists(name):
                raise Mistake(option, f"there is no file '{name}'")
    data = getattr(config, "data", None)
    plans = getattr(config, "plan", False) and getattr(data, "name", "") != "folder"  # which reads no images
    if isinstance(data, DataConfig) and not plans:
        data.check_root()


def _usage(description: str) -> str:
    return (
        f"give some options; without any, nothing is begun\n\n{description.strip()}\n\n"
        f"{HELP} explains the usual options, {HELP_ALL} every one."
    )


def _with_fewer_images(cls: type[Any]) -> str:
    """Return a clause that names those options of a script by which images need less memory."""
    cures = {
        "data.train_size": f"{flag('data.train_size')} takes fewer of them",
        "data.loader": f"{flag('data.loader')} stream keeps them in their files",
    }
    known = flatten(cls())
    said = " and ".join(cure for name, cure in cures.items() if name in known)
    return f"; where images fill it, {said}" if said else ""


def _rank() -> int:
    return int(os.environ.get("RANK", "0"))


def _leave(message: str, code: int, *, speaks: bool = True) -> NoReturn:
    name = Path(sys.argv[0]).name
    several = int(os.environ.get("WORLD_SIZE", "1")) > 1
    where = f"{name}: rank {_rank()}" if several else name
    if speaks:
        print(f"{where}: {message}", file=sys.stderr, flush=True)
    sys.stdout.flush()
    # Not sys.exit: when another process is gone, closing a process group can hang until its timeout.
    if several or code == 1:
        os._exit(code)
    sys.exit(code)
