"""An objective is what a supernet is trained for: the labels, or that two views of an image are alike.

It says how images are transformed, what stands behind a layer that learns by it, and what the loss is.
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
    """A task is what a step works on."""

    images: Tensor
    """The images that the networks see."""
    targets: Tensor
    """The targets that their outputs are compared with."""


class Objective(Protocol):
    """Strategies ask this of an objective."""

    def task(self, images: Tensor, targets: Tensor, step: int) -> Task:
        """Return what the networks see, and what they are compared with."""

    def decoder(self, in_chs: int) -> nn.Module:
        """Return a newly initialised local decoder for maps of `in_chs` channels."""

    def ending(self, net: Supernet) -> nn.Module:
        """Return what stands behind the last layer: the tail, or a module that shares its weights."""

    def loss(self, outputs: Tensor, targets: Tensor) -> Tensor:
        """Return the mean loss over the images."""


@dataclass(frozen=True, kw_only=True)
class CrossEntropyObjective:
    """This objective is cross-entropy with the labels."""

    num_classes: int
    """The number of classes."""
    label_smoothing: float = 0.0
    """The share of the target that is spread over classes."""
    smoothing: str = "all"
    """Whether the share is spread over all classes, or over the others (all, others)."""

    def task(self, images: Tensor, targets: Tensor, step: int) -> Task:
        return Task(images, targets)

    def decoder(self, in_chs: int) -> nn.Module:
        return make_head("linear", in_chs, 1, self.num_classes)

    def ending(self, net: Supernet) -> nn.Module:
        return net.tail

    def loss(self, outputs: Tensor, targets: Tensor) -> Tensor:
        return cross_entropy(outputs, targets, smoothing=self.label_smoothing, over=self.smoothing)


class InfoNCE:
    """This is SimCLR's objective: NT-Xent between two views, behind a projection of two layers.

    The tail's classifier has no part in it. Negatives come from all processes.
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
    """Make the objective, on views that the options describe.

    `mean` and `std` are those by which the images were normalised.
    """
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
    """Return NT-Xent of SimCLR for 2B projections; rows b and B + b are views of one image.

    It is the mean of -log softmax of the cosine / temperature over all ordered pairs of views of one
    image. The softmax runs over all other projections, with several processes over those of all processes.
    """
    unit = F.normalize(upcast(projections))
    own, count = len(unit), len(unit) // 2
    everyone, first = unit, 0
    if torch.distributed.is_initialized() and torch.distributed.get_world_size() > 1:
        everyone = _Gather.apply(unit)  # type: ignore[no-untyped-call]
        first = torch.distributed.get_rank() * own
    rows = torch.arange(own, device=unit.device)
    with torch.autocast(unit.device.type, enabled=False):  # autocast would take products in half precision
        similarities = unit @ everyone.T / temperature
    similarities = similarities.index_put((rows, rows + first), similarities.new_tensor(-torch.inf))
    return F.cross_entropy(similarities, (rows + count) % own + first)


class _Gather(torch.autograd.Function):
    """Return the rows of all processes; the gradient of each row is the sum over all processes."""

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
