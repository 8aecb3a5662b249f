"""Inner optimisation may start from snapshots of weights and momentum, on a device, the host or disk.

A snapshot never changes, and has a file of its own. A checkpoint names files and holds no weights.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import safetensors
import torch
from torch import Tensor

from tools.failures import RunFailed
from tools.run.checkpoint import CHECKPOINTS_KEPT
from tools.run.weights import write_tensors

PLACES = ("host", "device", "disk")

State = dict[str, Tensor]


@dataclass(frozen=True)
class Snapshot:
    """A snapshot is a moment of training."""

    path: Path
    """The file that the snapshot is, or will be, in."""
    step: int
    """How many training steps came before it. They determine the learning rate."""
    score: float
    """The accuracy on the validation images. Weights that search has moved on keep that of the weights
    they came from."""
    origin: int
    """The step of pretraining from which the weights came: their lineage."""


class SnapshotMemory:
    """This memory holds up to `size` snapshots, oldest first."""

    def __init__(
        self,
        folder: Path,
        size: int,
        *,
        place: str = "host",
        rank: int = 0,
        device: torch.device | str = "cpu",
    ) -> None:
        assert place in PLACES
        self.snapshots: list[Snapshot] = []
        self._folder, self._size, self._rank = folder, size, rank
        self._place = place
        self._device = torch.device(device if place == "device" else "cpu")
        self._tensors: dict[Path, State] = {}
        self._born = 0
        self._named: list[set[Path]] = []

    def __len__(self) -> int:
        return len(self.snapshots)

    def keep_best(self, state: Mapping[str, Tensor], step: int, score: float) -> None:
        """Add a snapshot, unless there are enough better ones; the worst goes, among equals the older."""
        if len(self) == self._size:
            worst = min(self.snapshots, key=lambda snapshot: snapshot.score)
            if score < worst.score:
                return
            self._forget(worst)
        self._add(state, step, score, step)

    def keep_latest(
        self, state: Mapping[str, Tensor], step: int, score: float, origin: int | None = None
    ) -> None:
        """Add a snapshot, and drop the oldest; without an `origin` a lineage begins here."""
        if len(self) == self._size:
            self._forget(self.snapshots[0])
        self._add(state, step, score, step if origin is None else origin)

    def draw(self, generator: torch.Generator) -> Snapshot:
        """Draw a snapshot, each equally likely."""
        return self.snapshots[int(torch.randint(len(self), (1,), generator=generator))]

    def replace(self, drawn: Snapshot, state: Mapping[str, Tensor], step: int) -> None:
        """Replace a snapshot by one that was made from it, so that every lineage goes on."""
        self._forget(drawn)
        self._add(state, step, drawn.score, drawn.origin)

    def read(self, snapshot: Snapshot) -> State:
        """Return a snapshot's tensors, which must not be written to."""
        if snapshot.path not in self._tensors:
            tensors = _read(snapshot.path)
            if self._place == "disk":
                return tensors
            self._tensors[snapshot.path] = {name: value.to(self._device) for name, value in tensors.items()}
        return self._tensors[snapshot.path]

    def take(self, snapshots: Sequence[Snapshot]) -> None:
        """Hold these snapshots; they are read from their files when they are needed."""
        self.snapshots = list(snapshots)
        self._tensors = {}

    def state_dict(self) -> dict[str, Any]:
        """Return what a checkpoint holds; whatever it names is on disk."""
        for snapshot in self.snapshots:
            if not snapshot.path.exists():
                _write(snapshot.path, self._tensors[snapshot.path])
        self._tidy()
        home = self._folder.parent
        entries = [[_within(home, one.path), one.step, one.score, one.origin] for one in self.snapshots]
        return {"entries": entries, "born": self._born}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Return to a checkpoint."""
        self.take(snapshots_of(state, self._folder.parent))
        self._born = state["born"]

    def _add(self, state: Mapping[str, Tensor], step: int, score: float, origin: int) -> None:
        path = self._folder / f"{self._born:06d}-{self._rank}.safetensors"
        self._born += 1
        tensors = {
            name: value.detach().to(self._device, copy=True).contiguous() for name, value in state.items()
        }
        if self._place == "disk":
            _write(path, tensors)
        else:
            self._tensors[path] = tensors
            path.unlink(missing_ok=True)  # an earlier start may have gone beyond its last checkpoint
        self.snapshots.append(Snapshot(path, step, score, origin))

    def _forget(self, snapshot: Snapshot) -> None:
        self.snapshots.remove(snapshot)
        self._tensors.pop(snapshot.path, None)

    def _tidy(self) -> None:
        """Remove own files that none of the kept checkpoints can name."""
        own = set(self._folder.glob(f"*-{self._rank}.safetensors"))
        named = {snapshot.path for snapshot in self.snapshots}
        if not self._named:
            self._named = [own] * CHECKPOINTS_KEPT  # earlier checkpoints can name only these
        if named != self._named[-1]:
            self._named = [*self._named[-CHECKPOINTS_KEPT:], named]
        for path in own.difference(*self._named):
            path.unlink()


def snapshots_of(state: Mapping[str, Any], home: Path) -> list[Snapshot]:
    """Return the snapshots that a memory's state names, in the folder that holds theirs; runs may be moved.

    Older states name no origin.
    """
    return [
        Snapshot(home / path, step, score, *(origin or [step]))
        for path, step, score, *origin in state["entries"]
    ]


def _within(home: Path, path: Path) -> str:
    return str(path.relative_to(home) if path.is_relative_to(home) else path.resolve())


def _write(path: Path, tensors: State) -> None:
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise RunFailed(f"cannot make {path.parent}: {error.strerror}") from error
    write_tensors(path, tensors)


def _read(path: Path) -> State:
    try:
        with safetensors.safe_open(path, "pt") as file:
            return {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 - it is no dict
    except (OSError, safetensors.SafetensorError) as error:
        raise ValueError(f"cannot read the snapshot {path}: {error}; start in a new folder") from None
