from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar

import pytest

from tools.run import folder as runs
from tools.run.folder import Run


@dataclass(frozen=True, kw_only=True)
class Options:
    rate: float = 0.1
    device: str = "cpu"


def opened(path: Path, options: Options, free: tuple[str, ...] = ()) -> Run:
    run = Run(path)
    try:
        run.open(options, free=free)
    finally:
        run.close()
    return run


def test_a_run_continues_with_the_same_options_and_with_other_free_ones(tmp_path: Path) -> None:
    opened(tmp_path / "r", Options(), ("device",))
    opened(tmp_path / "r", Options(device="cuda"), ("device",))
    assert 'device = "cuda"' in (tmp_path / "r" / "config.toml").read_text()


def test_a_mistake_may_be_mended_until_the_first_checkpoint(tmp_path: Path) -> None:
    opened(tmp_path / "r", Options())
    opened(tmp_path / "r", Options(rate=0.2))
    assert "rate = 0.2" in (tmp_path / "r" / "config.toml").read_text()


def test_a_start_cut_short_leaves_a_folder_that_can_be_used(tmp_path: Path) -> None:
    (tmp_path / ".lock").touch()
    (tmp_path / ".config.toml.tmp").write_text("half")
    opened(tmp_path, Options())


def test_differing_options_are_named(tmp_path: Path) -> None:
    run = opened(tmp_path / "r", Options())
    run.checkpoints.mkdir()
    (run.checkpoints / "step-00000001.json").touch()
    with pytest.raises(ValueError, match=r"rate \(was 0.1, is 0.2\)"):
        opened(tmp_path / "r", Options(rate=0.2))
    assert "rate = 0.1" in (tmp_path / "r" / "config.toml").read_text()


@dataclass(frozen=True, kw_only=True)
class Others:
    space: str = "tiny"


def test_a_run_of_another_script_says_whose_it_is(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sys.argv", ["somewhere/train_supernet.py", "--space", "tiny"])
    run = Run(tmp_path / "r")
    run.open(Others(), free=())
    run.close()
    run.write_results({"top1": 0.5})
    monkeypatch.setattr("sys.argv", ["retrain_model.py"])
    with pytest.raises(
        ValueError, match=r"r' was made by train_supernet\.py, and this is retrain_model\.py; n"
    ):
        opened(tmp_path / "r", Options())
    # Of before names were kept.
    run.config_path.write_text('space = "tiny"\n')
    with pytest.raises(ValueError, match=r"run: '.*r' was made by another script or version: .* key 'space'"):
        opened(tmp_path / "r", Options())


def test_a_folder_of_something_else_is_left_alone(tmp_path: Path) -> None:
    (tmp_path / "thesis.tex").touch()
    with pytest.raises(ValueError, match="holds files but no run"):
        opened(tmp_path, Options())
    (tmp_path / "file").touch()
    with pytest.raises(ValueError, match="is a file"):
        opened(tmp_path / "file", Options())


def test_two_processes_never_write_one_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(runs, "LOCK_PATIENCE_S", 0.3)
    first = Run(tmp_path / "r")
    first.open(Options(), free=())
    with pytest.raises(ValueError, match=r"process \d+ is working on"):
        opened(tmp_path / "r", Options())
    first.close()
    opened(tmp_path / "r", Options())


def test_results_mark_the_end(tmp_path: Path) -> None:
    run = opened(tmp_path / "r", Options())
    assert run.results is None
    run.write_results({"top1": 0.5})
    assert Run(tmp_path / "r").results == {"format": "cleave/results", "version": 1, "top1": 0.5}


@dataclass(frozen=True, kw_only=True)
class Inner:
    rule: str = "new"
    size: int = 2


@dataclass(frozen=True, kw_only=True)
class Grown:
    """Options of today, two of which are younger than some runs."""

    EARLIER: ClassVar[dict[str, Any]] = {"inner.rule": "old", "kept": 5}

    rate: float = 0.1
    kept: int = 0
    inner: Inner = field(default_factory=Inner)


@pytest.mark.parametrize(
    ("said", "asked", "does"),
    [
        ("rate = 0.1", Grown(), ("old", 5)),
        ("rate = 0.1\nkept = 0\n[inner]\nrule = 'new'", Grown(), ("new", 0)),
        ("rate = 0.1\n[inner]\nsize = 2", Grown(kept=7), ("old", 7)),
    ],
)
def test_a_run_of_before_an_option_goes_on_as_it_began(
    tmp_path: Path, said: str, asked: Grown, does: tuple[str, int]
) -> None:
    run = Run(tmp_path / "r")
    assert run.continued(asked) == asked
    run.checkpoints.mkdir(parents=True)
    run.config_path.write_text(said)
    assert run.continued(asked) == asked, "nothing has been made with these options yet"
    (run.checkpoints / "step-00000001.json").touch()
    config = run.continued(asked)
    assert (config.inner.rule, config.kept) == does
    if asked == Grown():
        run.open(config, free=())
        run.close()
        assert run.continued(asked) == config
