"""A trained supernet as a file: its weights, and the space they belong to."""

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
    """Write weights, with the space and notes in the metadata."""
    save_weights(path, net, {"space": space_to(net.space), **notes})


def save_snapshot(run: Path, net: Supernet, step: int, notes: Mapping[str, Any]) -> None:
    """Keep the weights of a step beside those of the run."""
    folder = run / SNAPSHOTS
    folder.mkdir(exist_ok=True)
    save_supernet(folder / f"step-{step:08d}.safetensors", net, {**notes, "step": step})


def forget_snapshots(run: Path) -> None:
    """Remove all that were kept."""
    for _, file in snapshots(run / "weights.safetensors"):
        file.unlink()


def snapshots(path: Path) -> list[tuple[int, Path]]:
    """The weights that the training of a supernet kept on its way, by step."""
    files = (weights_file(path).parent / SNAPSHOTS).glob("step-*.safetensors")
    return sorted((int(file.stem.removeprefix("step-")), file) for file in files)


def weights_file(path: Path) -> Path:
    """The weights that a path names: a file, or in a run's folder those after the last step."""
    return path / "weights.safetensors" if path.is_dir() else path


def load_supernet(path: Path, *, label: str = "supernet") -> Supernet:
    """The supernet of a weights file, or of a run's folder (its weights after the last step)."""
    file = weights_file(path)
    tensors = read_weights(file, label=label)
    net = Supernet(supernet_space(path, label=label))
    load_weights(net, tensors, source=file, label=label)
    return net


def supernet_space(path: Path, *, label: str = "supernet") -> Space:
    """The space alone."""
    notes = supernet_notes(path, label=label)
    try:
        return space_from(notes["space"])
    except ValueError as error:
        raise Mistake(label, f"'{weights_file(path)}': {quoted(error)}") from None


def supernet_notes(path: Path, *, label: str = "supernet") -> dict[str, Any]:
    """What is written beside the weights: the space, and what `save_supernet` was given."""
    file = weights_file(path)
    notes = read_notes(file, label=label)
    if not isinstance(notes.get("space"), dict) or not isinstance(notes.get("config", ""), str):
        raise Mistake(label, f"'{file}' holds weights, but not those of a supernet")
    return notes
