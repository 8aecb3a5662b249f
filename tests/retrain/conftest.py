"""Programs in processes that cannot see Cleave."""

import json
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

Alone = Callable[[str, Path], str]

WITHOUT_CLEAVE = """
import contextlib, importlib.util, io, json, multiprocessing, os, sys, traceback
from pathlib import Path
sys.path[:] = [each for each in sys.path if not (Path(each) / "retrain").is_dir()]
sys.meta_path[:] = [each for each in sys.meta_path if "editable" not in str(each).lower()]
assert importlib.util.find_spec("retrain") is None and importlib.util.find_spec("supernet") is None
import numpy, onnxruntime, timm, torch
torch.set_num_threads(1)

def outcome(program, folder):
    os.chdir(folder)
    try:
        with contextlib.redirect_stdout(io.StringIO()) as said:
            exec(program, {"__name__": "__main__"})
    except BaseException:
        return "", traceback.format_exc()
    return said.getvalue(), ""

for line in sys.stdin:
    with multiprocessing.get_context("fork").Pool(1) as fork:
        print(json.dumps(fork.apply(outcome, json.loads(line))), flush=True)
"""


@pytest.fixture(scope="session")
def alone() -> Iterator[Alone]:
    """Gives what a program prints in a folder. Each has a fork of a process that has imported torch and timm,
    but cannot see Cleave."""
    line = [sys.executable, "-W", "ignore", "-c", WITHOUT_CLEAVE]
    with subprocess.Popen(line, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        asked, answers = process.stdin, process.stdout
        assert asked is not None
        assert answers is not None

        def outcome(program: str, folder: Path) -> str:
            print(json.dumps([program, str(folder)]), file=asked, flush=True)
            said, error = json.loads(answers.readline())
            assert not error, error
            return str(said)

        yield outcome
