"""What a recipe says: how long, how fast, with which optimiser; free of torch."""

from dataclasses import dataclass, fields

from tools.mistake import Mistake
from tools.options.config import check_choice, check_idle, check_range

OPTIMIZERS = {
    "sgd": ("momentum", "nesterov"),
    "adam": ("beta1", "beta2", "eps"),
    "adamw": ("beta1", "beta2", "eps"),
    "rmsprop": ("momentum", "beta2", "eps"),
}
"""What each looks at, of what only optimisers look at."""
SCHEDULES = ("cosine", "step", "constant")


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """Length, optimiser and schedule of a training."""

    steps: int = 0
    """Length in optimiser steps; 0 takes it from epochs."""
    epochs: float = 30.0
    """Length in passes over the training images, where steps is 0."""
    batch_size: int = 128
    """Images per optimiser step, over all processes and accumulated parts together."""
    accumulate: int = 1
    """Parts that a batch is run in, one after the other, to save memory; BatchNorm sees a part at a time."""
    optimizer: str = "sgd"
    """sgd, adam, adamw or rmsprop (TensorFlow's form: eps inside the root)."""
    lr: float = 0.1
    """Peak learning rate."""
    momentum: float = 0.9
    """Momentum of sgd and rmsprop."""
    nesterov: bool = False
    """Nesterov's form of momentum, for sgd."""
    beta1: float = 0.9
    """Decay of the mean of gradients in adam and adamw."""
    beta2: float = 0.999
    """Decay of the mean of their squares in adam and adamw, and in rmsprop."""
    eps: float = 1e-8
    """Term that keeps adam, adamw and rmsprop from dividing by zero."""
    weight_decay: float = 1e-4
    """Weight decay; decoupled for adamw, an L2 term for the others."""
    decay_all: bool = True
    """Whether weight decay reaches biases and normalisation parameters too, as in the papers."""
    schedule: str = "cosine"
    """cosine (down to min-lr at the last step), step, or constant."""
    min_lr: float = 0.001
    """Where the cosine ends."""
    milestones: tuple[float, ...] = ()
    """For step: the fractions of the training at which the rate changes, such as 0.5 0.75."""
    factors: tuple[float, ...] = ()
    """For step: the multiple of lr from each milestone on, such as 0.1 0.01."""
    warmup: float = 0.0
    """Fraction of the training over which the rate first rises from 0 to lr."""
    label_smoothing: float = 0.1
    """Share of the target spread evenly over all classes."""
    smoothing: str = "all"
    """Over which classes label-smoothing is spread: all (as torch does) or others (as in SEDONA's code)."""
    clip_norm: float = 0.0
    """Largest norm of the gradient, of each block where there are several; 0 does not clip."""
    ema: float = 0.0
    """Decay of the weights' exponential moving average, which then is what is evaluated; 0 keeps none.
    Early on it is lower, 1 - (1 + step)^(-2/3) at most, so that the initial weights are soon forgotten."""
    evaluate_every: int = 0
    """Steps between evaluations on the validation images; 0 means once an epoch."""
    checkpoint_every: int = 500
    """Steps between checkpoints; one is always made at the end and at a new best."""
    log_every: int = 50
    """Steps between lines of metrics."""

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

    def num_steps(self, steps_per_epoch: float) -> int:
        """The length in optimiser steps, given how many steps make an epoch."""
        return self.steps or max(1, round(self.epochs * steps_per_epoch))

    def steps_between_evaluations(self, steps_per_epoch: float) -> int:
        """Steps from one evaluation to the next, given how many steps make an epoch."""
        return self.evaluate_every or max(1, round(steps_per_epoch))
