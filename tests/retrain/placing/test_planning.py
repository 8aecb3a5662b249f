"""Measured costs of tiny networks, their file, and the plan that is printed."""

import contextlib
import copy
import json
import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from local_learning.blocks import DecoupledNet, decouple
from local_learning.chain import Chain
from local_learning.decoupling import Decoupling
from retrain.config import RetrainConfig
from retrain.placing.block_costs import (
    check_subject,
    load_block_costs,
    measure_block_costs,
    save_block_costs,
)
from retrain.placing.forecast import BlockCosts, Conditions, Line, Subject
from retrain.placing.planning import plan, report
from tests.local_learning.nets import small_chain
from tests.script import SMALL
from tools.kernels.library import is_there
from tools.options.config import parse

OPTIONS = [*SMALL, "--network", "vgg6a", "--width", "0.125", "--plan"]
BLOCKS = ["--decoupling", "uniform:3:aux1"]


def planned(capsys: pytest.CaptureFixture[str], *options: str) -> str:
    config = parse(RetrainConfig, [*OPTIONS, *options], prog="retrain_model.py", description="")
    plan(config)
    return capsys.readouterr().out


def perceptron() -> DecoupledNet:
    torch.manual_seed(0)
    layers = [
        nn.Sequential(nn.Flatten(), nn.Linear(48, 8), nn.ReLU()),
        nn.Sequential(nn.Linear(8, 6), nn.ReLU()),
        nn.Sequential(nn.Linear(6, 7), nn.ReLU()),
    ]
    chain = Chain(layers, nn.Linear(7, 5))
    return decouple(chain, Decoupling((1, 2), ("linear", "linear")), 5, 4)


def subject_of(net: DecoupledNet, rule: str = "greedy") -> Subject:
    return Subject(
        network="mlp",
        rule=rule,
        num_layers=3,
        cuts=net.decoupling.cuts,
        heads=net.decoupling.heads,
        groups=(1, 1, 1),
        image_shape=(3, 4, 4),
        num_classes=5,
        optimizer="sgd",
        precision="fp32",
    )


def measured(net: DecoupledNet, rule: str = "greedy") -> BlockCosts:
    return measure_block_costs(
        net,
        subject_of(net, rule),
        lambda parameters: torch.optim.SGD(parameters, lr=0.1, momentum=0.9),
        device=torch.device("cpu"),
        batch_sizes=(2, 6),
        autocast=contextlib.nullcontext,
    )


# ---- measuring -----------------------------------------------------------------------------------------


def test_sizes_by_hand() -> None:
    costs = measured(perceptron())
    heads = [8 * 5 + 5, 6 * 5 + 5, 0]
    layers = [48 * 8 + 8, 8 * 6 + 6, 6 * 7 + 7 + 7 * 5 + 5]
    numbers = [own + head for own, head in zip(layers, heads, strict=True)]
    assert [block.parameters for block in costs.blocks] == [4 * number for number in numbers]
    assert [block.optimizer for block in costs.blocks] == [4 * number for number in numbers]
    assert costs.whole.parameters == 4 * sum(layers)
    assert [block.outputs for block in costs.blocks] == [4 * 8, 4 * 6, 4 * 7]
    assert [block.elements for block in costs.blocks] == [8, 6, 7]
    assert costs.image_bytes == 4 * 48
    # Of the last block: its inputs, what ReLU gives, the softmax of five classes, and the label.
    last = costs.blocks[-1].kept
    assert last.per_row == 4 * (6 + 7 + 5) + 8
    assert last.at(6) < costs.whole.kept.at(6)
    assert costs.whole.kept.per_row == 4 * (48 + 8 + 6 + 7 + 5) + 8


@pytest.mark.parametrize("rule", ["greedy", "replay"])
def test_times_are_of_what_the_rule_does(rule: str) -> None:
    net = perceptron()
    if rule == "replay":
        net.drop_heads()
    costs = measured(net, rule)
    for each in (*costs.blocks, costs.whole):
        assert each.forward.at(6) > 0
        assert each.update > 0
    assert all(each.passes.at(6) > 0 for each in costs.blocks)
    assert (costs.threads, costs.device) == (torch.get_num_threads(), "CPU")


def test_measuring_leaves_the_net_as_it_was() -> None:
    chain = small_chain("vgg6a").float()
    net = decouple(chain, Decoupling((2, 3), ("aux1", "infopro")), 5, 16)
    before, state = copy.deepcopy(net.state_dict()), torch.get_rng_state()
    subject = replace(subject_of(net), image_shape=(3, 16, 16))
    with torch.no_grad():
        measure_block_costs(
            net,
            subject,
            lambda parameters: torch.optim.AdamW(parameters, lr=0.1),
            device=torch.device("cpu"),
            batch_sizes=(2, 4),
            autocast=lambda: torch.autocast("cpu", torch.bfloat16),
        )
    assert torch.equal(torch.get_rng_state(), state)
    assert all(torch.equal(value, before[key]) for key, value in net.state_dict().items())
    assert all(parameter.grad is None for parameter in net.parameters())


# ---- the file ------------------------------------------------------------------------------------------


def test_costs_go_to_a_file_and_back(tmp_path: Path) -> None:
    costs, path = measured(perceptron()), tmp_path / "costs.json"
    save_block_costs(path, costs)
    assert load_block_costs(path) == costs
    assert json.loads(path.read_text())["format"] == "cleave/block-costs"
    check_subject(path, costs, subject_of(perceptron()))


OTHER: list[tuple[dict[str, Any], str]] = [
    ({"network": "resnet18"}, "network mlp, not resnet18"),
    ({"cuts": (1,)}, "cuts 1, 2, not 1"),
    ({"heads": ("aux1", "linear")}, "heads linear, linear, not aux1, linear"),
    ({"rule": "replay"}, "rule greedy, not replay"),
    ({"num_classes": 10}, "number of classes 5, not 10"),
    ({"kernels": "native"}, "kernels torch, not native"),
    ({"image_shape": (3, 8, 8)}, "image shape 3, 4, 4, not 3, 8, 8"),
]


@pytest.mark.parametrize(("changes", "says"), OTHER, ids=[next(iter(changes)) for changes, _ in OTHER])
def test_costs_of_something_else_are_refused(changes: dict[str, Any], says: str) -> None:
    net = perceptron()
    with pytest.raises(ValueError, match=f"^cluster.profile: costs.json was measured with {says}; "):
        check_subject(Path("costs.json"), measured(net), replace(subject_of(net), **changes))


@pytest.mark.parametrize("key", ["blocks", "whole", "cuts", "device", "batch_sizes"])
@pytest.mark.parametrize("value", [None, 3, [], [{"forward": 1}]])
def test_a_broken_file_is_a_line(tmp_path: Path, key: str, value: object) -> None:
    path = tmp_path / "costs.json"
    save_block_costs(path, measured(perceptron()))
    document = json.loads(path.read_text())
    document[key] = value
    if value is None:
        del document[key]
    path.write_text(json.dumps(document))
    if key == "device" and value is not None:
        return  # which is only printed
    with pytest.raises(ValueError, match=f"^cluster.profile: {path} "):
        load_block_costs(path)


# ---- the plan ------------------------------------------------------------------------------------------


def test_the_plan(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "costs.json"
    options = (*BLOCKS, "--cluster.devices", "1", "2", "3", "8", "--cluster.profile", str(path))
    options += ("--run", str(tmp_path / "run"))
    said = planned(capsys, *options)
    first = re.findall(r"^ +(\d+) +(fastest|apart) +[\d,.]+ ", said, re.MULTILINE)
    assert [count for count, kind in first if kind == "fastest"] == ["1", "2", "3", "8"]
    assert "These figures are a model's. Nothing was run on several devices" in said
    assert "CPU (1 thread), at batches of 8 and 32, in fp32" in said
    assert "10 GB/s" in said
    assert "3 devices, DDP: 2 are used" in said
    assert "1 device, fastest: 3x1" in said
    assert "The stages of 8 devices" in said
    # From the file the same comes out, to the letter.
    assert planned(capsys, *options) == said
    # Times are those of the functions with which a run would compute.
    usual, other = ("native", "torch") if is_there() else ("torch", "native")
    assert json.loads(path.read_text())["kernels"] == usual
    with pytest.raises(ValueError, match=f"with kernels {usual}, not {other}"):
        planned(capsys, *options, "--kernels", other)
    assert not (tmp_path / "run").exists()

    with pytest.raises(ValueError, match="with cuts 1, 3, not 2"):
        planned(capsys, "--decoupling", "uniform:2:aux1", "--cluster.profile", str(path))
    with pytest.raises(ValueError, match=r"with network vgg6a, width 0\.125, not vgg6a, width 0\.25"):
        planned(capsys, *BLOCKS, "--width", "0.25", "--cluster.profile", str(path))


def test_a_balanced_plan_takes_the_cuts_of_its_file(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "costs.json"
    options = ("--decoupling", "balanced:2:linear", "--rule", "replay", "--cluster.profile", str(path))
    assert "by replay" in planned(capsys, *options)
    document = json.loads(path.read_text())
    for cut in (1, 4):  # one of which at least would not be chosen here
        path.write_text(json.dumps(document | {"cuts": [cut]}))
        assert "by replay" in planned(capsys, *options)


def test_what_cannot_be_planned(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(ValueError, match="plan: there is no model of how fast rule gluing is"):
        planned(capsys, *BLOCKS, "--rule", "gluing")
    with pytest.raises(ValueError, match=r"plan: .* leave out rule backprop"):
        planned(capsys, *BLOCKS, "--rule", "backprop")
    missing = tmp_path / "no" / "costs.json"
    with pytest.raises(ValueError, match=f"cluster.profile: there is no folder {missing.parent}"):
        planned(capsys, *BLOCKS, "--cluster.profile", str(missing))


def test_one_process_is_enough(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(ValueError, match="plan: one process does it all"):
        planned(capsys, *BLOCKS)


def constant(costs: BlockCosts, seconds: float) -> BlockCosts:
    """With times that are not measured, so that what is said does not depend on the machine."""
    blocks = tuple(replace(block, passes=Line(per_row=seconds), update=0.0) for block in costs.blocks)
    whole = replace(costs.whole, passes=Line(per_row=2 * seconds), update=0.0)
    return replace(costs, blocks=blocks, whole=whole)


def test_devices_that_cannot_share_a_batch() -> None:
    costs = constant(measured(perceptron()), 1.0)
    lines = report(costs, Conditions(batch_size=4), (11,), 0.0)
    assert (
        "11 devices, fastest: 10 are used; all cannot share batches of 4 evenly, "
        "but those of --recipe.batch-size 5"
    ) in lines
    assert "11 devices, DDP: 4 are used" in lines
    lines = report(costs, Conditions(batch_size=4, accumulate=2), (3, 4), 0.0)
    assert not any("cannot share" in line and line.startswith("3 devices") for line in lines)
    assert any(line.startswith("4 devices, apart: 3 are used; all cannot share") for line in lines)


def test_what_does_not_fit_is_marked() -> None:
    costs = constant(measured(perceptron()), 1.0)
    whole = replace(costs.whole, kept=Line(per_row=2.0**30))
    lines = report(replace(costs, whole=whole), Conditions(batch_size=4), (2,), 3.0)
    assert lines[3].endswith("4 GiB, which do not fit into 3")
    assert "* does not fit into 3 GiB" in lines
    assert report(replace(costs, whole=whole), Conditions(batch_size=4), (2,), 5.0)[3].endswith("4 GiB")
