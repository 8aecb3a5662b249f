"""This module writes checkpoints that are whole, checks them when they are read, and keeps the newest two.

A checkpoint is a file `step-N.pt` of tensors and plain values, readable with `weights_only=True`. Where
several processes each hold a part of the state, there are also files `step-N.part-R.pt`. A file `step-N.json`
is written after them and holds their sizes and checksums. A checkpoint without its JSON does not exist yet,
and one that does not match it is damaged.
"""

import io
import zlib
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import torch

from tools.failures import RunFailed
from tools.files.atomic import read_document, write_bytes, write_document

KIND, VERSION = "checkpoint", 1
CHECKPOINTS_KEPT = 2


class Written(NamedTuple):
    """A `Written` is a file's name, size and checksum, by which it is known to be whole."""

    name: str
    bytes: int
    crc32: int


def save_checkpoint(folder: Path, step: int, state: Mapping[str, Any], parts: Iterable[Written] = ()) -> None:
    """Write the checkpoint of a step, then remove those older than the previous one.

    `parts` are the files that `save_part` wrote; with this call they become a checkpoint.
    """
    own = _write(folder, f"step-{step:08d}.pt", state)
    facts: dict[str, Any] = {"step": step, "bytes": own.bytes, "crc32": own.crc32}
    if listed := [part._asdict() for part in parts]:
        facts["parts"] = listed
    write_document(folder / f"step-{step:08d}.json", KIND, VERSION, facts)
    for old in _steps(folder):
        if old > step:  # left by a run that was turned back to an earlier checkpoint
            _remove(folder, old)
    for old in _steps(folder)[:-CHECKPOINTS_KEPT]:
        _remove(folder, old)
    kept = {f"step-{step:08d}" for step in _steps(folder)}
    for path in folder.glob("step-*.pt"):
        if path.name.split(".")[0] not in kept:  # of a checkpoint that never came to be
            path.unlink(missing_ok=True)


def save_part(folder: Path, step: int, rank: int, state: Mapping[str, Any]) -> Written:
    """Write one process's part of a checkpoint's state."""
    return _write(folder, f"step-{step:08d}.part-{rank}.pt", state)


def load_checkpoint(folder: Path) -> tuple[int, dict[str, Any]] | None:
    """Return the newest checkpoint's step and state, with its parts united, or None if there is none yet."""
    steps = _steps(folder)
    if not steps:
        return None
    path = folder / f"step-{steps[-1]:08d}.pt"
    cure = (
        f"remove {path.with_suffix('.json')} to go on from step {steps[-2]}"
        if len(steps) > 1
        else f"remove {folder} to start again"
    )
    try:
        facts = read_document(path.with_suffix(".json"), KIND, VERSION)
    except ValueError as error:
        raise ValueError(f"{error}; {cure}") from None
    own = Written(path.name, facts.get("bytes", -1), facts.get("crc32", -1))
    state = _read(folder, own, cure)
    for part in facts.get("parts", []):
        state = _united(state, _read(folder, Written(**part), cure))
    return steps[-1], state


def latest_step(folder: Path) -> int:
    """Return the step of the newest checkpoint, or 0 if there is none."""
    return max(_steps(folder), default=0)


def all_finite(state: object) -> bool:
    """Return whether every tensor in nested dicts and lists holds only finite numbers."""
    if isinstance(state, torch.Tensor):
        return not state.is_floating_point() or bool(torch.isfinite(state).all())
    if isinstance(state, Mapping):
        return all(map(all_finite, state.values()))
    return not isinstance(state, list) or all(map(all_finite, state))


def _write(folder: Path, name: str, state: Mapping[str, Any]) -> Written:
    try:
        folder.mkdir(exist_ok=True)
    except OSError as error:
        raise RunFailed(
            f"cannot make {folder}: {error.strerror}; is the run's folder still there?"
        ) from error
    # Through memory, because torch would hide the system's reason when the disk is full.
    buffer = io.BytesIO()
    torch.save(dict(state), buffer)
    data = buffer.getbuffer()
    write_bytes(folder / name, data)
    return Written(name, len(data), zlib.crc32(data))


def _read(folder: Path, written: Written, cure: str) -> dict[str, Any]:
    path = folder / written.name
    try:
        data = path.read_bytes()
    except OSError as error:
        raise ValueError(f"cannot read checkpoint {path}: {error.strerror}; {cure}") from None
    if len(data) != written.bytes or zlib.crc32(data) != written.crc32:
        raise ValueError(f"checkpoint {path} is damaged (its checksum does not fit); {cure}")
    try:
        # With weights_only, nothing in the file can run.
        state: dict[str, Any] = torch.load(io.BytesIO(data), map_location="cpu", weights_only=True)
    except Exception as error:  # torch raises a different kind for every kind of foreign file
        reason = str(error).splitlines()[0]
        raise ValueError(f"checkpoint {path} is not one of ours: {reason}; {cure}") from None
    return state


def _united(one: Mapping[str, Any], other: Mapping[str, Any]) -> dict[str, Any]:
    """Return nested dicts with the entries of both, which share no others."""
    both = {**one, **other}
    for key in one.keys() & other.keys():
        both[key] = _united(one[key], other[key])
    return both


def _steps(folder: Path) -> list[int]:
    """Return the steps that have a complete checkpoint, oldest first."""
    names = (path.stem.removeprefix("step-") for path in folder.glob("step-*.json"))
    return sorted(int(name) for name in names if name.isdigit())


def _remove(folder: Path, step: int) -> None:
    # The JSON goes first, so that what an interrupted removal leaves is no checkpoint.
    (folder / f"step-{step:08d}.json").unlink(missing_ok=True)
    for path in folder.glob(f"step-{step:08d}.*pt"):
        path.unlink(missing_ok=True)
