"""Options that are still taken though no list shows them."""

from dataclasses import dataclass, field
from pathlib import Path
from typing import ClassVar

import pytest

from tools.mistake import Mistake
from tools.options.config import check_range, flag, flatten, from_toml, parse, to_toml
from tools.options.unlisted import unlisted
from tools.run.folder import Run


@dataclass(frozen=True, kw_only=True)
class Whole:
    """A group as it was."""

    kind: str = "round"
    """What it is."""
    place: str = ""
    """Where it is."""
    turns: bool = True
    """Whether it turns."""
    size: int = 3
    """How large it is."""

    def __post_init__(self) -> None:
        check_range("group.size", self.size, 1)


@dataclass(frozen=True, kw_only=True)
class Small:
    """The same group today."""

    place: str = ""
    """Where it is."""


@dataclass(frozen=True, kw_only=True)
class Config:
    UNLISTED: ClassVar[dict[str, type]] = {"group": Whole}
    USUAL: ClassVar[tuple[str, ...]] = ("count",)

    count: int = 1
    """A count."""
    group: Small = field(default_factory=Small)


def parsed(*arguments: str) -> Config:
    return parse(Config, arguments, prog="x", description="")


BEFORE = f"count = 2\n\n[group]\n{to_toml(Whole(place='here'))}"


def test_they_are_those_that_the_group_had_before() -> None:
    assert unlisted(Config) == {"group.kind": "round", "group.turns": True, "group.size": 3}
    assert unlisted(Small) == {}


def test_defaults_of_before_are_passed_over(tmp_path: Path) -> None:
    (tmp_path / "before.toml").write_text(BEFORE)
    for config in (
        from_toml(Config, BEFORE, source="text"),
        parsed("--config", str(tmp_path / "before.toml")),
        parsed("--count", "2", "--group.size", "3", "--group.place", "here", "--group.turns"),
    ):
        assert config == Config(count=2, group=Small(place="here"))
        assert to_toml(config) == 'count = 2\n\n[group]\nplace = "here"\n'


def test_what_is_said_is_kept(tmp_path: Path) -> None:
    path = tmp_path / "before.toml"
    path.write_text(BEFORE.replace("size = 3", "size = 5"))
    wanted = {
        "count": 2,
        "group.place": "there",
        "group.kind": "round",
        "group.turns": False,
        "group.size": 5,
    }
    config = parsed("--config", str(path), "--group.place=there", "--group.no-turns")
    assert flatten(config) == wanted
    assert isinstance(config.group, Small)
    assert from_toml(Config, to_toml(config), source="text") == config
    assert flatten(parsed("--config", str(path), "--group.size", "3"))["group.place"] == "here"


@pytest.mark.parametrize(
    ("flags", "says"),
    [
        (["--group.size", "0"], "--group.size: 0 is out of range"),
        (["--group.size", "many"], "--group.size: 'many' is not a whole number"),
        (["--group.sizes", "4"], "unknown option '--group.sizes'; did you mean '--group.size'?"),
    ],
)
def test_they_are_checked_as_before(flags: list[str], says: str, tmp_path: Path) -> None:
    with pytest.raises(ValueError) as refused:  # noqa: PT011  the text follows
        parsed(*flags)
    mistake = refused.value
    assert says in (mistake.worded(flag) if isinstance(mistake, Mistake) else str(mistake))
    with pytest.raises(ValueError, match=r"unknown key 'group\.sizes'"):
        from_toml(Config, "[group]\nsizes = 4", source="text")
    with pytest.raises(ValueError, match=r"text: group\.size: 0 is out of range"):
        from_toml(Config, "[group]\nsize = 0", source="text")


@pytest.mark.parametrize("size", [3, 5])
def test_no_help_shows_them(size: int, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "before.toml"
    path.write_text(BEFORE.replace("size = 3", f"size = {size}"))
    for ask in ("--help", "--help-all"):
        with pytest.raises(SystemExit) as ended:
            parsed("--config", str(path), ask)
        assert not ended.value.code
        text = capsys.readouterr().out
        assert "--count" in text
        assert ("--group.place" in text) == (ask == "--help-all")
        assert "--group.size" not in text


def test_a_run_of_before_goes_on(tmp_path: Path) -> None:
    def opened(text: str, *flags: str) -> None:
        run = Run(tmp_path / "run")
        run.checkpoints.mkdir(parents=True, exist_ok=True)
        (run.checkpoints / "step-00000001.json").touch()
        run.config_path.write_text(text)
        try:
            run.open(parsed("--count", "2", "--group.place", "here", *flags), free=())
        finally:
            run.close()

    opened(BEFORE)
    opened(BEFORE.replace("size = 3", "size = 5"))
    opened(BEFORE.replace("size = 3", "size = 5"), "--group.size", "5")
    opened(to_toml(parsed("--count", "2", "--group.place", "here")))
    for text in (BEFORE, to_toml(parsed("--count", "2", "--group.place", "here"))):
        with pytest.raises(ValueError, match=r"group\.size`? \(was 3, is 4\)"):
            opened(text, "--group.size", "4")
