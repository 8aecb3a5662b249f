"""This module classifies images of any kind with a trained network, and gives the probabilities."""

import json
import os
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import torch
from torch import Tensor

from retrain.export.config import KIND, VERSION
from retrain.export.formats import Runner, check_packages, eager, read_onnx
from retrain.export.source import restore
from retrain.export.timm_folder import read_timm
from retrain.predict.config import PredictConfig
from tools.failures import RunFailed
from tools.files.atomic import read_document, write_bytes
from tools.images.augment import Normalise
from tools.images.images import BadImage, decode, images_below
from tools.images.preparation import Preparation
from tools.images.streaming import evaluation_transform
from tools.mistake import Mistake
from tools.run.launch import launch

Read = TypeVar("Read")


@dataclass(frozen=True)
class Classifier:
    """A `Classifier` is a trained network that is ready to classify images."""

    source: str
    """These words say which network it is, and where it comes from."""
    run: Runner
    """This turns prepared images into logits; of several outputs, the last is the classifier's."""
    classes: Sequence[str]
    preparation: Preparation


def predict(config: PredictConfig) -> None:
    """Print the most probable classes of each image; a file that is no image does not stop the others."""
    files = _files(config.images)
    device = launch(
        device=config.device, precision="fp32", threads=config.threads, trackers=(), folder=Path()
    ).device
    classifier = _classifier(config, device)
    print(f"{classifier.source}; images are prepared {classifier.preparation}", flush=True)
    lines: list[dict[str, Any]] = []
    unreadable: list[str] = []
    for start in range(0, len(files), config.batch):
        images, wrong = _load(files[start : start + config.batch], classifier.preparation)
        unreadable += wrong
        if images:
            lines += _print_predictions(classifier, images, config.top, device)
    if config.out:
        write_bytes(Path(config.out), "".join(json.dumps(line) + "\n" for line in lines).encode())
        print(f"done: {len(lines)} predictions in {config.out}", flush=True)
    if unreadable:
        listed = "\n  ".join(unreadable)
        raise RunFailed(f"{len(unreadable)} of {len(files)} files have no prediction:\n  {listed}")


def _files(named: Iterable[str]) -> list[Path]:
    """Return files as they are named, and the images of folders; each file once."""
    files: list[Path] = []
    for name in named:
        path = Path(name)
        paths = images_below(path) if path.is_dir() else [path]
        if not paths or not path.exists():
            what = "a folder without images" if path.is_dir() else "no file or folder"
            raise Mistake("images", f"'{name}' is {what}")
        files += paths
    return list(dict.fromkeys(files))


def _load(files: Sequence[Path], preparation: Preparation) -> tuple[dict[Path, Tensor], list[str]]:
    """Return the bytes of the images as evaluation prepares them, and what is wrong with the other files."""
    transform = evaluation_transform(preparation)

    def load(path: Path) -> Tensor | str:
        try:
            image = decode(path)
        except BadImage as error:
            return str(error)
        # The images that a grey network knows are grey already, and stay unchanged.
        return transform(image.convert(preparation.mode).convert("RGB"))

    with ThreadPoolExecutor(os.cpu_count()) as pool:  # Pillow does not hold the interpreter's lock
        loaded = list(zip(files, pool.map(load, files), strict=True))
    images = {path: result for path, result in loaded if isinstance(result, Tensor)}
    return images, [result for _, result in loaded if isinstance(result, str)]


def _print_predictions(
    classifier: Classifier, images: dict[Path, Tensor], top: int, device: torch.device
) -> list[dict[str, Any]]:
    """Print predictions, and return them."""
    fed = classifier.preparation
    normalise = Normalise(fed.crop, mean=fed.mean, std=fed.std, device=device)
    logits = classifier.run(normalise(torch.stack(list(images.values())).to(device)))[-1]
    best = logits.softmax(1).topk(min(top, len(classifier.classes)))
    lines = []
    for path, chances, labels in zip(images, best.values.tolist(), best.indices.tolist(), strict=True):
        names = [classifier.classes[label] for label in labels]
        named = ", ".join(f"{name} {chance:.1%}" for name, chance in zip(names, chances, strict=True))
        print(f"{path}  {named}", flush=True)
        lines.append({"image": str(path), "classes": names, "probabilities": chances})
    return lines


def _classifier(config: PredictConfig, device: torch.device) -> Classifier:
    """Return the network that the options name."""
    if not config.export:
        return _restored(config.weights_path, config.label, device)
    folder = Path(config.export)
    note = folder / "export.json"
    if not note.is_file():
        raise Mistake("export", f"'{folder}' is no folder of export_model.py: it has no export.json")
    document = read_document(note, KIND, VERSION)
    try:
        return _exported(folder, document, device)
    except (KeyError, TypeError) as error:
        raise Mistake("export", f"{note} is not whole: {error}") from None


def _restored(path: Path, label: str, device: torch.device) -> Classifier:
    restored = restore(path, label=label)
    network = restored.trunk().to(device)
    source = f"{restored.name} of {path}"
    return Classifier(source, eager(network), restored.classes, restored.config.data.preparation)


def _exported(folder: Path, note: dict[str, Any], device: torch.device) -> Classifier:
    """Return the first of a folder's formats that can be read and cannot run code."""
    if "state" in note["formats"]:
        return _restored(folder / "state.safetensors", "export", device)
    if "input" not in note:
        raise Mistake(
            "export", f"'{folder}' does not say how images are prepared, as exports do now", "export it anew"
        )
    fed, classes = Preparation.described(note["input"]), tuple(note["classes"])
    if "timm" in note["formats"]:
        run = eager(_read(folder / "timm", read_timm).to(device))
    elif "onnx" in note["formats"]:
        check_packages(["onnxruntime"], label="export")
        run = _read(folder / "network.onnx", read_onnx)
    else:
        raise Mistake(
            "export",
            f"'{folder}' has a program of torch.export alone, which is not loaded, as it could run code",
            "export state, timm or onnx as well",
        )
    return Classifier(f"{note['network']} of {folder}", run, classes, fed)


def _read(path: Path, read: Callable[[Path], Read]) -> Read:
    try:
        return read(path)
    except Exception as error:  # timm and onnxruntime raise many kinds for what is torn or gone
        reason = next(iter(str(error).splitlines()), type(error).__name__)
        raise Mistake("export", f"cannot read '{path}': {reason}") from None
