"""This module holds a recipe's options: how long, how fast, with which optimiser. It is free of torch."""

from dataclasses import dataclass, fields

from tools.mistake import Mistake
from tools.options.config import check_choice, check_idle, check_range

OPTIMIZERS = {
    "sgd": ("momentum", "nesterov"),
    "adam": ("beta1", "beta2", "eps"),
    "adamw": ("beta1", "beta2", "eps"),
    "rmsprop": ("momentum", "beta2", "eps"),
}
"""Each optimiser reads these options, among those that only optimisers read."""
SCHEDULES = ("cosine", "step", "constant")


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """A recipe sets the length, the optimiser and the schedule of a training."""

    steps: int = 0
    """Train for this many optimiser steps; 0 takes the length from epochs."""
    epochs: float = 30.0
    """Train for this many passes over the training images, where steps is 0."""
    batch_size: int = 128
    """Use this many images per optimiser step, over all processes and accumulated parts together."""
    accumulate: int = 1
    """Run each batch in this many parts, one after the other, to save memory. BatchNorm sees one part at a
    time."""
    optimizer: str = "sgd"
    """Use sgd, adam, adamw or rmsprop (in TensorFlow's form, with eps inside the root)."""
    lr: float = 0.1
    """Set the peak learning rate."""
    momentum: float = 0.9
    """Set the momentum of sgd and rmsprop."""
    nesterov: bool = False
    """Use Nesterov's form of momentum in sgd."""
    beta1: float = 0.9
    """Set the decay of the mean gradient in adam and adamw."""
    beta2: float = 0.999
    """Set the decay of the mean squared gradient in adam, adamw and rmsprop."""
    eps: float = 1e-8
    """Add this term, which keeps adam, adamw and rmsprop from dividing by zero."""
    weight_decay: float = 1e-4
    """Set the weight decay: decoupled in adamw, an L2 term in the other optimisers."""
    decay_all: bool = True
    """Apply weight decay to biases and normalisation parameters too, as in the papers."""
    schedule: str = "cosine"
    """Let the learning rate follow a cosine (down to min-lr at the last step), step, or constant."""
    min_lr: float = 0.001
    """End the cosine at this learning rate."""
    milestones: tuple[float, ...] = ()
    """Change the learning rate of step at these fractions of the training, such as 0.5 0.75."""
    factors: tuple[float, ...] = ()
    """Multiply lr by one of these factors from each milestone on, such as 0.1 0.01, in step."""
    warmup: float = 0.0
    """Let the learning rate rise from 0 to lr over this first fraction of the training."""
    label_smoothing: float = 0.1
    """Spread this share of the target evenly over all classes."""
    smoothing: str = "all"
    """Spread label-smoothing over all classes (all, as torch does), or over the other classes (others, as in
    SEDONA's code)."""
    clip_norm: float = 0.0
    """Clip the gradient to this norm, of each block where there are several; 0 does not clip."""
    ema: float = 0.0
    """Evaluate an exponential moving average of the weights with this decay; 0 keeps no average. Early on the
    decay is lower, 1 - (1 + step)^(-2/3) at most, so that the initial weights are soon forgotten."""
    evaluate_every: int = 0
    """Evaluate on the validation images every so many steps; 0 means once an epoch."""
    checkpoint_every: int = 500
    """Write a checkpoint every so many steps, and always at the end and at a new best."""
    log_every: int = 50
    """Write a line of metrics every so many steps."""

    def __post_init__(self) -> None:
        check_range("recipe.steps", self.steps, 0)
        check_range("recipe.epochs", self.epochs, 0, open_low=self.steps == 0)
        check_range("recipe.batch_size", self.batch_size, 1, 1_000_000)
        check_range("recipe.accumulate", self.accumulate, 1)
        if self.batch_size % self.accumulate:
            raise Mistake(
                "recipe.accumulate", f"{self.accumulate} parts do not divide a batch of {self.batch_size}"
            )
        check_choice("recipe.optimizer", self.optimizer, tuple(OPTIMIZERS))
        check_range("recipe.lr", self.lr, 0, open_low=True)
        check_range("recipe.min_lr", self.min_lr, 0)
        if self.schedule == "cosine" and self.min_lr > self.lr:
            raise Mistake(
                "recipe.min_lr",
                f"the cosine would rise from `recipe.lr` {self.lr:g} to {self.min_lr:g}",
                "give a lower one, such as 0",
            )
        check_range("recipe.momentum", self.momentum, 0, 1)
        check_range("recipe.beta1", self.beta1, 0, 0.999999)
        check_range("recipe.beta2", self.beta2, 0, 0.999999)
        check_range("recipe.eps", self.eps, 0, open_low=True)
        check_range("recipe.weight_decay", self.weight_decay, 0)
        check_choice("recipe.schedule", self.schedule, SCHEDULES)
        self._check_milestones()
        check_range("recipe.warmup", self.warmup, 0, 0.99)
        check_range("recipe.label_smoothing", self.label_smoothing, 0, 0.99)
        check_choice("recipe.smoothing", self.smoothing, ("all", "others"))
        check_range("recipe.clip_norm", self.clip_norm, 0)
        check_range("recipe.ema", self.ema, 0, 0.999999)
        check_range("recipe.evaluate_every", self.evaluate_every, 0)
        check_range("recipe.checkpoint_every", self.checkpoint_every, 1)
        check_range("recipe.log_every", self.log_every, 1)
        if self.nesterov and (self.optimizer != "sgd" or self.momentum == 0):
            raise Mistake("recipe.nesterov", "needs `recipe.optimizer` sgd and a momentum over 0")
        others = {name for names in OPTIMIZERS.values() for name in names}
        used = {field.name for field in fields(self)} - others | set(OPTIMIZERS[self.optimizer])
        check_idle("recipe", self, used, f"`recipe.optimizer` {self.optimizer}")

    def _check_milestones(self) -> None:
        if len(self.milestones) != len(self.factors):
            raise Mistake(
                "recipe.milestones",
                f"{len(self.milestones)} milestones need as many `recipe.factors`, not {len(self.factors)}",
            )
        if (self.schedule == "step") != bool(self.milestones):
            raise Mistake("recipe.milestones", "go with `recipe.schedule` step, and step needs them")
        if list(self.milestones) != sorted(set(self.milestones)):
            raise Mistake("recipe.milestones", "must rise")
        for milestone in self.milestones:
            check_range("recipe.milestones", milestone, 0, 1, open_low=True)
        for factor in self.factors:
            check_range("recipe.factors", factor, 0)

    def idle(self) -> dict[str, str]:
        """Return the options that have no effect beside the other options' values, each with the reason."""
        conditions = {
            "epochs": ("a length in `recipe.steps`", self.steps > 0),
            "min_lr": (f"`recipe.schedule` {self.schedule}", self.schedule != "cosine"),
            "smoothing": ("`recipe.label_smoothing` 0", not self.label_smoothing),
        }
        return {name: who for name, (who, is_so) in conditions.items() if is_so}

    def num_steps(self, steps_per_epoch: float) -> int:
        """Return the length in optimiser steps, given how many steps make an epoch."""
        return self.steps or max(1, round(self.epochs * steps_per_epoch))

    def steps_between_evaluations(self, steps_per_epoch: float) -> int:
        """Return the steps from one evaluation to the next, given how many steps make an epoch."""
        return self.evaluate_every or max(1, round(steps_per_epoch))
