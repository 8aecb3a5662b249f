"""Convolutions that are not depthwise can multiply in bf16, at which some CPUs are twice as fast or more."""

import torch
from torch import Tensor, nn

from tools.kernels.maps import fits

FEWEST_CHS = 8
"""A convolution of fewer channels, such as that of the pixels, gains nothing."""


class Dense(nn.Conv2d):
    """This is torch's convolution, which rounds its factors to bf16 in training.

    Products are added in fp32, and the weights stay in fp32. Without gradients it computes in fp32.
    """

    def _conv_forward(self, input: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        if not (torch.is_grad_enabled() and fits("convolution", input, weight)):
            outputs: Tensor = super()._conv_forward(input, weight, bias)
            return outputs
        rounded = None if bias is None else bias.bfloat16()
        outputs = super()._conv_forward(input.bfloat16(), weight.bfloat16(), rounded)
        return outputs.float()


def is_dense(conv: nn.Conv2d) -> bool:
    """Return whether a convolution combines enough channels to gain from bf16."""
    return conv.groups == 1 and min(conv.in_channels, conv.out_channels) >= FEWEST_CHS


def why_no_gain(device: str) -> list[str]:
    """Return why bf16 gains nothing on this machine, if so."""
    if device != "cpu":
        return ["`--kernels bf16` is for a CPU; on this device `--precision bf16` does such a thing"]
    has = torch.cpu.get_capabilities()
    if not any(has.get(name) for name in ("avx512_bf16", "amx_bf16", "bf16")):
        return ["this CPU has no instructions for bf16, so `--kernels native` is likely to be faster"]
    return []
