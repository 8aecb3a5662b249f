"""This module measures each candidate's latency on this machine, and the activations that training keeps."""

import math
import statistics
import time
from dataclasses import dataclass
from datetime import date
from pathlib import Path
from typing import Any

import torch
from torch import nn

from supernet.layers import Op, Place
from supernet.space import Architecture, Space
from supernet.tail import build_tail
from tools.cost import saved_activation_bytes
from tools.files.atomic import read_document, write_document
from tools.files.provenance import processor
from tools.layout import use_channels_last

KIND, VERSION = "measured-costs", 1


@dataclass(frozen=True, kw_only=True)
class Measured:
    """This is a table of latencies and activations by layer and candidate; both add up along a network."""

    space: str
    """The name of the space."""
    image_size: int | None = None
    """The side of the images; older tables do not say it."""
    device: str
    """The name of the processor or GPU."""
    threads: int
    """The number of CPU threads."""
    batch_size: int
    """The number of images in a batch."""
    date: str
    """The day of the measurement."""
    fixed_seconds: float
    """The seconds of stem and tail, for a batch, in evaluation mode."""
    seconds: tuple[tuple[float, ...], ...]
    """The seconds of each candidate of each layer, likewise."""
    fixed_bytes: float
    """The bytes that autograd keeps for stem and tail, for one image."""
    saved_bytes: tuple[tuple[float, ...], ...]
    """The bytes that autograd keeps for each candidate of each layer, likewise."""

    def latency(self, architecture: Architecture) -> float:
        """Return a network's seconds for a batch."""
        return self.fixed_seconds + _total(self.seconds, architecture)

    def saved(self, architecture: Architecture) -> float:
        """Return the bytes that autograd keeps for one image of a network."""
        return self.fixed_bytes + _total(self.saved_bytes, architecture)


def measure(space: Space, *, batch_size: int, device: torch.device | str, repeats: int = 20) -> Measured:
    """Measure every candidate where it stands; equal candidates in equal places are measured once."""
    device = torch.device(device)
    known: dict[tuple[Op, Place, int], tuple[float, float]] = {}

    def cost(op: Op, place: Place, size: int) -> tuple[float, float]:
        key = op, place, size
        if key not in known:
            shape = (batch_size, place.in_chs, size, size)
            known[key] = _cost(op.build(place, space.style), shape, device, repeats)
        return known[key]

    rows = [
        [cost(op, place, size) for op in layer]
        for layer, place, size in zip(space.layers, space.places, space.sizes, strict=False)
    ]
    places = zip(space.stem, space.stem_places, space.stem_sizes, strict=True)
    fixed = [cost(layer.op, place, size) for layer, place, size in places]
    in_chs, size = space.layers[-1].out_chs, space.sizes[-1]
    tail = build_tail(space.tail, in_chs, space.num_classes, space.style)
    fixed.append(_cost(tail, (batch_size, in_chs, size, size), device, repeats))
    return Measured(
        space=space.name,
        image_size=space.image_size,
        device=torch.cuda.get_device_name(device) if device.type == "cuda" else processor(),
        threads=torch.get_num_threads(),
        batch_size=batch_size,
        date=date.today().isoformat(),
        fixed_seconds=sum(seconds for seconds, _ in fixed),
        seconds=tuple(tuple(seconds for seconds, _ in row) for row in rows),
        fixed_bytes=sum(saved for _, saved in fixed),
        saved_bytes=tuple(tuple(saved for _, saved in row) for row in rows),
    )


def save_measured(path: Path, measured: Measured) -> None:
    """Write the table as a document."""
    write_document(path, KIND, VERSION, vars(measured))


def load_measured(path: Path) -> Measured:
    """Read a table."""
    document: dict[str, Any] = read_document(path, KIND, VERSION)
    fields: dict[str, Any] = {name: document.get(name) for name in Measured.__dataclass_fields__}
    kinds = {"space": str, "device": str, "date": str, "threads": int, "batch_size": int}
    for name, kind in kinds.items():
        if type(fields[name]) is not kind:
            raise ValueError(f"{path}: {name} must be of type {kind.__name__}, not {fields[name]!r}")
    for name in ("seconds", "saved_bytes"):
        rows = fields[name]
        if not isinstance(rows, list) or not all(isinstance(row, list) for row in rows):
            raise ValueError(f"{path}: {name} must be a list of lists, one for each layer")
        fields[name] = tuple(map(tuple, rows))
    times = ((fields["fixed_seconds"],), *fields["seconds"])
    sizes = ((fields["fixed_bytes"],), *fields["saved_bytes"])
    for value in (value for row in (*times, *sizes) for value in row):
        if not isinstance(value, int | float) or not math.isfinite(value):
            raise ValueError(f"{path}: a cost is {value!r}; it must be a finite number")
    if any(value < 0 for row in times for value in row):
        raise ValueError(f"{path}: a time is less than 0")
    return Measured(**fields)


def _cost(
    module: nn.Module, shape: tuple[int, ...], device: torch.device, repeats: int
) -> tuple[float, float]:
    """Return the median seconds of a batch's forward pass, and the bytes kept for one image."""
    module = module.to(device)
    use_channels_last(module)
    inputs = torch.randn(shape, device=device).contiguous(memory_format=torch.channels_last)
    kept = inputs[: min(2, len(inputs))] if len(inputs) > 1 else inputs.repeat(2, 1, 1, 1)
    kept = kept.clone().requires_grad_()
    module.train()
    with torch.no_grad():
        given = module(kept).nbytes
    # The output counts for what comes next, where it is the input, so it is subtracted here.
    saved = (saved_activation_bytes(lambda: module(kept).square().sum(), leaves=True) - given) / len(kept)
    if isinstance(module, nn.Identity):
        return 0.0, 0.0
    module.eval()
    times = []
    with torch.inference_mode():
        for _ in range(repeats + 3):
            _wait(device)
            start = time.perf_counter()
            module(inputs)
            _wait(device)
            times.append(time.perf_counter() - start)
    return statistics.median(times[3:]), saved


def _wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def _total(table: tuple[tuple[float, ...], ...], architecture: Architecture) -> float:
    return sum(row[choice] for row, choice in zip(table, architecture.choices, strict=True))
