import os
import stat
import subprocess
import sys
from pathlib import Path

import pytest

from tools.kernels import library as module
from tools.mistake import Mistake

PROGRAM = "from tools.kernels.library import is_there, library; print(is_there(), library())"


def tried(cache: Path) -> subprocess.CompletedProcess[str]:
    """Load the library in a new Python, with a cache of its own."""
    environment = os.environ | {"XDG_CACHE_HOME": str(cache)}
    return subprocess.run([sys.executable, "-c", PROGRAM], capture_output=True, text=True, env=environment)


def test_without_a_compiler_torch_is_left(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.setenv("CC", "")
    module.library_or_reason.cache_clear()
    try:
        assert not module.is_there()
        with pytest.raises(Mistake, match=r"kernels: native ones cannot be had: there is no C compiler"):
            module.library()
    finally:
        module.library_or_reason.cache_clear()


def test_a_compiler_that_fails_is_named(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    broken = tmp_path / "mycc"
    broken.write_text(
        '#!/bin/sh\n[ "$1" = --version ] && echo mycc 1 && exit\necho no such flag >&2\nexit 1\n'
    )
    broken.chmod(broken.stat().st_mode | stat.S_IXUSR)
    monkeypatch.setenv("CC", str(broken))
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    module.library_or_reason.cache_clear()
    try:
        with pytest.raises(Mistake, match=r"mycc fails: no such flag"):
            module.library()
    finally:
        module.library_or_reason.cache_clear()
    assert not list(tmp_path.glob("cleave/*"))


@pytest.mark.slow
def test_it_is_compiled_once_and_found_again(tmp_path: Path) -> None:
    first = tried(tmp_path)
    assert first.stdout.startswith("True"), first
    (path,) = tmp_path.glob("cleave/*.so")
    made = path.stat().st_mtime_ns
    assert str(path) in tried(tmp_path).stdout
    assert path.stat().st_mtime_ns == made
