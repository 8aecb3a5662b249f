"""Initial weights of the papers' networks and heads."""

from typing import Literal

from torch import nn


def initialise(module: nn.Module, mode: str = "fan_in") -> None:
    """Kaiming normal with gain sqrt(2), also for linear layers; zero bias; BatchNorm as it is, 1 and 0."""
    fan: Literal["fan_in", "fan_out"] = "fan_out" if mode == "fan_out" else "fan_in"
    for each in module.modules():
        if isinstance(each, nn.Conv2d | nn.Linear):
            nn.init.kaiming_normal_(each.weight, mode=fan, nonlinearity="relu")
            if each.bias is not None:
                nn.init.zeros_(each.bias)
