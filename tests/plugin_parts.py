"""Parts as a user would bring them, equal to ours where a test compares the two."""

from collections import OrderedDict
from dataclasses import dataclass

from torch import Tensor, nn
from torch.nn import functional as F

from local_learning.build import register_network
from local_learning.heads import register_head
from local_learning.losses import register_loss
from local_learning.rules.catalogue import register_rule
from local_learning.rules.greedy import Greedy
from search.baselines import RandomSearch
from search.methods import register_method
from supernet.layers import Place, Style, register_op
from supernet.network.documents import space_from
from supernet.objectives import CrossEntropyObjective, register_objective
from supernet.paths import EndToEnd
from supernet.presets import register_space
from supernet.sampling import sample, stream
from supernet.space import Space
from supernet.strategies import register_strategy


@register_head("ownlinear")
def ownlinear(in_chs: int, in_size: int, num_classes: int) -> nn.Module:
    return nn.Sequential(
        OrderedDict(pool=nn.AdaptiveAvgPool2d(1), flatten=nn.Flatten(), fc=nn.Linear(in_chs, num_classes))
    )


@register_loss("ownentropy")
def ownentropy(outputs: Tensor, targets: Tensor, images: Tensor, smoothing: float = 0.0) -> Tensor:
    return F.cross_entropy(outputs, targets, label_smoothing=smoothing)


@register_loss("ownmargin")
def ownmargin(outputs: Tensor, targets: Tensor, images: Tensor) -> Tensor:
    return F.multi_margin_loss(outputs, targets)


@register_network("ownnet")
def ownnet(num_classes: int, in_chs: int, width: float = 1.0) -> nn.Module:
    chs = int(16 * width)

    def layer(before: int, stride: int) -> nn.Module:
        conv = nn.Conv2d(before, chs, 3, stride, padding=1, bias=False)
        return nn.Sequential(conv, nn.BatchNorm2d(chs), nn.ReLU())

    classifier = nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(chs, num_classes))
    return nn.Sequential(layer(in_chs, 2), layer(chs, 1), layer(chs, 2), layer(chs, 1), classifier)


@register_rule("ownrule", says="greedy, under another name")
class OwnRule(Greedy):
    """Each block by the loss of its head, as greedy does."""


@register_method("ownsearch")
class OwnSearch(RandomSearch):
    """Random networks; a search of one's own is named in what it draws from."""


@register_objective("ownlabels")
class OwnLabels(CrossEntropyObjective):
    """The labels, as cross_entropy takes them."""


@register_strategy("ownwalk")
class OwnWalk(EndToEnd):
    """Single paths, as spos draws them."""

    def step(self, images: Tensor, targets: Tensor, step: int) -> dict[str, Tensor]:
        path = self.net.space.canonical(sample(self.net.space, stream(self.seed, "path", step)))
        task = self.objective.task(images, targets, step)
        loss = self.path_loss(self.begin(task.images), path, task.targets)
        self.engine.update(self.optimizers[0])
        return {"loss": loss}


@register_op("ownconv")
@dataclass(frozen=True)
class OwnConv:
    """A convolution with BatchNorm and ReLU."""

    kernel: int = 3

    def build(self, place: Place, style: Style) -> nn.Module:
        conv = nn.Conv2d(
            place.in_chs, place.out_chs, self.kernel, place.stride, padding=self.kernel // 2, bias=False
        )
        return nn.Sequential(conv, nn.BatchNorm2d(place.out_chs), nn.ReLU())

    def __str__(self) -> str:
        return f"ownconv_k{self.kernel}"


@register_space("ownspace")
def ownspace(num_classes: int, image_size: int) -> Space:
    stage = {"ops": ["ownconv", "ownconv_k5", "skip"], "depth": 2, "out_chs": 8, "stride": 2}
    images = {"num_classes": num_classes, "image_size": image_size}
    return space_from({"stages": [stage, stage], "tail": {"conv_chs": 16}, **images})
