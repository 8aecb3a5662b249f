"""No gradient of one block reaches another, and blocks trained together are blocks trained alone."""

import copy
from functools import partial

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from local_learning.blocks import Block, DecoupledNet, Outcome
from local_learning.decoupling import Decoupling
from local_learning.later.request import heads_at
from local_learning.options import GluingOptions, LocalLosses
from local_learning.rules.engine import Engine, Part, Rule
from local_learning.rules.gluing import Gluing
from local_learning.rules.greedy import Greedy
from local_learning.rules.replay import Replay
from tests.local_learning.nets import OF_A_MAP, batch, engine_of, equal_to, small_chain, small_net
from tools.cost import saved_activation_bytes

NETWORKS = ["resnet18", "vgg6a", "timm/test_vit", "timm/test_convnext"]


def losses_and_blocks(net: DecoupledNet, part: Part) -> tuple[list[Tensor], list[list[Tensor]]]:
    return net.losses(part.images, part.targets), [list(block.parameters()) for block in net.blocks]


@pytest.mark.parametrize("head", [*OF_A_MAP, "aug2@0.5/pool=copy"])
@pytest.mark.parametrize("name", NETWORKS)
def test_a_loss_reaches_all_of_its_own_block_and_nothing_else(name: str, head: str) -> None:
    width = 0.0625 if name == "vgg6a" else 0.125
    cuts = (1, 3)
    heads = heads_at(head, cuts, small_chain(name, width).num_layers)
    net = small_net(Decoupling(cuts, heads), name, width=width)
    losses, blocks = losses_and_blocks(net, batch(size=64, rows=3) if "timm" in name else batch())
    for index, loss in enumerate(losses):
        for other, parameters in enumerate(blocks):
            gradients = torch.autograd.grad(loss, parameters, retain_graph=True, allow_unused=True)
            if other != index:
                assert all(gradient is None for gradient in gradients)
            else:
                assert all(gradient is not None for gradient in gradients)


class Watched(Engine):
    """Sees at each update that the block's own parameters have a gradient, and no other block's."""

    def update(self, index: int) -> None:
        for other, block in enumerate(self.net.blocks):
            gradients = [parameter.grad for parameter in block.parameters()]
            assert (
                all(g is None for g in gradients) if other != index else any(g is not None for g in gradients)
            )
        super().update(index)


@pytest.mark.parametrize("rule", [Greedy, Replay, lambda engine: Gluing(engine, GluingOptions(h_steps=2))])
def test_no_rule_leaves_a_gradient_elsewhere(rule: type[Greedy]) -> None:
    net = small_net(Decoupling((2, 4), ("linear", "linear")))
    if rule is not Greedy:
        net.drop_heads()
    watched: Rule = rule(engine_of(net, kind=Watched))
    for step in range(4):
        watched.step([batch(step)])


class Recording(Engine):
    """Keeps the inputs that each block was trained on."""

    def __init__(self, net: DecoupledNet, optimizers: list[torch.optim.Optimizer]) -> None:
        super().__init__(net, optimizers)
        self.inputs: list[list[Tensor]] = [[] for _ in net.blocks]

    def run(self, index: int, inputs: Tensor, part: Part, *, joined: bool = False) -> Outcome:
        self.inputs[index].append(inputs.clone())
        return super().run(index, inputs, part, joined=joined)


# The losses do not know of the network, of which each is there with some.
@pytest.mark.parametrize(
    ("name", "head"),
    [
        *(("resnet18", head) for head in ("aux2", "predsim", "infopro", "conv1c2f")),
        *(("vgg6a", head) for head in ("predsim", "infopro")),
        *(("timm/test_vit", head) for head in ("aux2", "predsim")),
        ("timm/test_convnext", "conv1c2f"),
    ],
)
def test_trained_together_is_trained_one_by_one(name: str, head: str) -> None:
    size = 64 if "timm" in name else 16
    together = small_net(Decoupling((1, 3), (head, head)), name, width=0.0625 if name == "vgg6a" else 0.125)
    apart = copy.deepcopy(together)
    engine = engine_of(together, kind=Recording)
    assert isinstance(engine, Recording)
    for step in range(3):
        Greedy(engine).step([batch(step, size=size)])
    for block, inputs in zip(apart.blocks, engine.inputs, strict=True):
        optimizer = torch.optim.SGD(block.parameters(), lr=0.05, momentum=0.9)
        for step, recorded in enumerate(inputs):
            part = batch(step, size=size)
            loss, _ = block.loss(recorded, part.targets, part.images)
            optimizer.zero_grad()
            torch.autograd.backward(loss)
            optimizer.step()
    assert equal_to(list(apart.state_dict().values()), list(together.state_dict().values()), 1e-12)


def test_parts_of_a_batch_make_one_update() -> None:
    net = small_net(
        Decoupling((1,), ("linear",)), "timm/test_vit"
    )  # no BatchNorm: parts do not see each other
    split = copy.deepcopy(net)
    whole = batch(rows=8, size=64)
    Greedy(engine_of(net)).step([whole])
    parts = [Part(*rows) for rows in zip(*(column.chunk(2) for column in whole[:3]), strict=True)]
    Greedy(engine_of(split)).step(parts)
    assert equal_to(list(split.parameters()), list(net.parameters()), 1e-10)


def test_one_block_is_backpropagation() -> None:
    net = small_net(Decoupling((2, 4), ("aux1", "aux1"))).joined()
    plain = copy.deepcopy(net)
    Greedy(engine_of(net)).step([batch()])
    optimizer = torch.optim.SGD(plain.parameters(), lr=0.05, momentum=0.9)
    torch.autograd.backward(F.cross_entropy(plain(batch().images), batch().targets))
    optimizer.step()
    assert equal_to(list(net.parameters()), list(plain.parameters()))


def test_the_bottom_block_does_not_notice_the_top() -> None:
    net = small_net(Decoupling((2, 4), ("aux1", "aux1")), options=LocalLosses())
    alone = copy.deepcopy(net)
    Greedy(engine_of(net)).step([batch()])
    block = alone.blocks[0]
    optimizer = torch.optim.SGD(block.parameters(), lr=0.05, momentum=0.9)
    torch.autograd.backward(block.loss(batch().images, batch().targets, batch().images)[0])
    optimizer.step()
    assert equal_to(list(net.blocks[0].parameters()), list(block.parameters()))


def test_memory_is_that_of_the_largest_block() -> None:
    net = small_net(Decoupling((2, 4, 6), ("aux1",) * 3))
    part, inputs, alone = batch(), batch().images, []
    for block in net.blocks:
        alone.append(saved_activation_bytes(partial(_forward_and_back, block, inputs, part)))
        inputs = block.layers(inputs).detach()
    rule = Greedy(engine_of(net))
    together = saved_activation_bytes(lambda: rule.step([part]))
    assert together == max(alone) < 0.7 * sum(alone)


def _forward_and_back(block: Block, inputs: Tensor, part: Part) -> None:
    torch.autograd.backward(block.loss(inputs, part.targets, part.images)[0])
