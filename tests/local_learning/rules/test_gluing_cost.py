"""What a step of BlockProp costs, in MACs, against backpropagation (Appendix A and C)."""

import copy
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import flop_registry

from local_learning.blocks import DecoupledNet
from local_learning.decoupling import Decoupling
from local_learning.options import GluingOptions
from local_learning.rules.engine import Engine, Rule
from local_learning.rules.gluing import Gluing
from local_learning.rules.greedy import Greedy
from tests.local_learning.nets import batch, engine_of, small_net
from tools.cost import count_macs

CUTS = [(3,), (1, 3), (1, 2, 4)]


def net_of(cuts: tuple[int, ...]) -> DecoupledNet:
    net = small_net(Decoupling(cuts, ("linear",) * len(cuts)), "vgg6a", width=0.0625)
    net.drop_heads()
    return net


class Counter(TorchDispatchMode):
    """By torch's formulas, of what really runs; its own FlopCounterMode cannot look into autograd.grad."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.macs: int = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        outputs, kwargs = func(*args, **(kwargs or {})), kwargs or {}
        if func.overloadpacket in flop_registry:
            self.macs += flop_registry[func.overloadpacket](*args, **kwargs, out_val=outputs) // 2
        return outputs


def step_macs(rule: Rule) -> int:
    """Of all passes that a step makes, forward and backward."""
    counter = Counter()
    with counter:
        rule.step([batch()])
    return counter.macs


def forward_macs(net: DecoupledNet) -> tuple[list[int], list[int]]:
    """Of each block on a batch, its classifier included; and of the first thing in it that has weights."""
    whole, first, features = [], [], batch().images
    for block in net.blocks:
        layers = nn.Sequential(*block.layers, *([] if block.head is None else [block.head]))
        weighted = next(m for m in layers.modules() if isinstance(m, nn.Conv2d | nn.Linear))
        seen: list[Tensor] = []
        handle = weighted.register_forward_pre_hook(lambda _, inputs, seen=seen: seen.append(inputs[0]))
        with torch.no_grad():
            layers(features)
            handle.remove()
            whole.append(count_macs(layers, as_counted(features)))
            first.append(count_macs(weighted, as_counted(seen[0])))
            features = block.layers(features)
    return whole, first


def as_counted(inputs: Tensor) -> tuple[int, ...]:
    """The shape of a batch as the counter takes it, with four numbers."""
    return (1,) * (4 - inputs.ndim) + tuple(inputs.shape)


@pytest.mark.parametrize("h_steps", [1, 2, 5])
@pytest.mark.parametrize("cuts", CUTS)
def test_the_cost_of_a_step_is_within_the_papers_bounds(cuts: tuple[int, ...], h_steps: int) -> None:
    """C(backprop) + C(forward) < C(total) < C(forward) + (N_h + 1) C(backprop)."""
    net = net_of(cuts)
    backprop = step_macs(Greedy(engine_of(net_of(cuts).joined())))
    forward = sum(forward_macs(net)[0])
    total = step_macs(Gluing(engine_of(net), GluingOptions(h_steps=h_steps)))
    assert backprop + forward < total < forward + (h_steps + 1) * backprop


@pytest.mark.parametrize("cuts", CUTS)
def test_what_the_steps_of_both_algorithms_consist_of(cuts: tuple[int, ...]) -> None:
    """A pass of a layer costs as much forward, to its inputs and to its weights."""
    net = net_of(cuts)
    blocks, first = forward_macs(net)
    backprop = 3 * sum(blocks) - first[0]
    w_step = 3 * sum(blocks) - sum(first)  # no block has to tell the one below its error
    both_steps = sum(blocks[:-1]) + 3 * 2 * sum(blocks[1:]) + w_step
    assert step_macs(Greedy(engine_of(net_of(cuts).joined()))) == backprop
    assert step_macs(Gluing(engine_of(net_of(cuts)), GluingOptions(h_steps=3))) == both_steps
    cached = Gluing(engine_of(net), GluingOptions(h_steps=3, cache=True, h_every=3), num_images=6)
    # With h-steps Algorithm 2 costs as much as Algorithm 1, between them less than backpropagation.
    assert [step_macs(cached) for _ in range(7)] == [both_steps, *[w_step, w_step, both_steps] * 2]
    assert w_step < backprop


class Alone(Engine):
    """One block, which between h-steps hears of the variable above it and of nothing else."""

    def __init__(self, net: DecoupledNet, index: int, above: Tensor | None) -> None:
        super().__init__(net, [torch.optim.SGD(net.blocks[index].parameters())], range(index, index + 1))
        self._above, self.told = above, 0

    def from_above(self) -> Tensor:
        assert self._above is not None
        return self._above

    def hand_down(self, tensor: Tensor) -> None:
        self.told += 1


@pytest.mark.parametrize("cuts", CUTS)
def test_between_h_steps_each_block_costs_its_own_backpropagation(cuts: tuple[int, ...]) -> None:
    net, options = net_of(cuts), GluingOptions(cache=True, h_every=2)
    blocks, first = forward_macs(net)
    whole = Gluing(engine_of(net, lr=0.0), options, num_images=6)
    whole.step([batch()])
    state, costs = whole.state_dict(), []
    for index in range(len(net.blocks)):
        engine = Alone(net, index, state["cache"].get(index + 1))
        rule = Gluing(engine, options, num_images=6)
        rule.load_state_dict(copy.deepcopy(state))
        costs.append(step_macs(rule))
        assert engine.told == (index > 0)
    assert costs == [3 * macs - own for macs, own in zip(blocks, first, strict=True)]
    assert max(costs) < 3 * sum(blocks) - first[0]
