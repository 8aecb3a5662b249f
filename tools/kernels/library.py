"""This module compiles the project's kernels for the processor at hand, once, and loads them.

The library stays in a folder of the user's cache, by the hash of all that it depends on. Without a compiler
there is no library, and torch computes everything.
"""

import contextlib
import ctypes
import functools
import hashlib
import os
import platform
import shutil
import subprocess
import tempfile
from pathlib import Path

import torch  # noqa: F401 # its OpenMP is the one that the library shall use, so it comes first

from tools.files.cache import cache_folder
from tools.mistake import Mistake

SOURCE = Path(__file__).with_name("kernels.c")
FLAGS = (
    *("-O3", "-march=native", "-ffp-contract=fast", "-fno-math-errno", "-fno-trapping-math"),
    *("-fPIC", "-shared", "-fopenmp", "-Wno-psabi"),
)


def library() -> ctypes.CDLL:
    """Return the library, compiled if this machine has not done so yet.

    Raises:
        Mistake: if it cannot be had; the message says why.
    """
    found = library_or_reason()
    if isinstance(found, str):
        raise Mistake("kernels", f"native ones cannot be had: {found}", "a new run can do with torch")
    return found


def is_there() -> bool:
    """Return whether this machine can have the library."""
    return not isinstance(library_or_reason(), str)


@functools.cache
def library_or_reason() -> ctypes.CDLL | str:
    """Return the library, or in words why there is none."""
    compiler = next(filter(None, map(shutil.which, (os.environ.get("CC", ""), "cc", "gcc", "clang"))), None)
    if compiler is None:
        return "there is no C compiler (cc, gcc, clang, or what CC names)"
    try:
        version = subprocess.run([compiler, "--version"], capture_output=True, text=True, check=True).stdout
        key = "\n".join([SOURCE.read_text(), *FLAGS, version, _processor()])
        path = cache_folder() / f"kernels-{hashlib.sha256(key.encode()).hexdigest()[:20]}.so"
        if not path.exists():
            _compile(compiler, path)
        return ctypes.CDLL(str(path))
    except subprocess.CalledProcessError as error:
        lines = str(error.stderr).strip().splitlines() or ["no message"]
        return f"{compiler} fails: {lines[0]}"
    except OSError as error:
        return str(error)


def _compile(compiler: str, path: Path) -> None:
    """Compile into a file beside `path` and rename it, since other processes may do the same now."""
    handle, name = tempfile.mkstemp(suffix=".so", dir=path.parent)
    os.close(handle)
    try:
        line = [compiler, *FLAGS, str(SOURCE), "-o", name, "-lm"]
        subprocess.run(line, capture_output=True, text=True, check=True)
        os.replace(name, path)
    finally:
        with contextlib.suppress(FileNotFoundError):
            os.unlink(name)


def _processor() -> str:
    """Describe the processor: folders of users are shared between machines, and their instructions differ."""
    words = [platform.machine(), platform.processor()]
    with contextlib.suppress(OSError):
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        words += sorted({line for line in lines if line.startswith(("model name", "flags", "Features"))})
    return "\n".join(words)
