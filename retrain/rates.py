"""Each block learns at a rate of its own, and its head at another one where that is asked for."""

import torch
from torch import nn

from local_learning.blocks import Block
from retrain.config import RetrainConfig
from tools.mistake import Mistake
from tools.optim import make_optimizer


class Rates:
    """These are the factors on the recipe's learning rate for the layers and the head of each block."""

    def __init__(self, config: RetrainConfig, num_blocks: int, num_steps: int) -> None:
        factors = config.block_rates or (1.0,) * num_blocks
        if len(factors) != num_blocks:
            raise Mistake(
                "block_rates", f"{len(factors)} factors for {num_blocks} blocks", "give one for each"
            )
        self._recipe, self._factors = config.recipe, factors
        self._head_factor = config.local.head_rate
        self._warmup = round(config.local.head_warmup * num_steps)

    def optimizer(self, index: int, block: Block) -> torch.optim.Optimizer:
        """Make the optimiser of a block."""
        optimizer = make_optimizer(self._recipe, block.parameters())
        if self._is_apart(index) and block.head is not None:
            _set_apart(optimizer, block.head)
        self.set(optimizer, index, 0)
        return optimizer

    def set(self, optimizer: torch.optim.Optimizer, index: int, step: int) -> None:
        """Set the factors of a step; timm's schedules multiply every rate by them."""
        for group in optimizer.param_groups:
            group["lr_scale"] = self._factors[index]
            if group.get("of_head"):
                rise = min(1.0, (step + 1) / self._warmup) if self._warmup else 1.0
                group["lr_scale"] *= self._head_factor * rise

    def _is_apart(self, index: int) -> bool:
        """Return whether a block has a local head, and that has a rate of its own."""
        own = self._head_factor != 1 or self._warmup > 0
        return own and index < len(self._factors) - 1


def _set_apart(optimizer: torch.optim.Optimizer, head: nn.Module) -> None:
    """Put a head's parameters into groups of their own."""
    of_head = set(head.parameters())
    groups = []
    for group in optimizer.param_groups:
        for mine in (False, True):
            own = [parameter for parameter in group["params"] if (parameter in of_head) == mine]
            if own:
                groups.append({**group, "params": own, "of_head": mine})
    optimizer.param_groups = groups
