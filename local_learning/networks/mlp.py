"""BlockProp was first tried on this network with one hidden layer (MNIST)."""

from collections import OrderedDict

from torch import nn

from local_learning.chain import Chain
from tools.options.catalogue import by_name


@by_name
def mlp(*, num_classes: int, image_size: int, width: float, in_chs: int, dropout: float) -> Chain:
    """Build the network: one layer (flatten, linear, ReLU), and a linear classifier."""
    hidden = max(1, round(500 * width))  # the paper gives no size; 500 is a common choice for MNIST
    layer = OrderedDict[str, nn.Module](
        flatten=nn.Flatten(), fc=nn.Linear(in_chs * image_size**2, hidden), act=nn.ReLU(inplace=True)
    )
    if dropout:
        layer["drop"] = nn.Dropout(dropout)
    return Chain([nn.Sequential(layer)], nn.Linear(hidden, num_classes), width=width)
