"""This module makes a truth from a config: a plan, workers on all ranks, and what the workers measured."""

import signal
import time
from datetime import timedelta

import torch
from accelerate import Accelerator
from accelerate.utils import gather_object

from retrain.truth.config import TruthConfig
from retrain.truth.findings import read_results, truth_results, truth_summary, write_truth
from retrain.truth.plan import Trial, TruthPlan, folder_of, read_plan, unfinished, write_plan
from retrain.truth.worker import tidy
from retrain.truth.workers import Workers
from supernet.network.network import kept_in_run
from tools.failures import Interrupted, RunFailed
from tools.images.datasets import load_data
from tools.mistake import Mistake
from tools.options.shared import FREE
from tools.run.folder import Run
from tools.run.launch import on_main, start_trackers
from tools.run.meters import MetricsLog, Progress
from tools.run.signals import Wish, waiting_signals
from tools.run.stage import Stage

SECONDS_BETWEEN_LOOKS = 0.5


def make_truth(config: TruthConfig) -> None:
    """Train what the config says, continue it, or say that it is done."""
    config.check_source()
    with Stage(config, free=FREE | {"jobs"}) as stage:
        if not stage.finished:
            _make(stage.config, stage.run, stage.accelerator)
        stage.print_summary(truth_summary)


def _make(config: TruthConfig, run: Run, accelerator: Accelerator) -> None:
    config = kept_in_run(config, run, accelerator)

    def settle() -> None:
        # Until something is trained, a mistake in the options may be corrected; the plan then changes.
        if not run.has_begun:
            data = load_data(config.images, config.seed)
            if data.notes:
                print(*data.notes, sep="\n", flush=True)
            write_plan(config, run, data)

    on_main(accelerator, settle)
    plan = read_plan(run)
    start_trackers(accelerator, config)
    log = _Log(config, run, plan, accelerator)
    try:
        with waiting_signals() as wish:
            _train_all(config, run, plan, accelerator, log, wish)
    finally:
        log.close()

    def finish() -> None:
        finished = read_results(run, plan.trials)
        write_truth(run, config.seed, finished)
        for trial in finished:
            tidy(folder_of(run, trial), keep_weights=config.keep_weights)
        run.write_results(truth_results(plan, finished))

    on_main(accelerator, finish)


def _train_all(
    config: TruthConfig, run: Run, plan: TruthPlan, accelerator: Accelerator, log: "_Log", wish: Wish
) -> None:
    """Let this rank's workers train until no rank has trainings left; all ranks end alike."""
    left = len(unfinished(run, plan.trials))
    with Workers(config, min(config.jobs, left), accelerator.device) as workers:
        working = True
        while working:
            workers.look(SECONDS_BETWEEN_LOOKS)
            log.look()
            signum, failed, working = _agree(
                accelerator, wish.signum or workers.signum, workers.failure is not None, workers.working
            )
            if signum or failed:
                workers.stop()
                log.look()
                failure = _first_of_all(accelerator, workers)
                if signum:
                    name = signal.Signals(signum).name
                    raise Interrupted(
                        signum, f"stopped by {name}; {log.kept}, and the same command continues"
                    )
                if failure[0] == "mistake":
                    raise Mistake("", failure[1])
                raise RunFailed(failure[1], everyone=True)


def _agree(accelerator: Accelerator, signum: int, failed: bool, working: bool) -> tuple[int, bool, bool]:
    """Return what holds on any rank."""
    if accelerator.num_processes == 1:  # this process need not use the device
        return signum, failed, working
    flags = torch.tensor([signum, failed, working], dtype=torch.int64, device=accelerator.device)
    torch.distributed.all_reduce(flags, torch.distributed.ReduceOp.MAX)
    agreed = flags.tolist()
    return int(agreed[0]), bool(agreed[1]), bool(agreed[2])


def _first_of_all(accelerator: Accelerator, workers: Workers) -> tuple[str, str]:
    """Return the kind and message of the first rank's failure."""
    mine = [(workers.failure.kind, workers.failure.message)] if workers.failure else []
    everyones = gather_object(mine) if accelerator.num_processes > 1 else mine
    return everyones[0] if everyones else ("", "")


class _Log:
    """Reports on the first process what is finished: truth.jsonl, metrics.jsonl, and a line for the user."""

    def __init__(self, config: TruthConfig, run: Run, plan: TruthPlan, accelerator: Accelerator) -> None:
        self._config, self._run, self._accelerator = config, run, accelerator
        self._trials = plan.trials
        self._main = accelerator.is_main_process
        self._finished = read_results(run, self._trials) if self._main else {}
        self._already, self._since = len(self._finished), time.perf_counter()
        if self._main:
            print(_heading(config, plan, accelerator), flush=True)
        self._metrics = MetricsLog(run.metrics_path) if self._main else None
        self._progress = Progress(
            total=len(self._trials), start=self._already, shown=self._main, unit="training"
        )
        if self._already:
            self._progress.write(
                f"continuing {run.path}: {self._already} of {len(self._trials)} trainings are finished"
            )

    @property
    def kept(self) -> str:
        """Return in words what is not lost if the run stops now."""
        return (
            f"{len(self._finished)} of {len(self._trials)} trainings are finished, those under way have "
            "checkpoints"
        )

    def look(self) -> None:
        """Report what was finished since the last look."""
        if not self._main:
            return
        waiting = [trial for trial in self._trials if trial not in self._finished]
        new = read_results(self._run, waiting)
        if not new:
            return
        finished = self._finished | new
        self._finished = {trial: finished[trial] for trial in self._trials if trial in finished}
        write_truth(self._run, self._config.seed, self._finished)
        for number, (trial, results) in enumerate(new.items(), start=len(finished) - len(new) + 1):
            self._progress.advance()
            self._report(number, trial, results["test"]["last"]["top1"])

    def close(self) -> None:
        """Close the progress bar and the files."""
        self._progress.close()
        if self._metrics:
            self._metrics.close()

    def _report(self, number: int, trial: Trial, accuracy: float) -> None:
        count, total = number - self._already, len(self._trials)
        left = (time.perf_counter() - self._since) / count * (total - number)
        self._progress.write(
            f"training {number}/{total}  {trial.label} seed {self._config.seed + trial.repeat}  test top-1 "
            f"{accuracy:.2%}  {timedelta(seconds=round(left))} left"
        )
        line = {"training": trial.name, "accuracy": accuracy}
        if self._metrics:
            self._metrics.append(number, line)
        self._accelerator.log({"accuracy": accuracy}, step=number)


def _heading(config: TruthConfig, plan: TruthPlan, accelerator: Accelerator) -> str:
    jobs = config.jobs
    return (
        f"{plan}, on {config.data.name}, {config.recipe.batch_size} images a step; {jobs} "
        f"{'training' if jobs == 1 else 'trainings'} at once on each of {accelerator.num_processes} x "
        f"{accelerator.device.type}, {config.precision}"
    )
