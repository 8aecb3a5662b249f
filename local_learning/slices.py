"""One neuron group of a block becomes a module of its own, for a process that trains no other group of it.

A slice consists of rows: each of its tensors is a range, along the first dimension, of the block's tensor.
"""

import copy
from collections.abc import Mapping, Sequence
from typing import Protocol

import torch
from torch import Tensor, nn
from torchvision.models.resnet import BasicBlock, Bottleneck

from local_learning.blocks import Block, Outcome
from local_learning.groups import GroupedHeads, slice_sizes
from local_learning.losses import Grouped, diversity_share, logits_of
from tools.mistake import Mistake


class Exchange(Protocol):
    """An exchange lets the groups of a block see one another's tensors."""

    def __call__(self, own: Tensor, sizes: Sequence[int]) -> list[Tensor]:
        """Return the same tensor of all groups, in their order and without gradients.

        `sizes` are the groups' channels. In all other dimensions the tensors are alike.
        """


class HeadOfSlice(nn.Module):
    """This is one of the heads of `local_learning.groups.GroupedHeads`, with the name that it has there."""

    def __init__(self, heads: GroupedHeads, index: int) -> None:
        super().__init__()
        self.heads = nn.ModuleDict({str(index): heads.heads[index]})
        self.index, self.sizes, self.shared = index, heads.sizes, heads.shared

    def forward(self, features: Tensor) -> object:
        """Return what the head makes of a map in which all slices but its own are constant."""
        head = self.heads[str(self.index)]
        return head(features if self.shared else torch.split(features, list(self.sizes), 1)[self.index])


class Slice(Block):
    """A slice is one group of a grouped block: its rows of all layers, and its head.

    Its outputs are the block's whole map, and its loss is the group's part of the block's loss. Gradients
    of both reach this group only.
    """

    head: HeadOfSlice

    def __init__(
        self, block: Block, index: int, inputs: Tensor, exchange: Exchange, *, first: int = 1
    ) -> None:
        """Take one group out of a block.

        Arguments:
            inputs: Inputs that the block could have.
            first: The number of the block's first layer, for messages.

        Raises:
            ValueError: if a group of the block cannot run by itself; the message names the layer.
        """
        heads, objective = block.head, block.objective
        assert isinstance(heads, GroupedHeads)
        assert isinstance(objective, Grouped)
        if objective.weight and not objective.stop_gradient:
            raise Mistake(
                "local.diversity_gradient",
                "released sends gradients from one neuron group into another, which cannot be "
                "where each has a process of its own",
                "use stopped",
            )
        layers, rows = slice_layers(block.layers, inputs, heads.sizes, index, first=first)
        super().__init__(layers, HeadOfSlice(heads, index), objective, layout=block.layout)
        self.index, self.sizes = index, heads.sizes
        self.rows: Mapping[str, slice] = {f"layers.{name}": stretch for name, stretch in rows.items()}
        """The rows that this group has of the block's tensors, by the tensor's name."""
        self._exchange = exchange

    def forward(
        self,
        inputs: Tensor,
        targets: Tensor | None = None,
        images: Tensor | None = None,
        joined: bool = False,
    ) -> Outcome | Tensor:
        assert targets is not None, "groups learn by their heads"
        assert not joined, "groups are never trained as one network"
        assert images is not None
        features = self._whole(self.layers(inputs))
        outputs = self.read(features)
        logits, objective = logits_of(outputs), self.objective
        assert isinstance(objective, Grouped)
        loss = objective.each(outputs, targets, images)
        if objective.weight:
            others = self._of_all(logits)
            others[self.index] = logits
            loss = loss + objective.weight * diversity_share(self.index, others, targets)
        return Outcome(loss, features, (logits,))

    def judge(self, inputs: Tensor) -> tuple[Tensor, tuple[Tensor, ...]]:
        """Return the whole map of the block, and the logits of each neuron group."""
        features = self._whole(self.layers(inputs))
        return features, tuple(self._of_all(logits_of(self.read(features))))

    def _whole(self, own: Tensor) -> Tensor:
        """Return the map of all groups, in which only this group's slice has a gradient."""
        slices = self._exchange(own.detach(), self.sizes)
        slices[self.index] = own
        return torch.cat(slices, dim=1)

    def _of_all(self, logits: Tensor) -> list[Tensor]:
        return self._exchange(logits.detach(), [logits.shape[1]] * len(self.sizes))


def slice_layers(
    layers: nn.Sequential, inputs: Tensor, sizes: Sequence[int], index: int, *, first: int = 1
) -> tuple[nn.Sequential, dict[str, slice]]:
    """Return a copy of one group's part of a block's layers, and the rows of the block's tensors that it has.

    `local_learning.groups.group_layers` made the layers. A module that reads the whole map keeps some of
    its outputs. A grouped convolution keeps some of its groups. A module with one number per channel keeps
    some of these.

    Arguments:
        sizes: The output channels of each group.
        first: The number of the block's first layer, for messages.

    Raises:
        ValueError: if a group cannot run by itself; the message names the layer.
    """
    own = copy.deepcopy(layers)
    kept: dict[nn.Module, dict[str, slice]] = {}
    for name, module in own.named_modules():
        try:
            kept[module] = _cut(module, len(sizes), index)
        except ValueError as error:
            number, _, inside = name.partition(".")
            raise ValueError(f"groups: layer {first + int(number)}: {inside or 'its'} {error}") from None
    rows = {
        f"{name}.{key}": stretch
        for name, module in own.named_modules(remove_duplicate=False)
        for key, stretch in kept[module].items()
    }
    _insist_on_likeness(layers, own, inputs, sizes, index, first)
    return own, rows


class _Take(nn.Module):
    """This is the shortcut without weights of a group whose block is the first to read the whole map."""

    def __init__(self, index: int, groups: int) -> None:
        super().__init__()
        self.index, self.groups = index, groups

    def forward(self, features: Tensor) -> Tensor:
        return features.tensor_split(self.groups, dim=1)[self.index]


def _cut(module: nn.Module, groups: int, index: int) -> dict[str, slice]:
    """Reduce a module's own tensors to one group's rows, and return which rows these are."""
    if isinstance(module, BasicBlock | Bottleneck) and not module.downsample and module.conv1.groups == 1:
        module.downsample = _Take(index, groups)
    tensors = {**module._parameters, **module._buffers}
    rows = {}
    for key, tensor in tensors.items():
        if tensor is not None and tensor.ndim:
            stretch = _stretch(module, key, tensor, groups, index)
            rows[key] = stretch
            part = tensor.detach()[stretch].clone()
            alive = isinstance(tensor, nn.Parameter)
            setattr(module, key, nn.Parameter(part, tensor.requires_grad) if alive else part)
    if isinstance(module, nn.Conv2d):
        own = _own(module.groups, groups, index)
        if module.groups > 1:
            module.in_channels = module.in_channels // module.groups * len(own)
            module.groups = len(own)
        module.out_channels = len(module.weight)
    elif isinstance(module, nn.Linear):
        module.out_features = len(module.weight)
    elif isinstance(module, nn.modules.batchnorm._BatchNorm):
        module.num_features = len(_own(module.num_features, groups, index))
    return rows


def _stretch(module: nn.Module, key: str, tensor: Tensor, groups: int, index: int) -> slice:
    """Return one group's rows of a tensor."""
    if isinstance(module, nn.Conv2d) and module.groups > 1:
        own, chs = _own(module.groups, groups, index), len(tensor) // module.groups
        return slice(own.start * chs, own.stop * chs)
    if not isinstance(module, nn.Conv2d | nn.Linear) and tensor.ndim > 1:
        raise ValueError(f"{type(module).__name__} has a {key} that is not one number per channel")
    own = _own(len(tensor), groups, index)
    return slice(own.start, own.stop)


def _own(count: int, groups: int, index: int) -> range:
    """Return one group's part of `count` channels, or of `count` finer groups."""
    sizes = slice_sizes(count, groups)
    return range(sum(sizes[:index]), sum(sizes[: index + 1]))


@torch.no_grad()
def _insist_on_likeness(
    whole: nn.Sequential, own: nn.Sequential, inputs: Tensor, sizes: Sequence[int], index: int, first: int
) -> None:
    """Refuse a part that does not give what the whole block gives in the part's channels."""
    whole, own = (copy.deepcopy(layers).double().eval() for layers in (whole, own))
    source = torch.Generator().manual_seed(0)
    # Inputs are positive: a rectifier would hide the path of negative ones.
    expected = torch.rand(inputs.shape, dtype=torch.float64, generator=source).to(inputs.device)
    actual = expected.clone()
    for number, (layer, part) in enumerate(zip(whole, own, strict=True), start=first):
        expected = layer(expected.clone())
        try:
            actual = part(actual.clone())
        except RuntimeError:
            raise ValueError(_unlike(number)) from None
        channels = _own(expected.shape[1], len(sizes), index)
        entered = actual.shape != expected.shape
        wanted = expected[:, channels.start : channels.stop] if entered else expected
        if actual.shape != wanted.shape or not torch.allclose(actual, wanted, rtol=1e-9, atol=1e-9):
            raise ValueError(_unlike(number))
    if actual.shape[1] != sizes[index]:
        raise ValueError(_unlike(first + len(whole) - 1))


def _unlike(layer: int) -> str:
    return f"groups: layer {layer} cannot run in one neuron group alone, away from the others"
