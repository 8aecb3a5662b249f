"""A trained supernet as a file: its weights, and the space they belong to."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import safetensors

from supernet.documents import space_from, space_to
from supernet.supernet import Supernet
from tools.weights import load_weights, read_weights, save_weights


def save_supernet(path: Path, net: Supernet, notes: Mapping[str, Any]) -> None:
    """Write weights, with the space and notes in the metadata."""
    save_weights(path, net, {"space": space_to(net.space), **notes})


def load_supernet(path: Path, *, label: str = "--supernet") -> Supernet:
    """The supernet of a weights file, or of a run's folder (its weights after the last step)."""
    file = path / "weights.safetensors" if path.is_dir() else path
    tensors = read_weights(file, label=label)
    try:
        with safetensors.safe_open(file, "pt") as opened:
            described = json.loads((opened.metadata() or {})["space"])
    except (KeyError, json.JSONDecodeError, safetensors.SafetensorError):
        raise ValueError(f"{label}: '{file}' holds weights, but not those of a supernet") from None
    try:
        space = space_from(described)
    except ValueError as error:
        raise ValueError(f"{label}: '{file}': {error}") from None
    net = Supernet(space)
    load_weights(net, tensors, source=file)
    return net
