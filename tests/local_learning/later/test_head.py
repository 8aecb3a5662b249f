"""Heads made of the network's later layers."""

import copy

import pytest
import torch
from timm.layers.norm import LayerNorm2d
from timm.layers.norm_act import LayerNormAct2d
from torch import Tensor, nn

from local_learning.blocks import DecoupledNet, decouple
from local_learning.catalogue import HEADS
from local_learning.chain import Chain
from local_learning.cuts.profile import measure_costs, module_macs
from local_learning.decoupling import Decoupling
from local_learning.heads import make_head, register_head
from local_learning.later.refresh import Refresh, ways_down
from tests.local_learning.nets import CLASSES, SIZE, batch, small_chain, small_net
from tools.cost import count_macs, count_params

NETWORKS = ["resnet18", "vgg6a", "timm/test_vit", "timm/test_convnext", "timm/test_efficientnet", "mlp"]


def size_of(name: str) -> int:
    return 64 if name.startswith("timm/") else SIZE


def cut(name: str, at: int, head: str) -> DecoupledNet:
    return small_net(Decoupling((at,), (head,)), name)


@pytest.mark.parametrize("name", NETWORKS)
def test_all_later_layers_and_the_block_below_are_the_whole_network(name: str) -> None:
    chain = small_chain(name)
    size, at = size_of(name), max(1, chain.num_layers // 2)
    shape = (3, size, size)
    fresh, copied = cut(name, at, "aug:all"), cut(name, at, "aug:all=copy")
    whole = count_macs(chain, shape)
    assert module_macs(fresh, shape)[0] == whole
    assert module_macs(copied, shape)[0] == whole
    assert count_params(fresh.blocks[0]) == count_params(chain)

    images = batch(size=size).images
    ours, downstream = copied.eval().all_logits(images)
    assert torch.equal(ours[0], downstream[0])
    other, downstream = fresh.eval().all_logits(images)
    assert not torch.allclose(other[0], downstream[0])


@pytest.mark.parametrize("name", NETWORKS)
def test_new_weights_are_as_large_as_those_of_the_layers(name: str) -> None:
    net = cut(name, 1, "aug:all")
    head, chain = net.blocks[0].head, net.chain()
    assert head is not None
    for ours, theirs in zip(
        head.parameters(),
        nn.ModuleList([*chain.layers[1:], chain.classifier]).parameters(),
        strict=True,
    ):
        assert ours.shape == theirs.shape
        assert ours.data_ptr() != theirs.data_ptr()
        if ours.ndim == 1:
            assert torch.equal(ours, theirs)
        elif ours.numel() > 1000:
            assert not torch.equal(ours, theirs)
            assert ours.std().item() == pytest.approx(theirs.std().item(), rel=0.2)


@pytest.mark.parametrize("head", ["aug1", "aug2", "aug:all@0.5", "aug:all/pool", "aug2@0.5/pool=copy"])
@pytest.mark.parametrize(
    "name", ["resnet18", "timm/test_vit", "timm/test_convnext", "timm/test_efficientnet"]
)
def test_a_head_trains_and_is_cheaper_than_all_of_the_later_layers(name: str, head: str) -> None:
    net = cut(name, 2, head)
    shape = (3, size_of(name), size_of(name))
    whole = module_macs(cut(name, 2, "aug:all"), shape)
    assert module_macs(net, shape)[0] < whole[0]
    part = batch(size=shape[1])
    loss, outputs = net.blocks[0].loss(part.images, part.targets, part.images)
    torch.autograd.backward(loss)
    gradients = {name: parameter.grad for name, parameter in net.blocks[0].named_parameters()}
    assert [name for name, grad in gradients.items() if grad is None or not grad.isfinite().all()] == []
    assert not outputs.detach().requires_grad


def test_a_layer_may_be_the_sum_of_a_trained_copy_and_one_that_follows_it() -> None:
    net = cut("resnet18", 3, "aug1+man")
    head, chain = net.blocks[0].head, net.chain()
    assert head is not None
    summed = head.get_submodule("layer8")
    trained, averaged = summed.get_submodule("trained"), summed.get_submodule("averaged")
    for name, parameter in averaged.named_parameters():
        assert not parameter.requires_grad
        assert torch.equal(parameter, chain.layers[7].get_parameter(name))
    assert not torch.equal(trained.get_parameter("conv1.weight"), averaged.get_parameter("conv1.weight"))
    features = torch.randn(4, 64, 4, 4, dtype=torch.float64)
    assert torch.equal(summed(features), trained(features) + averaged(features))

    ways = ways_down(net)
    assert {link.head.split(".")[1:3][1] for links in ways.values() for link in links} == {"averaged"}
    refresh = Refresh(net, ways, range(2), every=1, momentum=0.75)
    before = averaged.get_parameter("conv1.weight").clone()
    with torch.no_grad():
        chain.layers[7].get_parameter("conv1.weight").add_(1)
    refresh.after(0)
    refresh.after(1)
    torch.testing.assert_close(averaged.get_parameter("conv1.weight"), before + 0.25)


def test_layers_that_are_far_apart_are_joined_by_what_fits() -> None:
    """Layers 4 and 8 of a ResNet take 16 and 64 channels of 8 and 2 pixels; what reaches the last has 32."""
    net = cut("resnet18", 2, "aug2")
    head = net.blocks[0].head
    assert head is not None
    names = [name for name, _ in head.named_children()]
    assert names == ["fit5", "layer5", "fit8", "layer8", "classifier"]
    seen: dict[str, tuple[int, ...]] = {}
    for name, part in head.named_children():
        part.register_forward_pre_hook(
            lambda _, inputs, name=name: seen.update({name: tuple(inputs[0].shape[1:])})
        )
    chain = small_chain()
    taken: dict[str, tuple[int, ...]] = {}
    for number, layer in enumerate(chain.layers, start=1):
        layer.register_forward_pre_hook(
            lambda _, inputs, number=number: taken.update({f"layer{number}": tuple(inputs[0].shape[1:])})
        )
    images = batch().images
    net.eval().all_logits(images)
    chain.eval()(images)
    assert {name: seen[name] for name in ("layer5", "layer8")} == {
        name: taken[name] for name in ("layer5", "layer8")
    }


def test_a_copy_at_half_the_width_has_a_quarter_of_the_weights() -> None:
    whole, half = cut("resnet18", 2, "aug:all"), cut("resnet18", 2, "aug:all@0.5")
    heads = [net.blocks[0].head for net in (whole, half)]
    convs = [
        sum(part.weight.numel() for part in head.modules() if isinstance(part, nn.Conv2d))
        for head in heads
        if head is not None
    ]
    assert convs[1] == pytest.approx(convs[0] / 4, rel=0.02)


def test_narrow_copies_keep_the_first_of_the_layers_weights() -> None:
    net = cut("resnet18", 5, "aug:all@0.5=copy")
    head, theirs = net.blocks[0].head, net.chain().layers[7].get_parameter("conv2.weight")
    assert head is not None
    ours = head.get_parameter("layer8.conv2.weight")
    assert torch.allclose(ours, theirs[:32, :32] * 2**0.5)


class InPlace(nn.Module):
    def __init__(self, chs: int) -> None:
        super().__init__()
        self.act, self.conv = nn.ReLU(inplace=True), nn.Conv2d(chs, chs, 3, padding=1)

    def forward(self, features: Tensor) -> Tensor:
        outputs: Tensor = self.conv(self.act(features))
        return outputs


def test_a_head_that_works_in_place_leaves_the_features_to_the_block_above() -> None:
    torch.manual_seed(0)
    classifier = nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, CLASSES))
    chain = Chain([nn.Conv2d(3, 8, 3, padding=1), InPlace(8), InPlace(8)], classifier)
    net = decouple(copy.deepcopy(chain), Decoupling((1,), ("aug:all",)), CLASSES, SIZE)
    images, targets = batch().images.float(), batch().targets
    assert torch.equal(
        net.losses(images, targets)[1],
        decouple(chain, Decoupling((1,), ("linear",)), CLASSES, SIZE).losses(images, targets)[1],
    )


class Normed(nn.Module):
    def __init__(self, chs: int, norm: nn.Module) -> None:
        super().__init__()
        self.conv, self.norm = nn.Conv2d(chs, chs, 3, padding=1), norm

    def forward(self, features: Tensor) -> Tensor:
        outputs: Tensor = self.norm(self.conv(features))
        return outputs


@pytest.mark.parametrize(
    ("norm", "fits"),
    [
        (LayerNormAct2d(16), True),
        (LayerNorm2d(16), True),
        (nn.LayerNorm([16, SIZE, SIZE]), False),
        (nn.GroupNorm(4, 16), True),
        (nn.InstanceNorm2d(16, affine=True), True),
    ],
)
def test_normalisations_of_every_kind(norm: nn.Module, fits: bool) -> None:
    classifier = nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(16, CLASSES))
    layers = [nn.Conv2d(3, 16, 3, padding=1), *(Normed(16, copy.deepcopy(norm)) for _ in range(2))]
    chain = Chain(layers, classifier)
    decouple(chain, Decoupling((1,), ("aug1",)), CLASSES, SIZE)
    if not fits:
        with pytest.raises(ValueError, match="its normalisation is over"):
            decouple(chain, Decoupling((1,), ("aug1@0.5",)), CLASSES, SIZE)
        return
    net = decouple(chain, Decoupling((1,), ("aug1@0.5",)), CLASSES, SIZE).train()
    images, targets = batch().images.float(), batch().targets
    torch.autograd.backward(net.losses(images, targets)[0])


def test_queries_keys_and_values_each_keep_their_first_rows() -> None:
    net = cut("timm/test_vit", 4, "aug1@0.5=copy")
    head = net.blocks[0].head
    assert head is not None
    name = next(name for name, _ in head.named_parameters() if name.endswith("qkv.weight"))
    theirs = net.chain().layers[-1].get_parameter(name.partition(".")[2])
    chs = theirs.shape[1]
    first = [part[: chs // 2, : chs // 2] * 2**0.5 for part in theirs.chunk(3)]
    assert torch.allclose(head.get_parameter(name), torch.cat(first))


def test_costs_of_the_heads_after_each_layer() -> None:
    """By MACs, all later layers and the layers up to a cut are the whole network, whatever the cut."""
    chain = small_chain()
    costs = measure_costs(chain, "aug:all", CLASSES, SIZE, by="macs")
    whole = sum(costs.layers) + costs.classifier
    assert [sum(costs.layers[: index + 1]) + head for index, head in enumerate(costs.heads)] == [whole] * 8


def test_a_users_own_head_may_be_made_of_the_network(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(HEADS, "_rows", dict(HEADS._rows))  # no other test knows it

    @register_head("borrowed")
    def borrowed(in_chs: int, in_size: int, num_classes: int, *, chain: Chain, cut: int) -> nn.Module:
        return nn.Sequential(*copy.deepcopy(list(chain.layers[cut:])), copy.deepcopy(chain.classifier))

    net = cut("resnet18", 3, "borrowed")
    shape = (3, SIZE, SIZE)
    assert module_macs(net, shape)[0] == count_macs(small_chain(), shape)


@pytest.mark.parametrize(
    ("name", "head", "message"),
    [
        ("resnet18", "aug9", r"'aug9' asks for 9 layers above the cut after layer 4, and there are 4"),
        ("resnet18", "aug1@0.001", "leaves none of the 64 channels that layer 8 takes"),
        ("resnet18", "aug3~.5", "has a slope, which goes with uniform:K:aug3~.5"),
        ("timm/test_vit", "aug1@0.3", "layer 6 does not fit: its 2 attention heads do not divide 19"),
    ],
)
def test_a_head_that_does_not_fit_is_one_clear_line(name: str, head: str, message: str) -> None:
    with pytest.raises(ValueError, match=message) as caught:
        cut(name, 4, head)
    assert "\n" not in str(caught.value)


def test_a_head_of_later_layers_needs_the_network() -> None:
    with pytest.raises(ValueError, match="head 'aug1' is made of a network: give the `chain` and the `cut`"):
        make_head("aug1", 16, 8, 10)
