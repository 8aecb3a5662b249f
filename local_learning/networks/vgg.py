"""VGG-19 as SEDONA cuts it, and the VGG6a of the local-loss and GN-DGL papers.

A layer is a convolution with its BatchNorm and ReLU. A max-pool and dropout stand in front of the next
layer, so that a head sees the map before them. The last pool of VGG-19 belongs to the classifier.
"""

from collections import OrderedDict

from torch import nn

from local_learning.chain import Chain
from tools.options.catalogue import by_name

_VGG19_CHS = ((64, 2), (128, 2), (256, 4), (512, 4), (512, 4))
_VGG6A_CHS = (128, 256, 512, 512)


@by_name
def vgg19(*, num_classes: int, image_size: int, width: float, in_chs: int, dropout: float) -> Chain:
    """Build VGG-19; `dropout` acts after each hidden linear layer."""
    layers: list[nn.Module] = []
    chs = in_chs
    for group, (planes, depth) in enumerate(_VGG19_CHS):
        out_chs = _scaled(planes, width)
        for index in range(depth):
            pool = group > 0 and index == 0
            layers.append(_conv_layer(chs, out_chs, pool=pool, bias=False, dropout=0.0))
            chs = out_chs

    hidden = _scaled(4096, width)
    map_size = image_size // 2 ** len(_VGG19_CHS)
    classifier = OrderedDict[str, nn.Module](pool=nn.MaxPool2d(2), flatten=nn.Flatten())
    in_features = chs * map_size**2
    for index in (1, 2):
        classifier[f"fc{index}"] = nn.Linear(in_features, hidden)
        classifier[f"act{index}"] = nn.ReLU(inplace=True)
        if dropout:
            classifier[f"drop{index}"] = nn.Dropout(dropout)
        in_features = hidden
    classifier["fc"] = nn.Linear(hidden, num_classes)
    return Chain(layers, nn.Sequential(classifier), width=width)


@by_name
def vgg6a(*, num_classes: int, image_size: int, width: float, in_chs: int, dropout: float) -> Chain:
    """Build VGG6a; `dropout` acts after its convolutions and after the hidden linear layer."""
    layers: list[nn.Module] = []
    chs = in_chs
    for index, planes in enumerate(_VGG6A_CHS):
        out_chs = _scaled(planes, width)
        drops = dropout if index > 0 else 0.0
        layers.append(_conv_layer(chs, out_chs, pool=index > 0, bias=True, dropout=drops))
        chs = out_chs

    hidden = _scaled(1024, width)
    map_size = image_size // 2 ** (len(_VGG6A_CHS) - 1)
    layer, classifier = OrderedDict[str, nn.Module](), OrderedDict[str, nn.Module]()
    if dropout:
        layer["drop"], classifier["drop"] = nn.Dropout(dropout), nn.Dropout(dropout)
    layer["flatten"] = nn.Flatten()
    layer["fc"] = nn.Linear(chs * map_size**2, hidden)
    layer["act"] = nn.ReLU(inplace=True)
    classifier["fc"] = nn.Linear(hidden, num_classes)
    layers.append(nn.Sequential(layer))
    return Chain(layers, nn.Sequential(classifier), width=width)


def _conv_layer(in_chs: int, out_chs: int, *, pool: bool, bias: bool, dropout: float) -> nn.Module:
    layer = OrderedDict[str, nn.Module]()
    if dropout:
        layer["drop"] = nn.Dropout(dropout)
    if pool:
        layer["pool"] = nn.MaxPool2d(2)
    layer["conv"] = nn.Conv2d(in_chs, out_chs, 3, padding=1, bias=bias)
    layer["bn"] = nn.BatchNorm2d(out_chs)
    layer["act"] = nn.ReLU(inplace=True)
    return nn.Sequential(layer)


def _scaled(chs: int, width: float) -> int:
    return max(1, round(chs * width))
