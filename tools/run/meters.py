"""This module reports on a run: metrics.jsonl in any case, and a progress bar or plain lines."""

import math
import sys
import time
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from tqdm import tqdm

from tools.files.jsonl import JsonLines, read_lines


class MetricsLog(JsonLines):
    """A `MetricsLog` is an append-only file of one JSON object a line, each with its "step"."""

    def append(self, step: int, values: Mapping[str, Any]) -> None:
        """Append one line of values."""
        self.write({"step": step, **_plain(values)})


def _plain(values: Mapping[str, Any]) -> dict[str, Any]:
    """Write null for infinity and NaN, which JSON does not know."""
    return {
        name: None if isinstance(value, float) and not math.isfinite(value) else value
        for name, value in values.items()
    }


def read_metrics(path: Path) -> list[dict[str, Any]]:
    """Return the lines of a metrics file in order of steps.

    Torn lines are passed over. If steps were repeated after a restart, the later line counts.
    """
    latest: dict[int, list[dict[str, Any]]] = {}
    for entry in read_lines(path):
        if type(entry.get("step")) is int:
            lines = latest.setdefault(entry["step"], [])
            # Names in common mean that the step was repeated, perhaps by another number of processes.
            again = [index for index, line in enumerate(lines) if line.keys() & entry.keys() != {"step"}]
            place = again[0] if again else len(lines)
            lines[:] = [line for index, line in enumerate(lines) if index not in again]
            lines.insert(place, entry)
    return [line for step in sorted(latest) for line in latest[step]]


class Sums:
    """A `Sums` keeps running sums of per-step values on the device, so that no step waits for them.

    Each name counts only the steps that had it.
    """

    def __init__(self) -> None:
        self.counts: dict[str, int] = {}
        self.totals: dict[str, Tensor] = {}

    def add(self, values: Mapping[str, Tensor]) -> None:
        """Add one step's values."""
        for name, value in values.items():
            value = value.detach().double()
            self.counts[name] = self.counts.get(name, 0) + 1
            self.totals[name] = self.totals[name] + value if name in self.totals else value

    def state_dict(self) -> dict[str, Any]:
        """Return the sums for a checkpoint."""
        return {"counts": dict(self.counts), "totals": dict(self.totals)}

    def means(self) -> dict[str, Tensor]:
        """Return each value's mean over the steps that had it."""
        return {name: total / self.counts[name] for name, total in self.totals.items()}

    def share(self) -> None:
        """Give every process the mean over all processes, which is what a checkpoint keeps."""
        for value in self.totals.values():
            torch.distributed.all_reduce(value)
            value /= torch.distributed.get_world_size()

    def unite(self, group: torch.distributed.ProcessGroup, device: torch.device) -> None:
        """Give every process the values of all processes; if several measure a value, their mean."""
        gathered: list[Any] = [None] * torch.distributed.get_world_size(group)
        own = {name: total.cpu() for name, total in self.totals.items()}
        torch.distributed.all_gather_object(gathered, (self.counts, own), group=group)
        totals: dict[str, list[Tensor]] = {}
        for counts, theirs in gathered:
            self.counts |= counts
            for name, total in theirs.items():
                totals.setdefault(name, []).append(total)
        self.totals = {name: torch.stack(several).mean(0).to(device) for name, several in totals.items()}

    def keep(self, names: Collection[str]) -> None:
        """Remove all but these values."""
        self.counts = {name: count for name, count in self.counts.items() if name in names}
        self.totals = {name: total for name, total in self.totals.items() if name in names}

    def load_state_dict(self, state: Mapping[str, Any], device: torch.device) -> None:
        """Continue from a checkpoint's sums."""
        self.counts = dict(state["counts"])
        self.totals = {name: value.to(device) for name, value in state["totals"].items()}


class Stopwatch:
    """A `Stopwatch` counts the seconds since its last reset, without pauses."""

    def __init__(self) -> None:
        self.reset()

    def reset(self) -> None:
        """Restart from zero, running."""
        self._counted, self._running_since = 0.0, time.perf_counter()

    def pause(self) -> None:
        """Stop counting until `go_on`."""
        self._counted, self._running_since = self.seconds, math.inf

    def go_on(self) -> None:
        """Continue counting."""
        self._running_since = time.perf_counter()

    @property
    def seconds(self) -> float:
        """Return the seconds counted so far."""
        return self._counted + max(0.0, time.perf_counter() - self._running_since)


class Progress:
    """A `Progress` shows a bar on a terminal and plain lines elsewhere, on the first rank only."""

    def __init__(self, *, total: int, start: int, shown: bool, unit: str = "step") -> None:
        self._shown = shown
        self._total, self._unit = total, unit
        self._bar = (
            tqdm(total=total, initial=start, unit=unit, dynamic_ncols=True, file=sys.stdout)
            if shown and sys.stdout.isatty()
            else None
        )

    def advance(self, count: int = 1) -> None:
        """Add finished steps."""
        if self._bar is not None:
            self._bar.update(count)

    def say(self, step: int, values: Mapping[str, float], seconds_left: float | None = None) -> None:
        """Show the values at a step, except details, whose names contain "/"."""
        if not self._shown:
            return
        parts = [
            f"{name.replace('_', ' ')} {_short(value)}" for name, value in values.items() if "/" not in name
        ]
        if seconds_left is not None and self._bar is None:
            minutes, seconds = divmod(round(seconds_left), 60)
            parts.append(f"{minutes}:{seconds:02d} left")
        self.write(f"{self._unit} {step}/{self._total}  " + "  ".join(parts))

    def write(self, line: str) -> None:
        """Print a line without breaking the bar."""
        if not self._shown:
            return
        if self._bar is not None:
            self._bar.write(line, file=sys.stdout)
        else:
            print(line, flush=True)

    def close(self) -> None:
        """Leave the terminal as it was."""
        if self._bar is not None:
            self._bar.close()


def _short(value: float) -> str:
    return f"{value:.0f}" if abs(value) >= 1000 else f"{value:.4g}"
