"""The command line refuses an option that has no effect."""

import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from local_learning.decoupling import Decoupling, save_decoupling
from local_learning.options import LocalLosses
from retrain.config import FREE_IN_RETRAINING, ClusterOptions, PipelineOptions, RetrainConfig
from search.report.config import RankReportConfig
from tests.forked import run
from tests.script import SMALL
from tests.scripts import Option, config_of, options
from tools.images.options import DataConfig
from tools.mistake import Mistake
from tools.options.config import flag, idle_options, parse
from tools.options.recipes import Recipe
from tools.run.folder import Run

NET = "--network vgg6a --width 0.125"
PLACE = ["--device", "cpu", "--threads", "1"]
SHORT = "--recipe.steps 2 --recipe.lr 0.02 --recipe.evaluate-every 1 --recipe.batch-size 8"
SHORT += " --data.train-size 80 --data.test-size 40"
REPORT = "--space tiny --truth {here}/truth.csv --scores {here}/scores.csv"
RUNS = {
    "a network": ("retrain_model.py", NET),
    "in blocks": ("retrain_model.py", f"{NET} --decoupling uniform:2:aux1"),
    "with losses of their own": ("retrain_model.py", f"{NET} --decoupling uniform:2:infopro"),
    "by replay": ("retrain_model.py", f"{NET} --decoupling balanced:2:aux1 --balance macs --rule replay"),
    "by gluing, at a constant rate": (
        "retrain_model.py",
        f"{NET} --decoupling uniform:2:aux1 --rule gluing --recipe.schedule constant --data.augment none",
    ),
    "single paths": ("train_supernet.py", "--space tiny"),
    "without labels": ("train_supernet.py", "--space tiny --objective infonce --tail-steps 1"),
    "layer by layer": ("train_supernet.py", "--space tiny --strategy nongreedy"),
    "fair": ("train_supernet.py", "--space tiny --strategy fair"),
    "a search": (
        "search_decoupling.py",
        f"{NET} --heads aux1 linear --search.steps 1 --search.validation-batch 9",
    ),
    "a search from the beginning": (
        "search_decoupling.py",
        f"{NET} --heads aux1 linear --search.steps 1 --search.validation-batch 9 --search.no-pretraining",
    ),
    "a report of scores": ("rank_report.py", REPORT),
}
ALLOWED = {
    "data.workers": "a machine's, as --threads is, which one gives wherever it is",
    "sync_batchnorm": "that there is one process is not known when options are read",
}
"""These options may be given although nothing reads them."""
OTHERS: dict[str, Any] = {
    **{"balance": "macs", "classifier_init": "timm", "compile_mode": "max-autotune", "head_width": "map"},
    **{"cluster.profile": "costs.json", "data.root": "folder", "data.pad_mode": "reflect"},
    **{"layerwise.partner": "layer", "layerwise.partner_statistics": "eval", "layerwise.decoders": "module"},
    **{"layerwise.decoder_gradient": "mean", "layerwise.last_decoder": "local", "layerwise.stem": "frozen"},
    **{"layerwise.update": "deferred", "local.diversity_gradient": "released", "pipeline.transfer": "bf16"},
    **{"paths.draw": "networks", "paths.skip": "op", "paths.shared_scale": "mean", "paths.bin_macs": 5e6},
    **{"recipe.smoothing": "others", "recipe.milestones": (0.5,), "recipe.factors": (0.1,)},
    **{"data.loader": "stream", "scoring.statistics": "ema"},
}
"""These are values other than the default, for options whose kind does not suggest one."""


def another(option: Option) -> Any:
    """Return a valid value of an option other than its default."""
    if option.name in OTHERS:
        return OTHERS[option.name]
    if isinstance(option.default, tuple):
        return tuple(value + 1 for value in option.default)
    if option.kind is bool:
        return not option.default
    return option.default + 1 if option.kind is int else option.default / 2 or 0.5


def with_value(config: Any, name: str, value: Any) -> Any:
    """Return the config with another value for a dotted name, checked."""
    group, dot, rest = name.partition(".")
    return replace(config, **{group: with_value(getattr(config, group), rest, value) if dot else value})


def said_of(config: Any, name: str, value: Any) -> str:
    """Return the objection to another value of an option: the message of a check, or why it has no effect."""
    try:
        changed = with_value(config, name, value)
        if isinstance(changed, RankReportConfig):
            changed.check_sources()
        return idle_options(changed).get(name, "")
    except ValueError as error:
        return str(error)


def without(words: list[str], *flags: str) -> list[str]:
    """Return a command line without these options, each of which has one value."""
    left = [index for index, word in enumerate(words) if word not in flags]
    return [words[index] for index in left if index == 0 or words[index - 1] not in flags]


def refusal(script: str, words: Sequence[str]) -> str:
    """Return a script's message about options that it refuses."""
    with pytest.raises(ValueError, match=r".") as refused:
        parse(config_of(script), words, prog=script, description="")
    error = refused.value
    return error.worded(flag) if isinstance(error, Mistake) else str(error)


@pytest.mark.slow
@pytest.mark.parametrize("kind", RUNS)
def test_what_a_run_does_not_read_cannot_be_given(kind: str, tmp_path: Path) -> None:
    script, line = RUNS[kind]
    words = [*(PLACE if script == "rank_report.py" else [*SMALL, *SHORT.split()]), *line.split()]
    words = [word.format(here=tmp_path) for word in words]
    for name in ("truth", "scores"):
        (tmp_path / f"{name}.csv").write_text("choices,score\n0000,1\n0001,2\n0010,3\n")
    if "--search.no-pretraining" in words:  # the records are those of the pretraining
        words = without(words, "--recipe.log-every", "--recipe.evaluate-every")
    done = run(
        "tests/programs/reads.py", str(tmp_path / "unread"), script, *words, "--run", str(tmp_path / "run")
    )
    assert done.returncode == 0, done.stderr
    unread = json.loads((tmp_path / "unread").read_text())
    assert "data.root" in unread
    assert {"data.name", "recipe.lr", "seed", "run"}.isdisjoint(unread)
    config = parse(config_of(script), words, prog=script, description="")
    refused = {
        option.name: said_of(config, option.name, another(option))
        for option in options(config_of(script))
        if option.name in unread and option.name not in ALLOWED
    }
    for name, said in refused.items():
        assert said, f"nobody looks at {name}, and nobody says so"
        assert "unknown" not in said, said
        assert "out of range" not in said, said


CUT = "--decoupling uniform:2:aux1"


@pytest.mark.parametrize(
    ("line", "says"),
    [
        ("--cluster.speed 3", "--cluster.speed: a training without --plan does not look at it; leave it out"),
        (f"--cluster.devices 3 {CUT}", "--cluster.devices: a training without --plan does not look at it"),
        (f"--pipeline.queue 9 {CUT}", "--pipeline.queue: --parallel data does not look at it"),
        (
            f"--pipeline.patience 9 --parallel none {CUT}",
            "--pipeline.patience: --parallel none does not look",
        ),
        ("--parallel none --no-sync-batchnorm", "--no-sync-batchnorm: --parallel none does not look at it"),
        (
            f"--local.similarity .5 {CUT}",
            "--local.similarity: a training with heads aux1 does not look at it",
        ),
        (
            f"--local.similarity .5 --rule replay {CUT}",
            "--local.similarity: --rule replay does not look at it",
        ),
        (
            "--local.temperature 1 --decoupling uniform:2:infopro",
            "--local.temperature: a training with heads",
        ),
        (
            "--local.diversity-gradient released --local.diversity 0 --groups 2 --decoupling uniform:2:aux1",
            "--local.diversity-gradient: a training with heads aux1",
        ),
        (
            "--local.similarity .5 --decoupling published:4 --network resnet50",
            "--local.similarity: a training with heads aux4",
        ),
        (f"--balance macs {CUT}", "--balance: --decoupling uniform:2:aux1 does not look at it"),
        (f"--uneven-groups {CUT}", "--uneven-groups: --groups 1 does not look at it"),
        (
            f"--rule gluing --gluing.h-steps 0 --gluing.step 1 {CUT}",
            "--gluing.step: --gluing.h-steps 0 does not",
        ),
        ("--data.root x", "--data.root: --data.name shapes does not look at it; leave it out"),
        ("--data.augment none --data.crop-pad 2", "--data.crop-pad: --data.augment none does not look at it"),
        ("--data.augment none --data.no-flip", "--data.no-flip: --data.augment none does not look at it"),
        (
            "--data.crop-pad 0 --data.pad-mode reflect",
            "--data.pad-mode: --data.crop-pad 0 does not look at it",
        ),
        (
            "--data.name imagenet --data.root x --data.crop-pad 3",
            "--data.crop-pad: the random crop of imagenet, when streamed, does not look at it",
        ),
        (
            "--recipe.steps 3 --recipe.epochs 3",
            "--recipe.epochs: a length in --recipe.steps does not look at it",
        ),
        (
            "--recipe.schedule constant --recipe.min-lr 0",
            "--recipe.min-lr: --recipe.schedule constant does not",
        ),
        (
            "--recipe.label-smoothing 0 --recipe.smoothing others",
            "--recipe.smoothing: --recipe.label-smoothing 0",
        ),
        (
            "--data.validation 0 --recipe.evaluate-every 3",
            "--recipe.evaluate-every: --data.validation 0 does not",
        ),
    ],
)
def test_an_idle_option_is_refused_with_the_reason(line: str, says: str) -> None:
    assert refusal("retrain_model.py", line.split()).startswith(says)


@pytest.mark.parametrize(
    "line",
    [
        f"--plan --cluster.speed 3 --pipeline.queue 9 {CUT}",
        f"--plan --recipe.steps 9 --recipe.lr 0.5 --trackers tensorboard --extend {CUT}",
        f"--parallel blocks --pipeline.queue 9 {CUT}",
        "--local.similarity .5 --decoupling uniform:2:predsim",
        "--local.diversity .1 --groups 2 --decoupling uniform:2:conv1c2f",
        "--balance macs --decoupling balanced:2:aux1",
        "--data.name folder --data.root x --data.loader device --data.crop-pad 3",
        "--data.name folder --data.root x --data.validation 0 --recipe.evaluate-every 3",
        "--data.augment none --data.rotate 5 --data.cutout 3",
        f"--cluster.speed 1 --local.similarity .99 {CUT}",  # the defaults
    ],
)
def test_what_is_looked_at_may_be_given(line: str) -> None:
    parse(RetrainConfig, line.split(), prog="x", description="")


@pytest.mark.parametrize(
    ("line", "says"),
    [
        (
            "--supernet s --truth t --trackers tensorboard",
            "--trackers: a report does not look at it; leave it",
        ),
        *(
            (f"{start} {words}", f"{words.split()[0]}: a report without --supernet does not look at it")
            for start in ("--search s", "--space tiny --truth t --scores s")
            for words in (
                *("--snapshots 3", "--shift-images 0", "--precision fp64", "--scoring.batch 9"),
                *("--scoring.statistics ema", "--data.root x", "--data.download"),
            )
        ),
        ("--search s --networks 3", "--networks: a report without scores to rank by does not look at it"),
        ("--search s --space tiny --truth t --resamples 200", "--resamples: a report without scores to rank"),
        ("--cuts s --seed 3", "--seed: a report without scores to rank by does not look at it"),
        ("--cuts s --truth-note mine", "--truth-note: a report without --truth does not look at it"),
    ],
)
def test_a_report_takes_no_option_that_it_does_not_look_at(line: str, says: str) -> None:
    assert refusal("rank_report.py", line.split()).startswith(says)


def test_a_report_takes_what_it_looks_at(tmp_path: Path) -> None:
    for line in (
        "--supernet s --truth t --snapshots 3 --precision fp64 --scoring.batch 9 --data.root x --seed 3",
        "--space tiny --truth t --losses s --networks 3 --resamples 200 --seed 3 --truth-note mine",
        "--space tiny --truth t --scores s --data.name mnist --data.root x",  # the costs are of its images
    ):
        parse(RankReportConfig, line.split(), prog="x", description="")
    before = tmp_path / "before.toml"
    before.write_text("snapshots = 3\ntrackers = ['tensorboard']\nsearch = ['s']\n[scoring]\nbatch = 9\n")
    config = parse(RankReportConfig, ["--config", str(before)], prog="x", description="")
    assert (config.snapshots, config.scoring.batch) == (3, 9)


def test_the_heads_of_a_file_say_what_is_idle(tmp_path: Path) -> None:
    file = tmp_path / "cuts.json"
    for heads, groups, idle in (
        (("aux1", "linear"), 1, True),
        (("aux1", "predsim"), 1, False),
        (("aux1", "predsim"), 2, False),
    ):
        save_decoupling(file, Decoupling((1, 2), heads, groups))
        words = ["--decoupling", str(file), "--local.similarity", "0.5"]
        if idle:
            assert "a training with heads aux1, linear does not" in refusal("retrain_model.py", words)
        else:
            parse(RetrainConfig, words, prog="x", description="")
        words = ["--decoupling", str(file), "--local.diversity", "0.1"]
        if groups == 1:
            assert refusal("retrain_model.py", words).startswith("--local.diversity: ")
        else:
            parse(RetrainConfig, words, prog="x", description="")


def test_a_truth_looks_at_what_one_of_its_trainings_does() -> None:
    words = ["--decouplings", "uniform:2:aux1", "uniform:3:predsim", "--local.similarity", "0.5"]
    parse(config_of("make_truth.py"), words, prog="x", description="")
    words[2] = "uniform:3:linear"
    assert refusal("make_truth.py", words).startswith("--local.similarity: a training with heads")
    assert refusal("make_truth.py", ["--space", "tiny", "--data.root", "x"]).startswith(
        "--data.root: --data.name"
    )


BEFORE = RetrainConfig(
    decoupling="uniform:2:aux1",
    seed=3,
    local=LocalLosses(similarity=0.5),
    pipeline=PipelineOptions(queue=9),
    cluster=ClusterOptions(speed=3.0),
    data=DataConfig(root="gone", augment="none", crop_pad=2, flip=False),
    recipe=Recipe(steps=7, epochs=3.0),
)
"""This is the config of a run from a time when idle options were accepted."""
TODAY = [*CUT.split(), *["--seed", "3", "--data.augment", "none", "--recipe.steps", "7"]]


def begun(folder: Path, config: RetrainConfig) -> Run:
    """Return the run of a config, with a checkpoint."""
    run = Run(folder)
    (folder / "checkpoints").mkdir()
    (folder / "checkpoints/step-00000001.json").touch()
    run.keep_config(config)
    return run


def test_a_run_of_before_goes_on_with_and_without_its_idle_options(tmp_path: Path) -> None:
    run = begun(tmp_path, BEFORE)
    repeated = parse(RetrainConfig, ["--config", str(run.config_path)], prog="x", description="")
    assert repeated == BEFORE
    for config in (repeated, parse(RetrainConfig, TODAY, prog="x", description=""), BEFORE):
        run.open(config, free=FREE_IN_RETRAINING)
        run.close()
    words = ["--config", str(run.config_path), "--local.similarity", "0.25"]
    assert refusal("retrain_model.py", words).startswith("--local.similarity: a training with heads aux1")


def test_what_is_not_idle_still_tells_runs_apart(tmp_path: Path) -> None:
    run = begun(tmp_path, replace(BEFORE, decoupling="uniform:2:predsim"))
    other = replace(BEFORE, decoupling="uniform:2:predsim", local=LocalLosses(similarity=0.25))
    with pytest.raises(ValueError, match=r"other options: local.similarity \(was 0.5, is 0.25\); give"):
        run.open(other, free=FREE_IN_RETRAINING)
    run.close()
    # Idle here, but not there: it says in what they differ.
    with pytest.raises(ValueError, match=r"decoupling .*, local.similarity \(was 0.5, is 0.99\); give"):
        run.open(replace(BEFORE, local=LocalLosses()), free=FREE_IN_RETRAINING)
    run.close()
