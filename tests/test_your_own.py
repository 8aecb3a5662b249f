"""The page of parts of one's own: every file on it is short, and every command on it runs."""

import re
import shlex
from pathlib import Path

import pytest

from tests.forked import run
from tests.script import SMALL
from tests.scripts import SCRIPTS, config_of, options

OWN = "your_own"
TINY = {
    **dict(zip(SMALL[::2], SMALL[1::2], strict=True)),
    **{"--data.train-size": "320", "--width": "0.125"},
    **{"--recipe.lr": "0.02", "--recipe.steps": "4", "--recipe.evaluate-every": "2", "--search.steps": "2"},
    **{"--search.inner-steps": "1"},
    **{"--search.snapshots": "2", "--search.validation-batch": "16", "--networks": "4", "--resamples": "100"},
    **{"--records.probes": "0", "--records.calibration-images": "64", "--records.calibration-batch": "32"},
    **{"--records.shift-images": "8", "--shift-images": "8", "--population": "4", "--generations": "1"},
    **{"--breeding.parents": "2", "--scoring.calibration-images": "64", "--scoring.calibration-batch": "32"},
}
"""What makes a command of the page small, where its script has the option."""
THERE = """
import os, runpy, sys
os.chdir(os.path.dirname(__file__))
sys.path.insert(0, os.getcwd())
runpy.run_path(sys.argv[1], run_name="__main__")
"""
"""Runs a file that lies beside this one, in their folder."""


def blocks_of(page: str) -> list[tuple[str, str]]:
    """The language and the text of every block of code."""
    found = re.findall(
        r"^```(\w+)\n(.*?)^```$", (Path("docs") / f"{page}.md").read_text("utf-8"), re.MULTILINE | re.DOTALL
    )
    return [(language, text) for language, text in found]


def files_of(page: str) -> dict[str, str]:
    """The files of a page, by the names in their first lines."""
    return {text.splitlines()[0].removeprefix("# "): text for kind, text in blocks_of(page) if kind != "sh"}


def commands_of(page: str) -> list[list[str]]:
    """The words of all commands of a page behind `python`."""
    lines = [line for kind, text in blocks_of(page) if kind == "sh" for line in text.splitlines()]
    return [shlex.split(line.removeprefix("python ")) for line in lines]


def made_small(words: list[str]) -> list[str]:
    """The command with small sizes in place of its own."""
    known = {option.flag for option in options(config_of(words[0]))}
    groups: list[list[str]] = []
    for word in words[1:]:
        if word.startswith("--"):
            groups.append([])
        groups[-1].append(word)
    folder = "--data.name" in words
    scores = words[0] in ("search_architecture.py", "rank_report.py")  # by the images of the supernet
    small = {
        name: value
        for name, value in TINY.items()
        if name in known and not (name.startswith("--data.") and (scores or folder))
    }
    if "--space" not in words and words[0] == "make_truth.py":
        del small["--networks"]
    if "--width" not in words:
        small.pop("--width", None)
    if words[0] == "make_truth.py":
        small["--recipe.steps"] = "10"  # so that not all are at chance, which is no truth to rank by
    kept = [word for group in groups if group[0] not in small for word in group]
    return [words[0], *kept, *(word for pair in small.items() for word in pair)]


@pytest.mark.parametrize("name", files_of(OWN))
def test_a_file_of_ones_own_is_short_and_used(name: str) -> None:
    assert len(files_of(OWN)[name].splitlines()) < 20
    assert any(name in words for words in commands_of(OWN))


def test_every_script_is_shown_with_a_part_of_ones_own() -> None:
    assert {words[0] for words in commands_of(OWN) if "--plugins" in words} == {
        script for script in SCRIPTS if any(each.name == "plugins" for each in options(config_of(script)))
    }


@pytest.mark.slow
def test_the_commands_of_the_page_run_as_they_stand(tmp_path: Path) -> None:
    files = files_of(OWN)
    for name, text in files.items():
        (tmp_path / name).write_text(text)
    there = tmp_path / "there.py"
    there.write_text(THERE)
    for words in commands_of(OWN):
        if words[0] in files:
            done = run(str(there), words[0])
        else:
            here = [
                str(tmp_path / word) if word in files or word.startswith(("runs/", "photos")) else word
                for word in words
            ]
            done = run(*made_small(here))
        assert done.returncode == 0, f"{words}: {done.stderr}"
