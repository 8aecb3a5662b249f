"""Single Path One-Shot and FairNAS against their definitions."""

from collections import Counter
from itertools import pairwise
from typing import Any

import pytest
import torch
from scipy.stats import chisquare
from torch import Tensor

from supernet.layers import Conv, Skip, Style
from supernet.options import PathOptions
from supernet.paths import SinglePath, StrictFairness
from supernet.presets import preset
from supernet.space import Architecture, Fixed, Layer, Space
from supernet.strategy import Strategy
from supernet.tail import Tail
from supernet.train.config import SupernetConfig
from tests.supernet.nets import (
    CLASSES,
    SIZE,
    THREE,
    Gradients,
    HandMadeSGD,
    accumulated,
    assert_same_gradients,
    batch,
    changed,
    copied,
    labelled_loss,
    make,
    run_path,
    run_stem,
    sgd,
    skipping_space,
    small_net,
    small_space,
    snapshot,
    step_gradients,
    whole,
)
from tools.options.config import of_run, to_toml


def single_path(space: Space | None = None, **options: Any) -> SinglePath:
    strategy = make("spos", small_net(space), paths=PathOptions(**options))
    assert isinstance(strategy, SinglePath)
    return strategy


def fair(space: Space | None = None, **options: Any) -> StrictFairness:
    strategy = make("fair", small_net(space), paths=PathOptions(**options))
    assert isinstance(strategy, StrictFairness)
    return strategy


def paths_of(strategy: Strategy, step: int) -> list[Architecture]:
    if isinstance(strategy, StrictFairness):
        return strategy.paths(step)
    assert isinstance(strategy, SinglePath)
    return [strategy.path(step)]


def gradients_of_paths(
    strategy: Strategy, images: Tensor, targets: Tensor, step: int, *, mean: bool = False
) -> Gradients:
    """Every path from the image to the loss, and backward; gradients add up."""
    paths = paths_of(strategy, step)
    net, _, both = copied(strategy)
    for path in paths:
        logits = net.tail(run_path(net, path, run_stem(net, images)))
        torch.autograd.backward(labelled_loss(targets)(logits))
    if mean:
        for parameter in [*net.stem.parameters(), *net.tail.parameters()]:
            assert parameter.grad is not None
            parameter.grad /= len(paths)
    return accumulated(both)


# ---- gradients and updates -----------------------------------------------------------------------------


@pytest.mark.parametrize("step", [0, 1, 2])
@pytest.mark.parametrize("name", ["spos", "fair"])
def test_gradients_are_those_of_the_paths(name: str, step: int) -> None:
    strategy = make(name)
    wanted = gradients_of_paths(strategy, *batch(step), step)
    assert any(gradient is None for gradient in wanted.values()) == (name == "spos")
    assert_same_gradients(step_gradients(strategy, *batch(step), step), wanted)


def test_fair_can_take_the_mean_at_what_the_paths_share() -> None:
    strategy = fair(shared_scale="mean")
    wanted = gradients_of_paths(strategy, *batch(), 0, mean=True)
    assert_same_gradients(step_gradients(strategy, *batch()), wanted)


@pytest.mark.parametrize("name", ["spos", "fair"])
def test_three_steps_are_three_updates_of_what_was_on_the_paths(name: str) -> None:
    strategy = make(name, optimizer=sgd)
    plain = make(name)
    by_hand = HandMadeSGD(whole(plain))
    for step in range(3):
        by_hand.update(gradients_of_paths(plain, *batch(step), step))
        strategy.step(*batch(step), step)
    mine = dict(whole(plain).named_parameters())
    for name, parameter in whole(strategy).named_parameters():
        torch.testing.assert_close(parameter, mine[name], rtol=1e-9, atol=1e-10, msg=name)


def test_the_loss_is_the_paths() -> None:
    for name in ("spos", "fair"):
        strategy = make(name)
        net, _, _ = copied(strategy)
        images, targets = batch()
        losses = [
            labelled_loss(targets)(net.tail(run_path(net, path, run_stem(net, images))))
            for path in paths_of(strategy, 0)
        ]
        found = strategy.step(images, targets, 0)["loss"]
        assert not found.requires_grad
        torch.testing.assert_close(found, torch.stack(losses).mean().detach(), rtol=1e-12, atol=0)


@pytest.mark.parametrize("name", ["spos", "fair"])
def test_running_statistics_move_once_for_every_time_that_a_path_comes_by(name: str) -> None:
    strategy = make(name)
    visits = Counter[tuple[int, int]]()
    for step in range(3):
        for path in paths_of(strategy, step):
            visits.update(enumerate(path.choices))
        strategy.step(*batch(step), step)
    for key, value in whole(strategy).named_buffers():
        if key.endswith("num_batches_tracked"):
            words = key.split(".")
            times = visits[int(words[2]), int(words[3])] if words[1] == "layers" else 3
            # The stem sees a batch once; the tail sees it once for every path.
            times *= len(paths_of(strategy, 0)) if words[1] == "tail" else 1
            assert int(value) == times, key


def test_candidates_off_the_path_stay_as_they_are_though_trained_before() -> None:
    strategy = make("spos", optimizer=sgd)
    assert isinstance(strategy, SinglePath)
    trained, kept = set[str](), 0
    for step in range(12):
        before = snapshot(strategy)
        strategy.step(*batch(step), step)
        moved = changed(before, snapshot(strategy))
        on_path = {f"net.layers.{at}.{choice}." for at, choice in enumerate(strategy.path(step).choices)}
        for name in before:
            if name.startswith("net.layers."):
                prefix = ".".join(name.split(".")[:4]) + "."
                assert prefix in on_path or name not in moved
                kept += prefix not in on_path and prefix in trained
        trained |= on_path
        weights = {name for name, _ in whole(strategy).named_parameters()}
        assert {name for name in weights if name.startswith(("net.stem.", "net.tail."))} <= moved
        assert {name for name in weights if name.startswith(tuple(on_path))} <= moved
    assert kept > 100  # so momentum and decay could have struck


# ---- paths ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["spos", "fair"])
def test_paths_follow_from_seed_and_step(name: str) -> None:
    one, other, third = (make(name, small_net(skipping_space()), seed=seed) for seed in (5, 5, 6))
    steps = range(20)
    drawn = [paths_of(one, step) for step in steps]
    other.step(*batch(), 17)
    torch.manual_seed(99)
    assert [paths_of(other, step) for step in reversed(steps)] == drawn[::-1]
    assert sum(paths_of(third, step) == drawn[step] for step in steps) <= 2
    assert len(set(map(tuple, drawn))) > 15


def test_single_paths_are_uniform_in_every_layer_and_pair_of_layers() -> None:
    strategy = single_path()
    drawn = [strategy.path(step).choices for step in range(3600)]
    found = Counter(drawn)
    assert len(found) == 36
    # Chi-squared with 35 degrees of freedom: 1 in 10,000 is over 76.
    assert sum((count - 100) ** 2 / 100 for count in found.values()) < 76


def test_canonical_paths_have_their_skips_behind() -> None:
    space = skipping_space()
    canonical, all_strings = single_path(space), single_path(space, canonical=False)
    moved = 0
    for step in range(200):
        path, raw = canonical.path(step), all_strings.path(step)
        skips = [choice == 3 for choice in path.choices]
        assert not skips[1] or skips[2]  # layers 2 and 3 are equal, the others stand alone
        assert space.macs(path) == space.macs(raw)
        assert Counter(path.choices) == Counter(raw.choices)
        moved += path != raw
    assert moved > 10


def test_networks_are_drawn_alike_and_blocks_as_often_as_they_have_them() -> None:
    space = preset("nas_bench_macro", num_classes=5, image_size=8)
    strategy = single_path(space, draw="networks")
    networks = {space.canonical(each) for each in space.architectures()}
    assert len(networks) == space.num_networks == 3969
    drawn = [strategy.path(step) for step in range(2400)]
    assert networks.issuperset(drawn)
    found = [Counter(path.choices[layer] for path in drawn) for layer in range(8)]
    for layer, counts in enumerate(found):
        inside = Counter(each.choices[layer] for each in networks)
        wanted = {choice: 2400 * number / 3969 for choice, number in inside.items()}
        # Chi-squared with 2 degrees of freedom: 1 in 10,000 is over 18.4.
        assert sum((counts[choice] - wanted[choice]) ** 2 / wanted[choice] for choice in wanted) < 18.4


def test_how_often_blocks_are_trained_by_strings_and_by_networks() -> None:
    space = preset("nas_bench_macro", num_classes=5, image_size=8)
    strings = [space.canonical(each) for each in space.architectures()]
    for layer in (3, 6):  # second in their stages, whose skips may stand anywhere; the next are third
        for drawn, counts in ((strings, (1067, 533)), (list(set(strings)), (1029, 686))):
            for choice in (1, 2):
                inside = [sum(each.choices[at] == choice for each in drawn) for at in (layer, layer + 1)]
                assert tuple(round(2400 * number / len(drawn)) for number in inside) == counts


def test_networks_within_limits_are_drawn_alike() -> None:
    space = skipping_space()
    costs = Counter(map(space.macs, {space.canonical(each) for each in space.architectures()}))
    low, high = (sorted(costs.elements())[int(part * costs.total())] for part in (0.2, 0.25))
    inside = {total: number for total, number in costs.items() if low <= total <= high}
    strategy = single_path(space, draw="networks", min_macs=low, max_macs=high)
    steps = 40 * sum(inside.values())
    found = Counter(space.macs(strategy.path(step)) for step in range(steps))
    assert found.keys() <= inside.keys()
    assert (
        chisquare([found[total] for total in inside], [40 * number for number in inside.values()]).pvalue
        > 1e-4
    )


def test_a_run_of_before_goes_on_as_it_began() -> None:
    before = of_run(SupernetConfig, "[paths]\ncanonical = true", source="config.toml")
    assert (before.paths.draw, before.classifier_init) == ("strings", "timm")
    now = of_run(SupernetConfig, to_toml(SupernetConfig()), source="config.toml")
    assert now == SupernetConfig()


def test_networks_have_their_skips_last() -> None:
    with pytest.raises(ValueError, match=r"paths.canonical: .*skips last"):
        PathOptions(draw="networks", canonical=False)
    with pytest.raises(ValueError, match=r"paths.draw: unknown value 'nets'"):
        PathOptions(draw="nets")


def test_limits_hold_over_two_hundred_steps() -> None:
    space = skipping_space()
    costs = sorted(map(space.macs, space.architectures()))
    low, high = costs[len(costs) // 4], costs[len(costs) // 2]
    strategy = single_path(space, min_macs=low, max_macs=high)
    drawn = [space.macs(strategy.path(step)) for step in range(200)]
    assert low <= min(drawn) < max(drawn) <= high
    assert len(set(drawn)) > 20
    below = single_path(space, max_macs=high)
    drawn = [space.macs(below.path(step)) for step in range(200)]
    assert min(drawn) < low
    assert max(drawn) <= high
    above = single_path(space, min_macs=high)
    assert min(space.macs(above.path(step)) for step in range(200)) >= high


def test_the_limit_itself_is_within() -> None:
    space = small_space()
    dearest, cheapest = (limit(map(space.macs, space.architectures())) for limit in (max, min))
    strategy = single_path(space, max_macs=cheapest)
    assert {space.macs(strategy.path(step)) for step in range(20)} == {cheapest}
    strategy = single_path(space, min_macs=dearest)
    assert {space.macs(strategy.path(step)) for step in range(20)} == {dearest}


def test_bins_are_drawn_alike_however_few_paths_are_in_one() -> None:
    space = skipping_space()
    costs = sorted(map(space.macs, space.architectures()))
    width = (costs[-1] - costs[0]) // 5 + 1
    limits: dict[str, Any] = {"min_macs": costs[0], "max_macs": costs[0] + 5 * width, "bin_macs": width}
    strategy = single_path(space, **limits)
    steps = 600
    found = Counter((space.macs(strategy.path(step)) - costs[0]) // width for step in range(steps))
    inside = Counter((cost - costs[0]) // width for cost in costs)
    assert len(inside) == 5
    assert max(inside.values()) > 4 * min(inside.values())
    # Chi-squared with 4 degrees of freedom: 1 in 10,000 is over 23.5.
    assert sum((found[each] - steps / 5) ** 2 / (steps / 5) for each in range(5)) < 23.5


def test_bins_without_a_path_are_never_drawn() -> None:
    space = skipping_space()
    most = max(map(space.macs, space.architectures()))
    strategy = single_path(space, max_macs=10 * most, bin_macs=most // 7)
    assert all(space.macs(strategy.path(step)) <= most for step in range(100))


@pytest.mark.parametrize(
    "limits",
    [
        {"max_macs": 10},
        {"min_macs": 10**9},
        {"min_macs": 10**9, "max_macs": 10**10},
        {"max_macs": 10, "bin_macs": 5},
    ],
)
def test_limits_that_nothing_meets_are_refused(limits: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match="no path has"):
        single_path(**limits)


def test_a_gap_between_two_costs_is_refused() -> None:
    space = small_space()
    costs = sorted({*map(space.macs, space.architectures())})
    left, right = next((a, b) for a, b in pairwise(costs) if b - a > 2)
    with pytest.raises(ValueError, match="no path has"):
        single_path(space, min_macs=left + 1, max_macs=right - 1)


# ---- strict fairness -----------------------------------------------------------------------------------


def test_every_layer_sees_a_permutation_and_a_new_one_each_step() -> None:
    strategy = fair()
    orders = Counter[tuple[tuple[int, ...], ...]]()
    for step in range(360):
        layers = tuple(zip(*(path.choices for path in strategy.paths(step)), strict=True))
        assert all(sorted(order) == [0, 1, 2] for order in layers)
        orders[layers] += 1
    # All 6^3 ways, independent across layers: 360 draws give 175 different ones on the average.
    assert 155 < len(orders) < 195
    for layer in range(3):
        of_layer = Counter[tuple[int, ...]]()
        for layers, count in orders.items():
            of_layer[layers[layer]] += count
        # Chi-squared with 5 degrees of freedom: 1 in 10,000 is over 25.7.
        assert len(of_layer) == 6
        assert sum((count - 60) ** 2 / 60 for count in of_layer.values()) < 25.7


def test_every_candidate_is_updated_once_a_step() -> None:
    strategy = fair()
    for step in range(3):
        strategy.step(*batch(step), step)
    assert strategy.updates.tolist() == [[3, 3, 3, 0], [3, 3, 3, 0], [3, 3, 3, 0]]


def test_single_paths_are_counted() -> None:
    strategy, wanted = single_path(), torch.zeros(3, 4, dtype=torch.int64)
    for step in range(5):
        for layer, choice in enumerate(strategy.path(step).choices):
            wanted[layer, choice] += 1
        strategy.step(*batch(step), step)
    assert torch.equal(strategy.updates, wanted)


def test_digit_zero_of_nas_bench_macro_takes_its_turn() -> None:
    strategy = fair(preset("nas_bench_macro", num_classes=5, image_size=8))
    for layer in zip(*(path.choices for path in strategy.paths(0)), strict=True):
        assert sorted(layer) == [0, 1, 2]


@pytest.mark.parametrize("skip", ["auto", "left_out"])
def test_skip_is_left_out_where_the_first_layers_have_none(skip: str) -> None:
    strategy = fair(skipping_space(), skip=skip)
    for step in range(5):
        for layer in zip(*(path.choices for path in strategy.paths(step)), strict=True):
            assert sorted(layer) == [0, 1, 2]
        strategy.step(*batch(step), step)
    assert strategy.updates.tolist() == [[5, 5, 5, 0]] * 5


def test_skip_takes_its_turn_where_every_layer_has_it() -> None:
    space = Space(
        (Fixed(Conv(3), 4, 2),),
        (Layer((*THREE, Skip()), 4),) * 3,
        Tail(conv_chs=8),
        style=Style(act="silu"),
        num_classes=CLASSES,
        image_size=SIZE,
    )
    strategy = fair(space)
    assert strategy.paths(4) == fair(space, skip="op").paths(4)
    first = [path.choices[0] for path in strategy.paths(0)]
    assert sorted(first) == [0, 1, 2, 3]
    wanted = gradients_of_paths(strategy, *batch(), 0)
    assert_same_gradients(step_gradients(strategy, *batch()), wanted)
    assert strategy.updates.tolist() == [[1, 1, 1, 1]] * 3
    for layer in zip(*(path.choices for path in fair(space, skip="left_out").paths(0)), strict=True):
        assert sorted(layer) == [0, 1, 2]


def test_layers_with_unequal_numbers_of_modules_are_refused() -> None:
    with pytest.raises(ValueError, match=r"every layer must have as many candidates; with skip .* 3, 4"):
        fair(skipping_space(), skip="op")
    macro = preset("nas_bench_macro", num_classes=5, image_size=8)
    with pytest.raises(ValueError, match=r"without skip .* 2, 3 .*paths.skip op"):
        fair(macro, skip="left_out")
    few, many = skipping_space((*THREE[1:], Skip())), skipping_space()
    uneven = Space(few.stem, (few.layers[0], many.layers[1]), few.tail, num_classes=5, image_size=8)
    for skip in ("auto", "op", "left_out"):
        with pytest.raises(ValueError, match="every layer must have as many candidates"):
            fair(uneven, skip=skip)
