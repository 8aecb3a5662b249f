"""Costs of layers, heads and blocks against counts of the whole network."""

import copy
import gc
import math
import weakref
from dataclasses import replace
from itertools import combinations, pairwise
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from local_learning import heads
from local_learning.blocks import DecoupledNet, decouple
from local_learning.build import build_chain
from local_learning.chain import Chain
from local_learning.cuts import profile
from local_learning.cuts.profile import Costs, balanced, head_costs, kept_bytes, measure_costs, module_macs
from local_learning.decoupling import Decoupling
from local_learning.groups import GroupedHeads
from local_learning.heads import make_head
from local_learning.options import LocalLosses
from tests.local_learning.nets import CLASSES, SIZE, batch, small_chain, small_net
from tools.cost import count_macs, count_params, saved_activation_bytes
from tools.kernels.norm import Norm

NETWORKS = ["resnet18", "vgg6a", "timm/test_vit"]


def size_of(name: str) -> int:
    return 64 if name.startswith("timm/") else SIZE


def shapes(chain: Chain, size: int) -> list[tuple[int, ...]]:
    """Of what each layer takes, and of what the classifier takes."""
    chain = copy.deepcopy(chain).eval()
    features, found = torch.zeros(2, 3, size, size, dtype=torch.float64), []
    for layer in chain.layers:
        found.append(tuple(features.shape[1:]))
        features = layer(features)
    return [*found, tuple(features.shape[1:])]


def macs(module: nn.Module, shape: tuple[int, ...]) -> int:
    """Counted by hooks, from the shapes alone; for networks of plain convolutions and linear layers."""
    total = 0

    def count(module: nn.Module, arguments: tuple[Tensor, ...], outputs: Tensor) -> None:
        nonlocal total
        if isinstance(module, nn.Conv2d | nn.Linear):
            total += outputs[0].numel() * module.weight[0].numel()

    module = copy.deepcopy(module).eval()
    for each in module.modules():
        each.register_forward_hook(count)
    module(torch.zeros(2, *shape, dtype=torch.float64))
    return total


# ---- costs ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", NETWORKS)
@pytest.mark.parametrize("head", ["aux2", "predsim", ""])
def test_macs_of_the_layers_add_up_to_the_networks(name: str, head: str) -> None:
    chain = small_chain(name)
    costs = measure_costs(chain, head, CLASSES, size_of(name), by="macs", batch_size=2)
    assert sum(costs.layers) + costs.classifier == count_macs(chain, (3, size_of(name), size_of(name)))
    assert len(costs.layers) == len(costs.heads) == chain.num_layers
    if not head:
        assert set(costs.heads) == {0}


@pytest.mark.parametrize("head", ["linear", "aux3", "predsim"])
def test_macs_of_layers_and_heads_one_by_one(head: str) -> None:
    chain = small_chain()
    costs = measure_costs(chain, head, CLASSES, SIZE, by="macs", batch_size=2)
    taken = shapes(chain, SIZE)
    pairs = zip(chain.layers, taken[:-1], strict=True)
    assert list(costs.layers) == [macs(layer, shape) for layer, shape in pairs]
    assert costs.classifier == macs(chain.classifier, taken[-1])
    made = [make_head(head, chs, size, CLASSES, width=0.125).double() for chs, size, _ in taken[1:]]
    assert list(costs.heads) == [macs(each, shape) for each, shape in zip(made, taken[1:], strict=True)]


@pytest.mark.parametrize("name", [*NETWORKS, "timm/test_convnext"])
def test_memory_of_the_layers_is_about_that_of_the_network(name: str) -> None:
    """All but the images, which are nobody's outputs."""
    chain, size = small_chain(name).train(), size_of(name)
    images, targets, *_ = batch(rows=8, size=size)
    images = images.contiguous(memory_format=torch.channels_last)
    costs = measure_costs(chain, "aux1", CLASSES, size, by="memory", batch_size=8)
    kept = saved_activation_bytes(lambda: torch.autograd.backward(F.cross_entropy(chain(images), targets)))
    assert sum(costs.layers) + costs.classifier == pytest.approx(kept - bytes_of(images), rel=0.02)

    cut = chain.num_layers // 2
    first = decouple(chain, Decoupling((cut,), ("aux1",)), CLASSES, size).blocks[0].train()
    kept = saved_activation_bytes(lambda: torch.autograd.backward(first.loss(images, targets, images)[0]))
    expected = sum(costs.layers[:cut]) + costs.heads[cut - 1]
    assert expected == pytest.approx(kept - bytes_of(images), rel=0.02)


def bytes_of(tensor: Tensor) -> int:
    return tensor.numel() * tensor.element_size()


def test_times_are_positive() -> None:
    costs = measure_costs(small_chain("vgg6a"), "aux1", CLASSES, SIZE, by="time", batch_size=2)
    assert all(seconds > 0 for seconds in (*costs.layers, *costs.heads, costs.classifier))


@pytest.mark.parametrize("by", ["time", "macs"])
def test_kernels_are_timed_where_the_run_has_them(by: str) -> None:
    seen: set[type] = set()

    class Watched(nn.Sequential):
        def forward(self, input: Tensor) -> Tensor:
            seen.add(type(self[1]))
            return self[1](self[0](input))  # type: ignore[no-any-return]

    layers = [Watched(nn.Conv2d(3, 4, 3, padding=1), nn.BatchNorm2d(4)), nn.Conv2d(4, 4, 1)]
    chain = Chain(layers, nn.Sequential(nn.Flatten(), nn.Linear(4 * SIZE**2, CLASSES)))
    for kernels, norm in (("torch", nn.BatchNorm2d), ("native", Norm if by == "time" else nn.BatchNorm2d)):
        seen.clear()
        measure_costs(chain, "linear", CLASSES, SIZE, by=by, batch_size=2, kernels=kernels)
        assert seen == {norm}


@pytest.mark.parametrize("by", ["time", "macs", "memory"])
@pytest.mark.parametrize("training", [False, True])
def test_measuring_leaves_everything_as_it_was(by: str, training: bool) -> None:
    chain = small_chain("vgg6a").train(training)
    chain.layers[1].train(not training)
    before, modes = copy.deepcopy(chain.state_dict()), [each.training for each in chain.modules()]
    state = torch.get_rng_state()
    with torch.no_grad():  # which must not keep it from going backward
        measure_costs(chain, "infopro", CLASSES, SIZE, by=by, batch_size=2)
        assert not torch.is_grad_enabled()
    assert torch.equal(torch.get_rng_state(), state)
    assert [each.training for each in chain.modules()] == modes
    assert all(parameter.grad is None for parameter in chain.parameters())
    for key, value in chain.state_dict().items():
        assert torch.equal(value, before[key])


@pytest.mark.parametrize("by", ["time", "macs", "memory"])
def test_one_head_at_a_time(by: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of heads that may be larger than the network, with gradients."""
    alive: list[weakref.ref[nn.Module]] = []

    def make(*arguments: Any, **options: Any) -> nn.Module:
        gc.collect()
        assert not any(each() for each in alive)
        head = make_head(*arguments, **options)
        alive.append(weakref.ref(head))
        return head

    monkeypatch.setattr(heads, "make_head", make)
    chain = small_chain()
    costs = measure_costs(chain, "mlp_sr", CLASSES, SIZE, by=by, batch_size=2)
    assert len(alive) == len(costs.heads) == chain.num_layers
    assert not any(each() for each in alive)


@pytest.mark.parametrize("by", ["macs", "memory"])
def test_what_is_measured_draws_nothing_from_what_is_made(by: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Heads with dropout begin as those without measuring would."""
    states = []

    def make(*arguments: Any, **options: Any) -> nn.Module:
        states.append(torch.get_rng_state())
        return nn.Sequential(make_head(*arguments, **options), nn.Dropout(0.5))

    monkeypatch.setattr(heads, "make_head", make)
    chain = small_chain("vgg6a")
    measure_costs(chain, "linear", CLASSES, SIZE, by=by, batch_size=2)
    measured, states = states, []
    monkeypatch.setattr(profile, "_measured", lambda pieces, by: [0.0] * len(pieces))
    measure_costs(chain, "linear", CLASSES, SIZE, by=by, batch_size=2)
    assert all(torch.equal(one, other) for one, other in zip(measured, states, strict=True))


def test_images_of_one_channel() -> None:
    layers = [nn.Conv2d(1, 4, 3, padding=1), nn.Conv2d(4, 4, 3, padding=1)]
    chain = Chain(layers, nn.Sequential(nn.Flatten(), nn.LazyLinear(CLASSES)))
    chain(torch.zeros(1, 1, 8, 8))
    costs = measure_costs(chain, "infopro", CLASSES, 8, by="macs", image_chs=1, batch_size=2)
    assert costs.layers == (4 * 9 * 64, 4 * 4 * 9 * 64)


# ---- balanced cuts -------------------------------------------------------------------------------------


def busiest(costs: Costs, cuts: tuple[int, ...]) -> float:
    ends = (0, *cuts, len(costs.layers))
    heads = [*(costs.heads[cut - 1] for cut in cuts), costs.classifier]
    return max(
        costs.entries[low] + sum(costs.layers[low:high]) + head
        for (low, high), head in zip(pairwise(ends), heads, strict=True)
    )


@pytest.mark.parametrize(
    ("name", "head", "by", "counts"),
    [
        *((name, "aux4", "macs", (2, 3, 4)) for name in (*NETWORKS, "resnet50")),
        *((name, "predsim", "memory", (3,)) for name in (*NETWORKS, "resnet50")),
    ],
)
def test_balanced_cuts_are_the_best_of_all(name: str, head: str, by: str, counts: tuple[int, ...]) -> None:
    chain, size = small_chain(name), size_of(name)
    costs = measure_costs(chain, head, CLASSES, size, by=by, batch_size=2)
    for num_blocks in counts:
        found = balanced(chain, num_blocks, head, CLASSES, size, by=by, batch_size=2)
        assert found.heads == (head,) * (num_blocks - 1)
        possible = combinations(range(1, chain.num_layers), num_blocks - 1)
        assert busiest(costs, found.cuts) == min(busiest(costs, cuts) for cuts in possible)


def test_heads_count_unless_it_is_said_that_others_do() -> None:
    chain = small_chain()
    plain = measure_costs(chain, "", CLASSES, SIZE, by="macs", batch_size=2)
    heavy = measure_costs(chain, "infopro", CLASSES, SIZE, by="macs", batch_size=2)
    kinds: dict[str | None, Costs] = {"": plain, None: heavy, "infopro": heavy}
    cuts = {}
    for costs_of, costs in kinds.items():
        found = balanced(chain, 3, "infopro", CLASSES, SIZE, by="macs", batch_size=2, costs_of=costs_of)
        assert found.heads == ("infopro", "infopro")
        assert busiest(costs, found.cuts) == min(
            busiest(costs, each) for each in combinations(range(1, 8), 2)
        )
        cuts[costs_of] = found.cuts
    assert cuts[None] == cuts["infopro"] != cuts[""]


def test_balanced_blocks_of_groups_leave_the_classifier_alone() -> None:
    chain = small_chain()
    costs = measure_costs(chain, "aux1", CLASSES, SIZE, by="macs", batch_size=2)
    found = balanced(chain, 2, "aux1", CLASSES, SIZE, by="macs", groups=2, batch_size=2)
    assert (found.num_blocks, found.groups, found.cuts[-1]) == (3, 2, 8)
    closed = replace(costs, classifier=costs.heads[-1])
    assert busiest(closed, found.cuts[:1]) == min(busiest(closed, (cut,)) for cut in range(1, 8))


def test_time_is_the_measure_by_default() -> None:
    found = balanced(small_chain("vgg6a"), 3, "linear", CLASSES, SIZE, batch_size=2)
    assert found.num_blocks == 3
    assert all(0 < cut < 5 for cut in found.cuts)


# ---- modules -------------------------------------------------------------------------------------------


def test_macs_of_the_blocks_are_those_of_chain_and_heads() -> None:
    chain = small_chain()
    net = decouple(chain, Decoupling((2, 5), ("aux2", "infopro")), CLASSES, SIZE)
    taken = shapes(chain, SIZE)
    trunks = [macs(layer, shape) for layer, shape in zip(chain.layers, taken[:-1], strict=True)]
    heads = [macs(net.blocks[k].head or nn.Identity(), taken[cut]) for k, cut in enumerate((2, 5, 8))]
    found = module_macs(net, (3, SIZE, SIZE))
    assert found == [sum(trunks[:2]) + heads[0], sum(trunks[2:5]) + heads[1], sum(trunks[5:]) + heads[2]]
    assert sum(found) == count_macs(chain, (3, SIZE, SIZE)) + sum(heads[:2])
    net.drop_heads()
    assert module_macs(net, (3, SIZE, SIZE)) == [sum(trunks[:2]), sum(trunks[2:5]), found[2]]


def test_macs_of_blocks_of_tokens() -> None:
    chain = small_chain("timm/test_vit")
    net = decouple(chain, Decoupling((2, 4), ("linear", "aux1")), CLASSES, 64)
    taken = shapes(chain, 64)
    heads = 0
    for k, cut in enumerate((2, 4)):
        side = int((taken[cut][0]) ** 0.5)
        head = net.blocks[k].head
        assert head is not None
        heads += macs(head, (taken[cut][1], side, side))
    assert sum(module_macs(net, (3, 64, 64))) == count_macs(chain, (3, 64, 64)) + heads


@pytest.mark.parametrize("shared", [False, True])
@pytest.mark.parametrize("groups", [2, 4])
def test_a_group_has_its_share_of_the_trunk_and_its_own_head(groups: int, shared: bool) -> None:
    chain = small_chain()
    net = grouped(Decoupling((4, 8), ("aux2", "linear"), groups), shared=shared)
    taken = shapes(chain, SIZE)
    dense = [macs(layer, shape) for layer, shape in zip(chain.layers, taken[:-1], strict=True)]
    found = module_macs(net, (3, SIZE, SIZE))
    assert len(found) == 2 * groups + 1
    # What reads the whole map costs as much as in the dense network, the rest a G-th.
    stem = 3 * 9 * 8 * SIZE**2
    entries = [stem, 16 * 9 * 32 * 16 + 16 * 32 * 16]
    expected = []
    for k, (low, high) in enumerate([(0, 4), (4, 8)]):
        trunk = entries[k] + (sum(dense[low:high]) - entries[k]) // groups
        chs, *size = taken[high]
        heads = net.blocks[k].head
        assert isinstance(heads, GroupedHeads)
        shape = (chs if shared else chs // groups, *size)
        expected += [trunk // groups + macs(head, shape) for head in heads.heads]
    assert found == [*expected, macs(chain.classifier, taken[-1])]


def test_a_net_in_groups_has_fewer_macs_than_the_dense_one() -> None:
    counts = []
    for groups in (1, 2, 4):
        net = grouped(Decoupling((8,), ("linear",), groups), shared=False)
        found = module_macs(net, (3, SIZE, SIZE))
        assert sum(found[:-1]) == macs(net.blocks[0].layers, (3, SIZE, SIZE)) + 64 * CLASSES
        counts.append(count_macs(net, (3, SIZE, SIZE)))
    stem = 3 * 9 * 8 * SIZE**2
    dense = counts[0] - 64 * CLASSES - stem
    assert counts == [stem + dense // groups + 64 * CLASSES for groups in (1, 2, 4)]


def test_uneven_groups_differ_by_one_channel() -> None:
    net = grouped(Decoupling((1,), ("linear",), 6, uneven=True), "vgg6a", shared=False)
    found = module_macs(net, (3, SIZE, SIZE))
    trunk = 3 * 9 * SIZE**2  # for each channel
    assert found[:6] == [chs * (trunk + CLASSES) for chs in (3, 3, 3, 3, 2, 2)]


def grouped(decoupling: Decoupling, name: str = "resnet18", *, shared: bool) -> DecoupledNet:
    return small_net(decoupling, name, options=LocalLosses(shared_heads=shared))


def test_counting_leaves_the_net_as_it_was() -> None:
    net = small_net(Decoupling((4,), ("aux1",)))
    before, modes = copy.deepcopy(net.state_dict()), [each.training for each in net.modules()]
    module_macs(net, (3, SIZE, SIZE))
    assert [each.training for each in net.modules()] == modes
    assert all(torch.equal(value, before[key]) for key, value in net.state_dict().items())


@pytest.mark.parametrize("head", ["aux1", "predsim", "infopro"])
def test_kept_bytes_are_what_training_keeps(head: str) -> None:
    chain = build_chain("resnet18", num_classes=10, image_size=16, width=0.125)
    shape, count = (3, 16, 16), 2
    whole = decouple(chain, Decoupling((), ()), 10, 16)
    halves = decouple(chain, Decoupling.uniform(chain.num_layers, 2, head), 10, 16)
    images, targets = torch.randn(count, *shape), torch.randint(10, (count,))
    for net in (whole, halves):
        found = kept_bytes(net, shape)
        assert len(found) == len(net.blocks)

        def train(net: DecoupledNet = net) -> None:
            inputs = images
            for block in net.train().blocks:
                loss, outputs = block.loss(inputs, targets, images)
                torch.autograd.backward(loss)
                inputs = outputs.detach()

        assert max(found) == math.ceil(saved_activation_bytes(train) / count)
    if head == "aux1":  # a decoder keeps more than the layers that are spared
        assert max(kept_bytes(halves, shape)) < kept_bytes(whole, shape)[0]


def test_looking_at_what_is_kept_leaves_the_net_as_it_was() -> None:
    net = small_net(Decoupling((3,), ("aux1",)))
    before = copy.deepcopy(net.state_dict())
    torch.manual_seed(1)
    drawn = torch.rand(3)
    torch.manual_seed(1)
    kept_bytes(net, (3, SIZE, SIZE))
    assert torch.equal(torch.rand(3), drawn)
    assert all(torch.equal(tensor, before[name]) for name, tensor in net.state_dict().items())
    assert all(parameter.grad is None for parameter in net.parameters())


# ---- heads ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("groups", [1, 2])
@pytest.mark.parametrize("head", ["aug2", "linear", "infopro"])
def test_what_the_head_at_each_cut_costs(head: str, groups: int) -> None:
    net = small_net(Decoupling((2, 5), (head, head), groups))
    images = (3, SIZE, SIZE)
    bare = copy.deepcopy(net)
    costs = head_costs(net, images)
    modules = module_macs(net, images)
    for block in bare.blocks[:-1]:
        block.head = None
    trunks = module_macs(bare, images)
    for index, cost in enumerate(costs):
        assert cost.params == count_params(net.blocks[index]) - count_params(bare.blocks[index])
        if groups == 1:
            assert cost.macs == modules[index] - trunks[index]
        assert cost.of_block == pytest.approx(cost.macs / (trunks[index] + cost.macs))
        assert cost.of_above == pytest.approx(cost.macs / sum(trunks[index + 1 :]))
        assert cost.kept_bytes > 0
