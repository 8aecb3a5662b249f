"""`--help` says what every option means, for every script of the root; no option at all, how it is called."""

import contextlib
import io
import re
import subprocess
import sys
from pathlib import Path

import pytest

from tests.scripts import HOUSE, SCRIPTS, config_of, groups, options
from tools.options.config import parse

PLACEHOLDER = re.compile(r"\b(todo|fixme|xxx|tbd|placeholder|undocumented)\b", re.IGNORECASE)
FILLING = {"a", "an", "and", "by", "in", "is", "its", "of", "or", "that", "the", "this", "to", "which"}


def words(text: str) -> list[str]:
    return re.findall(r"[a-z0-9]+", text.lower())


def one_line(text: str) -> str:
    return " ".join(text.split())


def shown(script: str, monkeypatch: pytest.MonkeyPatch) -> str:
    """What `--help` prints on a terminal that has room for one column of boxes, without the boxes."""
    monkeypatch.setenv("COLUMNS", "100")
    out = io.TextIOWrapper(io.BytesIO(), encoding="utf-8")
    with pytest.raises(SystemExit) as ended, contextlib.redirect_stdout(out):
        parse(config_of(script), ["--help"], prog=script, description="")
    assert ended.value.code == 0
    out.seek(0)
    printed = out.read()
    assert "╭─ options ─" in printed
    assert "╮╭" not in printed, "two columns: take a narrower terminal"
    return one_line(re.sub("[│╭╮╰╯─]", " ", printed))


def test_there_are_scripts() -> None:
    assert {"retrain_model.py", "make_truth.py"} < set(SCRIPTS)


@pytest.mark.parametrize("script", SCRIPTS)
def test_every_option_has_a_meaning(script: str) -> None:
    for option in options(config_of(script)):
        said = words(option.text)
        assert said, f"{option.flag} has no string under it"
        assert not PLACEHOLDER.search(option.text), f"{option.flag}: {option.text}"
        assert option.text.rstrip().endswith((".", "!", "?")), f"{option.flag}: {option.text}"
        own = set(words(option.name)) | FILLING
        assert len(set(said) - own) >= 2, f"{option.flag}: '{option.text}' only says its name again"


@pytest.mark.parametrize("script", SCRIPTS)
def test_every_group_has_a_description(script: str) -> None:
    for name, text in groups(config_of(script)).items():
        assert len(words(text)) > 3, f"{name}: {text!r}"


@pytest.mark.parametrize("script", SCRIPTS)
def test_help_shows_each_meaning_beside_its_option(script: str, monkeypatch: pytest.MonkeyPatch) -> None:
    found = shown(script, monkeypatch)
    for option in options(config_of(script)):
        # A switch has two names, anything else the kind of its value.
        head, _, last = option.flag.rpartition(".")
        no = f"{head}.no-{last}" if head else f"--no-{last.removeprefix('--')}"
        between = f", {re.escape(no)}" if option.kind is bool else r"(?: [A-Z\[\]. ]+)"
        line = rf"(?<!\S){re.escape(option.flag)}{between} {re.escape(one_line(option.text))} \(default: "
        assert re.search(line, found), f"{option.flag}: {option.text}\n{found}"
    for text in groups(config_of(script)).values():
        assert one_line(text) in found


@pytest.mark.parametrize("script", SCRIPTS)
def test_a_script_says_what_it_does_and_how_it_is_called(script: str) -> None:
    text = (HOUSE / script).read_text(encoding="utf-8")
    alone = script in ("demo.py", "export_model.py", "predict_images.py")  # of which one process is enough
    assert (f"python {script}" if alone else f"accelerate launch {script} --") in text.split('"""')[1]


@pytest.mark.parametrize("script", sorted({*SCRIPTS} - {"demo.py"}))
def test_without_options_a_script_only_shows_how_it_is_called(script: str, tmp_path: Path) -> None:
    line = [sys.executable, str(HOUSE / script)]
    done = subprocess.run(line, cwd=tmp_path, capture_output=True, text=True, timeout=60)
    assert done.returncode == 2
    assert done.stderr.startswith(f"{script}: give some options; without any, nothing is begun\n\n")
    shown = [words.split() for words in done.stderr.splitlines() if f" {script} " in words]
    assert len(shown) >= 2
    for words in shown:
        parse(config_of(script), words[words.index(script) + 1 :], prog=script, description="")
    assert done.stderr.endswith("--help explains all options.\n")
    assert not [*tmp_path.iterdir()]
