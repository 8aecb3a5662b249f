"""These are ResNets as SEDONA, InfoPro and their followers cut them: one residual block is one layer.

The stem belongs to layer 1, so ResNet-50/101/152 have 16/33/50 layers. As a layer of its own, as in DGL
and InfoPro, it makes one more. Bottlenecks are v1.5: the stride is on the 3x3 convolution.
"""

from collections import OrderedDict

from torch import nn
from torchvision.models.resnet import BasicBlock, Bottleneck

from local_learning.chain import Chain
from tools.options.catalogue import by_name

_BLOCKS = {"basic": BasicBlock, "bottleneck": Bottleneck}


@by_name
def resnet(
    *,
    block: str,
    depths: tuple[int, ...],
    num_classes: int,
    image_size: int,
    width: float,
    in_chs: int,
    stem: str,
    small: bool,
) -> Chain:
    """Build a ResNet with `depths` blocks in its stages; channels double from one stage to the next.

    It has the stem that the literature uses at this image size. A `small` one, for CIFAR-10, starts from
    16 channels and always has a 3x3 stem.
    """
    first_chs = max(1, round((16 if small else 64) * width))
    begin = _small_stem(in_chs, first_chs) if small else _stem(in_chs, first_chs, image_size)

    kind, layers = _BLOCKS[block], list[nn.Module]()
    chs = first_chs
    for stage, depth in enumerate(depths):
        planes = first_chs * 2**stage
        for index in range(depth):
            stride = 2 if stage > 0 and index == 0 else 1
            layers.append(_residual_block(kind, chs, planes, stride))
            chs = planes * kind.expansion
    if stem == "unit":
        layers.insert(0, begin)
    else:
        layers[0] = nn.Sequential(OrderedDict(stem=begin, block=layers[0]))

    classifier = nn.Sequential(
        OrderedDict(pool=nn.AdaptiveAvgPool2d(1), flatten=nn.Flatten(), fc=nn.Linear(chs, num_classes))
    )
    return Chain(layers, classifier, width=width)


def _residual_block(
    block: type[BasicBlock] | type[Bottleneck], in_chs: int, planes: int, stride: int
) -> nn.Module:
    """Make a block of torchvision.

    Where the shape changes, its shortcut is a 1x1 convolution and BatchNorm.
    """
    out_chs = planes * block.expansion
    shortcut = None
    if stride != 1 or in_chs != out_chs:
        shortcut = nn.Sequential(
            nn.Conv2d(in_chs, out_chs, 1, stride=stride, bias=False), nn.BatchNorm2d(out_chs)
        )
    made: nn.Module = block(in_chs, planes, stride, shortcut)
    return made


def _stem(in_chs: int, out_chs: int, image_size: int) -> nn.Sequential:
    if image_size < 56:  # CIFAR: 3x3, the map stays as large as the image
        return _small_stem(in_chs, out_chs)
    stem = OrderedDict[str, nn.Module](
        conv=nn.Conv2d(in_chs, out_chs, 7, stride=2, padding=3, bias=False),
        bn=nn.BatchNorm2d(out_chs),
        act=nn.ReLU(inplace=True),
    )
    if image_size >= 112:  # Tiny-ImageNet (64) goes without the max-pool: its map is 32 wide
        stem["pool"] = nn.MaxPool2d(3, stride=2, padding=1)
    return nn.Sequential(stem)


def _small_stem(in_chs: int, out_chs: int) -> nn.Sequential:
    return nn.Sequential(
        OrderedDict(
            conv=nn.Conv2d(in_chs, out_chs, 3, padding=1, bias=False),
            bn=nn.BatchNorm2d(out_chs),
            act=nn.ReLU(inplace=True),
        )
    )
