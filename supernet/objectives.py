"""What a supernet is trained for: the labels, or that two views of an image are alike.

An objective says what the images are turned into, what stands behind a layer to be trained by it, and the
loss of what that gives.
"""

from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple, Protocol

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from local_learning.heads import make_head
from local_learning.losses import cross_entropy, upcast
from supernet.options import OBJECTIVES, ContrastOptions
from supernet.supernet import Supernet
from tools.images.views import Views
from tools.options.catalogue import by_name

register_objective = OBJECTIVES.register


class Task(NamedTuple):
    """What a step works on."""

    images: Tensor
    targets: Tensor


class Objective(Protocol):
    """What strategies ask of an objective."""

    def task(self, images: Tensor, targets: Tensor, step: int) -> Task:
        """What the networks see, and what they are held against."""

    def decoder(self, in_chs: int) -> nn.Module:
        """A local decoder for maps of so many channels, newly initialised."""

    def ending(self, net: Supernet) -> nn.Module:
        """What stands behind the last layer: the tail, or what shares its weights."""

    def loss(self, outputs: Tensor, targets: Tensor) -> Tensor:
        """The mean over the images."""


@dataclass(frozen=True, kw_only=True)
class CrossEntropy:
    """The labels."""

    num_classes: int
    label_smoothing: float = 0.0
    smoothing: str = "all"

    def task(self, images: Tensor, targets: Tensor, step: int) -> Task:
        return Task(images, targets)

    def decoder(self, in_chs: int) -> nn.Module:
        return make_head("linear", in_chs, 1, self.num_classes)

    def ending(self, net: Supernet) -> nn.Module:
        return net.tail

    def loss(self, outputs: Tensor, targets: Tensor) -> Tensor:
        return cross_entropy(outputs, targets, smoothing=self.label_smoothing, over=self.smoothing)


class InfoNCE:
    """SimCLR's objective: NT-Xent between two views, behind a projection of two layers.

    The tail's classifier has no part in it. Negatives are those of all processes.
    """

    def __init__(self, options: ContrastOptions, views: Views, *, rank: int = 0, world_size: int = 1) -> None:
        self._options, self._views = options, views
        self._rank, self._world_size = rank, world_size

    def task(self, images: Tensor, targets: Tensor, step: int) -> Task:
        count = len(images)
        views = self._views(images, step, start=self._rank * count, total=self._world_size * count)
        return Task(views, targets)

    def decoder(self, in_chs: int) -> nn.Module:
        pooled = OrderedDict[str, nn.Module](pool=nn.AdaptiveAvgPool2d(1), flatten=nn.Flatten())
        return nn.Sequential(pooled | {"projection": self._projection(in_chs)})

    def ending(self, net: Supernet) -> nn.Module:
        body = OrderedDict(
            (name, part) for name, part in net.tail.named_children() if name not in ("dropout", "fc")
        )
        in_chs = net.space.tail.feature_chs(net.space.layers[-1].out_chs)
        return nn.Sequential(body | {"projection": self._projection(in_chs)})

    def loss(self, outputs: Tensor, targets: Tensor) -> Tensor:
        return nt_xent(outputs, self._options.temperature)

    def _projection(self, in_chs: int) -> nn.Module:
        return nn.Sequential(
            OrderedDict[str, nn.Module](
                hidden=nn.Linear(in_chs, in_chs),
                act=nn.ReLU(inplace=True),
                out=nn.Linear(in_chs, self._options.projection),
            )
        )


@by_name
def info_nce(
    *,
    options: ContrastOptions,
    mean: Sequence[float],
    std: Sequence[float],
    seed: int,
    rank: int = 0,
    world_size: int = 1,
) -> InfoNCE:
    """The objective on views that the options describe, of images that were normalised so."""
    views = Views(
        mean=mean,
        std=std,
        seed=seed,
        scale=(options.min_area, 1.0),
        jitter=options.jitter,
        grey=options.grey,
        blur=options.blur,
    )
    return InfoNCE(options, views, rank=rank, world_size=world_size)


def nt_xent(projections: Tensor, temperature: float) -> Tensor:
    """NT-Xent of SimCLR for 2B projections, of which rows b and B + b are views of one image.

    The mean over all ordered pairs of -log softmax of their cosine / temperature among all others; with
    several processes, among those of all of them.
    """
    unit = F.normalize(upcast(projections))
    own, count = len(unit), len(unit) // 2
    everyone, first = unit, 0
    if torch.distributed.is_initialized() and torch.distributed.get_world_size() > 1:
        everyone = _Gather.apply(unit)  # type: ignore[no-untyped-call]
        first = torch.distributed.get_rank() * own
    rows = torch.arange(own, device=unit.device)
    with torch.autocast(unit.device.type, enabled=False):  # which would take products in half precision
        similarities = unit @ everyone.T / temperature
    similarities = similarities.index_put((rows, rows + first), similarities.new_tensor(-torch.inf))
    return F.cross_entropy(similarities, (rows + count) % own + first)


class _Gather(torch.autograd.Function):
    """The rows of all processes; the gradient of each row is the sum of what they all make of it."""

    @staticmethod
    def forward(ctx: Any, rows: Tensor) -> Tensor:
        parts = [torch.empty_like(rows) for _ in range(torch.distributed.get_world_size())]
        torch.distributed.all_gather(parts, rows.contiguous())
        return torch.cat(parts)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> Tensor:
        (total,) = gradients
        total = total.contiguous()
        torch.distributed.all_reduce(total)
        return total.chunk(torch.distributed.get_world_size())[torch.distributed.get_rank()]
