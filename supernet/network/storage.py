"""A trained supernet is kept in a file with its weights and the space they belong to."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from supernet.network.documents import space_from, space_to
from supernet.space import Space
from supernet.supernet import Supernet
from tools.mistake import Mistake, quoted
from tools.run.weights import load_weights, read_notes, read_weights, save_weights

SNAPSHOTS = "snapshots"


def save_supernet(path: Path, net: Supernet, notes: Mapping[str, Any]) -> None:
    """Write a supernet's weights, with the space and notes in the metadata."""
    save_weights(path, net, {"space": space_to(net.space), **notes})


def save_snapshot(run: Path, net: Supernet, step: int, notes: Mapping[str, Any]) -> None:
    """Keep the weights of a step beside those of the run."""
    folder = run / SNAPSHOTS
    folder.mkdir(exist_ok=True)
    save_supernet(folder / f"step-{step:08d}.safetensors", net, {**notes, "step": step})


def forget_snapshots(run: Path) -> None:
    """Remove all snapshots of a run."""
    for _, file in snapshots(run / "weights.safetensors"):
        file.unlink()


def snapshots(path: Path) -> list[tuple[int, Path]]:
    """Return the weights files that a supernet's training kept on its way, with their steps."""
    files = (weights_file(path).parent / SNAPSHOTS).glob("step-*.safetensors")
    return sorted((int(file.stem.removeprefix("step-")), file) for file in files)


def weights_file(path: Path) -> Path:
    """Return the weights file that a path names: the file itself, or a run's weights after the last step."""
    return path / "weights.safetensors" if path.is_dir() else path


def load_supernet(path: Path, *, label: str = "supernet") -> Supernet:
    """Load the supernet of a weights file, or of a run's folder (its weights after the last step)."""
    file = weights_file(path)
    tensors = read_weights(file, label=label)
    net = Supernet(supernet_space(path, label=label))
    load_weights(net, tensors, source=file, label=label)
    return net


def supernet_space(path: Path, *, label: str = "supernet") -> Space:
    """Read the space of a supernet, without its weights."""
    notes = supernet_notes(path, label=label)
    try:
        return space_from(notes["space"])
    except ValueError as error:
        raise Mistake(label, f"'{weights_file(path)}': {quoted(error)}") from None


def supernet_notes(path: Path, *, label: str = "supernet") -> dict[str, Any]:
    """Read what is written beside the weights: the space, and the notes given to `save_supernet`."""
    file = weights_file(path)
    notes = read_notes(file, label=label)
    if not isinstance(notes.get("space"), dict) or not isinstance(notes.get("config", ""), str):
        raise Mistake(label, f"'{file}' holds weights, but not those of a supernet")
    return notes
