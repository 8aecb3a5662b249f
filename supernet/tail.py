"""The tail stands behind the last searchable layer and leads from its map to the logits."""

from collections import OrderedDict
from dataclasses import dataclass

from timm.layers.create_act import get_act_layer
from timm.models._efficientnet_blocks import ConvBnAct
from torch import nn

from supernet.layers import Style
from tools.options.config import check_range


@dataclass(frozen=True, kw_only=True)
class Tail:
    """A tail leads from the last map to the logits.

    It is an optional 1x1 convolution, the mean over the map, an optional hidden layer, and the classifier.
    """

    conv_chs: int = 0
    """The channels of the 1x1 convolution, which has BatchNorm and activation; 0 leaves it out."""
    hidden_chs: int = 0
    """The units of the hidden layer, which has activation and no BatchNorm; 0 leaves it out."""
    dropout: float = 0.0
    """The rate of dropout before the classifier."""

    def __post_init__(self) -> None:
        check_range("tail.conv_chs", self.conv_chs, 0)
        check_range("tail.hidden_chs", self.hidden_chs, 0)
        check_range("tail.dropout", self.dropout, 0, 0.99)

    def feature_chs(self, in_chs: int) -> int:
        """Return how many numbers describe an image before the classifier."""
        return self.hidden_chs or self.conv_chs or in_chs


def build_tail(tail: Tail, in_chs: int, num_classes: int, style: Style) -> nn.Sequential:
    """Build the tail's module; its last part, `fc`, is the classifier in the narrow sense."""
    parts = OrderedDict[str, nn.Module]()
    if tail.conv_chs:
        parts["conv"] = ConvBnAct(in_chs, tail.conv_chs, 1, act_layer=style.act)
    parts |= {"pool": nn.AdaptiveAvgPool2d(1), "flatten": nn.Flatten()}
    if tail.hidden_chs:
        parts["hidden"] = nn.Linear(tail.conv_chs or in_chs, tail.hidden_chs)
        parts["act"] = get_act_layer(style.act)(inplace=True)
    if tail.dropout:
        parts["dropout"] = nn.Dropout(tail.dropout)
    parts["fc"] = nn.Linear(tail.feature_chs(in_chs), num_classes)
    return nn.Sequential(parts)
