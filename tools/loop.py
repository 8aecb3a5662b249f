"""The one training loop: steps, metrics, evaluations, checkpoints, resume, signals, the guard against NaN.

A stage hands it a job (one step, one evaluation, its state) and a stream of batches; the loop owns all else.
"""

import math
import signal
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any, Generic, NoReturn, Protocol, TypeVar

import torch
from accelerate import Accelerator
from torch import Tensor

from tools.checkpoint import all_finite, load_checkpoint, save_checkpoint
from tools.failures import Interrupted, RunFailed, known_cause
from tools.launch import on_main
from tools.meters import MetricsLog, Progress, Stopwatch, Sums
from tools.runs import Run
from tools.seeding import seed_globals
from tools.signals import Wish, waiting_signals

BatchT = TypeVar("BatchT")
BatchT_contra = TypeVar("BatchT_contra", contravariant=True)

SECONDS_BETWEEN_CHECKS = 1.0


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
        """Write the weights as they are now as the best so far; called on the first process."""

    def state_dict(self) -> dict[str, Any]:
        """Everything that the next step depends on besides the step's number."""

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go back to a saved state."""


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
    cure: str = "A lower --recipe.lr, a warm-up (--recipe.warmup) or --recipe.clip-norm often cures this."
    """What to try when a loss is no number."""


@dataclass
class Position:
    """How far a run has come; saved with every checkpoint."""

    step: int = 0
    seconds: float = 0.0
    best_step: int = 0
    best_score: float = -math.inf
    latest: dict[str, float] = field(default_factory=dict)


class Loop(Generic[BatchT]):
    """Takes a job from wherever its run stands to the last step of the plan."""

    def __init__(self, job: Job[BatchT], plan: Plan, run: Run, accelerator: Accelerator) -> None:
        self._job, self._plan, self._run, self._accelerator = job, plan, run, accelerator
        self._ranks = accelerator.num_processes
        self._position = Position()
        self._sums = Sums()
        self._watch = Stopwatch()
        self._wish = Wish()
        self._agreed_signal = 0
        self._first_bad_step = torch.full((), plan.num_steps + 1, device=accelerator.device)
        self._saved_step = -1

    def run(self, batches: Callable[[int, int], Iterable[BatchT]]) -> Position:
        """Train to the end; `batches(start, stop)` gives the batches of those steps.

        An interrupted or failed run raises, with a checkpoint behind it from which the next call goes on.
        """
        self._resume()
        main, position = self._accelerator.is_main_process, self._position
        self._log = MetricsLog(self._run.metrics_path) if main else None
        self._progress = Progress(total=self._plan.num_steps, start=position.step, shown=main)
        if position.step:
            self._progress.write(f"continuing {self._run.path} from step {position.step}")
        try:
            with waiting_signals() as self._wish:
                self._train(batches)
        except RuntimeError as error:
            cause = known_cause(error, self._ranks)
            if not cause:
                raise
            raise RunFailed(
                f"step {position.step}: {cause}; {self._last_good()}. The same command continues from there."
            ) from error
        finally:
            self._progress.close()
            if self._log:
                self._log.close()
        return position

    def _train(self, batches: Callable[[int, int], Iterable[BatchT]]) -> None:
        plan, position = self._plan, self._position
        watch, logged_at, next_check = self._watch, position.step, position.step + 1
        watch.reset()
        for batch in batches(position.step, plan.num_steps):
            step = position.step
            # Dropout and the like start each step from its own stream: no generator's state needs saving.
            seed_globals(plan.seed, "step", step, self._accelerator.process_index)
            values = self._job.step(batch, step)
            losses = [value for name, value in values.items() if name.startswith("loss")]
            self._note_loss(torch.stack(losses), step)
            self._sums.add(values)
            position.step = done = step + 1
            self._progress.advance()
            logs, evaluates, saves = (
                every > 0 and (done == plan.num_steps or done % every == 0)
                for every in (plan.log_every, plan.evaluate_every, plan.checkpoint_every)
            )
            stopping = self._wish.signum and self._ranks == 1
            if logs or evaluates or saves or stopping or done >= next_check:
                slowest = self._check(watch.seconds / (done - logged_at))
                next_check = done + max(1, int(SECONDS_BETWEEN_CHECKS / slowest))
            watch.pause()
            if logs:
                self._write_metrics(done, (done - logged_at) / watch.seconds)
                position.seconds += watch.seconds
                watch.reset()
                watch.pause()
            if evaluates:
                saves |= self._evaluate(done)
            if saves:
                self._save()
            if logs:
                logged_at = done
            if self._agreed_signal:  # after whatever this step owes: the next start will not make it again
                self._stop(self._agreed_signal)
            watch.go_on()

    def _note_loss(self, losses: Tensor, step: int) -> None:
        """Remember the first step of which a loss is no number, without waiting for the device."""
        bad = torch.where(torch.isfinite(losses.detach()).all(), self._plan.num_steps + 1, step)
        self._first_bad_step = torch.minimum(self._first_bad_step, bad)

    def _check(self, pace: float) -> float:
        """Agree with all ranks whether to go on; returns the slowest rank's seconds per step."""
        signum = self._wish.signum
        told = torch.stack(
            [
                torch.tensor(float(signum), device=self._accelerator.device, dtype=torch.float64),
                -self._first_bad_step.double(),
                torch.tensor(pace, device=self._accelerator.device, dtype=torch.float64),
            ]
        )
        if self._ranks > 1:
            torch.distributed.all_reduce(told, torch.distributed.ReduceOp.MAX)
        agreed, bad_step, slowest = (float(value) for value in told.tolist())
        if -bad_step <= self._plan.num_steps:
            raise RunFailed(
                f"the loss at step {-bad_step:.0f} is not a finite number (learning rate "
                f"{self._job.rate(int(-bad_step)):g}); {self._advice()}",
                everyone=True,
            )
        self._agreed_signal = int(agreed)
        return max(slowest, 1e-6)

    def _stop(self, signum: int) -> NoReturn:
        self._save()
        name = signal.Signals(signum).name
        raise Interrupted(
            signum,
            f"stopped by {name} after step {self._position.step}; {self._last_good()}, "
            "and the same command continues",
        )

    def _write_metrics(self, done: int, steps_per_second: float) -> None:
        found = self._sums.means()
        names, means = list(found), torch.stack(list(found.values()))
        if self._ranks > 1:
            torch.distributed.all_reduce(means)
        values = dict(zip(names, (means / self._ranks).tolist(), strict=True))
        self._sums = Sums()
        rate = self._job.rate(done - 1)
        speed = steps_per_second * self._plan.images_per_step
        line = {**values, "learning_rate": rate, "images_per_second": speed}
        self._tell(done, line)
        self._progress.say(done, line, (self._plan.num_steps - done) / steps_per_second)

    def _evaluate(self, done: int) -> bool:
        """Evaluate; true if this is the best so far."""
        values = dict(self._job.evaluate())
        score = values.pop("score")
        position = self._position
        position.latest = values
        self._tell(done, values)
        self._progress.say(done, values)
        if score <= position.best_score:
            return False
        self._insist_on_numbers(self._job.state_dict())
        position.best_step, position.best_score = done, score
        on_main(self._accelerator, lambda: self._job.keep_best(done, score))
        return True

    def _tell(self, done: int, values: Mapping[str, float]) -> None:
        if self._log:
            self._log.append(done, values)
        self._accelerator.log(dict(values), step=done)

    def _save(self) -> None:
        step = self._position.step
        if step == self._saved_step:
            return
        if self._ranks > 1:
            self._sums.share()
        position = replace(self._position, seconds=self._position.seconds + self._watch.seconds)
        state = {
            "identity": dict(self._plan.identity),
            "position": vars(position),
            "sums": self._sums.state_dict(),
            "job": self._job.state_dict(),
        }
        self._insist_on_numbers(state["job"])
        on_main(self._accelerator, lambda: save_checkpoint(self._run.checkpoints, step, state))
        self._saved_step = step

    def _resume(self) -> None:
        def look() -> None:
            load_checkpoint(self._run.checkpoints)

        on_main(self._accelerator, look)  # a damaged one is one rank's message, not all ranks'
        found = load_checkpoint(self._run.checkpoints)
        self._agree_on_start(found[0] if found else 0)
        if found is None:
            return
        step, state = found
        self._compare_identity(state.get("identity", {}))
        try:
            self._job.load_state_dict(state["job"])
            self._sums.load_state_dict(state["sums"], self._accelerator.device)
            self._position = Position(**state["position"])
        except (KeyError, TypeError, RuntimeError, ValueError) as error:
            raise ValueError(
                f"the checkpoint of step {step} in {self._run.checkpoints} belongs to another network or "
                f"version: {str(error).splitlines()[0]}"
            ) from None
        self._saved_step = step

    def _agree_on_start(self, step: int) -> None:
        steps = self._accelerator.gather(torch.tensor([step], device=self._accelerator.device))
        if len(set(steps.tolist())) > 1:
            raise ValueError(
                f"--run: the processes see different checkpoints in '{self._run.path}'; it must be on a "
                "file system that all machines share"
            )

    def _compare_identity(self, saved: Mapping[str, Any]) -> None:
        for name, value in self._plan.identity.items():
            if saved.get(name) != value:
                raise ValueError(
                    f"--run: '{self._run.path}' was made with other data: {name} was {saved.get(name)!r}, "
                    f"is {value!r}"
                )

    def _insist_on_numbers(self, state: Mapping[str, Any]) -> None:
        if not all_finite(state):
            raise RunFailed(
                f"the update of step {self._position.step - 1} left values that are no numbers; "
                f"{self._advice()}",
                everyone=True,
            )

    def _last_good(self) -> str:
        return (
            f"the last checkpoint is step {self._saved_step}"
            if self._saved_step > 0
            else "no checkpoint was due yet"
        )

    def _advice(self) -> str:
        return f"{self._last_good()}. {self._plan.cure}"
