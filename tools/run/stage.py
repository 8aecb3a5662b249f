"""What every script that works in a run folder does around its work: begin, go on, and end in order."""

import os
from collections.abc import Callable, Collection
from pathlib import Path
from types import TracebackType
from typing import Any, Generic, Protocol, TypeVar

from accelerate import Accelerator

from tools.failures import SMALLER, RunFailed, known_cause
from tools.options.config import flag, flatten
from tools.run.folder import Run
from tools.run.launch import launch, on_main, unheard


class StageConfig(Protocol):
    """The options that say where and on what machine."""

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


Config = TypeVar("Config", bound=StageConfig)
Result = TypeVar("Result")


class Stage(Generic[Config]):
    """A run's folder and its processes, from the start of a script to its end.

        with Stage(config, free=FREE) as stage:
            if not stage.finished:
                work(stage.config, stage.run, stage.accelerator)
            stage.tell(summary)

    `free` names the options that may change from one start to the next, and `smaller` what needs less memory.
    Where options of `length` differ from those that a finished run was made with, it is not finished.
    """

    def __init__(
        self,
        config: Config,
        *,
        free: Collection[str],
        length: Collection[str] = (),
        smaller: str = SMALLER,
    ) -> None:
        self._asked, self._free, self._length, self._smaller = config, free, length, smaller
        self.run = Run(Path(config.run))

    def __enter__(self) -> "Stage[Config]":
        asked, run = self._asked, self.run
        self.config: Config = run.continued(asked)
        self.accelerator: Accelerator = launch(
            device=self.config.device,
            precision=self.config.precision,
            threads=self.config.threads,
            trackers=self.config.trackers,
            folder=run.path,
        )
        self.say(
            *(
                f"note: {note}"
                for note in unheard(self.config.precision, self.accelerator.num_processes, os.environ)
            )
        )
        try:
            self._open()
        except BaseException:
            run.close()
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.run.close()
        if isinstance(error, RuntimeError):
            cause = known_cause(error, self.accelerator.num_processes, smaller=self._smaller)
            if cause:
                raise RunFailed(f"{cause}. The same command continues from what was saved.") from error
        if error is None:
            self.accelerator.free_memory()  # DDP goes before its process group: the other order can hang
            self.accelerator.end_training()

    def say(self, *lines: str) -> None:
        """Print lines, once for all processes."""
        if lines and self.accelerator.is_main_process:
            print(*lines, sep="\n", flush=True)

    def on_main(self, action: Callable[[], Result]) -> Result | None:
        """Do something on the first process, while the others wait; a mistake there is one everywhere."""
        return on_main(self.accelerator, action)

    def tell(self, summary: Callable[[Run, dict[str, Any]], str]) -> None:
        """Print the summary of what the run came to, and that nothing was left to do if that is so."""
        if self.accelerator.is_main_process:
            done = f"{self.run.path} is finished\n" if self.finished else ""
            self.say(done + summary(self.run, self.run.results or {}))

    def _open(self) -> None:
        run, config = self.run, self.config
        free = {*self._free, *(self._length if run.results else ())}
        self.on_main(lambda: run.open(config, free=free))
        self.on_main(lambda: self._tell_what_stays(flatten(self._asked), flatten(config)))
        longer = run.results is not None and bool(self._length) and run.differs(config, self._length)
        self.finished = run.results is not None and not longer
        """Whether nothing was left to do when the script began."""
        self.accelerator.wait_for_everyone()  # until all have looked nobody changes what they look at

    def _tell_what_stays(self, asked: dict[str, Any], done: dict[str, Any]) -> None:
        stays = [f"{flag(name)} {done[name]}" for name in done if asked[name] != done[name]]
        if stays:
            print(f"{self.run.path} goes on as it began, with {', '.join(stays)}", flush=True)
