"""Neuron groups: a block split in width into modules that are trained apart (GN-DGL).

The first convolution after a cut (and the shortcut beside it) reads the whole map, and its output channels
fall into G slices; from there on every convolution is grouped, so that a slice depends on nothing but the
parameters of its own. The slices' channels lie side by side, and the next block reads them all.
"""

import contextlib
import copy
from collections.abc import Iterable, Sequence

import torch
from torch import Tensor, nn


class GroupedHeads(nn.Module):
    """One head per group of channels.

    A shared head (Algorithm 2 of GN-DGL) sees the whole map, of which all but its own slice is detached.
    """

    def __init__(self, heads: Iterable[nn.Module], sizes: Sequence[int], *, shared: bool) -> None:
        super().__init__()
        self.heads = nn.ModuleList(heads)
        self.sizes = tuple(sizes)
        self.shared = shared

    def forward(self, features: Tensor) -> tuple[object, ...]:
        slices = torch.split(features, list(self.sizes), dim=1)
        if not self.shared:
            return tuple(head(own) for head, own in zip(self.heads, slices, strict=True))
        constant = [each.detach() for each in slices]
        return tuple(
            head(torch.cat([*constant[:index], slices[index], *constant[index + 1 :]], dim=1))
            for index, head in enumerate(self.heads)
        )


def group_layers(
    layers: Sequence[nn.Module], inputs: Tensor, groups: int, *, first: int = 1, uneven: bool = False
) -> tuple[list[nn.Module], list[int]]:
    """Copies of a block's layers in G groups, and the number of output channels of each.

    Weights of a convolution that becomes grouped are the diagonal blocks of the old ones, times sqrt(G):
    with G times fewer inputs, its outputs keep their variance. `first` is the number of the first layer,
    for messages. Uneven slices, which differ by one, are for blocks of one convolution or linear layer.

    Raises:
        ValueError: if the layers cannot be split so; the message names the layer.
    """
    block = nn.Sequential(*copy.deepcopy(list(layers)))
    mixers = [(name, module) for name, module in block.named_modules() if _mixes(module)]
    entries, outputs = _entries(block, inputs)
    for name, module in mixers:
        layer = f"layer {first + int(name.split('.')[0])}"
        if module in entries:
            _check_slices(layer, _out_chs(module), groups, uneven)
        elif isinstance(module, nn.Conv2d):
            _group(module, layer, groups)
        else:
            raise ValueError(f"groups: {layer} has a {type(module).__name__} behind its first convolution")
    sizes = slice_sizes(outputs.shape[1], groups)
    _insist_on_isolation(block, inputs, sizes, first)
    return list(block), sizes


def slice_sizes(chs: int, groups: int) -> list[int]:
    """The channels of each group; the first ones have one more where groups do not divide the channels."""
    whole, rest = divmod(chs, groups)
    return [whole + (index < rest) for index in range(groups)]


def _mixes(module: nn.Module) -> bool:
    """Whether each output channel reads all input channels."""
    if isinstance(module, nn.Conv2d):
        return module.groups == 1 or module.groups < module.in_channels
    return isinstance(module, nn.Linear)


def _out_chs(module: nn.Module) -> int:
    chs = module.out_channels if isinstance(module, nn.Conv2d) else module.out_features
    assert isinstance(chs, int)
    return chs


def _entries(block: nn.Sequential, inputs: Tensor) -> tuple[set[nn.Module], Tensor]:
    """The mixing modules that read the block's inputs through no other, and the block's outputs.

    Their outputs are made to require a gradient: what depends on one requires a gradient too.
    """
    probe = copy.deepcopy(block).requires_grad_(False).eval()
    names = {module: name for name, module in probe.named_modules()}
    found = set()

    def enter(module: nn.Module, arguments: tuple[Tensor, ...]) -> None:
        if not arguments[0].requires_grad:
            found.add(names[module])

    def leave(module: nn.Module, arguments: tuple[Tensor, ...], outputs: Tensor) -> Tensor:
        return outputs.detach().requires_grad_().clone()  # a clone: an in-place activation may follow

    for module in probe.modules():
        if _mixes(module):
            module.register_forward_pre_hook(enter)
            module.register_forward_hook(leave)
    with torch.enable_grad(), _own_random_state(inputs):
        outputs = probe(inputs.clone())
    own = dict(block.named_modules())
    return {own[name] for name in found}, outputs.detach()


def _check_slices(layer: str, chs: int, groups: int, uneven: bool) -> None:
    if chs % groups and not uneven:
        raise ValueError(
            f"groups: {groups} groups do not divide the {chs} channels of {layer}; choose a divisor "
            "(blocks of a single convolution can have uneven groups, which must be asked for)"
        )
    if chs < groups:
        raise ValueError(f"groups: {layer} has {chs} channels, fewer than {groups} groups")


def _group(conv: nn.Conv2d, layer: str, groups: int) -> None:
    """Make a convolution grouped, in place."""
    if conv.groups % groups == 0:
        return  # it falls apart into finer groups already
    for chs in (conv.in_channels, conv.out_channels):
        _check_slices(layer, chs, groups, uneven=False)
    if groups % conv.groups:
        raise ValueError(
            f"groups: {groups} groups do not fit the {conv.groups} groups that a convolution of {layer} has"
        )
    finer = groups // conv.groups
    rows = conv.weight.detach().chunk(groups)
    blocks = [row.chunk(finer, dim=1)[index % finer] for index, row in enumerate(rows)]
    conv.groups = groups
    conv.weight = nn.Parameter(torch.cat(blocks) * finer**0.5)


def _insist_on_isolation(block: nn.Sequential, inputs: Tensor, sizes: Sequence[int], first: int) -> None:
    """Refuse a block in which a parameter serves two groups, or reaches another group's slice."""
    probe = copy.deepcopy(block).double().eval().requires_grad_()
    with _own_random_state(inputs):
        torch.manual_seed(0)
        for module in probe.modules():
            if isinstance(module, nn.modules.batchnorm._BatchNorm):
                module.reset_running_stats()  # pretrained ones could turn everything negative
        for parameter in probe.parameters():
            nn.init.uniform_(parameter, 0.5, 1.0)  # a zero would hide a path
            if parameter.ndim > 1:
                parameter.data /= parameter[0].numel()
        with torch.enable_grad():
            outputs = probe(torch.rand(inputs.shape, dtype=torch.float64, device=inputs.device))
    parameters = dict(probe.named_parameters())
    if not parameters:
        return
    served = [torch.zeros_like(parameter, dtype=torch.int) for parameter in parameters.values()]
    for part in torch.split(outputs, list(sizes), 1):
        # Inputs and parameters are positive and of order one: no activation is dead, and nothing cancels.
        gradients = torch.autograd.grad(
            part.sum(), list(parameters.values()), retain_graph=True, materialize_grads=True
        )
        for count, gradient in zip(served, gradients, strict=True):
            count += gradient != 0
    for name, count in zip(parameters, served, strict=True):
        if bool((count > 1).any()):
            layer = first + int(name.split(".")[0])
            raise ValueError(
                f"groups: layer {layer} cannot be split into neuron groups, its {name.partition('.')[2]} "
                "serves more than one of them"
            )


def _own_random_state(inputs: Tensor) -> contextlib.AbstractContextManager[None]:
    return torch.random.fork_rng(devices=[inputs.device] if inputs.is_cuda else [])
