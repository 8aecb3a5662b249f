import copy
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from timm.layers.norm_act import BatchNormAct2d
from torch import Tensor, nn

from local_learning.chain import Chain
from supernet.calibrate import calibrate, gathering, has_statistics
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
    first: Any = chain.layers[0].get_submodule("stem.0.bn1")
    inputs = chain.layers[0].get_submodule("stem.0.conv")(images)
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


# ---- several networks, and other averages --------------------------------------------------------------


def norms_of(net: nn.Module) -> list[nn.BatchNorm2d]:
    return [module for module in net.modules() if isinstance(module, nn.BatchNorm2d)]


@pytest.mark.parametrize("momentum", [0.1, 0.6, 1.0])
def test_with_a_momentum_averages_forget(momentum: float) -> None:
    chain = chain_of_all_kinds()
    for norm in norms_of(chain):  # which must not count
        norm.running_mean = torch.full((norm.num_features,), 9.0, dtype=torch.float64)
        norm.running_var = torch.full((norm.num_features,), 9.0, dtype=torch.float64)
    reference = copy.deepcopy(chain).eval()
    replaced = by_hand(reference)
    given = batches(2, 7, 3)
    with gathering([chain], momentum), torch.no_grad():
        for images, _ in given:
            reference(images)
            chain(images)
    for name, kept in replaced.items():
        mean, var = torch.zeros_like(kept.means[0]), torch.ones_like(kept.means[0])
        for batch_mean, batch_var in zip(kept.means, kept.variances, strict=True):
            mean = (1 - momentum) * mean + momentum * batch_mean
            var = (1 - momentum) * var + momentum * batch_var
        found: Any = chain.get_submodule(name)
        torch.testing.assert_close(found.running_mean, mean, rtol=1e-10, atol=1e-12)
        torch.testing.assert_close(found.running_var, var, rtol=1e-10, atol=1e-12)


def test_several_networks_gather_at_once() -> None:
    one, other, alone = chain_of_all_kinds(), chain_of_all_kinds().eval(), chain_of_all_kinds()
    modes = [[module.training for module in net.modules()] for net in (one, other)]
    for net, momentum in ((one, 0.2), (other, 0.3)):
        for norm in norms_of(net):
            norm.momentum = momentum
    # One comes twice, and a part of it once more: in no order are modes and momenta forgotten.
    with gathering(net for net in (one, one.layers[1], other, one)), torch.no_grad():
        for images, _ in batches(4, 6):
            one(images)
            other(images * 2)
    assert [[module.training for module in net.modules()] for net in (one, other)] == modes
    assert {norm.momentum for norm in norms_of(one)} == {0.2}
    assert {norm.momentum for norm in norms_of(other)} == {0.3}
    calibrate(alone, batches(4, 6))
    expected = alone.state_dict()
    assert all(torch.equal(value, expected[key]) for key, value in one.state_dict().items())
    calibrate(alone, [images * 2 for images, _ in batches(4, 6)])
    expected = alone.state_dict()
    assert all(torch.equal(value, expected[key]) for key, value in other.state_dict().items())


@pytest.mark.parametrize("momentum", [None, 0.25])
def test_inside_nothing_but_batchnorm_is_in_training_mode(momentum: float | None) -> None:
    chain = chain_of_all_kinds()
    with gathering([chain], momentum):
        for module in chain.modules():
            assert module.training == isinstance(module, nn.BatchNorm2d)
        assert {norm.momentum for norm in norms_of(chain)} == {momentum}
        for norm in norms_of(chain):
            assert norm.running_mean is not None
            assert norm.running_var is not None
            assert not norm.running_mean.any()
            assert torch.equal(norm.running_var, torch.ones_like(norm.running_var))
            assert norm.num_batches_tracked == 0
    assert all(module.training for module in chain.modules())


def test_what_fails_inside_leaves_modes_and_momenta() -> None:
    chain = chain_of_all_kinds()
    chain.layers[1].eval()
    modes = [module.training for module in chain.modules()]
    with pytest.raises(RuntimeError), gathering([chain, chain], 0.5):
        chain(torch.zeros(2, 5, 16, 16))
    assert [module.training for module in chain.modules()] == modes
    assert {norm.momentum for norm in norms_of(chain)} == {0.1}


def test_no_networks_to_gather_for() -> None:
    with gathering([]):
        pass
    with gathering([nn.ReLU(), nn.Linear(2, 2)], 0.1):
        pass


def test_layers_that_keep_no_statistics_still_normalise_by_the_batch() -> None:
    own = nn.BatchNorm2d(3, track_running_stats=False).double()
    net = nn.Sequential(own, nn.Conv2d(3, 3, 1).double()).eval()
    ((images, _),) = batches(8)
    with gathering([net], 0.3):
        normed: Tensor = own(images)
        torch.testing.assert_close(normed.mean((0, 2, 3)), torch.zeros(3, dtype=torch.float64))
    assert own.running_mean is None
    assert own.momentum == 0.1
    assert not own.training


def test_has_statistics() -> None:
    assert has_statistics(chain_of_all_kinds())
    assert has_statistics(nn.Sequential(nn.Sequential(BatchNormAct2d(3))))
    assert not has_statistics(nn.Sequential(nn.Conv2d(3, 3, 1), nn.GroupNorm(1, 3)))


class Shaking(nn.Module):
    """One of those that do more in `train` than set a flag."""

    def __init__(self) -> None:
        super().__init__()
        self.weight, self.shakes = nn.Parameter(torch.ones(1)), True

    def train(self, mode: bool = True) -> "Shaking":
        self.shakes = mode
        return super().train(mode)

    def forward(self, features: Tensor) -> Tensor:
        return features + torch.randn_like(features) if self.shakes else features


def test_what_does_more_in_train_than_set_a_flag_is_still_meanwhile_too() -> None:
    shaking = Shaking()
    norm = nn.BatchNorm2d(3)
    net = nn.Sequential(shaking, norm).double().train()
    ((images, _),) = given = batches(8)
    calibrate(net, given)
    torch.testing.assert_close(norm.running_mean, images.mean((0, 2, 3)), rtol=1e-10, atol=1e-12)
    assert shaking.shakes, "and as it was afterwards"
    assert shaking.training
