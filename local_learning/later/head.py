"""A head is made of copies of the network's own later layers and its classifier (AugLocal)."""

import copy
from collections import OrderedDict
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from local_learning.chain import Chain
from local_learning.features import as_map, layout_of, map_shape, probe
from local_learning.later.renewed import narrowed, redraw
from local_learning.later.request import parse_later
from local_learning.networks.init import initialise
from tools.options.catalogue import by_name

Shape = tuple[int, ...]


def shapes_after(chain: Chain, image_shape: Sequence[int]) -> list[Shape]:
    """Return the shape of what each layer gives, for two images."""
    reference = next(chain.parameters())
    features = torch.zeros(2, *image_shape).to(reference)
    shapes = []
    for layer in chain.layers:
        features = probe([layer], features)
        shapes.append(tuple(features.shape))
    return shapes


@by_name
def later_head(
    in_chs: int,
    in_size: int,
    num_classes: int,
    *,
    kind: str,
    chain: Chain,
    cut: int,
    shapes: Sequence[Shape],
) -> nn.Module:
    """Make the head that `kind` names for a cut of a chain.

    The head has the layers `layer<number>` and the classifier. Where what reaches one of them has not the
    size and the channels that it takes, a part `fit<number>` comes before it.

    Arguments:
        in_chs: The channels of the features that the head reads.
        shapes: What each layer of the chain gives, as `shapes_after` returns it.

    Raises:
        ValueError: if a layer cannot take what would reach it; the message names the layer.
    """
    later = parse_later(kind)
    assert later is not None
    if later.slope:
        raise ValueError(f"head '{kind}' has a slope, which goes with uniform:K:{kind}")
    numbers = later.layers(cut, chain.num_layers)
    originals = [chain.layers[number - 1] for number in numbers]
    reference = next(chain.parameters())
    with torch.no_grad():
        features = torch.rand(_with_chs(shapes[cut - 1], in_chs)).to(reference)
        copies: list[nn.Module] = copy.deepcopy([*originals, chain.classifier])
        parts = OrderedDict[str, nn.Module]()
        own_chs, own_size = map_shape(shapes[cut - 1])
        if later.pooled and own_size == 1:
            raise ValueError(f"head '{kind}': the map has one pixel after layer {cut}, so leave out /pool")
        as_it_is = not later.pooled and later.width == 1 and in_chs == own_chs
        before = cut if as_it_is else 0  # the layer whose outputs come next
        for number, part in zip((*numbers, chain.num_layers + 1), copies, strict=True):
            part.requires_grad_().zero_grad()
            wanted = shapes[number - 2]
            classifies = number > chain.num_layers
            if number != before + 1:
                chs, size = map_shape(wanted)
                fit = Fit(
                    tuple(features.shape),
                    wanted,
                    chs=_narrow(kind, number, chs, later.width),
                    size=-(-size // 2) if later.pooled else size,
                    label=f"head '{kind}': {_named(number, chain.num_layers)}",
                )
                if not fit.idle:
                    parts[f"fit{number}"] = fit.to(reference.device, reference.dtype)
                    features = probe([fit], features)
            try:
                features = narrowed(part, features, later.width, outputs=num_classes if classifies else 0)
            except ValueError as error:
                named = _named(number, chain.num_layers)
                raise ValueError(f"head '{kind}': {named} does not fit: {error}") from error
            averaged = copy.deepcopy(part) if later.averaged and not classifies else None
            if not later.copied:
                redraw(part)
            whole = part if averaged is None else Summed(part, averaged)
            parts["classifier" if classifies else f"layer{number}"] = whole
            before = number
        if tuple(features.shape[1:]) != (num_classes,):
            raise ValueError(
                f"head '{kind}': the copy of the classifier gives {tuple(features.shape[1:])} and not "
                f"{num_classes} logits"
            )
        return _apart(nn.Sequential(parts), shapes[cut - 1], reference)


class Fit(nn.Module):
    """This module brings features to the size and the channels that a later layer takes.

    It pools the map, or the grid of tokens, and mixes the channels linearly. Tokens before the grid stay.
    """

    def __init__(self, given: Shape, wanted: Shape, *, chs: int, size: int, label: str) -> None:
        super().__init__()
        self.layout = layout_of(given)
        from_chs, from_size = map_shape(given)
        others = [
            (shape[1] - map_shape(shape)[1] ** 2) if len(shape) == 3 else 0 for shape in (given, wanted)
        ]
        if layout_of(wanted) != self.layout or others[0] != others[1]:
            raise ValueError(
                f"{label} takes features of shape {tuple(wanted[1:])}, and what reaches it has "
                f"{tuple(given[1:])}; aug:all has every layer in between"
            )
        self.pool = nn.AdaptiveAvgPool2d(size) if from_size != size else None
        self.mix: nn.Module | None = None
        if from_chs != chs and self.layout == "nchw":
            self.mix = nn.Sequential(
                OrderedDict(conv=nn.Conv2d(from_chs, chs, 1, bias=False), bn=nn.BatchNorm2d(chs))
            )
        elif from_chs != chs:
            self.mix = nn.Linear(from_chs, chs)
        if self.mix is not None:
            initialise(self.mix)

    @property
    def idle(self) -> bool:
        """Return whether there is nothing to do."""
        return self.pool is None and self.mix is None

    def forward(self, features: Tensor) -> Tensor:
        if self.pool is not None:
            features = self._pooled(self.pool, features)
        return features if self.mix is None else self.mix(features)

    def _pooled(self, pool: nn.Module, features: Tensor) -> Tensor:
        grid = pool(as_map(features, self.layout))
        if self.layout == "nchw":
            pooled: Tensor = grid
        elif self.layout == "nhwc":
            pooled = grid.permute(0, 2, 3, 1)
        else:
            side = map_shape(features.shape)[1]
            tokens = grid.flatten(2).transpose(1, 2)
            pooled = torch.cat([features[:, : features.shape[1] - side**2], tokens], dim=1)
        return pooled


class Summed(nn.Module):
    """This module sums what two copies of a layer give, of which only the first is trained (MAN).

    The second begins with the layer's own weights. `local_learning.later.refresh` moves it.
    """

    def __init__(self, trained: nn.Module, averaged: nn.Module) -> None:
        super().__init__()
        self.trained, self.averaged = trained, averaged.requires_grad_(False)

    def forward(self, features: Tensor) -> Tensor:
        summed: Tensor = self.trained(features.clone()) + self.averaged(features)
        return summed


class _Apart(nn.Module):
    """This module hands on a copy of its inputs, because what follows changes them in place."""

    def forward(self, features: Tensor) -> Tensor:
        return features.clone()


def _apart(head: nn.Sequential, shape: Shape, reference: Tensor) -> nn.Module:
    """Return a head that leaves its inputs as they are: the block above reads them too."""
    features = torch.randn(shape).to(reference)
    before = features.clone()
    probe([head], features)
    if torch.equal(features, before):
        return head
    return nn.Sequential(OrderedDict(apart=_Apart(), **dict(head.named_children())))


def _narrow(kind: str, number: int, chs: int, width: float) -> int:
    narrow = round(chs * width)
    if narrow < 1:
        raise ValueError(f"head '{kind}' leaves none of the {chs} channels that layer {number} takes")
    return narrow


def _with_chs(shape: Shape, chs: int) -> Shape:
    """Return the shape with another number of channels."""
    return (shape[0], chs, *shape[2:]) if layout_of(shape) in ("nchw", "flat") else (*shape[:-1], chs)


def _named(number: int, num_layers: int) -> str:
    return f"layer {number}" if number <= num_layers else "the classifier"
