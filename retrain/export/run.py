"""This module exports a trained network to files, and compares each with it before the export is done."""

import shutil
import tempfile
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from importlib import metadata
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from retrain.export.config import KIND, VERSION, ExportConfig
from retrain.export.costs import ImageCosts, count_costs
from retrain.export.formats import (
    ONNX_PACKAGES,
    WRITERS,
    ExportedNetwork,
    Outputs,
    WrittenFormat,
    check_packages,
)
from retrain.export.source import Restored, restore
from retrain.export.timm_folder import timm_model
from tools.failures import RunFailed
from tools.files.atomic import write_document
from tools.files.provenance import provenance, sha256
from tools.images import shapes
from tools.images.augment import Normalise
from tools.images.datasets import load_data
from tools.images.loaders import eval_batches
from tools.mistake import Mistake
from tools.options.config import message_of


@dataclass(frozen=True)
class Checked:
    """A `Checked` holds the images on which formats are compared with the network, and says what they are."""

    batches: Sequence[Tensor]
    words: str


def export(config: ExportConfig) -> None:
    """Write everything that the config asks for, or nothing."""
    out = Path(config.out)
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise Mistake("out", f"'{out}' is there already, and not empty", "name a new folder")
    if "onnx" in config.formats:
        check_packages()
    path = config.weights_path
    restored = restore(path, label=config.label)
    if "timm" in config.formats:
        timm_model(restored)  # what cannot be done is refused before anything is written
    if config.exits and len(restored.outputs) == 1:
        raise Mistake("exits", f"'{path}' has no auxiliary heads, only the classifier", "leave it out")
    network = restored.with_exits() if config.exits else restored.trunk()
    subject = ExportedNetwork(restored, network, config.exits, config.opset)
    costs = count_costs(network, restored.image_shape)
    print(f"{restored.name} of {path}\n{costs}", flush=True)
    checked = _images(config, restored)
    try:
        out.resolve().parent.mkdir(parents=True, exist_ok=True)
        place = out.resolve()
        whole = Path(tempfile.mkdtemp(prefix=f".{place.name}.", suffix=".tmp", dir=place.parent))
    except OSError as error:
        raise RunFailed(f"cannot write in {out.resolve().parent}: {error.strerror}") from error
    try:
        _write(config, subject, path, costs, checked, whole)
        if out.exists():
            out.rmdir()
        whole.chmod(0o755)  # with the rights of a usual folder, not of a temporary one
        whole.rename(out)
    except OSError as error:
        raise RunFailed(f"cannot write in {whole.parent}: {error.strerror}") from error
    finally:
        shutil.rmtree(whole, ignore_errors=True)
    print(_farewell(restored, out), flush=True)


def _write(
    config: ExportConfig,
    subject: ExportedNetwork,
    source: Path,
    costs: ImageCosts,
    checked: Checked,
    folder: Path,
) -> None:
    """Write all formats and the note about them; compare each format before the next one is begun."""
    wanted = [_wanted(subject, images) for images in checked.batches]
    formats: dict[str, Any] = {}
    for name in config.formats:
        written = WRITERS[name](folder, subject)
        formats[name] = _compare(name, written, checked, wanted)
        difference, limit = formats[name]["difference"], formats[name]["tolerance"]
        print(
            f"{name}: logits differ by at most {difference:.3g} (limit {limit:.3g})  "
            f"{', '.join(written.files)}",
            flush=True,
        )
    restored = subject.restored
    fed = restored.config.data.preparation
    content = {
        "run": config.run_of or None,
        "weights": str(source),
        "weights_sha256": sha256(source),
        "network": restored.name,
        "classes": list(restored.classes),
        "image_shape": list(restored.image_shape),
        "mean": list(fed.mean),
        "std": list(fed.std),
        "input": fed.describe(),
        "outputs": subject.outputs,
        **asdict(costs),
        "compared_on": checked.words,
        "batch_sizes": [len(images) for images in checked.batches],
        "formats": formats,
        "origin": provenance() | ({"onnx": _versions()} if "onnx" in formats else {}),
    }
    write_document(folder / "export.json", KIND, VERSION, content)


def _compare(
    name: str, written: WrittenFormat, checked: Checked, wanted: Sequence[Outputs]
) -> dict[str, Any]:
    """Return how far a format is from the network, and refuse it if it is too far."""
    difference, largest = 0.0, 0.0
    for images, expected in zip(checked.batches, wanted, strict=True):
        outputs = written.run(images)
        if [output.shape for output in outputs] != [logits.shape for logits in expected]:
            raise RunFailed(
                f"{name}: gives {len(outputs)} outputs of other shapes than the network; nothing is written"
            )
        for theirs, ours in zip(outputs, expected, strict=True):
            # Not a maximum over numbers that may be NaN: a difference that is NaN must not pass.
            difference = max(difference, float((theirs - ours).abs().nan_to_num(torch.inf).max()))
            largest = max(largest, float(ours.abs().max()))
    limit = written.tolerance * largest
    if not difference <= limit:
        raise RunFailed(
            f"{name}: logits differ by {difference:.3g} from the network's on {checked.words}, which is more "
            f"than {limit:.3g}; nothing is written. Another format may do"
        )
    return {
        "files": written.files,
        "difference": difference,
        "tolerance": limit,
        "largest_logit": largest,
        **written.notes,
    }


@torch.no_grad()
def _wanted(subject: ExportedNetwork, images: Tensor) -> Outputs:
    """Return what the network computes in blocks, as it was trained and evaluated."""
    outputs = [logits for of_block in subject.restored.net.all_logits(images) for logits in of_block]
    return tuple(outputs if subject.exits else outputs[-1:])


# ---- images --------------------------------------------------------------------------------------------


def _images(config: ExportConfig, restored: Restored) -> Checked:
    """Return test images of the run's data set, prepared as the run does, or generated ones instead."""
    settings = restored.config.data
    try:
        settings = replace(settings, root=config.data_root or settings.root, workers=0, download=False)
        data = load_data(settings, restored.config.seed)
        split, kind = (data.test, "test") if len(data.test) else (data.validation, "validation")
        split = split.subset(torch.arange(min(config.images, len(split))))
        (batch,) = eval_batches(split, data, settings, batch_size=config.images, device="cpu")
        images, words = batch.images, f"{len(split)} {kind} images of {settings.name}"
    except (ValueError, OSError, RunFailed) as error:
        reason = message_of(error).splitlines()[0]
        print(f"the images of {settings.name} cannot be read ({reason}); generated images are used instead")
        images = _generated(config.images, restored)
        words = f"{config.images} generated images, as {settings.name} could not be read"
    return Checked([images[:1], images], words)


def _generated(count: int, restored: Restored) -> Tensor:
    channels, size, _ = restored.image_shape
    known = restored.config.data.known
    pixels, _ = shapes.generate(count, num_classes=10, image_size=size, seed=0, split="test")
    images = torch.from_numpy(pixels)
    if channels == 1:
        images = images.float().mean(3, keepdim=True).round().to(torch.uint8)
    return Normalise(size, mean=known.mean, std=known.std, device=torch.device("cpu"))(images)


def _versions() -> str:
    return ", ".join(f"{name} {metadata.version(name)}" for name in ONNX_PACKAGES)


def _farewell(restored: Restored, out: Path) -> str:
    shape = ", ".join(map(str, restored.image_shape))
    return (
        f"done: {out}. The network takes (batch, {shape}). It was tested on images "
        f"{restored.config.data.preparation}. docs/export.md has a program that prepares images like this"
    )
