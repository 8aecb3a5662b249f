import subprocess
import sys
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar

import pytest
from hypothesis import given
from hypothesis import strategies as st

from retrain.config import RetrainConfig
from tests.scripts import SCRIPTS, config_of, listed
from tools.mistake import Mistake
from tools.options.config import (
    MEANT_NOTHING,
    check_range,
    flatten,
    from_toml,
    message_of,
    parse,
    to_toml,
)

ANY_FLOAT = st.floats(allow_nan=False)


@dataclass(frozen=True, kw_only=True)
class Inner:
    rate: float = 0.1
    """A rate."""
    names: tuple[str, ...] = ()
    """Some names."""
    sizes: tuple[float, ...] = ()
    """Some sizes."""

    def __post_init__(self) -> None:
        check_range("inner.rate", self.rate, 0)


@dataclass(frozen=True, kw_only=True)
class Outer:
    count: int = 3
    """A count."""
    label: str = ""
    """A label."""
    use_it: bool = False
    """A switch."""
    inner: Inner = field(default_factory=Inner)


def parsed(*arguments: str) -> Outer:
    return parse(Outer, arguments, prog="x", description="")


@given(
    st.integers(-(2**62), 2**62),
    st.text(st.characters(codec="utf-8")),
    st.booleans(),
    st.floats(min_value=0, allow_nan=False, allow_infinity=False),
    st.lists(st.text(st.characters(codec="utf-8"))),
    st.lists(ANY_FLOAT),
)
def test_toml_gives_back_the_same_config(
    count: int, label: str, use_it: bool, rate: float, names: list[str], sizes: list[float]
) -> None:
    config = Outer(
        count=count,
        label=label,
        use_it=use_it,
        inner=Inner(rate=rate, names=tuple(names), sizes=tuple(sizes)),
    )
    assert from_toml(Outer, to_toml(config), source="text") == config


def test_the_default_of_the_real_script_goes_round() -> None:
    config = RetrainConfig()
    assert from_toml(RetrainConfig, to_toml(config), source="text") == config


def test_flags_go_over_the_file(tmp_path: Path) -> None:
    path = tmp_path / "c.toml"
    path.write_text('count = 5\nlabel = "file"\n[inner]\nrate = 2\nnames = ["a"]\n')
    config = parsed("--label", "flag", "--config", str(path), "--inner.names", "b", "c", "--use-it")
    assert config == Outer(count=5, label="flag", use_it=True, inner=Inner(rate=2.0, names=("b", "c")))


@pytest.mark.parametrize("script", SCRIPTS)
def test_a_table_of_a_file_keeps_the_other_defaults_of_its_script(script: str) -> None:
    """As flags do: the defaults of a nested table are its script's, which need not be those of its class."""
    cls = config_of(script)
    default = cls()
    lines = to_toml(default).splitlines()
    start = 0
    for number, line in enumerate(lines):
        start = number if line.startswith("[") else start
        if line.startswith("["):
            assert from_toml(cls, line, source="text", checked=False) == default, line
        elif start and line:
            one = f"{lines[start]}\n{line}"
            assert from_toml(cls, one, source="text", checked=False) == default, one


def test_a_flag_can_mend_what_the_file_leaves_open(tmp_path: Path) -> None:
    path = tmp_path / "c.toml"
    path.write_text("[inner]\nrate = -1\n")
    assert parsed("--config", str(path), "--inner.rate", "1").inner.rate == 1


def test_flatten_names_values_as_the_options_are_named() -> None:
    assert flatten(Outer()) == {
        "count": 3,
        "label": "",
        "use_it": False,
        "inner.rate": 0.1,
        "inner.names": (),
        "inner.sizes": (),
    }


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["--cuont", "3"], "unknown option '--cuont'; did you mean '--count'?"),
        (["--count", "many"], "--count: 'many' is not a whole number"),
        (["--inner.rate", "-1"], "--inner.rate: -1 is out of range; it must be at least 0"),
        (["--count"], "--count"),
        (["stray"], "stray"),
        (["--config"], "--config: takes the name of one TOML file"),
        (["--config", "/no/such.toml"], "--config: cannot read '/no/such.toml': No such file"),
    ],
)
def test_a_mistake_is_one_line(arguments: list[str], says: str) -> None:
    with pytest.raises(ValueError, match=r".") as caught:
        parsed(*arguments)
    assert says in message_of(caught.value)
    assert "\n" not in message_of(caught.value)
    assert "│" not in message_of(caught.value)


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("count = ", "not valid TOML"),
        ("cuont = 3", "unknown key 'cuont'; did you mean 'count'?"),
        ("[inner]\nrat = 3", "unknown key 'inner.rat'; did you mean 'rate'?"),
        ('count = "3"', "'count' must be of type int, not '3'"),
        ("count = true", "'count' must be of type int"),
        ("inner = 3", "is a table"),
        ("[inner]\nrate = -2", "--inner.rate: -2 is out of range"),
        ('[inner]\nnames = "a"', "'inner.names' must be of type list"),
    ],
)
def test_a_mistake_in_the_file_names_file_and_key(tmp_path: Path, text: str, says: str) -> None:
    path = tmp_path / "bad.toml"
    path.write_text(text)
    with pytest.raises(ValueError, match=r".") as caught:
        parsed("--config", str(path))
    assert str(path) in message_of(caught.value)
    assert says in message_of(caught.value)


@pytest.mark.parametrize("script", SCRIPTS)
def test_help_is_complete_and_does_not_import_torch(script: str) -> None:
    code = (
        "import runpy, sys\n"
        "for flag in ('--help', '--help-all'):\n"
        f"    sys.argv = ['{script}', flag]\n"
        f"    try: runpy.run_path('{script}', run_name='__main__')\n"
        "    except SystemExit as end: assert not end.code\n"
        "    print('END')\n"
        "assert 'torch' not in sys.modules, 'torch was imported'\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    config = config_of(script)
    short, whole, _ = done.stdout.split("END\n")
    for page, names in (short, config.USUAL), (whole, [option.name for option in listed(config)]):
        for name in names:
            assert f"--{name.replace('_', '-')}" in page


@dataclass(frozen=True, kw_only=True)
class Odd:
    """A group that refuses."""

    some_number: int = 0

    def __post_init__(self) -> None:
        if self.some_number:
            raise Mistake("odd.some_number", "needs `another_one`", "leave it out")


@dataclass(frozen=True, kw_only=True)
class WithOdd:
    """A config with it."""

    odd: Odd = field(default_factory=Odd)


def test_a_mistake_comes_through_the_parser_in_its_parts(tmp_path: Path) -> None:
    for words, source in ((["--odd.some-number", "1"], ""), (["--config", "odd.toml"], "odd.toml")):
        (tmp_path / "odd.toml").write_text("[odd]\nsome_number = 1\n")
        words = [str(tmp_path / word) if word.endswith(".toml") else word for word in words]
        with pytest.raises(Mistake) as caught:
            parse(WithOdd, words, prog="x.py", description="")
        assert caught.value.option == "odd.some_number"
        assert caught.value.cure == "leave it out"
        assert Path(caught.value.source).name == source


@dataclass(frozen=True, kw_only=True)
class Shorter:
    """A config with fewer options than it had."""

    RETIRED: ClassVar[dict[str, Any]] = {
        **{"gone": 3, "inner.switch": False, "old_group.name": "x"},
        **{"idle": MEANT_NOTHING, "old_group.idle": MEANT_NOTHING},
    }

    count: int = 3
    inner: Inner = field(default_factory=Inner)


def shorter(text: str) -> Shorter:
    return from_toml(Shorter, text, source="run/config.toml")


@pytest.mark.parametrize(
    "text",
    [
        "gone = 3\n",
        "idle = [1, 2]\n",
        "[inner]\nswitch = false\n",
        '[old_group]\nname = "x"\nidle = 5.0\n',
        '[old-group]\nidle = "any"\n',
    ],
)
def test_what_is_an_option_no_more_is_passed_over_in_a_file_of_before(text: str, tmp_path: Path) -> None:
    assert shorter(text) == Shorter()
    assert shorter(f"count = 5\n{text}").count == 5
    path = tmp_path / "c.toml"
    path.write_text(text)
    assert parse(Shorter, ["--config", str(path)], prog="x", description="") == Shorter()


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("gone = 4\n", "'gone' is no longer an option; everything is done as with 3, so leave it out"),
        (
            "[inner]\nswitch = true\n",
            "'inner.switch' is no longer an option; everything is done as with false",
        ),
        (
            '[old_group]\nname = "y"\n',
            "'old_group.name' is no longer an option; everything is done as with \"x\"",
        ),
        ("[old_group]\nnaem = 1\n", "unknown key 'old_group'"),
        ("other = 1\n", "unknown key 'other'"),
    ],
)
def test_what_one_cannot_have_any_more_is_refused(text: str, says: str) -> None:
    with pytest.raises(ValueError, match=r"^run/config\.toml: ") as caught:
        shorter(text)
    assert says in str(caught.value)


@pytest.mark.parametrize(
    "words",
    [
        *(["--gone", "3"], ["--gone=3"], ["--old-group.idle", "1"], ["--old_group.idle", "1"]),
        *(["--inner.switch"], ["--inner.no-switch"]),
    ],
)
def test_a_flag_that_is_no_more_is_refused(words: list[str]) -> None:
    name = words[0].split("=")[0].replace("_", "-")
    with pytest.raises(ValueError, match=f"^{name}: this script does not look at it; leave it out$"):
        parse(Shorter, words, prog="x", description="")
