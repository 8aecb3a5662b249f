"""This module says what the loop gets: a job, a plan of its length, and how processes share it."""

import math
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from typing import Any, Protocol, TypeVar

import torch
from torch import Tensor

from tools.options.config import flag

BatchT_contra = TypeVar("BatchT_contra", contravariant=True)


class Job(Protocol[BatchT_contra]):
    """A `Job` is the work that a stage gives to the loop."""

    def step(self, batch: BatchT_contra, step: int) -> Mapping[str, Tensor]:
        """Make one update, and return scalars of this process's part of the batch, with "loss" among them.

        All values whose names begin with "loss" must be finite.
        """

    def rate(self, step: int) -> float:
        """Return the learning rate of a step."""

    def evaluate(self) -> Mapping[str, float]:
        """Return metrics over all processes; the highest "score" decides which weights are the best."""

    def keep_best(self, step: int, score: float) -> None:
        """Write the present weights as the best so far; the loop calls this on the first process.

        For a job that is spread over the processes, the loop calls it on every one of them.
        """

    def state_dict(self) -> dict[str, Any]:
        """Return everything that the next step depends on, except the step's number."""

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go back to a saved state."""


_CURE = (
    f"A lower {flag('recipe.lr')}, a warm-up ({flag('recipe.warmup')}) or {flag('recipe.clip_norm')} often "
    "cures this."
)


@dataclass(frozen=True, kw_only=True)
class Plan:
    """A `Plan` says how long a training is, and how often things happen; 0 means never."""

    num_steps: int
    images_per_step: int
    evaluate_every: int
    checkpoint_every: int
    log_every: int
    seed: int
    identity: Mapping[str, Any]
    """These values, such as the classes, come from no option but must stay when a run is continued."""
    cure: str = _CURE
    """If a loss is not finite, this says what to try."""


@dataclass(frozen=True, kw_only=True)
class Spread:
    """A `Spread` describes a job of which each process holds a part of the state and of the values.

    The processes are at different steps at any one time, and agree without waiting for each other.
    """

    measured: Mapping[str, int]
    """These values exist on some process in each step; each has the number of processes that have it."""
    here: frozenset[str]
    """This process has these values."""
    saves: bool
    """Whether this process saves its part of the state; of several processes with the same part, one does."""
    control: torch.distributed.ProcessGroup
    """This group holds all processes, with a backend that works on CPU."""
    apart: int
    """The processes may be this many steps apart, so an answer is read this many steps after its question."""
    waiting: Callable[[], AbstractContextManager[object]] = nullcontext
    """This context is entered wherever this process may wait for others."""


@dataclass
class Position:
    """A `Position` says how far a run has come; it is saved with every checkpoint."""

    step: int = 0
    seconds: float = 0.0
    best_step: int = 0
    best_score: float = -math.inf
    latest: dict[str, float] = field(default_factory=dict)
