"""Modules of torch and timm compute with the project's kernels on a CPU, and with torch's own elsewhere."""

from timm.layers.norm_act import BatchNormAct2d
from timm.models._efficientnet_blocks import InvertedResidual
from torch import nn

from tools.kernels.dense import Dense, is_dense
from tools.kernels.depthwise import Depthwise, is_depthwise
from tools.kernels.library import library
from tools.kernels.mbconv import MBConv
from tools.kernels.norm import Norm, NormAct


def use_kernels(network: nn.Module, kind: str = "native") -> None:
    """Let convolutions and BatchNorms of a network compute as `--kernels` says: native, bf16 or torch.

    The modules change their class in place; names and weights stay.

    Raises:
        Mistake: if the network is on a CPU, and the kernels cannot be had on this machine.
    """
    if kind == "torch":
        return
    if any(parameter.device.type == "cpu" for parameter in network.parameters()):
        library()
    for module in network.modules():
        if type(module) is nn.Conv2d:
            if is_depthwise(module):
                module.__class__ = Depthwise
            elif kind == "bf16" and is_dense(module):
                module.__class__ = Dense
        elif type(module) is nn.BatchNorm2d:
            module.__class__ = Norm
        elif type(module) is BatchNormAct2d:
            module.__class__ = NormAct
        elif type(module) is InvertedResidual:
            module.__class__ = MBConv
