"""Checkpoints: each one whole, checked when read, the newest two kept.

A checkpoint is two files: `step-N.pt`, tensors and plain values, readable with `weights_only=True`; and
`step-N.json`, written after it, which holds its size and checksum. A checkpoint without its JSON does
not exist yet; one that does not match it is damaged.
"""

import io
import zlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from tools.failures import RunFailed
from tools.files import read_document, write_bytes, write_document

KIND, VERSION = "checkpoint", 1
KEPT = 2


def save_checkpoint(folder: Path, step: int, state: Mapping[str, Any]) -> None:
    """Write the checkpoint of a step, then drop those older than the one before it."""
    try:
        folder.mkdir(exist_ok=True)
    except OSError as error:
        raise RunFailed(
            f"cannot make {folder}: {error.strerror}; is the run's folder still there?"
        ) from error
    path = folder / f"step-{step:08d}.pt"
    # Through memory: torch would hide the system's reason when the disk is full.
    buffer = io.BytesIO()
    torch.save(dict(state), buffer)
    data = buffer.getbuffer()
    write_bytes(path, data)
    facts = {"step": step, "bytes": len(data), "crc32": zlib.crc32(data)}
    write_document(path.with_suffix(".json"), KIND, VERSION, facts)
    for old in _steps(folder):
        if old > step:  # left by a run that was turned back to an earlier checkpoint
            _remove(folder, old)
    for old in _steps(folder)[:-KEPT]:
        _remove(folder, old)


def load_checkpoint(folder: Path) -> tuple[int, dict[str, Any]] | None:
    """The step and state of the newest checkpoint; None where there is none yet."""
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
        said = read_document(path.with_suffix(".json"), KIND, VERSION)
    except ValueError as error:
        raise ValueError(f"{error}; {cure}") from None
    try:
        data = path.read_bytes()
    except OSError as error:
        raise ValueError(f"cannot read checkpoint {path}: {error.strerror}; {cure}") from None
    if len(data) != said.get("bytes") or zlib.crc32(data) != said.get("crc32"):
        raise ValueError(f"checkpoint {path} is damaged (its checksum does not fit); {cure}")
    try:
        # weights_only: nothing in the file can run.
        state = torch.load(io.BytesIO(data), map_location="cpu", weights_only=True)
    except Exception as error:  # torch raises a different kind for every kind of foreign file
        reason = str(error).splitlines()[0]
        raise ValueError(f"checkpoint {path} is not one of ours: {reason}; {cure}") from None
    return steps[-1], state


def all_finite(state: object) -> bool:
    """Whether every tensor in nested dicts and lists holds finite numbers only."""
    if isinstance(state, torch.Tensor):
        return not state.is_floating_point() or bool(torch.isfinite(state).all())
    if isinstance(state, Mapping):
        return all(map(all_finite, state.values()))
    return not isinstance(state, list) or all(map(all_finite, state))


def _steps(folder: Path) -> list[int]:
    """The steps that have a complete checkpoint, oldest first."""
    names = (path.stem.removeprefix("step-") for path in folder.glob("step-*.json"))
    return sorted(int(name) for name in names if name.isdigit())


def _remove(folder: Path, step: int) -> None:
    # The JSON first: what is left of a removal cut short is then no checkpoint.
    for suffix in (".json", ".pt"):
        (folder / f"step-{step:08d}{suffix}").unlink(missing_ok=True)
