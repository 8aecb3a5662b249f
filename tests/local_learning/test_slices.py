"""Groups of a block one by one, against the block that has them all."""

import copy
from collections.abc import Sequence

import pytest
import torch
from torch import Tensor, nn

from local_learning.blocks import Block, DecoupledNet, Outcome
from local_learning.decoupling import Decoupling
from local_learning.features import probe
from local_learning.groups import GroupedHeads, group_layers
from local_learning.losses import CrossEntropy, Grouped, diversity, diversity_share
from local_learning.options import LocalLosses
from local_learning.slices import Slice, slice_layers
from tests.local_learning.nets import batch, equal_to, small_net

NETS = {
    "resnet": ("resnet18", Decoupling((4, 8), ("conv1c2f", "aux2"), 2)),
    "resnet from a block without a shortcut": ("resnet18", Decoupling((1, 5, 8), ("linear",) * 3, 4)),
    "bottlenecks": ("resnet50", Decoupling((2, 5, 16), ("linear", "linear", "conv1c2f"), 4)),
    "vgg": ("vgg6a", Decoupling((1, 2, 3, 4, 5), ("predsim",) * 5, 4)),
    "uneven": ("vgg6a", Decoupling((1, 2, 3, 4, 5), ("conv1c2f",) * 5, 6, uneven=True)),
    "two uneven ones": ("vgg6a", Decoupling((1, 2, 3, 4), ("linear",) * 4, (3, 5, 2, 1, 1), uneven=True)),
    "infopro": ("resnet18", Decoupling((4, 8), ("infopro", "infopro"), 2)),
}
LOSSES = {
    "shared": LocalLosses(),
    "not shared": LocalLosses(shared_heads=False),
    "without diversity": LocalLosses(diversity=0),
    "alone": LocalLosses(shared_heads=False, diversity=0),
}


class Recorded:
    """What all groups say, taken from the block that has them all: first the slices, then the logits."""

    def __init__(self, slices: Sequence[Tensor], logits: Sequence[Tensor]) -> None:
        self._left = [[each.detach().clone() for each in said] for said in (slices, logits)]

    def __call__(self, own: Tensor, sizes: Sequence[int]) -> list[Tensor]:
        said = self._left.pop(0)
        assert not own.requires_grad
        assert [each.shape[1] for each in said] == list(sizes)
        assert any(each.shape == own.shape and torch.allclose(each, own, rtol=0, atol=1e-10) for each in said)
        return said


def grouped_blocks(net: DecoupledNet, images: Tensor) -> list[tuple[Block, Tensor]]:
    """The blocks that are in groups, each with its inputs."""
    found, features = [], images
    for block in net.blocks:
        if isinstance(block.head, GroupedHeads):
            found.append((block, features))
        features = probe(block.layers, features)
    return found


# Two networks have all losses, and each other one has some of them.
PAIRS = [
    *((name, losses) for name in ("resnet", "infopro") for losses in LOSSES),
    *((name, losses) for name in ("bottlenecks", "vgg") for losses in ("shared", "alone")),
    *(("uneven", losses) for losses in ("shared", "without diversity")),
    *(("two uneven ones", losses) for losses in ("not shared", "alone")),
    *(("resnet from a block without a shortcut", losses) for losses in ("not shared", "without diversity")),
]


@pytest.mark.parametrize(("name", "losses"), PAIRS)
def test_groups_are_parts_of_the_block(name: str, losses: str) -> None:
    network, decoupling = NETS[name]
    net = small_net(decoupling, network, options=LOSSES[losses])
    images, targets, _, _ = batch()
    blocks = grouped_blocks(net, images)
    assert blocks
    for block, inputs in blocks:
        head, before = block.head, copy.deepcopy(block)
        assert isinstance(head, GroupedHeads)
        whole = block(inputs, targets, images)
        assert isinstance(whole, Outcome)
        whole.loss.backward()  # type: ignore[no-untyped-call]
        gradients = {key: p.grad for key, p in block.named_parameters()}
        state, seen = block.state_dict(), set()
        total = torch.zeros((), dtype=torch.float64)
        for index in range(len(head.sizes)):
            said = Recorded(torch.split(whole.outputs, list(head.sizes), 1), whole.logits)
            own = Slice(before, index, inputs, said).train()
            found = own(inputs, targets, images)
            assert isinstance(found, Outcome)
            found.loss.backward()  # type: ignore[no-untyped-call]
            total += found.loss.detach()
            assert equal_to([found.outputs, *found.logits], [whole.outputs, whole.logits[index]], 1e-12)
            for key, parameter in own.named_parameters():
                gradient, part = gradients[key], own.rows.get(key, slice(None))
                assert gradient is not None, key
                assert parameter.grad is not None, key
                scale = max(1e-3, float(gradient.abs().max()))
                torch.testing.assert_close(parameter.grad, gradient[part], rtol=0, atol=1e-10 * scale)
            for key, tensor in own.state_dict().items():
                expected = state[key][own.rows[key]] if key in own.rows else state[key]
                torch.testing.assert_close(tensor, expected, rtol=0, atol=1e-12)
                seen.add(key)
        assert seen == state.keys()
        torch.testing.assert_close(total, whole.loss.detach(), rtol=1e-12, atol=0)


@pytest.mark.parametrize("name", NETS)
def test_slices_laid_side_by_side_are_the_block(name: str) -> None:
    network, decoupling = NETS[name]
    net = small_net(decoupling, network)
    for block, inputs in grouped_blocks(net, batch().images):
        assert isinstance(block.head, GroupedHeads)
        sizes = block.head.sizes
        cut = [slice_layers(block.layers, inputs, sizes, index) for index in range(len(sizes))]
        together = [torch.cat(parts) for parts in _rows_of(block.layers, [own for own, _ in cut])]
        assert equal_to(together, [t for t in block.layers.state_dict().values() if t.ndim])
        maps = torch.cat([own.train()(inputs.clone()) for own, _ in cut], dim=1)
        assert equal_to([maps], [block.layers(inputs.clone())], 1e-12)


def _rows_of(whole: nn.Module, parts: Sequence[nn.Module]) -> list[list[Tensor]]:
    states = [part.state_dict() for part in parts]
    return [[state[key] for state in states] for key, t in whole.state_dict().items() if t.ndim]


def test_judging_gives_the_logits_of_all_groups() -> None:
    net = small_net(Decoupling((4, 8), ("conv1c2f", "aux2"), 2)).eval()
    images = batch().images
    for block, inputs in grouped_blocks(net, images):
        assert isinstance(block.head, GroupedHeads)
        features, logits = block.judge(inputs)
        said = Recorded(torch.split(features, list(block.head.sizes), 1), logits)
        found, found_logits = Slice(block, 1, inputs, said).eval().judge(inputs)
        assert equal_to([found, *found_logits], [features, *logits], 1e-12)


def test_shares_of_diversity_add_up() -> None:
    logits = list(torch.randn(3, 6, 5, dtype=torch.float64))
    targets = torch.randint(5, (6,))
    shares = torch.stack([diversity_share(index, logits, targets) for index in range(3)])
    torch.testing.assert_close(shares.sum(), diversity(logits, targets))


class Scaled(nn.Module):
    """Numbers that are not one per channel."""

    def __init__(self) -> None:
        super().__init__()
        self.factor = nn.Parameter(torch.ones(4, 1, 1))

    def forward(self, features: Tensor) -> Tensor:
        return features * self.factor


class Skipping(nn.Module):
    """A shortcut without weights that nobody knows of."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(4, 4, 3, padding=1)

    def forward(self, features: Tensor) -> Tensor:
        added: Tensor = self.conv(features) + features
        return added


@pytest.mark.parametrize(
    ("layers", "complaint"),
    [
        ([nn.Conv2d(4, 4, 1), Scaled()], "layer 8: its Scaled has a factor"),
        ([nn.Conv2d(4, 4, 1), nn.Sequential(nn.ReLU(), Scaled())], "layer 8: 1 Scaled has a factor"),
        ([nn.Conv2d(4, 4, 1), Skipping()], "layer 8 cannot run"),
        ([Skipping()], "layer 7 cannot run"),
        ([nn.Conv2d(4, 4, 1, groups=2)], "layer 7 cannot run"),
    ],
)
def test_what_cannot_run_alone_is_refused(layers: list[nn.Module], complaint: str) -> None:
    inputs = torch.zeros(2, 4, 3, 3)
    grouped, sizes = (layers, [2, 2]) if "Scaled" in complaint else group_layers(layers, inputs, 2)
    if layers[-1].__class__ is Skipping and len(layers) > 1:
        grouped[-1].conv.groups = 1  # type: ignore[union-attr]
        grouped[-1].conv.weight = nn.Parameter(torch.ones(4, 4, 3, 3))  # type: ignore[union-attr]
    with pytest.raises(ValueError, match=complaint):
        slice_layers(nn.Sequential(*grouped), inputs, sizes, 0, first=7)


def test_a_gradient_into_both_groups_is_refused() -> None:
    net = small_net(
        Decoupling((4, 8), ("linear", "linear"), 2), options=LocalLosses(diversity_gradient="released")
    )
    said = Recorded([], [])
    with pytest.raises(ValueError, match="released sends"):
        Slice(net.blocks[0], 0, batch().images, said)
    block = net.blocks[0]
    block.objective = Grouped(CrossEntropy(), 0, stop_gradient=False)  # without weight there is no gradient
    assert Slice(block, 0, batch().images, said).index == 0
