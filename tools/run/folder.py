"""This module keeps a run in one folder: its config, metrics, checkpoints and results.

Starting on an existing run continues it. If the config differs, the differing options are named.
"""

import fcntl
import os
import sys
import time
from collections.abc import Collection
from pathlib import Path
from typing import Any, TextIO, TypeVar

from tools.failures import RunFailed
from tools.files.atomic import read_document, write_bytes, write_document
from tools.mistake import Mistake
from tools.options.config import (
    flag,
    flatten,
    idle_options,
    message_of,
    of_run,
    to_toml,
    with_earlier,
)
from tools.options.plugins import digests
from tools.options.unlisted import unlisted

LOCK_PATIENCE_S = 60.0
MADE_BY = "# made by "
"""The first line of config.toml begins with this text; the script's name follows."""

_Config = TypeVar("_Config")


class Run:
    """A `Run` is the folder of one run and the files in it."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.config_path = path / "config.toml"
        self.metrics_path = path / "metrics.jsonl"
        self.checkpoints = path / "checkpoints"
        self.last_weights = path / "weights.safetensors"
        self.best_weights = path / "best.safetensors"
        self.results_path = path / "results.json"
        self.evaluations_path = path / "evaluations.jsonl"
        self.plugins_path = path / "plugins.json"
        self._lock: TextIO | None = None

    def open(self, config: Any, *, free: Collection[str]) -> None:
        """Prepare the folder for this config; only one process of the run may call this.

        `free` names the options that may change from one start to the next, because no result depends on
        them.
        """
        if self.path.is_file():
            raise Mistake("run", f"'{self.path}' is a file", "a run is a folder")
        if (
            not self.config_path.exists()
            and self.path.is_dir()
            and any(map(_is_foreign, self.path.iterdir()))
        ):
            raise Mistake(
                "run", f"'{self.path}' holds files but no run", "name a new folder or the folder of a run"
            )
        try:
            self.path.mkdir(parents=True, exist_ok=True)
            self._lock = (self.path / ".lock").open("a+")
        except OSError as error:
            raise Mistake("run", f"cannot write in folder '{self.path}': {error.strerror}") from None
        self._take_lock(self._lock)
        # Until the first checkpoint nothing depends on the options, so a mistake may be corrected in place.
        if self.config_path.exists() and self.has_begun:
            self._compare(config, free)
            if "plugins" not in free:
                self.check_plugins(config)
        if not self.results_path.exists():
            self.keep_config(config)
            self._keep_plugins(config)

    def keep_config(self, config: Any) -> None:
        """Write the options that the run is made with."""
        write_bytes(self.config_path, f"{MADE_BY}{_script()}\n{to_toml(config)}".encode())

    def differs(self, config: Any, options: Collection[str]) -> bool:
        """Return whether any of these options differs from the one that the run was made with."""
        text = self.config_path.read_text("utf-8", errors="replace")
        old = flatten(of_run(type(config), text, source=str(self.config_path), checked=False))
        return any(value != old[name] for name, value in flatten(config).items() if name in options)

    @property
    def has_begun(self) -> bool:
        """Return whether there is a checkpoint, a score or a result that was made with the config."""
        checkpoints = self.path.glob("**/checkpoints/step-*.json")
        return self.results_path.exists() or self.evaluations_path.exists() or any(True for _ in checkpoints)

    def part(self, name: str) -> "Run":
        """Return a part of this run that has its own metrics and checkpoints, in a folder inside."""
        part = Run(self.path / name)
        try:
            part.path.mkdir(exist_ok=True)
        except OSError as error:
            raise RunFailed(f"cannot make {part.path}: {error.strerror}") from error
        return part

    def close(self) -> None:
        """Let other processes work on the run."""
        if self._lock:
            self._lock.close()

    @property
    def results(self) -> dict[str, Any] | None:
        """Return the results of the finished run, or None while it is not finished."""
        return read_document(self.results_path, "results", 1) if self.results_path.exists() else None

    def write_results(self, results: dict[str, Any]) -> None:
        """Write the results, which mark the run as finished."""
        try:
            write_document(self.results_path, "results", 1, results)
        except ValueError:  # JSON has no numbers that are not finite
            raise RunFailed(
                "the training has diverged: the weights are finite, but losses by them are not; start a new "
                f"run with a lower {flag('recipe.lr')}"
            ) from None

    def continued(self, config: _Config) -> _Config:
        """Return the config to go on with: options at their default keep the run's original default."""
        if not self.has_begun or not self.config_path.exists():
            return config
        return with_earlier(
            config, self.config_path.read_text("utf-8", errors="replace"), str(self.config_path)
        )

    def _compare(self, config: Any, free: Collection[str]) -> None:
        text = self.config_path.read_text("utf-8", errors="replace")
        first = text.partition("\n")[0]
        maker = first.removeprefix(MADE_BY) if first.startswith(MADE_BY) else ""
        try:
            before = of_run(type(config), text, source=str(self.config_path))
            old = unlisted(type(config)) | flatten(before)
        except ValueError as error:
            if maker == _script():
                raise
            other = f"another script or version: {message_of(error)}"
            whose = f"{maker}, and this is {_script()}" if maker else other
            raise Mistake("run", f"'{self.path}' was made by {whose}", "name a new folder") from None
        new = flatten(config)
        # What counts about plugins is their content, not where they lie.
        free = {*free, "plugins", *(idle_options(before).keys() & idle_options(config).keys())}
        differing = [name for name in new if name not in free and old[name] != new[name]]
        if differing:
            listed = ", ".join(f"`{name}` (was {old[name]!r}, is {new[name]!r})" for name in differing)
            raise Mistake(
                "run",
                f"'{self.path}' was made with other options: {listed}",
                "give those again to continue it, or name a new folder",
            )

    def check_plugins(self, config: Any) -> None:
        """Refuse to go on if the user's own parts are other files than the recorded ones."""
        if not self.plugins_path.exists():
            return
        before: dict[str, str] = read_document(self.plugins_path, "plugins", 1)["sha256"]
        now = digests(getattr(config, "plugins", ()))
        if sorted(before.values()) == sorted(now.values()):
            return
        names = {name for name in now if now[name] not in before.values()}
        names |= {name for name in before if before[name] not in now.values()}
        words = {(True, True): "has changed", (True, False): "is not given any more"}
        changes = [f"'{name}' {words.get((name in before, name in now), 'is new')}" for name in sorted(names)]
        raise Mistake(
            "plugins",
            f"since '{self.path}' began, {', '.join(changes)}",
            "give what it began with, or name a new folder (to go on all the same, remove "
            f"{self.plugins_path})",
        )

    def _keep_plugins(self, config: Any) -> None:
        """Record which files of the user's own parts the run is made with."""
        files = digests(getattr(config, "plugins", ()))
        if files:
            write_document(self.plugins_path, "plugins", 1, {"sha256": files})
        else:
            self.plugins_path.unlink(missing_ok=True)

    def _take_lock(self, lock: TextIO) -> None:
        """Wait a while for a process that is just ending here, because two must never write one run."""
        deadline = time.monotonic() + LOCK_PATIENCE_S
        while True:
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except BlockingIOError:
                if time.monotonic() > deadline:
                    lock.seek(0)
                    holder = lock.read().strip()
                    raise Mistake(
                        "run", f"process {holder} is working on '{self.path}'", "stop it or name a new folder"
                    ) from None
                time.sleep(0.2)
            except OSError:  # a file system without locks: then the user must not start a run twice
                break
        lock.truncate(0)
        lock.write(str(os.getpid()))
        lock.flush()


def _script() -> str:
    return Path(sys.argv[0]).name


def _is_foreign(path: Path) -> bool:
    """Return whether a file is none of those that an interrupted start leaves behind."""
    return path.name not in (".lock", ".config.toml.tmp")
