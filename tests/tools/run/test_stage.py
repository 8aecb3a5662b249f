"""Whatever goes wrong where a script begins or ends its work, every process ends with a word."""

import fcntl
import signal
from pathlib import Path

import psutil
import pytest

from retrain.config import RetrainConfig
from tests.forked import Script
from tests.script import wait_until
from tools.failures import RunFailed
from tools.options.config import parse
from tools.options.shared import RunOptions
from tools.run.folder import Run
from tools.run.stage import Stage

SCRIPT = "retrain_model.py"
WORDS = ["--device", "cpu", "--threads", "1", "--network", "mlp"]


def test_a_torch_error_while_the_run_is_opened_is_explained(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def run_out(*about: object, **options: object) -> None:
        raise RuntimeError("DefaultCPUAllocator: can't allocate memory")

    monkeypatch.setattr(Run, "open", run_out)
    config = RunOptions(run=str(tmp_path / "run"), device="cpu")
    with pytest.raises(RunFailed, match=r"^out of memory; .* The same command continues"):
        Stage(config, free=()).__enter__()


@pytest.mark.slow
def test_a_process_that_dies_while_the_run_is_opened_is_missed_in_words(tmp_path: Path) -> None:
    lock = tmp_path / ".lock"
    with lock.open("a") as held:
        fcntl.flock(held, fcntl.LOCK_EX)
        with Script(SCRIPT, *WORDS, "--run", str(tmp_path), ranks=2) as process:
            first = psutil.Process(process.ranks[0].pid)
            wait_until(lambda: str(lock) in [file.path for file in first.open_files()], process)
            process.strike(1, signal.SIGKILL)
            process.ranks[1].join()
            fcntl.flock(held, fcntl.LOCK_UN)
            done = process.finish(timeout=60)
            assert process.ranks[0].exitcode == 1, done
    assert "lost contact with another process" in done.stderr
    assert "Traceback" not in done.stderr


@pytest.mark.slow
def test_a_summary_that_fails_ends_every_process(tmp_path: Path) -> None:
    run = Run(tmp_path)
    run.keep_config(parse(RetrainConfig, WORDS, prog=SCRIPT, description=""))
    run.write_results({"steps": "many", "training_seconds": 1.0, "test": {}})  # not a number
    with Script(SCRIPT, *WORDS, "--run", str(tmp_path), ranks=2) as process:
        done = process.finish(timeout=60)
        assert [rank.exitcode for rank in process.ranks] == [2, 2], done
