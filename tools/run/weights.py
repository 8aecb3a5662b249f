"""This module reads and writes weights as safetensors, with what they belong to in the metadata."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import safetensors
import safetensors.torch
import torch
from torch import Tensor, nn

from tools.files.atomic import write_bytes
from tools.mistake import Mistake
from tools.options import plugins
from tools.run.checkpoint import all_finite

KIND, VERSION = "cleave/weights", "1"


def save_weights(path: Path, module: nn.Module, metadata: Mapping[str, Any]) -> None:
    """Write a module's parameters and buffers; metadata values become JSON strings."""
    save_tensors(path, module.state_dict(), metadata)


def save_tensors(path: Path, named: Mapping[str, Tensor], metadata: Mapping[str, Any]) -> None:
    """Write named tensors as a weights file."""
    if made_with := plugins.loaded():
        metadata = {**metadata, "plugins": made_with}
    notes = {"format": KIND, "version": VERSION} | {key: json.dumps(value) for key, value in metadata.items()}
    write_tensors(path, named, notes)


def write_tensors(path: Path, named: Mapping[str, Tensor], notes: Mapping[str, str] | None = None) -> None:
    """Write a safetensors file; the same tensors and notes always give the same bytes.

    The library orders the tensors, but leaves the order of the notes to chance.
    """
    tensors = {name: tensor.detach().cpu().contiguous() for name, tensor in named.items()}
    data = memoryview(safetensors.torch.save(tensors, dict(notes) if notes else None))
    end = 8 + int.from_bytes(data[:8], "little")
    header = json.loads(bytes(data[8:end]))
    if notes:
        header["__metadata__"] = dict(sorted(notes.items()))
    text = json.dumps(header, ensure_ascii=False, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)  # tensors then begin where they can be mapped into memory
    write_bytes(path, len(text).to_bytes(8, "little"), text, data[end:])


def read_weights(path: Path, *, label: str = "weights") -> dict[str, Tensor]:
    """Return the tensors of a weights file: safetensors, or a torch file that holds only tensors."""
    if not path.is_file():
        raise Mistake(label, f"there is no file '{path}'")
    try:
        if path.suffix == ".safetensors":
            return _read_safetensors(path)
        loaded = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # safetensors and torch raise many kinds for foreign or incomplete files
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise Mistake(label, f"cannot read '{path}' as weights: {reason}") from None
    if isinstance(loaded, dict) and isinstance(loaded.get("state_dict"), dict):
        loaded = loaded["state_dict"]
    if not isinstance(loaded, dict) or not all(isinstance(value, Tensor) for value in loaded.values()):
        raise Mistake(label, f"'{path}' holds something other than named tensors")
    return loaded


def read_notes(path: Path, *, label: str = "weights") -> dict[str, Any]:
    """Return the notes beside the weights of one of our safetensors files, and nothing for other files."""
    if not path.is_file():
        raise Mistake(label, f"there is no file '{path}'")
    try:
        with safetensors.safe_open(path, "pt") as file:
            notes = file.metadata() or {}
        read = {key: json.loads(text) for key, text in notes.items() if key not in ("format", "version")}
    except OSError as error:
        raise Mistake(label, f"cannot read '{path}': {error.strerror or error}") from None
    except (json.JSONDecodeError, RecursionError, safetensors.SafetensorError):
        return {}
    noted = read.get("plugins", {})
    plugins.check_noted(noted if isinstance(noted, dict) else {}, label, path)
    return read


def load_weights(
    module: nn.Module,
    tensors: Mapping[str, Tensor],
    *,
    source: Path,
    skip: tuple[str, ...] = (),
    label: str = "weights",
) -> None:
    """Load tensors into a module by name; names with a prefix in `skip` keep their initial values."""
    own = {name: value for name, value in module.state_dict().items() if not name.startswith(skip or "\n")}
    given = {name: value for name, value in tensors.items() if not name.startswith(skip or "\n")}
    for complaint, names in (
        ("lacks", own.keys() - given.keys()),
        ("has tensors that the network lacks:", given.keys() - own.keys()),
    ):
        if names:
            first = ", ".join(sorted(names)[:3])
            raise Mistake(
                label,
                f"'{source}' does not fit the network: it {complaint} "
                f"{first}{f' and {len(names) - 3} more' if len(names) > 3 else ''}",
            )
    for name, value in own.items():
        if value.shape != given[name].shape:
            raise Mistake(
                label,
                f"'{source}' does not fit the network: {name} has shape "
                f"{tuple(given[name].shape)}, the network's is {tuple(value.shape)}",
            )
        if not all_finite(given[name]):
            raise Mistake(label, f"'{source}' holds what is not a finite number, in {name}")
    module.load_state_dict(given, strict=not skip)


def _read_safetensors(path: Path) -> dict[str, Tensor]:
    with safetensors.safe_open(path, "pt") as file:
        notes = file.metadata() or {}
        if notes.get("format") == KIND and notes.get("version") != VERSION:
            raise ValueError(f"version {notes.get('version')} of {KIND} is not known here, only {VERSION}")
        return {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 - it is no dict
