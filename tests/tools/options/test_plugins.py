"""Files of a user's own parts: what is imported, what is refused, and what a run keeps of them."""

import hashlib
import json
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch

from tools.options import plugins
from tools.options.config import given
from tools.options.plugins import call, takes
from tools.run.folder import Run
from tools.run.weights import read_notes, save_tensors


@dataclass(frozen=True, kw_only=True)
class Options:
    plugins: tuple[str, ...] = ()


@pytest.fixture(autouse=True)
def forgotten(monkeypatch: pytest.MonkeyPatch) -> None:
    """What is loaded here is no part of what later tests of this process write."""
    monkeypatch.setattr(plugins, "_loaded", {})


def written(path: Path, text: str) -> str:
    path.write_text(text)
    return str(path)


def test_a_part_gets_the_options_that_it_takes() -> None:
    def few(first: int, *, width: float = 1.0) -> tuple[int, float]:
        return first, width

    def many(first: int, **options: Any) -> tuple[int, dict[str, Any]]:
        return first, options

    assert call(few, 1, width=0.5, stem="unit") == (1, 0.5)
    assert call(many, 1, width=0.5, stem="unit") == (1, {"width": 0.5, "stem": "unit"})
    assert not takes(few, "stem")
    assert takes(many, "stem")


def test_a_file_is_imported_once_as_a_module_of_its_own(tmp_path: Path) -> None:
    text = (
        "from __future__ import annotations\nfrom dataclasses import dataclass\nimport sys\n"
        "sys.imports = getattr(sys, 'imports', 0) + 1\n\n@dataclass\nclass Mine:\n    number: int = 3\n"
    )
    (tmp_path / "one").mkdir()
    first = written(tmp_path / "random.py", text)
    second = written(tmp_path / "one" / "random.py", text + "# another\n")
    plugins.load([first, first, second])
    plugins.load([first])
    assert vars(sys).pop("imports") == 2
    import random

    assert random.__file__ != first
    assert plugins.is_plugin(Path(first).resolve())
    assert plugins.digests([first]) == {first: hashlib.sha256(text.encode()).hexdigest()}
    Path(first).write_text("changed since\n")
    assert plugins.digests([first]) == {first: hashlib.sha256(text.encode()).hexdigest()}


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("x = 1\ny = x / 0\n", ", line 2: ZeroDivisionError: division by zero"),
        ("def f(:\n", r": SyntaxError: invalid syntax \(bad.py, line 1\)"),
        ("import no_such_module\n", ", line 1: ModuleNotFoundError: No module named 'no_such_module'"),
        ("raise SystemExit(3)\n", ", line 1: SystemExit: 3"),
        ("raise ValueError\n", ", line 1: ValueError"),
        (
            "from local_learning.catalogue import HEADS\n\nHEADS.register('aux1')(print)\n",
            ", line 3: head 'aux1' is registered already; take another name",
        ),
    ],
)
def test_a_file_that_cannot_be_imported_is_one_line(tmp_path: Path, text: str, message: str) -> None:
    path = written(tmp_path / "bad.py", text)
    with pytest.raises(ValueError, match=f"^plugins: '{path}'{message}$"):
        plugins.load([path])


def test_a_file_that_is_not_there_is_named(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"^plugins: cannot read '.*gone.py': No such file or directory$"):
        plugins.load([str(tmp_path / "gone.py")])
    with pytest.raises(ValueError, match=r"^plugins: cannot read '.*': Is a directory$"):
        plugins.load([str(tmp_path)])


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--plugins", "a.py", "b.py", "--seed", "3"], ("a.py", "b.py")),
        (["--seed", "3", "--plugins=a.py", "b.py"], ("a.py", "b.py")),
        (["--seed", "3"], None),
        (["--plugins", "--seed", "3"], ()),
    ],
)
def test_flags_and_the_file_of_config_are_told_apart(
    tmp_path: Path, arguments: list[str], words: tuple[str, ...] | None
) -> None:
    config = written(tmp_path / "config.toml", 'plugins = ["c.py"]\n')
    assert given(["--config", config, *arguments], "plugins") == (words, ("c.py",))
    assert given(arguments, "plugins") == (words, ())
    with pytest.raises(ValueError, match="--plugins: give it once"):
        given(["--plugins", "a.py", *arguments, "--plugins=b.py"], "plugins")


def test_code_that_only_a_config_names_is_not_run(tmp_path: Path) -> None:
    code = written(tmp_path / "code.py", "raise SystemExit('was run')\n")
    with pytest.raises(ValueError, match=r"^plugins: the config names .*code\.py, which is code"):
        plugins.load_asked(None, (code,))
    plugins.load_asked((), (code,))  # a --plugins with nothing behind it: none
    with pytest.raises(ValueError, match="was run"):
        plugins.load_asked((code,), (code,))


def test_weights_know_the_files_they_were_made_with(tmp_path: Path) -> None:
    mine = written(tmp_path / "noted.py", "one = 1\n")
    plugins.load([mine])
    save_tensors(tmp_path / "x.safetensors", {"a": torch.zeros(1)}, {"step": 1})
    assert read_notes(tmp_path / "x.safetensors")["plugins"]["noted.py"] == plugins.digests([mine])[mine]
    changed = {"noted.py": "0" * 64}
    with pytest.raises(ValueError, match=r"^weights: 'x' was made with noted\.py as it was then"):
        plugins.check_noted(changed, "weights", Path("x"))


def test_a_run_keeps_what_it_was_made_with(tmp_path: Path) -> None:
    path = written(tmp_path / "mine.py", "one = 1\n")
    run = opened(tmp_path / "run", path)
    document = json.loads(run.plugins_path.read_text())
    assert document["sha256"] == {path: hashlib.sha256(b"one = 1\n").hexdigest()}
    (run.checkpoints).mkdir()
    (run.checkpoints / "step-00000001.json").touch()
    moved = written(tmp_path / "moved.py", "one = 1\n")
    opened(tmp_path / "run", moved)  # the same file elsewhere
    Path(moved).write_text("one = 2\n")
    with pytest.raises(ValueError, match=rf"^plugins: since '.*run' began, '{moved}' has changed; give "):
        opened(tmp_path / "run", moved)
    with pytest.raises(ValueError, match=rf"'{moved}' is not given any more; give "):
        opened(tmp_path / "run")
    extra = written(tmp_path / "extra.py", "")
    with pytest.raises(ValueError, match=rf"'{extra}' is new; give "):
        opened(tmp_path / "run", written(Path(moved), "one = 1\n"), extra)
    run.plugins_path.unlink()
    assert opened(tmp_path / "run", extra).plugins_path.exists()


def opened(path: Path, *files: str) -> Run:
    run = Run(path)
    try:
        run.open(Options(plugins=files), free=())
    finally:
        run.close()
    return run
