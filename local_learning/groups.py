"""Neuron groups split a block in width into modules that are trained apart (GN-DGL).

The first convolution after a cut (and the shortcut beside it) reads the whole map, and its output channels
fall into G slices. All later convolutions are grouped, so that a slice depends only on its own parameters.
The channels of the slices lie side by side, and the next block reads them all.
"""

import contextlib
import copy
from collections.abc import Iterable, Sequence

import torch
from torch import Tensor, nn


class GroupedHeads(nn.Module):
    """These heads judge one group of channels each.

    With shared heads (Algorithm 2 of GN-DGL) each head sees the whole map, detached except for its own
    slice.
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
        constant = [part.detach() for part in slices]
        return tuple(
            head(torch.cat([*constant[:index], slices[index], *constant[index + 1 :]], dim=1))
            for index, head in enumerate(self.heads)
        )


def group_layers(
    layers: Sequence[nn.Module], inputs: Tensor, groups: int, *, first: int = 1, uneven: bool = False
) -> tuple[list[nn.Module], list[int]]:
    """Return copies of a block's layers, split into groups, and each group's number of output channels.

    Where a convolution becomes grouped, its weights are the diagonal blocks of the old ones times sqrt(G).
    With G times fewer inputs, its outputs then keep their variance.

    Arguments:
        inputs: Inputs that the block could have, to learn its shapes.
        groups: The number of groups, G.
        first: The number of the block's first layer, for messages.
        uneven: Whether groups may differ by one channel, in blocks of one convolution or linear layer.

    Raises:
        ValueError: if the layers cannot be split in this way; the message names the layer.
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
    """Return the channels of each group; where they cannot be equal, the first groups have one more."""
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
    """Return the mixing modules that read the block's inputs through no other one, and the outputs.

    The outputs of mixing modules are made to require a gradient. What depends on one then requires a
    gradient too.
    """
    probe = copy.deepcopy(block).requires_grad_(False).eval()
    names = {module: name for name, module in probe.named_modules()}
    entries = set()

    def enter(module: nn.Module, arguments: tuple[Tensor, ...]) -> None:
        if not arguments[0].requires_grad:
            entries.add(names[module])

    def leave(module: nn.Module, arguments: tuple[Tensor, ...], outputs: Tensor) -> Tensor:
        return outputs.detach().requires_grad_().clone()  # a clone: an in-place activation may follow

    for module in probe.modules():
        if _mixes(module):
            module.register_forward_pre_hook(enter)
            module.register_forward_hook(leave)
    with torch.enable_grad(), _own_random_state(inputs):
        outputs = probe(inputs.clone())
    own = dict(block.named_modules())
    return {own[name] for name in entries}, outputs.detach()


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
        return  # its groups are finer already
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
                module.reset_running_stats()  # pretrained statistics could turn everything negative
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
