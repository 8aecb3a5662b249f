"""This module runs several scripts in order as one piece of work, which can be stopped and continued.

A TOML file lists chapters. Each chapter has commands of the scripts in the project's root, and later commands
read the files that earlier ones left in their runs. This module is free of torch.
"""

import os
import shlex
import sys
import time
import tomllib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

from tools.chapters.together import SAVED_IS_KEPT, Command, run_together
from tools.files.atomic import read_document, write_document
from tools.files.provenance import sha256
from tools.mistake import Mistake
from tools.options.config import check_choice, suggest
from tools.run.signals import waiting_signals

ROOT = Path(__file__).resolve().parents[2]
DONE = "chapters.json"
"""This file in the folder records the commands that ended well, and what they were made from."""

Words = tuple[str, ...]
Made = dict[str, dict[str, str]]
"""Checksums of the "files" that a command names, and of the results of the "runs" that it names."""


@dataclass(frozen=True, kw_only=True)
class ChaptersConfig:
    """The options say which chapters to run, and where."""

    USUAL: ClassVar[tuple[str, ...]] = ("run", "chapters", "data", "device")

    run: str = "runs/demo"
    """Keep the runs of all chapters in this folder; a second start goes on where the first one ended."""
    chapters: str = "configs/demo/chapters.toml"
    """Read the chapters from this TOML file, which gives each a title, commands and a number of processes."""
    device: str = "auto"
    """Compute on cpu, cuda or auto, which takes cuda where there is a GPU."""
    data: str = ""
    """Read images from this folder, for chapters that need one."""

    def __post_init__(self) -> None:
        if not self.run:
            raise Mistake("run", "name a folder")
        check_choice("device", self.device, ("auto", "cpu", "cuda"))


@dataclass(frozen=True)
class Chapter:
    """A `Chapter` is a set of commands that do not depend on each other and run at the same time."""

    title: str
    commands: tuple[Words, ...]
    """Each command is a script and its options."""
    processes: int = 1
    """Each command runs on this many processes, or on fewer where there are fewer GPUs."""


def run_chapters(config: ChaptersConfig) -> None:
    """Run every command that is not done yet, and print at the end what there is to look at."""
    chapters, end = read_chapters(config)
    file = _file(Path(config.run))
    done = _done(file)
    begun = time.monotonic()
    with waiting_signals() as wish:
        for number, chapter in enumerate(chapters, start=1):
            left = [command for command in chapter.commands if not is_done(command, done, config.run)]
            before = "" if left else ": done before"
            print(f"[{number}/{len(chapters)}] {chapter.title}{before}", flush=True)
            if left:
                wish.heed(SAVED_IS_KEPT)
                made = {shlex.join(command): made_from(command, config.run) for command in left}
                run_together(_commands(chapter, left, config.device), wish)
                done |= made
                write_document(file, "chapters", 1, {"commands": done})
    minutes, seconds = divmod(round(time.monotonic() - begun), 60)
    print(f"done in {minutes} min {seconds} s" + (f"; {end}" if end else ""), flush=True)


def read_chapters(config: ChaptersConfig) -> tuple[list[Chapter], str]:
    """Return the chapters of the file that the options name, and the line to print at the end.

    Raises:
        ValueError: The file is not as it should be; the message is one line.
    """
    name = config.chapters
    if not os.path.exists(name) and (ROOT / name).exists():
        name = os.path.relpath(ROOT / name)  # ours, from wherever the script is started
    try:
        table = tomllib.loads(Path(name).read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, tomllib.TOMLDecodeError, RecursionError) as error:
        reason = error.strerror if isinstance(error, OSError) else error
        raise Mistake("chapters", f"cannot read '{name}': {reason}") from None
    words = {"run": config.run, "data": config.data, "here": os.path.dirname(name) or "."}
    places = {key: shlex.quote(word) for key, word in words.items()}
    entries = table.get("chapters")
    if not isinstance(entries, list) or not entries or not set(table) <= {"chapters", "end"}:
        raise Mistake("chapters", f"'{name}' must have [[chapters]], and may have end, and nothing else")
    if "{data}" in str(table) and not config.data:
        raise Mistake("data", "name the folder of the images", f"the chapters of '{name}' need one")
    if config.data and "{data}" not in str(table):
        raise Mistake("data", f"the chapters of '{name}' take none", "leave it out")
    end = _filled(str(table.get("end", "")), name, places)
    return [_chapter(entry, name, places) for entry in entries], end


def _chapter(table: Any, source: str, places: Mapping[str, str]) -> Chapter:
    shape = {"title": str, "commands": list, "processes": int}
    whole = isinstance(table, dict) and {"title", "commands"} <= set(table) <= set(shape)
    if not whole or any(type(value) is not shape[key] for key, value in table.items()):
        raise Mistake(
            "chapters",
            f"'{source}': each of [[chapters]] has a title, a list of commands and, if it likes, "
            "a number of processes",
        )
    if table.get("processes", 1) < 1:
        raise Mistake("chapters", f"'{source}': '{table['title']}' needs a process or more")
    commands = []
    for text in table["commands"]:
        filled = _filled(str(text), source, places)
        try:
            words = tuple(shlex.split(filled))
        except ValueError as error:
            raise Mistake("chapters", f"'{source}': cannot read the command '{text}': {error}") from None
        known = sorted(path.name for path in ROOT.glob("*.py"))
        if not words or words[0] not in known:
            hint = suggest(words[0] if words else "", known)
            raise Mistake("chapters", f"'{source}': '{text}' does not begin with a script of ours{hint}")
        if "--run" not in words[:-1]:
            raise Mistake("chapters", f"'{source}': '{text}' needs `run`, by which it is known what is done")
        commands.append(words)
    return Chapter(table["title"], tuple(commands), table.get("processes", 1))


def _filled(text: str, source: str, places: Mapping[str, str]) -> str:
    try:
        return text.format(**places)
    except (ValueError, KeyError, IndexError, AttributeError):
        known = ", ".join(f"{{{place}}}" for place in places)
        raise Mistake("chapters", f"'{source}': '{text}' has braces that are none of {known}") from None


def _done(file: Path) -> dict[str, Made]:
    """Return the commands that ended well, each with what it was made from."""
    done: Any = read_document(file, "chapters", 1).get("commands") if file.exists() else {}
    made = done.values() if isinstance(done, dict) else [None]
    if not all(isinstance(entry, dict) and {"files", "runs"} <= entry.keys() for entry in made):
        raise Mistake("run", f"{file} does not say which commands are done", "remove it to do all again")
    return dict(done)


def _file(folder: Path) -> Path:
    """Make the folder, and return the file in it that records what is done."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise Mistake("run", f"cannot write in folder '{folder}': {error.strerror}") from None
    return folder / DONE


def is_done(command: Words, done: Mapping[str, Made], folder: str) -> bool:
    """Return whether a command ended well, its run is still there, and its inputs have not changed."""
    made = done.get(shlex.join(command))
    place = _option(command, "--run")
    if made is None or not (Path(place) / "config.toml").exists():
        return False
    now = made_from(command, folder)
    if made["runs"] != now["runs"]:
        raise Mistake(
            "run",
            f"'{place}' was made from runs that have changed since",
            "remove it (and what was made from it) to make it anew, or give a new folder",
        )
    return bool(made["files"] == now["files"])


def made_from(command: Words, folder: str) -> Made:
    """Return checksums of a command's inputs: files that it names, and results of earlier chapters' runs."""
    sums: Made = {"files": {}, "runs": {}}
    own = _option(command, "--run")
    for word in command[1:]:
        path = Path(word)
        if path.is_relative_to(folder) and word != own:
            path = path if path.is_file() else path / "results.json"
            kind = "runs"
        else:
            kind = "files"
        if path.is_file():
            sums[kind][word] = sha256(path)
    return sums


def _option(command: Words, option: str) -> str:
    return command[command.index(option) + 1]


def _commands(chapter: Chapter, left: Sequence[Words], device: str) -> list[Command]:
    """Return the commands as they are started on this machine."""
    several, gpus = len(left) > 1, _gpus(device) if chapter.processes > 1 or len(left) > 1 else 0
    processes = min(chapter.processes, gpus or chapter.processes)
    commands = []
    for place, command in enumerate(left):
        script = [os.path.relpath(ROOT / command[0]), *command[1:], "--device", device]
        launcher = []
        if processes > 1:
            launcher = ["-m", "accelerate.commands.launch", "--multi_gpu", "--num_processes", str(processes)]
            # Given explicitly, because the launcher otherwise prints that it assumes these values.
            launcher += ["--num_machines", "1", "--mixed_precision", "no", "--dynamo_backend", "no"]
            # Take any free port: another launch may be running on this machine.
            launcher += ["--main_process_port", "0"]
        variables = {}
        if several and processes == 1 and gpus > 1 and "CUDA_VISIBLE_DEVICES" not in os.environ:
            variables["CUDA_VISIBLE_DEVICES"] = str(place % gpus)
        shown = ["accelerate", "launch", *launcher[2:]] if launcher else ["python"]
        print(f"    {shlex.join([*shown, *script])}", flush=True)
        name = os.path.basename(_option(command, "--run")) + ": " if several else ""
        commands.append(Command([sys.executable, *launcher, *script], command[0], name, variables))
    return commands


def _gpus(device: str) -> int:
    if device == "cpu":
        return 0
    import torch  # takes seconds, and only some chapters need to know

    return torch.cuda.device_count()
