"""This module is the one training loop: steps, metrics, evaluations, checkpoints, resuming and signals.

It also guards against NaN. A script's stage gives it a job (one step, one evaluation, its state) and a stream
of batches; the loop does everything else.
"""

import signal
from collections.abc import Callable, Iterable, Mapping
from contextlib import AbstractContextManager, nullcontext
from dataclasses import replace
from typing import Any, Generic, NoReturn, TypeVar

import torch
from accelerate import Accelerator
from torch import Tensor

from tools.failures import Interrupted, RunFailed, known_cause
from tools.mistake import Mistake
from tools.run.agreement import Agreement, Meeting
from tools.run.checkpoint import Written, all_finite, load_checkpoint, save_checkpoint, save_part
from tools.run.folder import Run
from tools.run.launch import on_every, on_main
from tools.run.meters import MetricsLog, Progress, Stopwatch, Sums
from tools.run.plan import Job, Plan, Position, Spread
from tools.run.signals import Wish, waiting_signals
from tools.seeding import seed_globals

BatchT = TypeVar("BatchT")
_Result = TypeVar("_Result")

SECONDS_BETWEEN_CHECKS = 1.0


class Loop(Generic[BatchT]):
    """A `Loop` takes a job from wherever its run stands to the last step of the plan."""

    def __init__(
        self,
        job: Job[BatchT],
        plan: Plan,
        run: Run,
        accelerator: Accelerator,
        spread: Spread | None = None,
    ) -> None:
        self._job, self._plan, self._run, self._accelerator = job, plan, run, accelerator
        self._spread, self._ranks = spread, accelerator.num_processes
        self._agreement = Agreement(accelerator.device, spread.control if spread else None)
        self._position = Position()
        self._sums = Sums()
        self._watch = Stopwatch()
        self._wish = Wish()
        self._agreed_signal = 0
        self._slowest = 1.0  # seconds per step
        self._first_bad_step = torch.full((), plan.num_steps + 1, device=accelerator.device)
        self._saved_step = -1

    def run(self, batches: Callable[[int, int], Iterable[BatchT]]) -> Position:
        """Train to the end; `batches(start, stop)` returns the batches of those steps.

        An interrupted or failed run raises an exception, and the next call goes on from its last checkpoint.
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
            # Dropout and the like start each step from the step's own stream, so no generator state is saved.
            seed_globals(plan.seed, "step", step, self._accelerator.process_index)
            values = self._job.step(batch, step)
            losses = [value for name, value in values.items() if name.startswith("loss")]
            if losses:  # a process of a spread job may have none
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
                at_once = evaluates or saves or done == plan.num_steps
                self._meet(done, done - logged_at, logs=logs, at_once=at_once)
                next_check = done + max(1, int(SECONDS_BETWEEN_CHECKS / self._slowest))
            watch.pause()
            if logs:
                position.seconds += watch.seconds
                watch.reset()
                watch.pause()
            if evaluates:
                saves |= self._evaluate(done)
            if saves:
                self._save()
            if logs:
                logged_at = done
            if self._agreed_signal:  # after all that this step owes: the next start will not repeat it
                self._stop(self._agreed_signal)
            watch.go_on()

    def _note_loss(self, losses: Tensor, step: int) -> None:
        """Remember the first step at which a loss is not finite, without waiting for the device."""
        bad = torch.where(torch.isfinite(losses.detach()).all(), self._plan.num_steps + 1, step)
        self._first_bad_step = torch.minimum(self._first_bad_step, bad)

    def _meet(self, done: int, since: int, *, logs: bool, at_once: bool) -> None:
        """Agree with all ranks whether to go on, and on the values to write.

        The stopwatch has run for `since` steps. The ranks of a spread job read the outcome later, when all of
        them have certainly reached this step, unless they need it at once.
        """
        means = self._sums.means() if logs else {}
        if logs:
            self._sums = Sums()
        votes = (float(self._wish.signum), -self._first_bad_step, self._watch.seconds / since)
        counts = self._spread.measured if self._spread else dict.fromkeys(means, self._ranks)
        meeting = self._agreement.call(done, votes, means, counts if logs else {})
        meeting.pace = self._watch.seconds / since  # the device has finished its part of these steps by now
        self._hear(done if at_once or not self._spread else done - self._spread.apart, since)

    def _hear(self, up_to: int, since: int = 1) -> None:
        """Act on what the processes agreed on."""
        with self._waiting():
            for meeting in self._agreement.concluded(up_to):
                if not self._spread:
                    meeting.pace = self._watch.seconds / since
                signum, bad_step, self._slowest = meeting.votes
                if -bad_step <= self._plan.num_steps:
                    raise RunFailed(
                        f"the loss at step {abs(bad_step):.0f} is not a finite number (learning rate "
                        f"{self._job.rate(int(-bad_step)):g}); {self._advice()}",
                        everyone=True,
                    )
                self._agreed_signal = int(signum)
                if meeting.means:
                    self._write_metrics(meeting)

    def _stop(self, signum: int) -> NoReturn:
        self._hear(self._position.step)
        self._save()
        name = signal.Signals(signum).name
        raise Interrupted(
            signum,
            f"stopped by {name} after step {self._position.step}; {self._last_good()}, "
            "and the same command continues",
        )

    def _write_metrics(self, meeting: Meeting) -> None:
        done = meeting.step
        speed = self._plan.images_per_step / meeting.pace
        line = {**meeting.means, "learning_rate": self._job.rate(done - 1), "images_per_second": speed}
        self._report(done, line)
        self._progress.say(done, line, (self._plan.num_steps - done) * meeting.pace)

    def _evaluate(self, done: int) -> bool:
        """Evaluate, and return whether this is the best evaluation so far."""
        values = dict(self._job.evaluate())
        score = values.pop("score")
        position = self._position
        position.latest = values
        self._report(done, values)
        self._progress.say(done, values)
        if score <= position.best_score:
            return False
        state = self._job.state_dict()
        self._everywhere(lambda: self._insist_on_numbers(state))
        position.best_step, position.best_score = done, score
        if self._spread:
            with self._waiting():
                self._job.keep_best(done, score)
        else:
            on_main(self._accelerator, lambda: self._job.keep_best(done, score))
        return True

    def _report(self, done: int, values: Mapping[str, float]) -> None:
        if self._log:
            self._log.append(done, values)
        self._accelerator.log(dict(values), step=done)

    def _save(self) -> None:
        step = self._position.step
        if step == self._saved_step:
            return
        with self._waiting():
            self._share_sums()
            position = replace(self._position, seconds=self._position.seconds + self._watch.seconds)
            state: dict[str, Any] = {
                "identity": dict(self._plan.identity),
                "position": vars(position),
                "sums": self._sums.state_dict(),
            }
            folder, own = self._run.checkpoints, {"job": self._job.state_dict()}
            if self._spread is None:
                self._insist_on_numbers(own)
                on_main(self._accelerator, lambda: save_checkpoint(folder, step, state | own))
            else:
                parts = self._everywhere(lambda: self._save_part(step, own))
                written = [part for part in parts if part]
                on_main(self._accelerator, lambda: save_checkpoint(folder, step, state, written))
                self._sums.keep(self._spread.here)
        self._saved_step = step

    def _save_part(self, step: int, own: Mapping[str, Any]) -> Written | None:
        """Write this process's part of the job's state."""
        assert self._spread is not None
        self._insist_on_numbers(own)
        if not self._spread.saves:
            return None
        return save_part(self._run.checkpoints, step, self._accelerator.process_index, own)

    def _everywhere(self, action: Callable[[], _Result]) -> list[_Result]:
        """Run an action on every process; if it fails on one process of a spread job, it fails on all."""
        return on_every(action, self._spread.control) if self._spread else [action()]

    def _share_sums(self) -> None:
        """Turn the sums so far into what a checkpoint keeps: each value's mean over those that measure it."""
        if self._spread:
            self._sums.unite(self._spread.control, self._accelerator.device)
        elif self._ranks > 1:
            self._sums.share()

    def _waiting(self) -> AbstractContextManager[object]:
        return self._spread.waiting() if self._spread else nullcontext()

    def _resume(self) -> None:
        def look() -> None:
            load_checkpoint(self._run.checkpoints)

        on_main(self._accelerator, look)  # one rank reports a damaged checkpoint, not all of them
        newest = load_checkpoint(self._run.checkpoints)
        self._agree_on_start(newest[0] if newest else 0)
        if newest is None:
            return
        step, state = newest
        self._compare_identity(state.get("identity", {}))
        try:
            self._job.load_state_dict(state["job"])
            self._sums.load_state_dict(state["sums"], self._accelerator.device)
            if self._spread:
                self._sums.keep(self._spread.here)
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
            raise Mistake(
                "run",
                f"the processes see different checkpoints in '{self._run.path}'",
                "it must be on a file system that all machines share",
            )

    def _compare_identity(self, saved: Mapping[str, Any]) -> None:
        for name, value in self._plan.identity.items():
            if saved.get(name) != value:
                raise Mistake(
                    "run",
                    f"'{self._run.path}' was made with other data: {name} was "
                    f"{saved.get(name)!r}, is {value!r}",
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
