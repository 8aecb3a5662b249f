"""Neuron groups against narrow networks, built by hand and trained apart."""

import copy
from collections.abc import Sequence

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torchvision.models.resnet import BasicBlock, Bottleneck

from local_learning.blocks import Block, DecoupledNet, decouple
from local_learning.chain import Chain
from local_learning.decoupling import Decoupling
from local_learning.groups import GroupedHeads, group_layers
from local_learning.losses import CrossEntropy, Grouped
from local_learning.options import LocalLosses
from tests.local_learning.nets import CLASSES, SIZE, batch, equal_to, small_chain, small_net

APART = LocalLosses(shared_heads=False, diversity=0)


# ---- narrow networks -----------------------------------------------------------------------------------

ENTRIES = {"stem.conv", "conv1", "downsample.0", "conv", "fc"}
"""What reads the whole map in the first layer of a block, by its name in that layer."""


class Take(nn.Module):
    """The shortcut that has no weights: a group goes on from its own slice of the map."""

    def __init__(self, index: int, groups: int) -> None:
        super().__init__()
        self.index, self.groups = index, groups

    def forward(self, features: Tensor) -> Tensor:
        return features.tensor_split(self.groups, dim=1)[self.index]


def narrow(layer: nn.Module, index: int, groups: int, *, first: bool) -> nn.Module:
    """A small dense layer that has the weights of one group."""
    layer = copy.deepcopy(layer)
    for name, module in list(layer.named_modules()):
        if isinstance(module, nn.BatchNorm2d):
            layer.set_submodule(name, narrow_norm(module, index, groups))
        elif isinstance(module, nn.Conv2d | nn.Linear):
            whole = first and name in ENTRIES
            layer.set_submodule(name, narrow_product(module, index, groups, whole=whole))
    if first and isinstance(layer, BasicBlock | Bottleneck) and layer.downsample is None:
        layer.downsample = Take(index, groups)
    return layer


def narrow_product(module: nn.Conv2d | nn.Linear, index: int, groups: int, *, whole: bool) -> nn.Module:
    weight = module.weight.detach().tensor_split(groups)[index]
    if not whole:
        weight = weight.tensor_split(groups, dim=1)[index] * groups**0.5
    made: nn.Conv2d | nn.Linear
    if isinstance(module, nn.Conv2d):
        size, stride, padding = module.kernel_size[0], module.stride[0], module.padding[0]
        assert not isinstance(padding, str)
        has_bias = module.bias is not None
        made = nn.Conv2d(weight.shape[1], weight.shape[0], size, stride, padding, bias=has_bias)
    else:
        made = nn.Linear(weight.shape[1], weight.shape[0])
    made.weight = nn.Parameter(weight.clone())
    if module.bias is not None:
        made.bias = nn.Parameter(module.bias.detach().tensor_split(groups)[index].clone())
    return made


def narrow_norm(module: nn.BatchNorm2d, index: int, groups: int) -> nn.Module:
    chs = len(module.weight.tensor_split(groups)[index])
    made = nn.BatchNorm2d(chs).double()
    parts = {key: t.tensor_split(groups)[index] if t.ndim else t for key, t in module.state_dict().items()}
    made.load_state_dict(parts)
    return made


def as_a_map(features: Tensor) -> Tensor:
    return features if features.ndim == 4 else features[:, :, None, None]


def rows_of(tensor: Tensor, index: int, groups: int) -> Tensor:
    """A group's slice of a parameter, a gradient or a buffer of the trunk: all have outputs first."""
    return tensor.tensor_split(groups)[index] if tensor.ndim else tensor


NARROW = [
    ("resnet18", 0.125, Decoupling((4, 8), ("linear", "linear"), 2)),
    ("resnet18", 0.125, Decoupling((5, 8), ("conv1c2f", "aux2"), 4)),  # from a block without a shortcut
    ("resnet18", 0.25, Decoupling((1, 4, 8), ("linear",) * 3, (4, 1, 2, 1))),
    ("resnet50", 0.125, Decoupling((2, 16), ("linear", "linear"), 4)),
    ("vgg6a", 0.125, Decoupling((1, 2, 3, 4, 5), ("linear",) * 5, 4)),
    ("vgg6a", 0.125, Decoupling((1, 2, 3, 4, 5), ("linear",) * 5, 6, uneven=True)),  # of 16, 32, 64, 128
    ("vgg6a", 0.125, Decoupling((1, 2, 3, 4), ("linear",) * 4, (2, 4, 2, 1, 1))),
    ("vgg6a", 0.125, Decoupling((1, 2, 4), ("conv1c2f",) * 3, (3, 6, 2, 1), uneven=True)),
]


@pytest.mark.parametrize(("name", "width", "decoupling"), NARROW)
def test_groups_are_narrow_networks_trained_apart(name: str, width: float, decoupling: Decoupling) -> None:
    net = small_net(decoupling, name, width=width, options=APART)
    chain = small_chain(name, width).train()  # with the weights that the net started from
    images, targets, *_ = batch()
    heads = [copy.deepcopy(block.head) for block in net.blocks]
    losses = net.losses(images, targets)
    torch.autograd.backward(losses)
    inputs = images
    for k, (block, layers) in enumerate(zip(net.blocks, decoupling.blocks(chain.num_layers), strict=True)):
        groups = decoupling.groups_of(chain.num_layers)[k]
        own = heads[k]
        group_heads = own.heads if isinstance(own, GroupedHeads) else [own]
        assert len(group_heads) == groups
        outputs, total = [], torch.zeros((), dtype=torch.float64)
        for index, head in enumerate(group_heads):
            assert head is not None
            trunk = nn.Sequential(
                *(narrow(chain.layers[at], index, groups, first=at == layers.start) for at in layers)
            ).train()
            outputs.append(trunk(inputs))
            read = outputs[-1] if k == len(heads) - 1 else as_a_map(outputs[-1])
            loss = F.cross_entropy(head(read), targets)
            torch.autograd.backward(loss)
            total = total + loss.detach()
            ours, theirs = dict(block.layers.named_parameters()), dict(trunk.named_parameters())
            assert ours.keys() == theirs.keys()
            for key, parameter in ours.items():
                assert parameter.grad is not None
                found = rows_of(parameter.grad, index, groups)
                torch.testing.assert_close(found, theirs[key].grad, rtol=1e-10, atol=1e-12)
            statistics = dict(block.layers.named_buffers())
            for key, buffer in trunk.named_buffers():
                assert torch.allclose(rows_of(statistics[key], index, groups), buffer, rtol=1e-12)
        whole = nn.ModuleList(head for head in group_heads if head is not None)
        theirs = dict(whole.named_parameters())
        assert block.head is not None
        mine = block.head.heads if isinstance(block.head, GroupedHeads) else nn.ModuleList([block.head])
        for key, parameter in mine.named_parameters():
            torch.testing.assert_close(parameter.grad, theirs[key].grad, rtol=1e-10, atol=1e-12)
        torch.testing.assert_close(losses[k].detach(), total, rtol=1e-12, atol=0)
        with torch.no_grad():
            features = block.layers(inputs)
        inputs = torch.cat(outputs, dim=1).detach()
        torch.testing.assert_close(features, inputs, rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("shared", [False, True])
def test_one_group_is_no_group(shared: bool) -> None:
    block = small_net(Decoupling((3,), ("aux2",))).blocks[0]
    images, targets, *_ = batch()
    layers, sizes = group_layers(list(block.layers), images, 1)
    heads = GroupedHeads([copy.deepcopy(block.head or nn.Identity())], sizes, shared=shared)
    alone = Block(layers, heads, Grouped(CrossEntropy(), 0.5)).train()
    found, expected = (each(images, targets, images) for each in (alone, block))
    assert torch.equal(found.outputs, expected.outputs)
    assert torch.equal(found.loss, expected.loss)
    for outcome in (found, expected):
        torch.autograd.backward(outcome.loss)
    for parameter, other in zip(alone.parameters(), block.parameters(), strict=True):
        assert parameter.grad is not None
        assert other.grad is not None
        assert torch.equal(parameter.grad, other.grad)


def test_groups_of_one_are_the_greedy_net() -> None:
    cuts, heads = (2, 4, 8), ("linear", "aux1", "aux2")
    net = small_net(Decoupling(cuts, heads, (1, 1, 1, 1)))
    greedy = small_net(Decoupling(cuts, heads))
    for each in (net, greedy):
        torch.autograd.backward(each.losses(*batch()[:2]))
    assert net.losses(*batch()[:2]) == greedy.losses(*batch()[:2])
    for (name, one), (other_name, other) in zip(
        net.named_parameters(), greedy.named_parameters(), strict=True
    ):
        assert name == other_name
        assert one.grad is not None
        assert other.grad is not None
        assert torch.equal(one.grad, other.grad)


# ---- isolation -----------------------------------------------------------------------------------------


def loss_of_group(block: Block, index: int, inputs: Tensor) -> Tensor:
    """What a group on a device of its own minimises: the others' outputs are constants that it is sent."""
    _, targets, *_ = batch()
    outputs = block.read(block.layers(inputs))
    own = [logits if each == index else logits.detach() for each, logits in enumerate(outputs)]
    loss: Tensor = block.objective(own, targets, inputs)
    return loss


def check_isolation(block: Block, inputs: Tensor, *, alive: bool = True) -> None:
    """No group's loss reaches another group's slice; together these losses are the block's."""
    _, targets, *_ = batch()
    heads = block.head
    assert isinstance(heads, GroupedHeads)
    groups = len(heads.sizes)
    trunk, own_heads = list(block.layers.parameters()), list(heads.heads.parameters())
    total = torch.autograd.grad(block(inputs, targets, inputs).loss, trunk)
    for index in range(groups):
        loss = loss_of_group(block, index, inputs)
        gradients = torch.autograd.grad(
            loss, trunk + own_heads, retain_graph=True, allow_unused=True, materialize_grads=True
        )
        for gradient, summed in zip(gradients[: len(trunk)], total, strict=True):
            for other in range(groups):
                part = rows_of(gradient, other, groups)
                if other != index:
                    assert not part.any()
                else:
                    assert part.any() or not alive
                    expected = rows_of(summed, index, groups)
                    assert torch.allclose(part, expected, rtol=1e-10, atol=1e-10 * float(part.abs().max()))
        mine = set(map(id, heads.heads[index].parameters()))
        for parameter, gradient in zip(own_heads, gradients[len(trunk) :], strict=True):
            assert bool(gradient.any()) == (id(parameter) in mine)


@pytest.mark.parametrize(
    ("groups", "shared", "diversity"), [(2, False, 0.0), (2, True, 0.5), (4, True, 0.0), (4, False, 0.5)]
)
def test_a_groups_loss_stays_in_its_slice(groups: int, shared: bool, diversity: float) -> None:
    options = LocalLosses(shared_heads=shared, diversity=diversity)
    net = small_net(Decoupling((3, 8), ("linear", "conv1c2f"), groups), options=options)
    inputs = batch().images
    for block in net.blocks[:-1]:
        check_isolation(block, inputs)
        inputs = block.layers(inputs).detach()


@pytest.mark.parametrize(
    ("name", "size", "cuts", "groups"),
    [
        ("resnet50", 16, (3, 16), 4),
        ("vgg19", 32, (8, 16), 4),
        ("timm/test_resnet", 64, (2,), 2),
        ("timm/test_efficientnet", 64, (3,), 4),
        ("timm/mobilenetv3_small_050", 64, (3, 8), 4),
    ],
)
def test_other_networks_fall_apart_as_well(name: str, size: int, cuts: tuple[int, ...], groups: int) -> None:
    net = small_net(Decoupling(cuts, ("linear",) * len(cuts), groups), name)
    inputs = batch(size=size).images
    for block in net.blocks[:-1]:
        # Some of timm's BatchNorms start from 0, and nothing gets through them.
        check_isolation(block, inputs, alive=not name.startswith("timm/"))
        inputs = block.layers(inputs).detach()
    losses = net.losses(batch(size=size).images, batch().targets)
    assert all(loss.isfinite() for loss in losses)


def test_a_shared_head_reads_the_whole_map_and_answers_to_its_own_slice() -> None:
    groups = 4
    net = small_net(Decoupling((3, 8), ("linear", "predsim"), groups))
    inputs = batch().images
    for block in net.blocks[:-1]:
        heads = block.head
        assert isinstance(heads, GroupedHeads)
        seen: list[Tensor] = []
        hooks = [
            head.register_forward_pre_hook(lambda _, arguments, seen=seen: seen.append(arguments[0]))
            for head in heads.heads
        ]
        features = block.layers(inputs)
        logits = block.logits(features)
        assert len(seen) == groups
        for index in range(groups):
            assert torch.equal(seen[index], features)
            (gradient,) = torch.autograd.grad((logits[index] ** 2).sum(), features, retain_graph=True)
            for other, part in enumerate(gradient.tensor_split(groups, dim=1)):
                assert bool(part.any()) == (other == index)
        for hook in hooks:
            hook.remove()
        inputs = features.detach()


def test_groups_meet_at_the_first_convolution_of_a_block_and_nowhere_else() -> None:
    groups = 4
    net = small_net(Decoupling((4, 8), ("linear", "linear"), groups))
    images = batch().images
    features = net.blocks[0].layers(images).detach()
    for block, inputs in zip(net.blocks[:2], (images, features), strict=True):
        outputs = block.layers(inputs).detach().tensor_split(groups, dim=1)
        for changed in range(groups):
            apart = copy.deepcopy(block)
            for parameter in apart.layers.parameters():
                rows_of(parameter.data, changed, groups).mul_(1.5).add_(0.1)
            found = apart.layers(inputs).tensor_split(groups, dim=1)
            for index in range(groups):
                assert torch.equal(found[index], outputs[index]) == (index != changed)
    outputs = net.blocks[1].layers(features).detach().tensor_split(groups, dim=1)
    for changed in range(groups):
        other = features.clone()
        other.tensor_split(groups, dim=1)[changed].mul_(1.5).add_(0.1)
        found = net.blocks[1].layers(other).tensor_split(groups, dim=1)
        assert not any(torch.equal(found[index], outputs[index]) for index in range(groups))


# ---- losses and initial weights ------------------------------------------------------------------------


def gradients(**options: object) -> list[Tensor]:
    net = small_net(
        Decoupling((4, 8), ("linear", "linear"), 4),
        options=LocalLosses(**options),  # type: ignore[arg-type]
    )
    torch.autograd.backward(net.losses(*batch()[:2]))
    return [parameter.grad for parameter in net.blocks[:-1].parameters() if parameter.grad is not None]  # type: ignore[attr-defined]


@pytest.mark.parametrize("shared", [False, True])
def test_the_released_diversity_has_twice_the_gradient(shared: bool) -> None:
    plain, stopped, released = (
        gradients(shared_heads=shared, diversity=weight, diversity_gradient=kind)
        for weight, kind in ((0.0, "stopped"), (0.5, "stopped"), (0.5, "released"))
    )
    once = [one - base for one, base in zip(stopped, plain, strict=True)]
    twice = [one - base for one, base in zip(released, plain, strict=True)]
    assert max(float(each.abs().max()) for each in once) > 1e-4
    for one, other in zip(once, twice, strict=True):
        torch.testing.assert_close(other, 2 * one, rtol=1e-9, atol=1e-12)


def test_a_blocks_loss_is_the_sum_over_groups_and_half_the_mean_cosine() -> None:
    net = small_net(Decoupling((8,), ("linear",), 4))
    images, targets, *_ = batch()
    outcome = net.blocks[0](images, targets, images)
    expected = torch.stack([F.cross_entropy(logits, targets) for logits in outcome.logits]).sum()
    wrong = [(logits / 3).softmax(1) * (1 - F.one_hot(targets, CLASSES)) for logits in outcome.logits]
    cosines = [F.cosine_similarity(wrong[i], wrong[j]).mean() for i in range(4) for j in range(4) if i != j]
    expected = expected + 0.5 * torch.stack(cosines).mean()
    torch.testing.assert_close(outcome.loss, expected, rtol=1e-12, atol=0)


@pytest.mark.parametrize("groups", [2, 4, 8])
def test_outputs_of_a_grouped_convolution_vary_as_those_of_the_dense_one(groups: int) -> None:
    torch.manual_seed(0)
    layers = [nn.Conv2d(3, 64, 3, padding=1, bias=False), nn.Conv2d(64, 64, 3, padding=1, bias=False)]
    (entry, inner), _ = group_layers(layers, torch.randn(2, 3, 8, 8), groups)
    assert torch.equal(next(entry.parameters()), layers[0].weight)
    assert isinstance(inner, nn.Conv2d)
    assert (inner.groups, tuple(inner.weight.shape)) == (groups, (64, 64 // groups, 3, 3))
    inputs = torch.randn(64, 64, 8, 8)
    assert float((inner(inputs).var() / layers[1](inputs).var()).detach()) == pytest.approx(1, rel=0.1)


def test_convolutions_with_groups_of_their_own() -> None:
    """Their groups are split further, or belong to the neuron groups as they are."""
    torch.manual_seed(0)
    first = nn.Conv2d(3, 16, 3)
    for own, groups, expected in ((2, 4, 4), (4, 2, 4), (4, 4, 4), (16, 4, 16), (2, 8, 8)):
        dense = nn.Conv2d(16, 32, 1, groups=own, bias=False)
        (_, found), _ = group_layers([first, dense], torch.randn(2, 3, 8, 8), groups)
        assert isinstance(found, nn.Conv2d)
        assert found.groups == expected
        # Both as the full matrix: what remains of the dense one's is its diagonal, scaled.
        whole, kept = (
            torch.block_diag(*conv.weight[:, :, 0, 0].chunk(conv.groups))  # type: ignore[no-untyped-call]
            for conv in (dense, found)
        )
        scale = (expected / own) ** 0.5
        assert torch.allclose(kept, torch.where(kept != 0, whole * scale, torch.zeros(())), rtol=1e-6)
        assert int((kept != 0).sum()) == 32 * 16 // expected


def test_the_chain_and_the_random_numbers_are_left_alone() -> None:
    chain = small_chain().train()
    chain.layers[2].eval()
    before, modes = copy.deepcopy(chain.state_dict()), [each.training for each in chain.modules()]
    state = torch.get_rng_state()
    group_layers(list(chain.layers), batch().images, 4)
    assert torch.equal(torch.get_rng_state(), state)
    net = decouple(chain, Decoupling((4, 8), ("linear", "linear"), 4), CLASSES, SIZE)
    with torch.no_grad():
        for parameter in net.blocks[0].parameters():
            parameter.add_(1)
    assert [each.training for each in chain.modules()] == modes
    assert all(each.groups == 1 for each in chain.modules() if isinstance(each, nn.Conv2d))
    for key, value in chain.state_dict().items():
        assert torch.equal(value, before[key])
    assert net.blocks[-1].head is chain.classifier


def test_a_frozen_layer_and_an_activation_in_place_are_no_obstacle() -> None:
    class InPlace(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.one, self.other = nn.Conv2d(3, 8, 3), nn.Conv2d(8, 8, 3)

        def forward(self, images: Tensor) -> Tensor:
            found: Tensor = self.other(F.relu_(self.one(images)))
            return F.relu_(found)

    layer = InPlace()
    layer.one.requires_grad_(False)
    inputs = torch.randn(2, 3, 8, 8)
    kept = inputs.clone()
    (found,), sizes = group_layers([nn.ReLU(inplace=True), layer], inputs, 4)[0][1:], [2] * 4
    assert isinstance(found, InPlace)
    assert found.other.groups == 4
    assert sizes == group_layers([layer], inputs, 4)[1]
    assert [parameter.requires_grad for parameter in found.one.parameters()] == [False, False]
    assert torch.equal(inputs, kept)


# ---- what cannot be split ------------------------------------------------------------------------------


def of_convs(*layers: Sequence[nn.Module] | nn.Module) -> Chain:
    torch.manual_seed(0)
    made = [each if isinstance(each, nn.Module) else nn.Sequential(*each) for each in layers]
    head = nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.LazyLinear(CLASSES))
    chain = Chain(made, head)
    chain(torch.randn(2, 3, SIZE, SIZE))
    return chain.double()


def conv(in_chs: int, out_chs: int) -> list[nn.Module]:
    return [nn.Conv2d(in_chs, out_chs, 3, padding=1), nn.BatchNorm2d(out_chs), nn.ReLU(inplace=True)]


def split(chain: Chain, *, cuts: tuple[int, ...] = (), groups: int = 2, uneven: bool = False) -> DecoupledNet:
    cuts = cuts or (chain.num_layers,)
    return decouple(chain, Decoupling(cuts, ("linear",) * len(cuts), groups, uneven=uneven), CLASSES, SIZE)


@pytest.mark.parametrize(
    ("groups", "cuts", "uneven", "message"),
    [
        (3, (4, 8), False, "3 groups do not divide the 8 channels of layer 1"),
        (3, (4, 8), True, "3 groups do not divide the 8 channels of layer 1"),
        (16, (4, 8), False, "16 groups do not divide the 8 channels of layer 1"),
    ],
)
def test_groups_that_do_not_divide_the_channels(
    groups: int, cuts: tuple[int, ...], uneven: bool, message: str
) -> None:
    with pytest.raises(ValueError, match=f"^groups: {message}"):
        split(small_chain(), cuts=cuts, groups=groups, uneven=uneven)


def test_the_layer_that_is_named_is_the_networks_not_the_blocks() -> None:
    chain = of_convs(conv(3, 12), conv(12, 12), conv(12, 12), conv(12, 8))
    with pytest.raises(ValueError, match=r"^groups: 3 groups do not divide the 8 channels of layer 4"):
        split(chain, cuts=(2, 4), groups=3)


def test_more_groups_than_channels() -> None:
    with pytest.raises(ValueError, match=r"^groups: layer 1 has 16 channels, fewer than 17 groups"):
        split(small_chain("vgg6a"), cuts=(1,), groups=17, uneven=True)
    net = split(small_chain("vgg6a"), cuts=(1,), groups=16, uneven=True)
    assert net.blocks[0].head is not None


@pytest.mark.parametrize("name", ["timm/test_vit", "timm/test_convnext"])
@pytest.mark.parametrize("cut", [1, 2])
def test_layernorm_and_linear_layers_tie_groups_together(name: str, cut: int) -> None:
    chain = small_chain(name)
    with pytest.raises(ValueError, match=r"^groups: layer \d+ "):
        decouple(chain, Decoupling((cut,), ("linear",), 2), CLASSES, 64)


def test_a_linear_layer_behind_the_first_convolution() -> None:
    with pytest.raises(ValueError, match=r"^groups: layer 5 has a Linear behind its first convolution"):
        split(small_chain("vgg6a"), cuts=(3, 5))


@pytest.mark.parametrize(("groups", "shuffle"), [(2, 2), (4, 4), (4, 2), (8, 8)])
def test_a_channel_shuffle_mixes_groups(groups: int, shuffle: int) -> None:
    """Also where the first group and the last one stay apart."""
    between = of_convs(conv(3, 16), conv(16, 16), [nn.ChannelShuffle(shuffle)], conv(16, 16))
    behind = of_convs(conv(3, 16), [*conv(16, 16), nn.ChannelShuffle(shuffle)])
    for chain in (between, behind):
        with pytest.raises(ValueError, match=r"^groups: layer \d cannot be split into neuron groups, its "):
            split(chain, groups=groups)


def test_trained_statistics_do_not_hide_what_mixes_groups() -> None:
    chain = of_convs(conv(3, 16), conv(16, 16), [nn.ChannelShuffle(2)])
    for module in chain.modules():
        if isinstance(module, nn.BatchNorm2d):
            assert module.running_mean is not None
            module.running_mean.fill_(100)  # with which ReLU is 0 everywhere
    with pytest.raises(ValueError, match=r"^groups: layer \d cannot be split"):
        split(chain)


def test_a_parameter_in_front_of_the_first_convolution_serves_all_groups() -> None:
    chain = of_convs(conv(3, 16), [nn.BatchNorm2d(16), nn.Conv2d(16, 16, 3, padding=1)])
    with pytest.raises(ValueError, match=r"^groups: layer 2 cannot be split into neuron groups, its 0\.wei"):
        split(chain, cuts=(1, 2))
    split(chain, cuts=(2,))  # where it is inside a block it is nobody else's


def test_norms_over_channels_hold_where_they_keep_to_the_groups() -> None:
    inputs = torch.randn(2, 3, 8, 8)

    def layers(norm_groups: int) -> list[nn.Module]:
        return [nn.Conv2d(3, 8, 3), nn.GroupNorm(norm_groups, 8), nn.ReLU(), nn.Conv2d(8, 8, 3)]

    for norm_groups in (2, 4):
        assert group_layers(layers(norm_groups), inputs, 2)[1] == [4, 4]
    with pytest.raises(ValueError, match=r"^groups: layer 1 cannot be split into neuron groups, its weight"):
        group_layers(layers(1), inputs, 2)


def test_groups_that_do_not_fit_those_of_a_convolution() -> None:
    layers = [nn.Conv2d(3, 12, 3), nn.Conv2d(12, 12, 3, groups=3)]
    with pytest.raises(
        ValueError, match=r"^groups: 2 groups do not fit the 3 groups that a convolution of l"
    ):
        group_layers(layers, torch.randn(2, 3, 8, 8), 2)


def test_copies_are_equal_where_nothing_was_scaled() -> None:
    """Everything but the inner convolutions starts as in the chain."""
    chain = small_chain()
    net = decouple(chain, Decoupling((8,), ("linear",), 2), CLASSES, SIZE)
    inner = {
        name for name, module in net.blocks[0].layers.named_modules() if getattr(module, "groups", 1) > 1
    }
    assert len(inner) == len([each for each in chain.modules() if isinstance(each, nn.Conv2d)]) - 1
    for (name, one), other in zip(
        net.blocks[0].layers.state_dict().items(), chain.layers.state_dict().values(), strict=True
    ):
        if name.rpartition(".")[0] not in inner:
            assert equal_to([one.double()], [other.double()])
