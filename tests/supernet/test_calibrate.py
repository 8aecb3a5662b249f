import copy
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from timm.layers.norm_act import BatchNormAct2d
from torch import Tensor, nn

from local_learning.chain import Chain
from supernet.calibrate import calibrate
from supernet.layers import Conv, MBConv, Op, Skip, parse_op
from supernet.space import Architecture, Fixed, Space, stage
from supernet.supernet import Supernet
from supernet.tail import Tail


class ByHand(nn.Module):
    """BatchNorm by its batch's statistics, which are kept."""

    def __init__(self, norm: nn.BatchNorm2d) -> None:
        super().__init__()
        self.norm, self.means, self.variances = norm, list[Tensor](), list[Tensor]()

    def forward(self, features: Tensor) -> Tensor:
        rows = features.transpose(0, 1).flatten(1)
        count, mean = rows.shape[1], rows.sum(1) / rows.shape[1]
        squares = ((rows - mean[:, None]) ** 2).sum(1)
        self.means.append(mean)
        self.variances.append(squares / (count - 1))
        scale = self.norm.weight / (squares / count + self.norm.eps).sqrt()
        features = (features - mean[:, None, None]) * scale[:, None, None] + self.norm.bias[:, None, None]
        return self.norm.act(features) if isinstance(self.norm, BatchNormAct2d) else features


def by_hand(net: nn.Module) -> dict[str, ByHand]:
    """Replace every BatchNorm; by name."""
    found = {}
    for name, module in list(net.named_modules()):
        if isinstance(module, nn.BatchNorm2d):
            parent, _, last = name.rpartition(".")
            found[name] = ByHand(module)
            setattr(net.get_submodule(parent), last, found[name])
    return found


def chain_of_all_kinds() -> Chain:
    torch.manual_seed(0)
    ops: list[Op] = [
        Conv(3),
        MBConv(3, 2, 0.25),
        Skip(),
        *map(parse_op, ("proj", "shuffle", "ds_k5", "fused_e2")),
    ]
    layers = stage(ops, depth=6, out_chs=8, stride=2, first=(Conv(3),))
    space = Space((Fixed(Conv(3), 4),), tuple(layers), Tail(conv_chs=12, hidden_chs=8, dropout=0.5))
    return Supernet(space).double().extract(Architecture((0, 1, 3, 4, 5, 6)))


def batches(*sizes: int) -> list[tuple[Tensor, Tensor]]:
    rng = torch.Generator().manual_seed(1)
    return [
        (torch.randn(size, 3, 16, 16, generator=rng, dtype=torch.float64) * size, torch.zeros(size))
        for size in sizes
    ]


def statistics(net: nn.Module) -> dict[str, Tensor]:
    return {key: value.clone() for key, value in net.state_dict().items() if "running" in key}


def others(net: nn.Module) -> dict[str, Tensor]:
    return {
        key: value.clone()
        for key, value in net.state_dict().items()
        if "running" not in key and not key.endswith("num_batches_tracked")
    }


def test_statistics_are_means_over_batches_whatever_their_size() -> None:
    chain = chain_of_all_kinds()
    reference = copy.deepcopy(chain).eval()
    norms = by_hand(reference)
    given = batches(2, 7, 3, 16)
    for images, _ in given:
        reference(images)
    calibrate(chain, given)
    assert len(norms) == 14
    for name, norm in norms.items():
        assert len(norm.means) == 4
        calibrated: Any = chain.get_submodule(name)
        mean, var = (torch.stack(each).mean(0) for each in (norm.means, norm.variances))
        torch.testing.assert_close(calibrated.running_mean, mean, rtol=1e-10, atol=1e-12)
        torch.testing.assert_close(calibrated.running_var, var, rtol=1e-10, atol=1e-12)


def test_one_batch_leaves_its_own_statistics() -> None:
    chain = chain_of_all_kinds()
    ((images, _),) = given = batches(8)
    calibrate(chain, given)
    first: Any = chain.layers[0].get_submodule("bn1")
    inputs = chain.layers[0].get_submodule("conv")(images)
    torch.testing.assert_close(first.running_mean, inputs.mean((0, 2, 3)), rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(first.running_var, inputs.var((0, 2, 3)), rtol=1e-12, atol=1e-12)


def test_nothing_but_statistics_changes() -> None:
    chain = chain_of_all_kinds()
    chain.register_buffer("mine", torch.arange(3.0))
    chain.train()
    chain.layers[2].eval()
    norms = [module for module in chain.modules() if isinstance(module, nn.BatchNorm2d)]
    for index, norm in enumerate(norms):
        norm.momentum = None if index == 3 else 0.01 * index
    before, modes = others(chain), [module.training for module in chain.modules()]
    momenta, moved = [norm.momentum for norm in norms], statistics(chain)
    random_state = torch.get_rng_state()
    calibrate(chain, batches(4, 4))
    after = others(chain)
    assert before.keys() == after.keys()
    assert all(torch.equal(before[key], after[key]) for key in before)
    assert [module.training for module in chain.modules()] == modes
    assert [norm.momentum for norm in norms] == momenta
    assert not any(torch.equal(value, moved[key]) for key, value in statistics(chain).items())
    assert all(parameter.grad is None for parameter in chain.parameters())
    assert all(parameter.requires_grad for parameter in chain.parameters())
    # Dropout would have drawn.
    assert torch.equal(torch.get_rng_state(), random_state)


def test_a_second_call_gives_the_same_numbers() -> None:
    chain = chain_of_all_kinds()
    calibrate(chain, batches(4, 6))
    first = {key: value.clone() for key, value in chain.state_dict().items()}
    calibrate(chain, batches(4, 6))
    assert all(torch.equal(value, first[key]) for key, value in chain.state_dict().items())
    # Nor does what was there before count.
    for key, value in chain.state_dict().items():
        if "running" in key:
            value.fill_(7)
    calibrate(chain, batches(4, 6))
    assert all(torch.equal(value, first[key]) for key, value in chain.state_dict().items())


def test_batches_may_be_images_alone_and_come_once() -> None:
    one, other = chain_of_all_kinds(), chain_of_all_kinds()
    given = batches(4, 6)

    def images() -> Iterator[Tensor]:
        for batch, _ in given:
            yield batch.float()

    calibrate(one, [(batch.float().double(), targets, "more") for batch, targets in given])
    calibrate(other, images())  # of another type than the network
    for key, value in statistics(one).items():
        assert torch.equal(value, other.state_dict()[key])


def test_dropout_inside_timms_batchnorm_stays_off() -> None:
    inner = BatchNormAct2d(3, drop_layer=nn.Dropout)
    net = nn.Sequential(inner, nn.BatchNorm2d(3)).double()
    (images, _), *_ = given = batches(8)
    calibrate(net, given)
    normed = (images - images.mean((0, 2, 3), keepdim=True)) / (
        images.var((0, 2, 3), correction=0, keepdim=True) + 1e-5
    ).sqrt()
    second: Any = net[1]
    expected = normed.relu().mean((0, 2, 3))
    torch.testing.assert_close(second.running_mean, expected, rtol=1e-10, atol=1e-12)
    assert inner.drop.training


def test_without_images_it_is_refused() -> None:
    with pytest.raises(ValueError, match="there are no images"):
        calibrate(chain_of_all_kinds(), [])


def test_modes_and_momentum_come_back_after_a_failure() -> None:
    chain = chain_of_all_kinds().train()
    with pytest.raises(RuntimeError):
        calibrate(chain, [torch.zeros(2, 5, 16, 16)])
    assert all(module.training for module in chain.modules())
    assert {module.momentum for module in chain.modules() if isinstance(module, nn.BatchNorm2d)} == {0.1}


def test_networks_without_batchnorm_need_no_images() -> None:
    net = nn.Linear(2, 2)
    weight = net.weight.clone()
    calibrate(net, [])
    assert torch.equal(net.weight, weight)
