"""What a launcher was asked for and does not come about is said."""

import argparse
from pathlib import Path

import pytest
from accelerate.commands.launch import launch_command_parser
from accelerate.utils.launch import prepare_multi_gpu_env, prepare_simple_launcher_cmd_env

from tests.forked import run
from tests.script import SMALL
from tools.run.launch import unheard

USUAL = ["--num_machines", "1", "--dynamo_backend", "no", "--num_cpu_threads_per_process", "1"]


def arguments(*words: str) -> argparse.Namespace:
    """Of `accelerate launch`, as far as it reads them itself."""
    line = [*USUAL, *words, "script.py"]
    if "--mixed_precision" not in words:
        line = ["--mixed_precision", "no", *line]
    asked: argparse.Namespace = launch_command_parser().parse_args(line)
    asked.use_cpu = asked.cpu
    return asked


@pytest.fixture(autouse=True)
def _no_launcher(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("MASTER_ADDR", "MASTER_PORT", "WORLD_SIZE", "ACCELERATE_USE_CPU"):
        monkeypatch.delenv(name, raising=False)


@pytest.mark.parametrize("words", [["--cpu"], []])
def test_several_processes_that_are_one_are_noticed(words: list[str]) -> None:
    _, several = prepare_simple_launcher_cmd_env(arguments(*words, "--num_processes", "2"))
    (said,) = unheard("fp32", 1, several)
    assert said.startswith("one process does all the work")
    assert "--multi_gpu --num_processes N" in said
    _, one = prepare_simple_launcher_cmd_env(arguments(*words, "--num_processes", "1"))
    assert unheard("fp32", 1, one) == []


def test_several_processes_that_are_several_need_no_word() -> None:
    variables = prepare_multi_gpu_env(
        arguments("--multi_gpu", "--num_processes", "2", "--main_process_port", "0")
    )
    assert unheard("fp32", 2, variables) == []
    # As torchrun tells the one process that it starts.
    assert unheard("fp32", 1, {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "1", "WORLD_SIZE": "1"}) == []
    assert unheard("bf16", 1, {}) == []


def test_the_launchers_precision_is_noticed_where_ours_is_another() -> None:
    _, variables = prepare_simple_launcher_cmd_env(
        arguments("--cpu", "--num_processes", "1", "--mixed_precision", "bf16")
    )
    assert unheard("bf16", 1, variables) == []
    (said,) = unheard("fp32", 1, variables)
    assert said.startswith("--mixed_precision bf16 of accelerate launch is not looked at")
    assert "and is fp32; give the script --precision bf16" in said
    (said,) = unheard("fp32", 1, {"ACCELERATE_MIXED_PRECISION": "fp8"})
    assert "--precision bf16 or fp16" in said


@pytest.mark.slow
def test_a_script_says_both_at_its_start(tmp_path: Path) -> None:
    line = ["-m", "accelerate.commands.launch", "--cpu", "--num_processes", "2"]
    line += ["--mixed_precision", "bf16", *USUAL, "retrain_model.py", *SMALL, "--network", "mlp"]
    line += ["--recipe.steps", "1", "--run", str(tmp_path / "run")]
    done = run(*line)
    assert done.returncode == 0, done.stderr
    said = done.stdout.splitlines()
    assert said[0].startswith("note: one process does all the work")
    assert said[1].startswith("note: --mixed_precision bf16 of accelerate launch is not looked at")
    assert "1 x cpu, fp32" in done.stdout
