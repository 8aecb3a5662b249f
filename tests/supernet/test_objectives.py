"""NT-Xent against SimCLR's formula, and supernets trained by it."""

import copy
import math
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from supernet.engine import SupernetEngine
from supernet.objectives import CrossEntropyObjective, InfoNCE, nt_xent
from supernet.options import STRATEGIES, ContrastOptions
from supernet.strategies import TailTraining
from supernet.strategy import Strategy
from supernet.supernet import Supernet
from supernet.tail import Tail
from tests.forked import run
from tests.supernet.nets import (
    LOCAL,
    Keeping,
    accumulated,
    adam,
    assert_same_gradients,
    batch,
    changed,
    copied,
    info_nce,
    labelled_loss,
    layerwise,
    make,
    nt_xent_by_loops,
    run_path,
    run_stem,
    sgd,
    small_net,
    small_space,
    snapshot,
    step_gradients,
    views,
    whole,
)
from tests.supernet.test_layerwise import wanted_gradients
from tests.supernet.test_paths import paths_of

PICTURES = 16  # pixels a side


def projections(rows: int, chs: int = 5, seed: int = 0) -> Tensor:
    return torch.randn(rows, chs, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


# ---- the loss ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("temperature", [0.1, 0.5, 1.0])
@pytest.mark.parametrize("images", [1, 2, 7])
def test_nt_xent_is_simclrs_formula(images: int, temperature: float) -> None:
    rows = projections(2 * images) * torch.linspace(0.1, 30, 2 * images)[:, None]
    found = nt_xent(rows, temperature)
    torch.testing.assert_close(found, nt_xent_by_loops(rows, temperature), rtol=1e-12, atol=1e-14)


def test_its_gradients_are_right() -> None:
    rows = projections(6, 4).requires_grad_()
    assert torch.autograd.gradcheck(lambda values: nt_xent(values, 0.3), (rows,))
    found = torch.autograd.grad(nt_xent(rows, 0.3), rows)[0]
    wanted = torch.autograd.grad(nt_xent_by_loops(rows, 0.3), rows)[0]
    torch.testing.assert_close(found, wanted, rtol=1e-10, atol=1e-13)


def test_its_extremes_are_known() -> None:
    """Views that agree and images that do not; and all alike, where any other is as good as the true one."""
    basis = torch.eye(4, dtype=torch.float64)
    low = nt_xent(torch.cat([basis, 3 * basis]), 0.5)
    assert float(low) == pytest.approx(math.log(math.e**2 + 6) - 2, rel=1e-12)
    alike = nt_xent(torch.ones(8, 4, dtype=torch.float64), 0.1)
    assert float(alike) == pytest.approx(math.log(7), rel=1e-12)
    assert float(nt_xent(projections(2), 0.5)) == 0  # one image has no negatives


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_low_precision_is_left_before_anything_is_computed(dtype: torch.dtype) -> None:
    rows = projections(12, 32).to(dtype)
    wanted = nt_xent(rows.float(), 0.1)
    assert wanted.dtype == torch.float32
    with torch.autocast("cpu", torch.bfloat16):
        inside = nt_xent(rows, 0.1)
    for found in (inside, nt_xent(rows, 0.1)):
        assert found.dtype == torch.float32
        assert torch.equal(found, wanted)


@pytest.mark.slow
def test_two_ranks_give_what_one_process_gives() -> None:
    done = run("tests/programs/nt_xent_ranks.py", ranks=2)
    assert done.stdout.count("equal") == 2, done.stderr


# ---- supernets by views --------------------------------------------------------------------------------


def by_views(name: str, net: Supernet | None = None, **options: Any) -> Strategy:
    return make(name, net or small_net(small_space(PICTURES)), objective=info_nce(), **options)


def loss_by_loops(outputs: Tensor) -> Tensor:
    return nt_xent_by_loops(outputs, 0.4)


def classifier(net: Supernet) -> nn.Module:
    return net.tail.get_submodule("fc")


def ending_of(net: Supernet, own: nn.Module, features: Tensor) -> Tensor:
    """The tail but for its classifier, then SimCLR's projection c -> c -> ReLU -> 6."""
    for name, part in net.tail.named_children():
        if name not in ("fc", "dropout"):
            features = part(features)
    return project(own, features)


def project(own: nn.Module, features: Tensor) -> Tensor:
    weights = own.get_submodule("projection").state_dict(keep_vars=True)
    hidden = features @ weights["hidden.weight"].T + weights["hidden.bias"]
    projected: Tensor = hidden.clamp(min=0) @ weights["out.weight"].T + weights["out.bias"]
    assert projected.shape[1] == 6
    assert hidden.shape == features.shape
    return projected


@pytest.mark.parametrize("name", ["spos", "fair"])
def test_paths_learn_by_both_views(name: str) -> None:
    strategy = by_views(name)
    for step in range(2):
        images, targets = batch(step, size=PICTURES)
        net, (own,), both = copied(strategy)
        for path in paths_of(strategy, step):
            features = run_path(net, path, run_stem(net, views()(images, step)))
            torch.autograd.backward(loss_by_loops(ending_of(net, own, features)))
        wanted = accumulated(both)
        assert wanted["net.tail.fc.weight"] is None
        assert wanted["net.tail.fc.bias"] is None
        assert_same_gradients(step_gradients(strategy, images, targets, step), wanted)


@pytest.mark.parametrize("name", LOCAL)
def test_layers_learn_by_both_views(name: str) -> None:
    strategy = by_views(name, layerwise=layerwise(last_decoder="local"))
    for step in range(2):
        images, targets = batch(step, rows=3, size=PICTURES)
        seen = views()(images, step)
        wanted = wanted_gradients(strategy, seen, loss_by_loops, step, tail=False)
        assert_same_gradients(step_gradients(strategy, images, targets, step), wanted)


@pytest.mark.parametrize("name", STRATEGIES)
def test_the_classifier_has_no_part_in_views(name: str) -> None:
    strategy = by_views(name, optimizer=sgd)
    fc = {"net.tail.fc.weight", "net.tail.fc.bias"}
    before = snapshot(strategy)
    for step in range(4):
        losses = strategy.step(*batch(step, size=PICTURES), step)
        assert all(bool(value.isfinite()) for value in losses.values())
    tail_fc = classifier(strategy.net)
    assert all(parameter.grad is None for parameter in tail_fc.parameters())
    trained = {
        id(each) for opt in strategy.optimizers for group in opt.param_groups for each in group["params"]
    }
    assert all(id(each) not in trained for each in tail_fc.parameters())
    moved = changed(before, snapshot(strategy))
    names = {key for key, _ in whole(strategy).named_parameters()}
    if name != "spos":  # of which some candidates may not have been drawn
        assert names - moved == fc
    assert not fc & moved
    assert {key for key in names if key.startswith("net.tail.conv")} <= moved


def test_labels_do_not_matter_to_views() -> None:
    for name in STRATEGIES:
        one, other = by_views(name, optimizer=sgd), by_views(name, optimizer=sgd)
        images, targets = batch(size=PICTURES)
        one.step(images, targets, 0)
        other.step(images, (targets + 1) % 5, 0)
        assert not changed(snapshot(one), snapshot(other))


@pytest.mark.parametrize(
    "tail",
    [
        Tail(),
        Tail(conv_chs=8),
        Tail(hidden_chs=12),
        Tail(conv_chs=8, hidden_chs=8, dropout=0.5),
        Tail(conv_chs=8, hidden_chs=12),
    ],
)
def test_a_projection_stands_behind_all_of_the_tail_but_dropout_and_classifier(tail: Tail) -> None:
    net = small_net(small_space(PICTURES, tail))
    strategy = by_views("spos", net)
    features = torch.randn(4, 8, 4, 4, dtype=torch.float64)
    (ending,) = strategy.decoders
    wanted = ending_of(copy.deepcopy(net), ending, features)
    torch.testing.assert_close(ending(features), wanted, rtol=1e-12, atol=1e-14)
    shared = {id(each) for each in ending.parameters()} & {id(each) for each in net.tail.parameters()}
    assert len(shared) == len([key for key, _ in net.tail.named_parameters() if not key.startswith("fc.")])


def test_views_make_a_supernet_tell_images_apart() -> None:
    objective = info_nce(jitter=0, grey=0)
    strategy = make("greedy", small_net(small_space(PICTURES)), objective=objective, optimizer=adam)
    _, targets = batch()
    colours = torch.eye(3, dtype=torch.float64).repeat(2, 1) * torch.tensor([[2.0]] * 3 + [[-2.0]] * 3)
    images = colours[:, :, None, None].expand(-1, -1, PICTURES, PICTURES)
    losses = [float(strategy.step(images, targets, step)["loss"]) for step in range(30)]
    assert losses[0] > 2 > 1 > sum(losses[-5:]) / 5


def test_targets_and_images_are_the_objectives() -> None:
    images, targets = batch(rows=3, size=PICTURES)
    plain = CrossEntropyObjective(num_classes=5).task(images, targets, 4)
    assert plain.images is images
    assert plain.targets is targets
    both = info_nce().task(images, targets, 4).images
    assert both.shape == (6, 3, PICTURES, PICTURES)
    assert both.dtype == torch.float64
    rank = InfoNCE(ContrastOptions(), views(), rank=1, world_size=3)
    everyone = info_nce().task(torch.cat([images] * 3), torch.cat([targets] * 3), 4).images
    assert torch.equal(
        rank.task(images, targets, 4).images, everyone.view(2, 9, 3, 16, 16)[:, 3:6].flatten(0, 1)
    )


def test_cross_entropy_takes_label_smoothing() -> None:
    logits, targets = projections(4), torch.tensor([0, 4, 2, 2])
    spread = torch.full((4, 5), 0.1 / 5, dtype=torch.float64)
    spread[range(4), targets] += 0.9
    wanted = -(spread * (logits.exp() / logits.exp().sum(1, keepdim=True)).log()).sum(1).mean()
    found = CrossEntropyObjective(num_classes=5, label_smoothing=0.1).loss(logits, targets)
    torch.testing.assert_close(found, wanted, rtol=1e-12, atol=0)


# ---- the tail alone ------------------------------------------------------------------------------------


def tail_training(net: Supernet, part: str, optimizer: Any = sgd, seed: int = 3) -> TailTraining:
    objective = CrossEntropyObjective(num_classes=5)
    return TailTraining(
        net, optimizer=optimizer, seed=seed, objective=objective, engine=SupernetEngine(), part=part
    )


@pytest.mark.parametrize("part", ["fc", "tail"])
def test_tail_training_changes_the_tail_and_no_statistics(part: str) -> None:
    net = small_net(small_space(tail=Tail(conv_chs=8, hidden_chs=6)))
    strategy = tail_training(net, part)
    before = snapshot(strategy)
    for step in range(3):
        strategy.step(*batch(step), step)
    prefix = "net.tail.fc." if part == "fc" else "net.tail."
    weights = {key for key, _ in whole(strategy).named_parameters()}
    assert changed(before, snapshot(strategy)) == {key for key in weights if key.startswith(prefix)}
    assert all(parameter.grad is None for parameter in net.parameters())


@pytest.mark.parametrize("part", ["fc", "tail"])
def test_tail_training_is_on_uniform_paths(part: str) -> None:
    """Each step's gradient is that of one architecture; which, is found by trying all."""
    strategy = tail_training(small_net(), part, Keeping)
    net, _, _ = copied(strategy)
    trained = list((classifier(net) if part == "fc" else net.tail).parameters())
    met = []
    for step in range(6):
        images, targets = batch(step)
        found = step_gradients(strategy, images, targets, step)
        own = [found[key] for key, _ in whole(strategy).named_parameters() if found[key] is not None]
        matching = []
        for path in net.space.architectures():
            logits = net.tail(run_path(net, path, run_stem(net, images)))
            wanted = torch.autograd.grad(labelled_loss(targets)(logits), trained)
            same = [bool(((a - b).abs() < 1e-10).all()) for a, b in zip(own, wanted, strict=True)]  # type: ignore[operator]
            matching += [path] if all(same) else []
        assert len(matching) == 1
        met += matching
    assert len(set(met)) > 3


def test_the_classifier_learns_what_views_did_not_teach() -> None:
    strategy = by_views("nongreedy", optimizer=adam)
    images, targets = batch(size=PICTURES)
    for step in range(10):
        strategy.step(images, targets, step)
    tail = tail_training(strategy.net, "fc", adam)
    losses = [float(tail.step(images, targets, step)["loss_of_tail"]) for step in range(150)]
    assert sum(losses[-20:]) < 0.8 * sum(losses[:20])
