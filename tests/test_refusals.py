"""Every script, with a wrong, a missing and an out-of-range value of every option: one line that helps.

The tables are made from the dataclasses, so a new option is tried without a word here. What an option's
values mean together, and what a stage makes of its files, is for the tests of that stage.
"""

import sys
from typing import get_args, get_origin

import pytest

from tests.scripts import SCRIPTS, Option, config_of, options
from tools.options.command import is_ours, main
from tools.options.config import from_toml, message_of

HUGE = str(10**12)

LEGAL_HUGE = {
    "only a name for random streams": ["seed"],
    "factors, weights and rates: the guard against what is no number stops a training that they ruin": [
        *("width", "block_rates", "local.reconstruction", "local.prediction", "local.temperature"),
        *("local.diversity", "gluing.penalty", "gluing.step", "search.lr", "search.inner_lr"),
        *(
            "search.weight_decay",
            "search.slack",
            "recipe.lr",
            "recipe.eps",
            "recipe.weight_decay",
            "recipe.clip_norm",
        ),
        *("data.mixup", "data.cutmix"),
    ],
    "of machines that need not be here": [
        *("cluster.speed", "cluster.bandwidth", "cluster.latency", "cluster.memory"),
    ],
    "lengths, which a signal ends": [
        *("recipe.steps", "recipe.epochs", "search.steps", "search.inner_steps", "gluing.h_steps"),
        *("generations", "pipeline.patience"),
    ],
    "intervals: what is never due is made at the end alone": [
        *("recipe.evaluate_every", "recipe.checkpoint_every", "recipe.log_every", "alignment_every"),
        *("search.evaluate_every", "search.checkpoint_every", "search.log_every"),
    ],
    "limits, and the most that is kept or taken, of what there is": [
        *("max_macs", "max_params", "max_latency", "max_activations", "paths.max_macs", "top", "jobs"),
        *("pipeline.queue", "search.keep_graphs", "breeding.parents", "uncalibrated", "snapshots"),
        *("scoring.validation_images", "scoring.calibration_images", "records.validation_images"),
        *("records.calibration_images", "records.shift_images", "shift_images"),
        *("scoring.batch", "scoring.calibration_batch", "records.calibration_batch"),
    ],
    "compared with the space, the network or the images, once these are known": [
        *("paths.min_macs", "networks", "groups", "search.show", "search.validation_batch"),
        *("search.snapshots", "records.latency_batch"),
    ],
}
"""Why so large a number may stand there, and for which options."""


def kind_of(option: Option) -> type:
    """That of one value."""
    kind: type = get_args(option.kind)[0] if get_origin(option.kind) is tuple else option.kind
    return kind


def line_of(option: Option, value: str) -> list[str]:
    """The option with this value, as often as it takes one."""
    if get_origin(option.kind) is not tuple:
        return [f"{option.flag}={value}"]
    times = 1 if Ellipsis in get_args(option.kind) else len(get_args(option.kind))
    return [option.flag, *[value] * times]


def cases(*kinds: type) -> list[tuple[str, Option]]:
    """Every option of these kinds, in the first script that has it so."""
    found = {
        (option.name, option.kind, option.text): (script, option)
        for script in reversed(SCRIPTS)
        for option in options(config_of(script))
        if kind_of(option) in kinds
    }
    return list(found.values())


def refusal(script: str, option: Option, value: str) -> str:
    """Why a config file with this value is refused; empty where it is not. Quicker than parsing flags."""
    table, _, key = option.name.rpartition(".")
    times = len(line_of(option, value)) - 1
    text = f"{key} = {value}" if not times else f"{key} = [{', '.join([value] * times)}]"
    try:
        from_toml(config_of(script), f"[{table}]\n{text}" if table else text, source="file")
    except ValueError as error:
        return message_of(error) if is_ours(error) else f"not ours: {error}"
    return ""


def names(case: object) -> str:
    return case.flag if isinstance(case, Option) else str(case)


class Parsing:
    """A script's way in, as far as its options."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
        self._monkeypatch, self._capsys = monkeypatch, capsys

    def accepts(self, script: str, *line: str) -> bool:
        """Whether the options are taken; where not, `said` is why."""
        self._monkeypatch.setattr(sys, "argv", [script, *line])
        code: object = 0
        try:
            main(config_of(script), lambda config: None, "")
        except SystemExit as ended:
            code = ended.code
        self.said = self._capsys.readouterr().err
        if code == 0:
            return True
        assert code == 2
        assert self.said.count("\n") == 1, self.said
        assert self.said.startswith(f"{script}: ")
        return False


@pytest.fixture
def parsing(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Parsing:
    return Parsing(monkeypatch, capsys)


@pytest.mark.parametrize(("script", "option"), cases(int, float), ids=names)
def test_no_number_out_of_range(script: str, option: Option) -> None:
    for value in ("-1", "nan", "inf", "-inf", "'x'", "1.5" if kind_of(option) is int else "'1'"):
        said = refusal(script, option, value)
        # Options that go together may be missed first; all of them are named.
        assert option.flag in said or f"'{option.name}' must be of type" in said, value
    huge = HUGE if kind_of(option) is int else f"{HUGE}.0"
    if said := refusal(script, option, huge):
        assert option.flag in said
    else:
        legal = [name for those in LEGAL_HUGE.values() for name in those]
        assert option.name in legal, f"{option.flag} takes {HUGE}; refuse it, or say above why it may"


@pytest.mark.parametrize(("script", "option"), cases(int, float), ids=names)
def test_no_number_is_none(script: str, option: Option, parsing: Parsing) -> None:
    assert not parsing.accepts(script, *line_of(option, "x"))
    assert parsing.said.startswith(f"{script}: {option.flag}: ")
    assert "is not a" in parsing.said or "'x' are not" in parsing.said


@pytest.mark.parametrize(("script", "option"), cases(int, float, str), ids=names)
def test_no_value_is_missing(script: str, option: Option, parsing: Parsing) -> None:
    if get_origin(option.kind) is tuple and Ellipsis in get_args(option.kind):
        return  # it takes none as well
    assert not parsing.accepts(script, option.flag)
    assert f"{option.flag}: the value is missing" in parsing.said


@pytest.mark.parametrize("script", SCRIPTS)
def test_no_option_is_unknown(script: str, parsing: Parsing) -> None:
    for option in options(config_of(script)):
        word = option.flag + "z"
        assert not parsing.accepts(script, word, "1")
        assert f"unknown option '{word}'; did you mean '--" in parsing.said
    first = next(iter(options(config_of(script))))  # a folder's name in all of them
    assert not parsing.accepts(script, first.flag, "1", "2")
    assert "2: belongs to no option" in parsing.said
    assert not parsing.accepts(script, "stray")
    assert "stray: belongs to no option" in parsing.said


FREE_TEXTS = {
    *(
        "run",
        "trackers",
        "network",
        "architecture",
        "weights",
        "decoupling",
        "decouplings",
        "cluster.profile",
    ),
    *("data.root", "data.auto_augment", "space", "architectures", "supernet", "truth", "scores", "losses"),
    *("search", "cuts", "trained", "title", "costs", "compare", "search.pretrained_run"),
    *("plugins", "truth_note", "run_of", "out", "data_root", "export", "images", "chapters", "data"),
}
"""Names of files and folders, and what is looked up when work begins."""


@pytest.mark.parametrize(("script", "option"), cases(str), ids=names)
def test_no_word_is_unknown(script: str, option: Option, parsing: Parsing) -> None:
    if option.name in FREE_TEXTS:
        return
    assert not parsing.accepts(script, *line_of(option, "zzzz"))
    assert f"{option.flag}: unknown value 'zzzz'" in parsing.said
    known = option.default if isinstance(option.default, str) else option.default[0]
    if known:
        near = known + "z"
        assert not parsing.accepts(script, *line_of(option, near))
        assert f"{option.flag}: unknown value '{near}'; did you mean '" in parsing.said
