"""Cosines between local gradients and backpropagation's, against gradients taken one by one."""

import copy
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from local_learning.alignment import gradient_alignment
from local_learning.blocks import DecoupledNet, decouple
from local_learning.build import build_chain
from local_learning.chain import Chain
from local_learning.decoupling import Decoupling
from tests.local_learning.nets import CLASSES, SIZE, batch, small_chain, small_net


def kernels(layer: nn.Module) -> list[Tensor]:
    """The 3x3 kernels, or all matrices where there are none."""
    found = [
        each.weight
        for each in layer.modules()
        if isinstance(each, nn.Conv2d) and each.weight.shape[2:] == (3, 3)
    ]
    return found or [each for each in layer.parameters() if each.ndim > 1]


def flat(loss: Tensor, weights: list[Tensor]) -> Tensor:
    gradients = torch.autograd.grad(loss, weights, retain_graph=True)
    return torch.cat([gradient.flatten() for gradient in gradients])


def cosines(net: DecoupledNet, images: Tensor, targets: Tensor) -> dict[int, float]:
    net = copy.deepcopy(net)
    through = F.cross_entropy(net(images), targets)
    losses = net.losses(images, targets)
    found, number = {}, 0
    for block, loss in zip(net.blocks[:-1], losses, strict=False):
        for layer in block.layers:
            number += 1
            one, other = flat(loss, kernels(layer)), flat(through, kernels(layer))
            found[number] = float(one @ other / (one.norm() * other.norm()))
    return found


@pytest.mark.parametrize(
    ("name", "decoupling"),
    [
        ("resnet18", Decoupling((2, 5), ("aux2", "linear"))),
        ("resnet18", Decoupling((3, 8), ("linear", "infopro"))),
        ("resnet18", Decoupling((3, 8), ("linear", "conv1c2f"), 4)),
        ("resnet50", Decoupling((7,), ("aux1",))),
        ("vgg6a", Decoupling((2, 5), ("predsim", "linear"))),  # layer 5 is linear
        ("timm/test_vit", Decoupling((1, 3), ("linear", "aux1"))),
    ],
)
@pytest.mark.parametrize("training", [True, False])
def test_cosines_of_gradients_taken_one_by_one(name: str, decoupling: Decoupling, training: bool) -> None:
    net = small_net(decoupling, name).train(training)
    images, targets, *_ = batch(size=64 if name.startswith("timm/") else SIZE)
    found = gradient_alignment(net, images, targets)
    assert found == pytest.approx(cosines(net, images, targets), abs=1e-9)
    # The last block's layers are not there: what they follow is backpropagation.
    assert list(found) == list(range(1, decoupling.cuts[-1] + 1))
    assert max(abs(cosine) for cosine in found.values()) < 1 - 1e-6


class Rest(nn.Module):
    """What follows a cut, as the head of that cut."""

    def __init__(self, chain: Chain, cut: int) -> None:
        super().__init__()
        self.layers, self.classifier = chain.layers[cut:], chain.classifier

    def forward(self, features: Tensor) -> Tensor:
        for layer in self.layers:
            features = layer(features)
        logits: Tensor = self.classifier(features)
        return logits


def with_true_rest(chain: Chain, *cuts: int) -> DecoupledNet:
    def make(kind: str, *arguments: Any, **options: Any) -> nn.Module:
        return Rest(copy.deepcopy(chain), int(kind))

    decoupling = Decoupling(cuts, tuple(str(cut) for cut in cuts))
    return decouple(chain, decoupling, CLASSES, SIZE, make=make).train()


@pytest.mark.parametrize("name", ["resnet18", "vgg6a"])
def test_the_rest_of_the_network_as_a_head_gives_backpropagation(name: str) -> None:
    net = with_true_rest(small_chain(name), 1, 3, 4)
    found = gradient_alignment(net, *batch()[:2])
    assert found == pytest.approx(dict.fromkeys(range(1, 5), 1.0), abs=1e-9)


def test_both_gradients_are_of_the_same_dropout() -> None:
    torch.manual_seed(0)
    chain = build_chain("vgg6a", num_classes=CLASSES, image_size=SIZE, width=0.125, dropout=0.5).double()
    found = gradient_alignment(with_true_rest(chain, 4), *batch()[:2])
    assert found == pytest.approx(dict.fromkeys(range(1, 5), 1.0), abs=1e-9)


def test_the_opposite_loss_gives_the_opposite_sign() -> None:
    net = with_true_rest(small_chain(), 3)
    own = net.blocks[0].objective
    net.blocks[0].objective = lambda *arguments: -own(*arguments)
    found = gradient_alignment(net, *batch()[:2])
    assert found == pytest.approx(dict.fromkeys(range(1, 4), -1.0), abs=1e-9)


@pytest.mark.parametrize("training", [True, False])
def test_nothing_changes(training: bool) -> None:
    torch.manual_seed(0)
    chain = build_chain("vgg6a", num_classes=CLASSES, image_size=SIZE, width=0.125, dropout=0.1).double()
    net = decouple(chain, Decoupling((2, 4), ("aux1", "predsim")), CLASSES, SIZE).train(training)
    torch.autograd.backward(net.losses(*batch(1)[:2])[1])
    before = copy.deepcopy(net.state_dict())
    gradients = [None if p.grad is None else p.grad.clone() for p in net.parameters()]
    modes, state = [each.training for each in net.modules()], torch.get_rng_state()
    with torch.no_grad():
        first = gradient_alignment(net, *batch()[:2])
        assert not torch.is_grad_enabled()
    assert torch.equal(torch.get_rng_state(), state)
    assert gradient_alignment(net, *batch()[:2]) == first
    assert [each.training for each in net.modules()] == modes
    assert all(torch.equal(value, before[key]) for key, value in net.state_dict().items())
    for parameter, gradient in zip(net.parameters(), gradients, strict=True):
        assert (parameter.grad is None) == (gradient is None)
        assert gradient is None or (parameter.grad is not None and torch.equal(parameter.grad, gradient))
    assert len(net.blocks) == 3
    # And running statistics are kept again afterwards.
    net.train()(batch().images)
    moved = [key for key, value in net.state_dict().items() if not torch.equal(value, before[key])]
    assert any(key.endswith("running_mean") for key in moved)


def test_without_local_losses_there_is_nothing_to_compare() -> None:
    net = small_net(Decoupling((2, 4), ("linear", "linear")))
    assert gradient_alignment(net.joined(), *batch()[:2]) == {}
    net.drop_heads()
    assert gradient_alignment(net, *batch()[:2]) == {}
