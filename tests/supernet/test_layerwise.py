"""LWSL's two algorithms, line by line, and what may and may not change in a layer's turn."""

import copy
import itertools
from collections import defaultdict
from collections.abc import Callable, Iterable
from functools import partial
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from supernet.layers import MBConv, Skip
from supernet.layerwise import GreedyStrategy, NonGreedyStrategy
from supernet.sampling import sample, stream
from supernet.space import Layer, Space
from supernet.strategy import Strategy
from supernet.supernet import Supernet
from tests.supernet.nets import (
    LOCAL,
    THREE,
    Gradients,
    HandMadeSGD,
    accumulated,
    adam,
    assert_same_gradients,
    batch,
    changed,
    copied,
    deep_space,
    labelled_loss,
    layerwise,
    make,
    modules_of,
    run_stem,
    sgd,
    small_net,
    small_space,
    snapshot,
    step_gradients,
    whole,
)
from tools.batchnorm import frozen_statistics
from tools.cost import saved_activation_bytes

Loss = Callable[[Tensor], Tensor]


def greedy(
    net: Supernet | None = None, optimizer: Any = None, seed: int = 3, **options: Any
) -> GreedyStrategy:
    strategy = make("greedy", net, optimizer=optimizer, seed=seed, layerwise=layerwise(**options))
    assert isinstance(strategy, GreedyStrategy)
    return strategy


def nongreedy(
    net: Supernet | None = None, optimizer: Any = None, seed: int = 3, **options: Any
) -> NonGreedyStrategy:
    strategy = make("nongreedy", net, optimizer=optimizer, seed=seed, layerwise=layerwise(**options))
    assert isinstance(strategy, NonGreedyStrategy)
    return strategy


MAKERS = {"greedy": greedy, "nongreedy": nongreedy}


def unequal_space() -> Space:
    """Three, two and three modules; skip stands first in the second layer."""
    space = small_space()
    second = Layer((Skip(), MBConv(5, 2, 0.25), MBConv(3, 3)), 6)
    return Space(
        space.stem,
        (space.layers[0], second, space.layers[2]),
        space.tail,
        style=space.style,
        num_classes=space.num_classes,
        image_size=space.image_size,
    )


# ---- the algorithms ------------------------------------------------------------------------------------


def algorithm_1(
    net: Supernet,
    decoder: Callable[[int, int], nn.Module],
    loss_of: Loss,
    images: Tensor,
    *,
    skip_in_mean: bool = False,
) -> None:
    """LWSL's Algorithm 1, which leaves its gradients in the copies; layers and modules count from 0.

    The stem, of which it says nothing, belongs to layer 1, with the mean over the modules.
    """
    x = run_stem(net, images)
    for i in range(len(net.layers)):  # line 4
        modules = modules_of(net.space, i)
        averaged = list(range(len(net.space.layers[i]))) if skip_in_mean else modules
        x_next: Tensor | float = 0.0  # line 6
        for j in averaged:
            y = net.candidate(i, j)(x)  # line 9
            x_next = x_next + y / len(averaged)  # line 11
        w = {j: list(net.candidate(i, j).parameters()) for j in modules}
        stem = list(net.stem.parameters()) if i == 0 and x.requires_grad else []
        for j in modules:  # line 8
            y = net.candidate(i, j)(x)
            loss = loss_of(decoder(i, j)(y))
            of_module, of_decoder, of_stem = _derivatives(loss, w[j], decoder(i, j).parameters(), stem)
            for parameter, derivative in of_module:  # line 14
                parameter.grad = derivative
            for parameter, derivative in of_decoder:  # line 16
                _accumulate(parameter, derivative)
            for parameter, derivative in of_stem:
                _accumulate(parameter, derivative / len(modules))
        assert isinstance(x_next, Tensor)
        x = x_next.detach()


def algorithm_2(
    net: Supernet,
    decoder: Callable[[int, int], nn.Module],
    loss_of: Loss,
    images: Tensor,
    partners: list[list[int]],
) -> None:
    """LWSL's Algorithm 2, line 6 with 0 as in Algorithm 1; `decoder(i, p)` stands behind module p of layer i.

    The last layer's decoder number n + 1 is `decoder(n, ...)`.
    """
    n = len(net.layers)
    x = run_stem(net, images)
    for i in range(n):  # line 4
        modules = modules_of(net.space, i)
        x_next: Tensor | float = 0.0
        for place, j in enumerate(modules):  # line 8
            y = net.candidate(i, j)(x)  # line 9
            x_next = x_next + y / len(modules)  # line 11
            if i < n - 1:  # lines 12 and 13
                y = net.candidate(i + 1, partners[i][place])(y)
                theta = decoder(i + 1, partners[i][place])
            else:
                theta = decoder(n, j)
            loss = loss_of(theta(y))
            stem = net.stem.parameters() if i == 0 and x.requires_grad else ()
            of_module, of_decoder, of_stem = _derivatives(
                loss, net.candidate(i, j).parameters(), theta.parameters(), stem
            )
            for parameter, derivative in of_module:  # line 18
                parameter.grad = derivative
            for parameter, derivative in of_decoder:  # line 20, of which the text says that it accumulates
                _accumulate(parameter, derivative)
            for parameter, derivative in of_stem:
                _accumulate(parameter, derivative / len(modules))
        assert isinstance(x_next, Tensor)
        x = x_next.detach()


def _derivatives(loss: Tensor, *groups: Iterable[nn.Parameter]) -> list[list[tuple[nn.Parameter, Tensor]]]:
    """The parameters of each group, each with the loss's derivative by it."""
    listed = [list(group) for group in groups]
    found = iter(torch.autograd.grad(loss, list(itertools.chain(*listed)), retain_graph=True))
    return [[(parameter, next(found)) for parameter in group] for group in listed]


def _accumulate(parameter: nn.Parameter, derivative: Tensor) -> None:
    parameter.grad = derivative if parameter.grad is None else parameter.grad + derivative


def wanted_gradients(
    strategy: Strategy,
    images: Tensor,
    loss_of: Loss,
    step: int,
    *,
    tail: bool = True,
    per_module: bool = False,
    skip_in_mean: bool = False,
    frozen_stem: bool = False,
) -> Gradients:
    """The algorithm's gradients on a copy. Decoders stand in the order of the layers that they are behind."""
    net, decoders, both = copied(strategy)
    if frozen_stem:
        net.stem.requires_grad_(False)
    n = len(net.layers)
    first = 1 if isinstance(strategy, NonGreedyStrategy) else 0
    behind: dict[tuple[int, int], nn.Module] = {}
    rest = iter(decoders)
    for place in range(first, n + first):
        at = min(place, n - 1)
        modules = modules_of(net.space, at)
        last = place == n - 1 + first
        if last and tail:
            behind |= {(place, j): net.tail for j in modules}
        elif per_module:
            behind |= {(place, j): next(rest) for j in modules}
        else:
            one = next(rest)
            behind |= {(place, j): one for j in range(len(net.space.layers[at]))}
        width = net.space.tail.conv_chs if last and tail else net.space.layers[at].out_chs
        assert all(_first_width(behind[place, j]) == width for j in modules)
    assert not list(rest)
    if isinstance(strategy, NonGreedyStrategy):
        algorithm_2(net, lambda i, j: behind[i, j], loss_of, images, strategy.partners(step))
    else:
        algorithm_1(net, lambda i, j: behind[i, j], loss_of, images, skip_in_mean=skip_in_mean)
    return accumulated(both)


def _first_width(decoder: nn.Module) -> int:
    return next(each.in_features for each in decoder.modules() if isinstance(each, nn.Linear))


def check(strategy: Strategy, step: int = 0, **how: Any) -> Gradients:
    """That a step's gradients are the algorithm's."""
    images, targets = batch(step)
    wanted = wanted_gradients(strategy, images, labelled_loss(targets), step, **how)
    found = step_gradients(strategy, images, targets, step)
    assert_same_gradients(found, wanted)
    return found


@pytest.mark.parametrize("space", [small_space, unequal_space])
@pytest.mark.parametrize("update", ["immediate", "deferred"])
@pytest.mark.parametrize("name", LOCAL)
def test_gradients_are_the_algorithms(name: str, update: str, space: Callable[[], Space]) -> None:
    strategy = MAKERS[name](small_net(space()), update=update)
    for step in range(3):
        found = check(strategy, step)
    assert all(gradient is not None for gradient in found.values())


@pytest.mark.parametrize("name", LOCAL)
def test_three_steps_are_three_updates(name: str) -> None:
    strategy, plain = MAKERS[name](optimizer=sgd), MAKERS[name]()
    by_hand = HandMadeSGD(whole(plain))
    for step in range(3):
        images, targets = batch(step)
        # All gradients first, then all updates: the paper says that it is the same.
        by_hand.update(wanted_gradients(plain, images, labelled_loss(targets), step))
        strategy.step(images, targets, step)
    mine = dict(whole(plain).named_parameters())
    for key, parameter in whole(strategy).named_parameters():
        torch.testing.assert_close(parameter, mine[key], rtol=1e-9, atol=1e-10, msg=key)


@pytest.mark.parametrize("name", LOCAL)
def test_a_decoder_for_each_module(name: str) -> None:
    strategy = MAKERS[name](decoders="module", last_decoder="local")
    assert len(strategy.decoders) == 9
    found = check(strategy, per_module=True, tail=False)
    if isinstance(strategy, NonGreedyStrategy):  # decoders behind modules that were no partner rest
        drawn = [set(layer) for layer in strategy.partners(0)]
        idle = sum(gradient is None for key, gradient in found.items() if key.startswith("decoders."))
        assert idle == 2 * sum(3 - len(each) for each in drawn) > 0
    assert len(MAKERS[name](decoders="module").decoders) == 6


@pytest.mark.parametrize("name", LOCAL)
def test_a_local_decoder_behind_the_last_layer_leaves_the_tail_alone(name: str) -> None:
    found = check(MAKERS[name](last_decoder="local"), tail=False)
    assert all((value is None) == key.startswith("net.tail.") for key, value in found.items())


@pytest.mark.parametrize("name", LOCAL)
def test_the_mean_of_a_decoders_gradients_is_their_sum_divided(name: str) -> None:
    net = small_net(unequal_space())
    added = step_gradients(MAKERS[name](copy.deepcopy(net)), *batch())
    mean = step_gradients(MAKERS[name](net, decoder_gradient="mean"), *batch())
    # Decoder 1 of greedy stands behind the 3 modules of layer 1, decoder 2 behind the 2 of layer 2, the tail
    # behind the 3 of layer 3. Those of nongreedy are a layer higher, but train the same modules.
    number = {"decoders.0": 3, "decoders.1": 2, "net.tail": 3}
    wanted: Gradients = {}
    for key, value in added.items():
        assert value is not None
        wanted[key] = value / next((n for prefix, n in number.items() if key.startswith(prefix)), 1)
    assert_same_gradients(mean, wanted)


@pytest.mark.parametrize("name", LOCAL)
def test_a_frozen_stem_has_no_gradient_but_statistics(name: str) -> None:
    strategy = MAKERS[name](stem="frozen")
    found = check(strategy, frozen_stem=True)
    assert all((value is None) == key.startswith("net.stem.") for key, value in found.items())
    assert _batches_seen(strategy.net.stem) == {1}


@pytest.mark.parametrize("name", LOCAL)
def test_the_stems_gradient_is_the_mean_over_modules(name: str) -> None:
    """Also with two modules in the first layer, and skip there, which is no module."""
    space = Space(
        small_space().stem,
        (Layer((*THREE[:2], Skip()), 4), *small_space().layers[:2]),
        small_space().tail,
        num_classes=5,
        image_size=8,
    )
    check(MAKERS[name](small_net(space)))


@pytest.mark.parametrize("name", LOCAL)
def test_without_a_stem_layer_one_works_on_the_images(name: str) -> None:
    space = small_space()
    bare = Space((), (Layer(THREE, 6, 2), *space.layers[1:]), space.tail, num_classes=5, image_size=8)
    check(MAKERS[name](small_net(bare)))


@pytest.mark.parametrize("name", LOCAL)
def test_losses_are_means_over_a_layers_modules_and_keep_their_precision(name: str) -> None:
    strategy, recorded = MAKERS[name](), list[float]()
    images, targets = batch()

    def recording(outputs: Tensor) -> Tensor:
        loss = labelled_loss(targets)(outputs)
        recorded.append(loss.item())
        return loss

    wanted_gradients(strategy, images, recording, 0)
    found = strategy.step(images, targets, 0)
    assert list(found) == ["loss", "loss/1", "loss/2", "loss/3"]
    for layer in range(3):
        mean = sum(recorded[3 * layer : 3 * layer + 3]) / 3
        assert float(found[f"loss/{layer + 1}"]) == pytest.approx(mean, rel=1e-13)
    assert torch.equal(found["loss"], found["loss/3"])
    assert not found["loss"].requires_grad


# ---- one layer's turn ----------------------------------------------------------------------------------


class Turns:
    """Sees, around every update, which gradients there are and what has changed since the one before."""

    def __init__(self, strategy: Strategy) -> None:
        self._strategy = strategy
        self._before = snapshot(strategy)
        self.changed: list[set[str]] = []
        self.with_gradient: list[set[str]] = []
        for optimizer in strategy.optimizers:
            optimizer.register_step_pre_hook(self._look_at_gradients)
            optimizer.register_step_post_hook(self._look_at_changes)

    def _look_at_gradients(self, *_: object) -> None:
        named = whole(self._strategy).named_parameters()
        self.with_gradient.append({name for name, each in named if each.grad is not None})

    def _look_at_changes(self, *_: object) -> None:
        after = snapshot(self._strategy)
        self.changed.append(changed(self._before, after))
        self._before = after


def turn_prefixes(layer: int) -> tuple[str, ...]:
    """What belongs to a layer's turn in the small space: its modules, its decoder, with layer 1 the stem.

    Of the local decoders the one for layer i is the i-th, for nongreedy too: it has decoders 2 to n.
    """
    decoder = "net.tail." if layer == 2 else f"decoders.{layer}."
    return (f"net.layers.{layer}.", decoder, *(["net.stem."] if layer == 0 else []))


@pytest.mark.parametrize("name", LOCAL)
def test_in_a_layers_turn_nothing_else_has_a_gradient_or_changes(name: str) -> None:
    strategy = MAKERS[name](optimizer=sgd)
    weights = {key for key, _ in whole(strategy).named_parameters()}
    turns = Turns(strategy)
    for step in range(2):
        strategy.step(*batch(step), step)
    assert len(turns.changed) == 6
    for turn in range(6):
        own = {key for key in snapshot(strategy) if key.startswith(turn_prefixes(turn % 3))}
        assert turns.with_gradient[turn] == own & weights
        assert turns.changed[turn] == own  # all weights, and all running statistics


def test_partners_statistics_move_where_they_are_tracked() -> None:
    strategy = nongreedy(optimizer=sgd, partner_statistics="track")
    turns = Turns(strategy)
    strategy.step(*batch(), 0)
    buffers = {key for key, _ in whole(strategy).named_buffers()}
    for layer in range(2):
        own = {key for key in snapshot(strategy) if key.startswith(turn_prefixes(layer))}
        partners = {f"net.layers.{layer + 1}.{choice}." for choice in strategy.partners(0)[layer]}
        of_partners = {key for key in buffers if key.startswith(tuple(partners))}
        assert of_partners
        assert turns.changed[layer] == own | of_partners


def test_partners_in_eval_mode_use_their_running_statistics() -> None:
    strategy = nongreedy(partner_statistics="eval")
    for step in range(3):  # weights stay, statistics become something of their own
        strategy.step(*batch(step), step)
    images, targets = batch(3)
    net, decoders, both = copied(strategy)
    running = copy.deepcopy(net).eval()
    partners = strategy.partners(3)
    x = run_stem(net, images)
    endings = [*decoders, net.tail]
    for layer in range(3):
        outputs = [net.candidate(layer, choice)(x) for choice in range(3)]
        for place, y in enumerate(outputs):
            if layer < 2:
                stacked = running.candidate(layer + 1, partners[layer][place])(y)
            loss = labelled_loss(targets)(endings[layer](stacked if layer < 2 else y))
            torch.autograd.backward(loss, retain_graph=True)
        x = torch.stack(outputs).mean(0).detach()
    for parameter in net.stem.parameters():
        assert parameter.grad is not None
        parameter.grad /= 3
    before = snapshot(strategy)
    assert_same_gradients(step_gradients(strategy, images, targets, 3), accumulated(both))
    assert all(module.training for module in strategy.net.modules())
    moved = {key for key in changed(before, snapshot(strategy)) if key.endswith("num_batches_tracked")}
    assert moved == {key for key in before if key.endswith("num_batches_tracked")}
    by_batch = step_gradients(nongreedy(strategy.net), images, targets, 3)
    at = by_batch["net.layers.0.0.conv_pw.weight"]
    own = accumulated(both)["net.layers.0.0.conv_pw.weight"]
    assert at is not None
    assert own is not None
    assert not torch.allclose(at, own)


@pytest.mark.parametrize("statistics", ["batch", "track", "eval"])
def test_modules_see_a_batch_once_as_modules(statistics: str) -> None:
    strategy = nongreedy(partner_statistics=statistics)
    for step in range(4):
        strategy.step(*batch(step), step)
    for layer in range(3):
        for choice in range(3):
            as_partner = sum(strategy.partners(step)[layer - 1].count(choice) for step in range(4) if layer)
            times = 4 + (as_partner if statistics == "track" else 0)
            assert _batches_seen(strategy.net.candidate(layer, choice)) == {times}


@pytest.mark.parametrize("name", LOCAL)
def test_the_stems_statistics_move_once_a_step(name: str) -> None:
    every: list[dict[str, Any]] = [{}, {"stem": "frozen"}, {"update": "deferred"}]
    for options in every:
        strategy = MAKERS[name](**options)
        stem = copy.deepcopy(strategy.net.stem)
        for step in range(2):
            strategy.step(*batch(step), step)
            images, _ = batch(step)
            for each in stem:
                images = each(images)
        for kept, own in zip(strategy.net.stem.buffers(), stem.buffers(), strict=True):
            assert torch.equal(kept, own)


def _batches_seen(module: nn.Module) -> set[int]:
    return {int(value) for key, value in module.named_buffers() if key.endswith("num_batches_tracked")}


@pytest.mark.parametrize("name", LOCAL)
def test_every_module_is_updated_once_a_step(name: str) -> None:
    for decoders in ("layer", "module"):
        strategy = MAKERS[name](decoders=decoders)
        updates = defaultdict[int, int](int)
        for index, optimizer in enumerate(strategy.optimizers):
            optimizer.register_step_post_hook(partial(_count, updates, index))
        for step in range(3):
            strategy.step(*batch(step), step)
        assert strategy.updates.tolist() == [[3, 3, 3, 0]] * 3
        assert updates == {0: 3, 1: 3, 2: 3}


def _count(numbers: dict[int, int], index: int, *_: object) -> None:
    numbers[index] += 1


@pytest.mark.parametrize(
    ("name", "options", "optimizer"),
    [
        ("greedy", {}, adam),
        ("greedy", {"skip_in_mean": True}, sgd),
        ("nongreedy", {}, adam),
        ("nongreedy", {"partner_statistics": "track"}, sgd),
        ("nongreedy", {"partner_statistics": "eval", "skip_as_partner": True}, adam),
    ],
)
def test_updating_at_once_is_updating_at_the_end(name: str, options: dict[str, Any], optimizer: Any) -> None:
    net = small_net()
    strategies = [
        MAKERS[name](copy.deepcopy(net), optimizer=optimizer, update=update, **options)
        for update in ("immediate", "deferred")
    ]
    for step in range(3):
        losses = [strategy.step(*batch(step), step) for strategy in strategies]
        assert all(torch.equal(value, losses[1][key]) for key, value in losses[0].items())
    assert not changed(*map(snapshot, strategies))


def test_updating_at_once_leaves_no_gradients_for_later() -> None:
    """Deferred has all of them at the end."""
    at_once, deferred = nongreedy(optimizer=sgd), nongreedy(optimizer=sgd, update="deferred")
    counts = []
    for strategy in (at_once, deferred):
        turns = Turns(strategy)
        strategy.step(*batch(), 0)
        counts.append([len(each) for each in turns.with_gradient])
    assert counts[1][0] == sum(counts[0])


# ---- inputs --------------------------------------------------------------------------------------------


class Maps:
    """Keeps what goes into and comes out of every candidate, in the order of the calls."""

    def __init__(self, net: Supernet) -> None:
        self.calls: dict[tuple[int, int], list[tuple[Tensor, Tensor]]] = defaultdict(list)
        for layer in range(len(net.layers)):
            for choice in range(len(net.space.layers[layer])):
                net.candidate(layer, choice).register_forward_hook(partial(self._keep, (layer, choice)))

    def _keep(self, key: tuple[int, int], module: nn.Module, args: tuple[Tensor, ...], out: Tensor) -> None:
        self.calls[key].append((args[0], out.detach().clone()))

    def own(self, layer: int, choice: int) -> tuple[Tensor, Tensor]:
        """The one call in which a module of layer 2 or later was trained."""
        found = [call for call in self.calls[layer, choice] if not call[0].requires_grad]
        assert len(found) == 1
        return found[0]


@pytest.mark.parametrize("skip", [False, True])
@pytest.mark.parametrize("name", LOCAL)
def test_a_layers_input_is_the_detached_mean_of_the_modules_below(name: str, skip: bool) -> None:
    strategy = MAKERS[name](skip_in_mean=skip, partner="permutation")
    maps = Maps(strategy.net)
    strategy.step(*batch(), 0)
    into_one = {choice: maps.calls[0, choice] for choice in range(3)}
    assert all(len(calls) == 1 and calls[0][0].is_leaf for calls in into_one.values())
    below = [calls[0][1] for calls in into_one.values()]
    for layer in (1, 2):
        inputs = [maps.own(layer, choice)[0] for choice in range(3)]
        mean = torch.stack(below).mean(0)
        for each in inputs:
            assert each.grad_fn is None
            torch.testing.assert_close(each, mean, rtol=1e-12, atol=1e-14)
        below = [maps.own(layer, choice)[1] for choice in range(3)]
        if skip and layer == 1:
            below.append(inputs[0])
    assert (1, 3) not in maps.calls  # skip is handed on without a call


def test_a_partner_works_on_the_modules_output_as_it_is() -> None:
    strategy = nongreedy(partner="permutation")
    maps = Maps(strategy.net)
    strategy.step(*batch(), 0)
    for layer, drawn in enumerate(strategy.partners(0)):
        for choice, partner in enumerate(drawn):
            stacked = [call for call in maps.calls[layer + 1, partner] if call[0].requires_grad]
            assert len(stacked) == 1
            outputs = maps.calls[layer, choice][-1][1]
            assert torch.equal(stacked[0][0].detach(), outputs)


def test_skip_in_the_mean_changes_the_gradients_of_the_layers_above_only() -> None:
    check(greedy(skip_in_mean=True), skip_in_mean=True)
    check(greedy(small_net(unequal_space()), skip_in_mean=True), skip_in_mean=True)


# ---- partners ------------------------------------------------------------------------------------------


def draws(strategy: NonGreedyStrategy, steps: int = 60) -> list[list[list[int]]]:
    return [strategy.partners(step) for step in range(steps)]


def test_partners_follow_from_seed_and_step() -> None:
    one, other, third = nongreedy(seed=5), nongreedy(seed=5), nongreedy(seed=6)
    other.step(*batch(), 9)
    torch.manual_seed(1)
    assert [other.partners(step) for step in reversed(range(60))] == draws(one)[::-1]
    assert sum(a == b for a, b in zip(draws(one), draws(third), strict=True)) < 5
    assert all(draws(one)[step] != draws(one)[step + 1] for step in range(20))


@pytest.mark.parametrize("partner", ["module", "layer", "permutation"])
def test_how_partners_are_drawn(partner: str) -> None:
    drawn = draws(nongreedy(partner=partner), 900)
    assert all(len(step) == 2 and all(len(layer) == 3 for layer in step) for step in drawn)
    for layer in (0, 1):
        kinds = [len(set(step[layer])) for step in drawn]
        if partner == "layer":
            assert set(kinds) == {1}
        elif partner == "permutation":
            assert set(kinds) == {3}
        else:  # independent: 1/9 all alike, 2/9 all different
            assert 70 < kinds.count(1) < 130
            assert 160 < kinds.count(3) < 240
        for place in range(3):
            of_place = [step[layer][place] for step in drawn]
            assert all(250 < of_place.count(choice) < 350 for choice in range(3))
    if partner != "layer":
        assert any(step[0] != step[1] for step in drawn)


def test_a_permutation_of_fewer_modules_goes_round() -> None:
    strategy = nongreedy(small_net(unequal_space()), partner="permutation")
    for first, second in draws(strategy):
        assert first[0] == first[2] != first[1]
        assert set(first) == {1, 2}  # candidate 0 is skip
        assert len(set(second)) == 2
        assert set(second) < {0, 1, 2}


@pytest.mark.parametrize("partner", ["module", "layer", "permutation"])
def test_skip_is_a_partner_where_it_is_asked_to_be(partner: str) -> None:
    never = draws(nongreedy(partner=partner))
    assert all(choice < 3 for step in never for layer in step for choice in layer)
    strategy = nongreedy(partner=partner, skip_as_partner=True)
    step = next(step for step, drawn in enumerate(draws(strategy)) if 3 in drawn[0])
    assert all(choice < 3 for drawn in draws(strategy) for choice in drawn[1])
    check(strategy, step)


def test_skip_as_partner_has_a_decoder_of_its_own_where_each_module_has() -> None:
    assert len(nongreedy(skip_as_partner=True, decoders="module").decoders) == 4 + 3
    assert len(nongreedy(decoders="module").decoders) == 3 + 3


@pytest.mark.parametrize("partner", ["module", "layer", "permutation"])
def test_gradients_for_every_kind_of_partner(partner: str) -> None:
    for space in (small_space(), unequal_space()):
        check(nongreedy(small_net(space), partner=partner), 2)


# ---- memory --------------------------------------------------------------------------------------------


def kept_by(strategy: Strategy, step: int = 0) -> int:
    images, targets = batch(rows=4, size=64)
    return saved_activation_bytes(lambda: strategy.step(images.float(), targets, step))


def test_memory_falls_from_paths_to_pairs_to_modules_but_not_with_a_sum_of_losses() -> None:
    torch.manual_seed(0)
    net = Supernet(deep_space())
    path = sum(kept_by(make("spos", net), step) for step in range(5)) / 5
    one, two = kept_by(make("greedy", net)), kept_by(make("nongreedy", net))
    assert one < two < 0.7 * path
    assert one < 0.45 * path

    summed = greedy(net)
    images, targets = batch(rows=4, size=64)

    def sum_of_a_layer() -> None:
        """Layer 1 as Eq. 4 has it, with one backward for the sum over its modules."""
        with torch.no_grad(), frozen_statistics(net):
            features = net.begin(images.float())
        features.requires_grad_()
        outputs = [net.candidate(0, choice)(features) for choice in range(6)]
        losses = [nn.functional.cross_entropy(summed.decoders[0](each), targets) for each in outputs]
        torch.autograd.backward(torch.stack(losses).sum())

    assert saved_activation_bytes(sum_of_a_layer) > 0.85 * path


def test_the_largest_pair_is_what_a_step_keeps() -> None:
    """Greedy keeps no more at a time than one module with its decoder, or the stem."""
    torch.manual_seed(0)
    net = Supernet(deep_space())
    strategy = greedy(net)
    images, targets = batch(rows=4, size=64)
    features, alone = net.begin(images.float()).detach().requires_grad_(), list[int]()
    decoders = [*strategy.decoders, net.tail]

    def module_alone(inputs: Tensor, layer: int, choice: int) -> None:
        logits = decoders[layer](net.candidate(layer, choice)(inputs))
        torch.autograd.backward(nn.functional.cross_entropy(logits, targets))

    for layer in range(len(net.layers)):
        modules = modules_of(net.space, layer)
        alone += [
            saved_activation_bytes(partial(module_alone, features, layer, choice)) for choice in modules
        ]
        outputs = [net.candidate(layer, choice)(features).detach() for choice in modules]
        features = torch.stack(outputs).mean(0)
    alone.append(saved_activation_bytes(lambda: net.begin(images.float()).sum().backward()))  # type: ignore[no-untyped-call]
    assert kept_by(strategy) == max(alone)


def test_a_supernet_trained_by_layers_is_still_one_supernet() -> None:
    """What was trained by local losses gives paths their logits."""
    strategy = nongreedy(optimizer=adam)
    images, targets = batch(rows=12)
    path = sample(strategy.net.space, stream(0, "any"))
    for step in range(60):
        losses = strategy.step(images, targets, step)
        if step == 0:
            first = losses
    assert all(float(losses[key]) < 0.6 * float(value) for key, value in first.items())
    logits = strategy.net(images, path)
    assert float((logits.argmax(1) == targets).double().mean()) > 0.7
