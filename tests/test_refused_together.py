"""Options that exclude or need each other: each is refused by name, and none is passed over in silence."""

import sys

import pytest

from tests.scripts import config_of
from tools.options.command import main

CUT = "--decoupling uniform:2:linear"
CASES = [
    *(
        ("retrain_model.py", line, said)
        for line, said in (
            ("--rule greedy", "--rule: greedy needs --decoupling"),
            ("--rule replay", "--rule: replay needs --decoupling"),
            ("--alignment", "--alignment: compares the gradients of blocks"),
            (f"--alignment-every 2 {CUT}", "--alignment-every: goes with --alignment"),
            (
                f"--alignment --data.validation 0 {CUT}",
                "--alignment: is measured when the training evaluates",
            ),
            ("--groups 2", "--groups: splits the blocks of a --decoupling"),
            ("--uneven-groups", "--uneven-groups: is about the blocks of a --decoupling"),
            ("--balance macs", "--balance: is about the blocks of a --decoupling"),
            ("--head-width map", "--head-width: is about the heads of a --decoupling"),
            (f"--head-width map --rule replay {CUT}", "--head-width: --rule replay trains no heads"),
            (f"--head-width wide {CUT}", "--head-width: unknown value 'wide'; it must be paper, map"),
            (
                "--local.diversity 0.1",
                "--local.diversity: a training without --decoupling does not look at it",
            ),
            (f"--gluing.h-steps 2 {CUT}", "--gluing.h-steps: --rule greedy does not look at it"),
            ("--gluing.h-steps 2", "--gluing.h-steps: --rule backprop does not look at it"),
            (f"--rule gluing --precision bf16 {CUT}", "--precision: --rule gluing moves by less"),
            (
                f"--rule gluing --gluing.cache {CUT}",
                "--gluing.cache: gluing variables are kept for each image",
            ),
            (f"--rule gluing --gluing.h-every 2 {CUT}", "--gluing.h-every: needs --gluing.cache"),
            (f"--rule gluing --gluing.refresh 2 {CUT}", "--gluing.refresh: needs --gluing.cache"),
            ("--parallel blocks", "--parallel blocks: needs --decoupling"),
            (f"--parallel blocks --rule backprop {CUT}", "--parallel blocks: needs --decoupling"),
            (f"--parallel blocks --alignment {CUT}", "--alignment: compares with backpropagation"),
            (f"--parallel blocks --precision fp16 {CUT}", "--precision: blocks on processes of their own"),
            (f"--pipeline.transfer bf16 {CUT}", "--pipeline.transfer: rounds what --parallel blocks sends"),
            (
                f"--parallel blocks --pipeline.transfer bf16 --rule gluing {CUT}",
                "--pipeline.transfer: --rule gluing moves by less",
            ),
            ("--plan", "--plan: shares blocks among devices; it needs --decoupling"),
            ("--reset-classifier", "--reset-classifier: goes with --weights"),
            ("--pretrained --weights x", "--pretrained: cannot go with --weights"),
            ("--architecture x --network resnet50", "--network: cannot go with --architecture"),
            ("--architecture x --width 2", "--width: goes with --network"),
            ("--architecture x --drop-path 0.1", "--drop-path: goes with --network"),
            ("--architecture x --init fan_out", "--init: goes with --network"),
            ("--architecture x --pretrained", "--pretrained: goes with --network"),
            ("--compile-mode max-autotune", "--compile-mode: goes with --compile"),
            ("--recipe.accumulate 3", "--recipe.accumulate: 3 parts do not divide a batch of 128"),
            ("--recipe.nesterov --recipe.optimizer adam", "--recipe.nesterov: needs --recipe.optimizer sgd"),
            ("--recipe.eps 1e-3", "--recipe.eps: --recipe.optimizer sgd does not look at it"),
            (
                "--recipe.momentum 0.5 --recipe.optimizer adamw",
                "--recipe.momentum: --recipe.optimizer adamw does not look at it",
            ),
            (
                "--recipe.beta1 0.5 --recipe.optimizer rmsprop",
                "--recipe.beta1: --recipe.optimizer rmsprop does not look at it",
            ),
            ("--recipe.schedule step", "--recipe.milestones: go with --recipe.schedule step"),
            ("--recipe.milestones 0.5", "--recipe.milestones: 1 milestones need as many --recipe.factors"),
            ("--recipe.min-lr 1", "--recipe.min-lr: the cosine would rise"),
            ("--data.name cifar10", "--data.root: cifar10 needs the folder"),
            ("--data.name cifar10 --data.root x --data.num-classes 3", "--data.num-classes: only shapes"),
            ("--data.download", "--data.download: shapes cannot be fetched"),
            ("--data.loader device --data.erase 0.1", "--data.loader: device does not do erase"),
            (
                "--data.loader device --data.name imagenet --data.root x",
                "--data.loader: imagenet does not fit",
            ),
            ("--data.pad-mode reflect --data.crop-pad 32", "--data.crop-pad: 32 pixels"),
        )
    ),
    *(
        ("make_truth.py", line, said)
        for line, said in (
            ("--networks 2", "--space: name a space to draw --networks from"),
            ("--space tiny --parallel blocks", "--parallel: this script does not look at it; leave it out"),
            ("--space tiny --plan", "--plan: this script does not look at it; leave it out"),
            ("--space tiny --extend", "--extend: this script does not look at it; leave it out"),
            ("--space tiny --cluster.devices 3", "--cluster.devices: this script does not look at it"),
            ("--space tiny --decouplings uniform:2:linear", "--decouplings: cannot go with --space"),
            ("--architectures x --decouplings uniform:2:linear", "--decouplings: cannot go with --architect"),
            (f"--decouplings uniform:2:aux1 {CUT}", "--decoupling: cannot go with --decouplings"),
            ("--space tiny --architecture x", "--architecture: goes with --decouplings"),
            ("--space tiny --network resnet50", "--network: cannot go with --space"),
            ("--space tiny --width 2", "--width: goes with --network; --space says it all"),
            ("--space tiny --architectures x.json", "--space: cannot go with --architectures that say"),
            ("--architectures x.jsonl", "--space: the lines of x.jsonl do not say"),
            ("--architectures x.json x.json", "--architectures: x.json is named twice"),
            ("--architectures x.json --networks 3", "--networks: goes with --space alone"),
            ("--architectures x.json --max-macs 3", "--max-macs: goes with --space alone"),
            (
                "--space tiny --decoupling balanced:2:linear",
                "--balance: time measured beside other trainings",
            ),
        )
    ),
    *(
        ("export_model.py", line, said)
        for line, said in (
            ("--images 8", "--run-of: name a finished run"),
            ("--run-of x --weights y", "--weights: cannot go with --run-of"),
            ("--weights y --which last", "--which: chooses from the files of --run-of"),
            ("--weights y --exits --formats timm", "--exits: timm's networks have one output"),
            ("--weights y --formats state state", "--formats: state is there twice"),
            ("--weights y --opset 18", "--opset: is of onnx alone"),
        )
    ),
    *(
        ("rank_report.py", line, said)
        for line, said in (
            ("--seed 0", "--supernet: name a supernet to rank by"),
            ("--truth t.csv --space tiny", "--supernet: there is nothing to compare the truth with"),
            ("--supernet s", "--truth: name the truth to compare with"),
            ("--truth t.csv --scores s", "--space: name the space of the choices"),
            ("--truth t.csv --supernet s --space tiny", "--space: the supernet says it"),
            ("--cuts x --space tiny", "--space: is about --truth"),
            ("--cuts x --truth-is-loss", "--truth-is-loss: is about --truth"),
            (
                "--truth t --space tiny --scores s --uncalibrated 3",
                "--uncalibrated: scores networks of a --sup",
            ),
            ("--truth t --supernet a=x --scores a=y --seed 0", "two are called 'a'"),
            ("--truth t --supernet MACs=x", "'MACs' is a baseline's name"),
            ("--cuts a=x a=y", "--cuts: two are called 'a'"),
            ("--networks 1", "--networks: a ranking needs two networks"),
            (
                "--uncalibrated 3 --scoring.statistics supernet",
                "--uncalibrated: all are, with --scoring.stat",
            ),
        )
    ),
    *(
        ("search_architecture.py", line, said)
        for line, said in (
            ("--method exhaustive --generations 3", "--generations: --method exhaustive does not look at it"),
            ("--method random --breeding.mutation 0.5", "--breeding.mutation: --method random does not look"),
            ("--breeding.objectives params", "--breeding.objectives: --method evolution does not look at it"),
            ("--scoring.momentum 0.5", "--scoring.momentum: --scoring.statistics cumulative does not look"),
        )
    ),
    *(
        ("search_decoupling.py", line, said)
        for line, said in (
            ("--recipe.optimizer adam", "--recipe.optimizer: the search differentiates plain SGD"),
            ("--recipe.accumulate 2", "--recipe.accumulate: the search differentiates plain SGD"),
            ("--data.mixup 0.2", "--data.mixup and --data.cutmix: leave them out of a search"),
            ("--data.validation 0", "--data.validation: the search needs validation images"),
            ("--heads aux1 aux1", "--heads: name one kind or more, each once"),
            (
                "--search.pretrained-run x --search.no-pretraining",
                "--search.pretrained-run: cannot go with --search.no-pretraining",
            ),
            ("--search.compat sedona-2021 --search.inner-steps 1", "--search.inner-steps: the released code"),
            ("--precision bf16", "--precision: unknown value 'bf16'"),
        )
    ),
    *(
        ("train_supernet.py", line, said)
        for line, said in (
            ("--strategy fair --paths.max-macs 9", "--paths.max-macs: --strategy fair by --objective cross"),
            (
                "--layerwise.partner layer",
                "--layerwise.partner: --strategy spos by --objective cross_entropy",
            ),
            ("--strategy greedy --layerwise.partner layer", "--layerwise.partner: --strategy greedy"),
            ("--contrast.blur 0.5", "--contrast.blur: --strategy spos by --objective cross_entropy"),
            ("--paths.min-macs 9 --paths.max-macs 3", "--paths.max-macs: must be over --paths.min-macs"),
            ("--paths.bin-macs 3", "--paths.bin-macs: divides the way"),
            ("--recipe.accumulate 2", "--recipe.accumulate: a supernet's batch is not run in parts"),
            ("--recipe.ema 0.9", "--recipe.ema: a supernet keeps no average"),
            ("--tail-steps 3", "--tail-steps: this training has trained the tail already"),
            ("--objective infonce", "--tail-steps: this training leaves the fc untrained"),
            (
                "--objective infonce --tail-steps 3 --data.mixup 1",
                "--data.mixup and --data.cutmix: mix labels",
            ),
            (
                "--strategy greedy --layerwise.update deferred --precision fp16",
                "--layerwise.update: fp16 scales its losses anew",
            ),
        )
    ),
]


@pytest.mark.parametrize(("script", "line", "says"), CASES)
def test_what_does_not_go_together_is_refused(
    script: str, line: str, says: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys, "argv", [script, *line.split()])

    def work(config: object) -> None:
        # What the scripts themselves do before they import torch.
        for check in ("check_source", "check_sources"):
            getattr(config, check, lambda: None)()

    with pytest.raises(SystemExit) as ended:
        main(config_of(script), work, "")
    said = capsys.readouterr().err
    assert ended.value.code == 2
    assert said.count("\n") == 1
    assert said.startswith(f"{script}: ")
    assert says in said
