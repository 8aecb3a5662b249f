"""This module makes a recipe's optimiser and schedule, from torch and timm."""

import bisect
from collections.abc import Callable, Iterable

import torch
from timm.optim.rmsprop_tf import RMSpropTF
from timm.scheduler.cosine_lr import CosineLRScheduler
from timm.scheduler.scheduler import Scheduler
from torch import nn

from tools.options.recipes import Recipe

MakeOptimizer = Callable[[Iterable[nn.Parameter]], torch.optim.Optimizer]
"""This function makes an optimiser for the parameters that it is given."""


def make_optimizer(recipe: Recipe, parameters: Iterable[nn.Parameter]) -> torch.optim.Optimizer:
    """Make the recipe's optimiser for the parameters that are trained."""
    trained = [parameter for parameter in parameters if parameter.requires_grad]
    groups = [{"params": trained, "weight_decay": recipe.weight_decay}]
    if not recipe.decay_all:
        groups = [
            {"params": [p for p in trained if p.ndim > 1], "weight_decay": recipe.weight_decay},
            {"params": [p for p in trained if p.ndim <= 1], "weight_decay": 0.0},
        ]
    betas = (recipe.beta1, recipe.beta2)
    match recipe.optimizer:
        case "sgd":
            return torch.optim.SGD(
                groups, lr=recipe.lr, momentum=recipe.momentum, nesterov=recipe.nesterov, fused=True
            )
        case "adam":
            return torch.optim.Adam(groups, lr=recipe.lr, betas=betas, eps=recipe.eps, fused=True)
        case "adamw":
            return torch.optim.AdamW(groups, lr=recipe.lr, betas=betas, eps=recipe.eps, fused=True)
    assert recipe.optimizer == "rmsprop"
    return RMSpropTF(groups, lr=recipe.lr, alpha=recipe.beta2, momentum=recipe.momentum, eps=recipe.eps)


def start_momentum(optimizer: torch.optim.Optimizer) -> None:
    """Give SGD momentum buffers of zeros before the first step.

    The fused kernel fails if some buffers are missing, as they would be where weights got no gradient.
    """
    for group in optimizer.param_groups:
        if isinstance(optimizer, torch.optim.SGD) and group["momentum"]:
            for parameter in group["params"]:
                optimizer.state[parameter]["momentum_buffer"] = torch.zeros_like(
                    parameter, requires_grad=False
                )


def make_schedule(recipe: Recipe, optimizer: torch.optim.Optimizer, num_steps: int) -> Scheduler:
    """Make the recipe's schedule, whose `step_update(t)` sets the learning rate of step t from t alone."""
    warmup = round(recipe.warmup * num_steps)
    if recipe.schedule == "cosine":
        return CosineLRScheduler(
            optimizer,
            t_initial=max(2, num_steps - warmup),
            lr_min=recipe.min_lr,
            warmup_t=warmup,
            warmup_prefix=True,
            t_in_epochs=False,
        )
    milestones = [round(fraction * num_steps) for fraction in recipe.milestones]
    return StepSchedule(optimizer, milestones, recipe.factors, warmup)


class StepSchedule(Scheduler):
    """A `StepSchedule` is a timm scheduler with one factor for each milestone, as the papers print them."""

    def __init__(
        self,
        optimizer: torch.optim.Optimizer,
        milestones: list[int],
        factors: tuple[float, ...],
        warmup: int,
    ) -> None:
        super().__init__(optimizer, "lr", t_in_epochs=False)
        self.milestones = milestones
        self.factors = (1.0, *factors)
        self.warmup = warmup

    def _get_lr(self, t: int) -> list[float]:
        factor = t / self.warmup if t < self.warmup else self.factors[bisect.bisect_right(self.milestones, t)]
        return [value * factor for value in self.base_values]
