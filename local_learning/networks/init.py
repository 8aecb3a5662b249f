"""The papers' networks and heads start from these weights."""

from typing import Literal

from torch import nn


def initialise(module: nn.Module, mode: str = "fan_in") -> None:
    """Draw Kaiming normal weights with gain sqrt(2), for convolutions and linear layers.

    Biases become 0. BatchNorm stays as it is, at weight 1 and bias 0.
    """
    fan: Literal["fan_in", "fan_out"] = "fan_out" if mode == "fan_out" else "fan_in"
    for part in module.modules():
        if isinstance(part, nn.Conv2d | nn.Linear):
            nn.init.kaiming_normal_(part.weight, mode=fan, nonlinearity="relu")
            if part.bias is not None:
                nn.init.zeros_(part.bias)
