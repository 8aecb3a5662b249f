"""What every script that works in a run folder does around its work."""

import os
from collections.abc import Callable, Collection
from pathlib import Path
from typing import Any, Protocol, TypeVar

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


def in_run(
    config: Config,
    work: Callable[[Config, Run, Accelerator], None],
    summary: Callable[[Run, dict[str, Any]], str],
    *,
    free: Collection[str],
    smaller: str = SMALLER,
    again: Callable[[Config, Run], None] = lambda config, run: None,
    length: Collection[str] = (),
) -> None:
    """Do the work in the run's folder, or show the summary of what was done.

    `free` names the options that may change from one start to the next, `smaller` what needs less memory;
    `again` is done before the summary of a finished run is shown; where options of `length` are others than
    those that it was made with, it is worked on as one under way.
    """
    run = Run(Path(config.run))
    asked, config = config, run.continued(config)
    accelerator = launch(
        device=config.device,
        precision=config.precision,
        threads=config.threads,
        trackers=config.trackers,
        folder=run.path,
    )
    if accelerator.is_main_process:
        for each in unheard(config.precision, accelerator.num_processes, os.environ):
            print(f"note: {each}", flush=True)
    try:
        on_main(accelerator, lambda: run.open(config, free={*free, *(length if run.results else ())}))
        on_main(accelerator, lambda: _tell_what_stays(run, flatten(asked), flatten(config)))
        finished = run.results is not None
        longer = finished and bool(length) and run.differs(config, length)
        accelerator.wait_for_everyone()  # until all have looked nobody changes what they look at
        if finished and not longer:
            on_main(accelerator, lambda: again(config, run))
            on_main(accelerator, lambda: print(f"{run.path} is finished\n{summary(run, run.results or {})}"))
        else:
            work(config, run, accelerator)
    except RuntimeError as error:
        cause = known_cause(error, accelerator.num_processes, smaller=smaller)
        if not cause:
            raise
        raise RunFailed(f"{cause}. The same command continues from what was saved.") from error
    finally:
        run.close()
    accelerator.free_memory()  # DDP goes before its process group does: the other order can hang
    accelerator.end_training()


def _tell_what_stays(run: Run, asked: dict[str, Any], done: dict[str, Any]) -> None:
    stays = [f"{flag(name)} {done[name]}" for name in done if asked[name] != done[name]]
    if stays:
        print(f"{run.path} goes on as it began, with {', '.join(stays)}", flush=True)
