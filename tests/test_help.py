"""`--help` is a page on the usual options, and `--help-all` lists every one, for every script of the root."""

import contextlib
import dataclasses
import io
import itertools
import re
import subprocess
import sys
from pathlib import Path

import pytest

from tests.scripts import HOUSE, SCRIPTS, Option, config_of, groups, listed, options
from tools.options.config import parse

PLACEHOLDER = re.compile(r"\b(todo|fixme|xxx|tbd|placeholder|undocumented)\b", re.IGNORECASE)
FILLING = {"a", "an", "and", "by", "in", "is", "its", "of", "or", "that", "the", "this", "to", "which"}


def words(text: str) -> list[str]:
    return re.findall(r"[a-z0-9]+", text.lower())


def one_line(text: str) -> str:
    return " ".join(text.split())


def printed(script: str, words: list[str], columns: int, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The lines that a script prints on a terminal of so many columns, ending in good order."""
    monkeypatch.setenv("COLUMNS", str(columns))
    out = io.TextIOWrapper(io.BytesIO(), encoding="utf-8")
    description = (HOUSE / script).read_text(encoding="utf-8").split('"""')[1]
    with pytest.raises(SystemExit) as ended, contextlib.redirect_stdout(out):
        parse(config_of(script), words, prog=script, description=description)
    assert ended.value.code == 0
    out.seek(0)
    return out.read().splitlines()


def boxed(script: str, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """What `--help-all` prints where there is room for one column of boxes, without the boxes."""
    lines = printed(script, ["--help-all"], 100, monkeypatch)
    assert any("╭─ options ─" in line for line in lines)
    assert not any("╮╭" in line for line in lines), "two columns: take a narrower terminal"
    return [re.sub("[│╭╮╰╯─]", " ", line) for line in lines]


def spelled(option: Option) -> str:
    """A pattern for how an option is shown: a switch has two names, anything else the kind of its value."""
    head, _, last = option.flag.rpartition(".")
    no = f"{head}.no-{last}" if head else f"--no-{last.removeprefix('--')}"
    return re.escape(option.flag) + (f", {re.escape(no)}" if option.kind is bool else r"(?: [A-Z\[\]. ]+)")


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
def test_all_help_shows_each_meaning_beside_its_option(script: str, monkeypatch: pytest.MonkeyPatch) -> None:
    found = one_line(" ".join(boxed(script, monkeypatch)))
    shown = listed(config_of(script))
    for option in shown:
        line = rf"(?<!\S){spelled(option)} {re.escape(one_line(option.text))} \(default: "
        assert re.search(line, found), f"{option.flag}: {option.text}\n{found}"
    assert len(re.findall(r"\(default: ", found)) == len(shown)
    for name, text in groups(config_of(script)).items():
        if any(option.name.startswith(f"{name}.") for option in shown):
            assert one_line(text) in found


@pytest.mark.parametrize("script", SCRIPTS)
def test_what_a_script_leaves_to_another_is_listed_there(
    script: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = config_of(script)
    elsewhere = getattr(config, "LISTED_BY", {})
    left = {*options(config)} - {*listed(config)}
    assert {option.name.split(".")[0] for option in left} == {*elsewhere}
    for option in left:
        assert option in listed(config_of(elsewhere[option.name.split(".")[0]]))
    for words in (["--help"], ["--help-all"]):
        page = one_line(" ".join(printed(script, words, 100, monkeypatch)))
        for other in elsewhere.values():
            assert f" options of {other} are options here too; its --help-all explains them." in page


def test_the_list_of_a_truth_is_short() -> None:
    assert len(listed(config_of("make_truth.py"))) < 60


@pytest.mark.parametrize("script", SCRIPTS)
def test_no_line_of_all_help_ends_before_it_is_full(script: str, monkeypatch: pytest.MonkeyPatch) -> None:
    left, right = 26, 98  # where texts begin and end
    lines = boxed(script, monkeypatch)
    broken = [
        (line, below)
        for line, below in itertools.pairwise(lines)
        if line[left - 2 : left].isspace() and line[left:].strip()  # a text, which goes on in the next line
        if below[:left].isspace() and below[left:].strip()
        if len(line.rstrip()) + 1 + len(below.split()[0]) <= right
    ]
    assert not broken


@pytest.mark.parametrize("columns", [20, 80, 90, 100, 300])
@pytest.mark.parametrize("script", SCRIPTS)
def test_help_is_a_page(script: str, columns: int, monkeypatch: pytest.MonkeyPatch) -> None:
    lines = printed(script, ["--help"], columns, monkeypatch)
    assert len(lines) <= 60
    assert max(map(len, lines)) <= min(max(columns, 80), 100)
    assert lines == [line.rstrip() for line in lines]
    assert lines == printed(script, ["-h"], columns, monkeypatch)


@pytest.mark.parametrize("script", SCRIPTS)
def test_help_has_the_usual_options_and_no_other(script: str, monkeypatch: pytest.MonkeyPatch) -> None:
    config = config_of(script)
    known = {option.name: option for option in options(config)}
    usual = [known[name] for name in config.USUAL]
    assert len({*usual}) == len(usual)
    assert min(len(known), 7) <= len(usual) <= 14
    lines = printed(script, ["--help"], 80, monkeypatch)
    below = lines[lines.index("Usual options:") + 1 :]
    assert [line.split()[0].rstrip(",") for line in below if line.startswith("  --")] == [
        *(option.flag for option in usual),
        "--config",
    ]
    found = one_line(" ".join(below))
    for option in usual:
        first = re.match(r".*?[.!?](?= |$)", one_line(option.text))
        assert first, option.text
        assert first[0].count("(") == first[0].count(")"), f"a sentence is cut: {first[0]}"
        line = rf"(?<!\S){spelled(option)} {re.escape(first[0])} \(default: [^)]*\)"
        assert re.search(line, found), f"{option.flag}: {first[0]}\n{found}"
    shown = listed(config)
    every = "all " if len(shown) == len(known) else ""
    assert below[-1] == f"--help-all lists {every}{len(shown)} options by group."


def test_help_shows_the_values_of_the_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = tmp_path / "mine.toml"
    file.write_text('network = "vgg19"\n[recipe]\nlr = 0.5\nepochs = 7\n')
    found = one_line(
        " ".join(printed("retrain_model.py", ["--config", str(file), "--help"], 80, monkeypatch))
    )
    for flag, value in (
        ("network", "vgg19"),
        ("recipe.lr", "0.5"),
        ("recipe.epochs", "7"),
        ("rule", "not given"),
    ):
        assert re.search(rf"--{flag} [A-Z]+ [^-].*? \(default: {value}\)", found)


@pytest.mark.parametrize("script", SCRIPTS)
def test_help_has_three_examples_that_can_be_copied(script: str, monkeypatch: pytest.MonkeyPatch) -> None:
    lines = printed(script, ["--help"], 80, monkeypatch)
    examples = "\n".join(lines[lines.index("Examples:") + 1 : lines.index("Usual options:")])
    commands = [line.split() for line in examples.replace("\\\n", " ").split("\n") if line.strip()]
    assert len(commands) == 3
    for words in commands:
        assert dataclasses.is_dataclass(
            parse(config_of(script), words[words.index(script) + 1 :], prog=script, description="")
        )


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
    assert done.stderr.endswith("--help explains the usual options, --help-all every one.\n")
    assert not [*tmp_path.iterdir()]
