"""Chapters: read from a file, run in order and at once, told again, cut short."""

import json
import re
import shlex
import signal
import subprocess
from pathlib import Path

import pytest

from tests.forked import Script, run
from tests.script import wait_until
from tools.chapters.run import ChaptersConfig, is_done, made_from, read_chapters
from tools.mistake import Mistake
from tools.options.config import message_of

TRAINING = (
    "retrain_model.py --network mlp --width 0.1 --data.name shapes --data.image-size 16 "
    "--data.train-size 200 --data.test-size 100 --recipe.batch-size 20 --threads 1"
)


def written(folder: Path, *chapters: str, end: str = "") -> Path:
    file = folder / "chapters.toml"
    file.write_text("\n".join([f"end = '{end}'", *(f"[[chapters]]\n{text}" for text in chapters)]))
    return file


def chapter(title: str, *commands: str, processes: int = 1) -> str:
    return f"title = {json.dumps(title)}\ncommands = {json.dumps(commands)}\nprocesses = {processes}"


def words(folder: Path, file: Path, *options: str) -> list[str]:
    place = ["--chapters", str(file), "--run", str(folder / "run"), "--device", "cpu"]
    return ["demo.py", *place, *options]


def demo(folder: Path, file: Path, *options: str) -> subprocess.CompletedProcess[str]:
    return run(*words(folder, file, *options))


@pytest.mark.slow
def test_chapters_are_run_once_and_each_process_count_is_kept(tmp_path: Path) -> None:
    file = written(
        tmp_path,
        chapter("Two at once", *(f"{TRAINING} --recipe.steps {n} --run {{run}}/{n}" for n in (3, 4))),
        chapter("On two", f"{TRAINING} --recipe.steps 2 --run {{run}}/pair", processes=2),
        end="look at {run}",
    )
    first = demo(tmp_path, file)
    assert first.returncode == 0, first.stdout + first.stderr
    assert "[1/2] Two at once" in first.stdout
    assert "    3: trained 3 steps" in first.stdout  # of two at once each says who speaks
    assert "    4: trained 4 steps" in first.stdout
    assert f"look at {tmp_path / 'run'}" in first.stdout.splitlines()[-1]
    for name, processes in (("3", 1), ("4", 1), ("pair", 2)):
        results = json.loads((tmp_path / "run" / name / "results.json").read_text())
        assert results["processes"] == processes
    second = demo(tmp_path, file)
    assert second.returncode == 0
    assert "[1/2] Two at once: done before" in second.stdout
    assert "[2/2] On two: done before" in second.stdout
    assert "trained" not in second.stdout
    # What is gone, or asked otherwise, is made again.
    for path in sorted((tmp_path / "run" / "pair").rglob("*"), reverse=True):
        path.rmdir() if path.is_dir() else path.unlink()
    again = demo(tmp_path, file)
    assert "[1/2] Two at once: done before" in again.stdout
    assert "    trained 2 steps" in again.stdout


@pytest.mark.slow
def test_a_failure_ends_the_others_and_names_its_cause(tmp_path: Path) -> None:
    long = f"{TRAINING} --recipe.steps 100000 --recipe.checkpoint-every 100000 --run {{run}}/long"
    wrong = f"{TRAINING} --recipe.steps 2 --weights {tmp_path}/none.safetensors --run {{run}}/wrong"
    done = demo(tmp_path, written(tmp_path, chapter("One fails", long, wrong)))
    assert done.returncode == 1
    (line,) = done.stderr.splitlines()
    assert line.startswith("demo.py: retrain_model.py ended with 2: retrain_model.py: ")
    assert "none.safetensors" in line
    assert "Traceback" not in done.stdout + done.stderr


@pytest.mark.slow
def test_interrupted_it_goes_on_where_it_was(tmp_path: Path) -> None:
    file = written(
        tmp_path,
        chapter("Short", f"{TRAINING} --recipe.steps 2 --run {{run}}/short"),
        chapter("Long", f"{TRAINING} --recipe.steps 600 --recipe.log-every 10 --run {{run}}/long"),
    )
    reached = 0
    for signum in (signal.SIGINT, signal.SIGTERM):
        with Script(*words(tmp_path, file)) as process:
            wait_until(lambda: "/600" in process.said, process)
            process.strike(0, signum)
            stopped = process.finish(120)
        assert stopped.returncode == 128 + signum
        assert "the same command continues" in stopped.stderr
        saved = (tmp_path / "run/long/checkpoints").glob("step-*.json")
        before, reached = reached, max(int(path.stem.split("-")[1]) for path in saved)
        assert before < reached < 600
    done = demo(tmp_path, file)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "[1/2] Short: done before" in done.stdout
    first = next(int(n) for n in re.findall(r"step (\d+)/600", done.stdout))
    assert first > reached


def test_what_was_made_from_something_else_is_not_taken_as_done(tmp_path: Path) -> None:
    run = str(tmp_path / "run")
    below = ("a.py", "--run", f"{run}/below")
    extra = tmp_path / "options.toml"
    extra.write_text("x = 1")
    above = ("b.py", "--of", f"{run}/below", "--config", str(extra), "--run", f"{run}/above")
    for place in ("below", "above"):
        (tmp_path / "run" / place).mkdir(parents=True)
        (tmp_path / "run" / place / "config.toml").write_text("")
    (tmp_path / "run/below/results.json").write_text("{}")
    done = {shlex.join(each): made_from(each, run) for each in (below, above)}
    assert is_done(below, done, run)
    assert is_done(above, done, run)
    extra.write_text("x = 2")  # options that may have changed: the script looks at them itself
    assert not is_done(above, done, run)
    extra.write_text("x = 1")
    (tmp_path / "run/below/results.json").write_text('{"other": 1}')
    assert is_done(below, done, run)
    with pytest.raises(ValueError, match="was made from runs that have changed since"):
        is_done(above, done, run)


def refusal(folder: Path, text: str, **options: str) -> str:
    file = folder / "chapters.toml"
    file.write_text(text)
    with pytest.raises(Mistake) as caught:
        read_chapters(ChaptersConfig(chapters=str(file), **options))
    return message_of(caught.value)


def test_what_is_wrong_with_a_file_is_said(tmp_path: Path) -> None:
    one, run = '[[chapters]]\ntitle = "x"\n', "--run {run}/x"
    good = f'commands = ["retrain_model.py {run}"]\n'
    assert "must have [[chapters]]" in refusal(tmp_path, "")
    assert "and nothing else" in refusal(tmp_path, "more = 1\n" + one + good)
    assert "a title, a list of commands" in refusal(tmp_path, one)
    assert "a number of processes" in refusal(tmp_path, f'{one}{good}processes = "2"')
    assert "needs a process or more" in refusal(tmp_path, f"{one}{good}processes = 0")
    assert "did you mean 'retrain_model.py'?" in refusal(
        tmp_path, f'{one}commands = ["retrain_modl.py {run}"]'
    )
    assert "does not begin with a script of ours" in refusal(tmp_path, f'{one}commands = ["rm -r x {run}"]')
    assert "needs --run" in refusal(tmp_path, one + 'commands = ["retrain_model.py"]')
    assert "none of {run}, {data}, {here}" in refusal(tmp_path, f'{one}commands = ["retrain_model.py {{x}}"]')
    assert "none of {run}" in refusal(tmp_path, f'end = "{{x}}"\n{one}{good}')
    assert "cannot read the command" in refusal(tmp_path, one + "commands = ['retrain_model.py \"']")
    assert "cannot read" in refusal(tmp_path, "chapters = [")
    assert "--data: name the folder" in refusal(
        tmp_path, f'{one}commands = ["retrain_model.py {{data}} {run}"]'
    )
    assert "leave it out" in refusal(tmp_path, one + good, data="images")
    with pytest.raises(ValueError, match=r"cannot read 'nowhere\.toml'"):
        read_chapters(ChaptersConfig(chapters="nowhere.toml"))
    with pytest.raises(ValueError, match="run: name a folder"):
        ChaptersConfig(run="")
    with pytest.raises(ValueError, match="device: unknown value 'gpu'"):
        ChaptersConfig(device="gpu")


def test_folders_with_spaces_stay_one_word(tmp_path: Path) -> None:
    file = written(tmp_path, chapter("x", "retrain_model.py --data.root {data} --run {run}/x"))
    config = ChaptersConfig(chapters=str(file), run="my runs", data="my images")
    (found,), _ = read_chapters(config)
    assert found.commands == (("retrain_model.py", "--data.root", "my images", "--run", "my runs/x"),)
