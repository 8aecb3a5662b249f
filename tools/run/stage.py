"""This module does what every script does around its work in a run folder: begin, go on, end in order."""

import dataclasses
import os
from collections.abc import Callable, Collection
from pathlib import Path
from types import TracebackType
from typing import Any, Generic, Protocol, TypeVar

from accelerate import Accelerator

from tools.failures import SMALLER, RunFailed, known_cause
from tools.kernels.dense import why_no_gain
from tools.kernels.library import is_there
from tools.options.config import flag, flatten
from tools.run.folder import Run
from tools.run.launch import from_main, launch, on_main, unheard


class StageConfig(Protocol):
    """A `StageConfig` holds the options that say where to work and on what machine."""

    @property
    def run(self) -> str: ...
    @property
    def device(self) -> str: ...
    @property
    def precision(self) -> str: ...
    @property
    def threads(self) -> int: ...
    @property
    def trackers(self) -> tuple[str, ...]: ...


def usual_kernels(config: StageConfig, accelerator: Accelerator) -> str:
    """Return what `kernels` auto stands for in a new run on this machine."""
    fits = accelerator.device.type == "cpu" and config.precision == "fp32"
    return "native" if fits and not getattr(config, "compile", False) and is_there() else "torch"


_Config = TypeVar("_Config", bound=StageConfig)
_Result = TypeVar("_Result")


class Stage(Generic[_Config]):
    """A `Stage` holds a run's folder and its processes, from the start of a script to its end.

        with Stage(config, free=FREE) as stage:
            if not stage.finished:
                work(stage.config, stage.run, stage.accelerator)
            stage.print_summary(summary)

    `free` names the options that may change from one start to the next, and `smaller` says what needs less
    memory. If options of `length` differ from those that a finished run was made with, it counts as
    unfinished.
    """

    def __init__(
        self,
        config: _Config,
        *,
        free: Collection[str],
        length: Collection[str] = (),
        smaller: str = SMALLER,
    ) -> None:
        self._given, self._free, self._length, self._smaller = config, free, length, smaller
        self.run = Run(Path(config.run))

    def __enter__(self) -> "Stage[_Config]":
        given, run = self._given, self.run
        self.config: _Config = run.continued(given)
        self.accelerator: Accelerator = launch(
            device=self.config.device,
            precision=self.config.precision,
            threads=self.config.threads,
            trackers=self.config.trackers,
            folder=run.path,
        )
        self._kept = flatten(self.config)
        self._settle_kernels()
        notes = unheard(self.config.precision, self.accelerator.num_processes, os.environ)
        if getattr(self.config, "kernels", "") == "bf16":
            notes += why_no_gain(self.accelerator.device.type)
        self.say(*(f"note: {note}" for note in notes))
        try:
            self._open()
        except BaseException as error:
            run.close()
            self._raise_known(error)
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.run.close()
        self._raise_known(error)
        if error is None:
            self.accelerator.free_memory()  # DDP goes before its process group: the other order can hang
            self.accelerator.end_training()

    def say(self, *lines: str) -> None:
        """Print lines, on the first process only."""
        if lines and self.accelerator.is_main_process:
            print(*lines, sep="\n", flush=True)

    def on_main(self, action: Callable[[], _Result]) -> _Result | None:
        """Run an action on the first process while the others wait; if it fails, every process fails."""
        return on_main(self.accelerator, action)

    def print_summary(self, summary: Callable[[Run, dict[str, Any]], str]) -> None:
        """Print the summary of the results, and say so if the run was finished before."""
        done = f"{self.run.path} is finished\n" if self.finished else ""
        self.on_main(lambda: self.say(done + summary(self.run, self.run.results or {})))

    def _open(self) -> None:
        run, config = self.run, self.config
        free = {*self._free, *(self._length if run.results else ())}
        self.on_main(lambda: run.open(config, free=free))
        self.on_main(lambda: self._report_kept(flatten(self._given), self._kept))
        longer = run.results is not None and bool(self._length) and run.differs(config, self._length)
        self.finished = run.results is not None and not longer
        """Whether the run was finished before the script began."""
        self.accelerator.wait_for_everyone()  # nobody changes the folder until all have looked at it

    def _settle_kernels(self) -> None:
        """Put what `kernels` auto stands for in its place, so that the run's config says it."""
        config: Any = self.config
        if getattr(config, "kernels", "") != "auto":
            return

        def choose() -> str:
            # A run that began with torch's says so, and `continued` has read it.
            return "native" if self.run.has_begun else usual_kernels(config, self.accelerator)

        self.config = dataclasses.replace(config, kernels=from_main(self.accelerator, choose))

    def _raise_known(self, error: BaseException | None) -> None:
        """Raise a `RunFailed` that says what a torch error most likely means, if that is known."""
        if isinstance(error, RuntimeError):
            cause = known_cause(error, self.accelerator.num_processes, smaller=self._smaller)
            if cause:
                raise RunFailed(f"{cause}. The same command continues from what was saved.") from error

    def _report_kept(self, given: dict[str, Any], used: dict[str, Any]) -> None:
        kept = [f"{flag(name)} {used[name]}" for name in used if given[name] != used[name]]
        if kept:
            print(f"{self.run.path} goes on as it began, with {', '.join(kept)}", flush=True)
