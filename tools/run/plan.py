"""What a stage hands to the loop: a job, how long and how often, and how it is spread over processes."""

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
    """What a stage hands to the loop."""

    def step(self, batch: BatchT_contra, step: int) -> Mapping[str, Tensor]:
        """Make one update; return scalars of this process's part of the batch, "loss" among them.

        All whose names begin with "loss" must be finite.
        """

    def rate(self, step: int) -> float:
        """The learning rate of a step."""

    def evaluate(self) -> Mapping[str, float]:
        """Metrics over all processes; "score" is the one by which the best is kept, higher is better."""

    def keep_best(self, step: int, score: float) -> None:
        """Write the weights as they are now as the best so far; called on the first process.

        Of a job that is spread over the processes, on every one of them.
        """

    def state_dict(self) -> dict[str, Any]:
        """Everything that the next step depends on besides the step's number."""

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go back to a saved state."""


CURE = (
    f"A lower {flag('recipe.lr')}, a warm-up ({flag('recipe.warmup')}) or {flag('recipe.clip_norm')} often "
    "cures this."
)


@dataclass(frozen=True, kw_only=True)
class Plan:
    """How long, and what happens how often; 0 never evaluates."""

    num_steps: int
    images_per_step: int
    evaluate_every: int
    checkpoint_every: int
    log_every: int
    seed: int
    identity: Mapping[str, Any]
    """What must be the same when a run is continued and no option says, such as the classes."""
    cure: str = CURE
    """What to try when a loss is no number."""


@dataclass(frozen=True, kw_only=True)
class Spread:
    """What the loop must know of a job that is spread: each process has a part of its state and its values.

    The processes then are not at the same step at the same time, and agree without waiting for each other.
    """

    measured: Mapping[str, int]
    """All values that a step has on some process, each with the number of processes that have it."""
    here: frozenset[str]
    """Those that this process has."""
    saves: bool
    """Whether this process's part of the state goes into checkpoints: of several with the same, one does."""
    control: torch.distributed.ProcessGroup
    """All processes, by a backend that works on CPU."""
    apart: int
    """How many steps the processes may be apart: what was asked is heard so many steps later."""
    waiting: Callable[[], AbstractContextManager[object]] = nullcontext
    """Entered wherever this process may wait for others."""


@dataclass
class Position:
    """How far a run has come; saved with every checkpoint."""

    step: int = 0
    seconds: float = 0.0
    best_step: int = 0
    best_score: float = -math.inf
    latest: dict[str, float] = field(default_factory=dict)
