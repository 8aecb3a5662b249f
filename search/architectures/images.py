"""Architectures are scored on images apart from those that the supernet was trained on."""

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any

import torch

from search.architectures.config import ScoringOptions
from supernet.network.storage import supernet_notes, weights_file
from supernet.space import Space
from supernet.train.config import SupernetConfig
from tools.files.atomic import read_document, write_document
from tools.files.provenance import sha256
from tools.images.datasets import Data, fixed_part, load_data, whole_batches
from tools.images.loaders import Batch, eval_batches
from tools.images.options import DataConfig, PlaceOptions
from tools.mistake import Mistake, quoted
from tools.options.config import flatten, of_run


@dataclass(frozen=True, kw_only=True)
class ScoringImages:
    """These are batches that can be read again and stay the same, with facts about their images."""

    calibration: Iterable[Batch]
    """The batches for BatchNorm statistics."""
    validation: Iterable[Batch]
    """The batches for scores."""
    indices: dict[str, Any]
    """Which images of their splits these are, in their order."""
    apart: bool
    """Whether the images are known to be apart from those that the supernet was trained on."""
    batches: int
    """How many batches both have together."""
    notes: tuple[str, ...] = ()
    """Notes on the whole data set, for the user."""

    @property
    def num_validation(self) -> int:
        """How many images are scored."""
        return len(self.indices["validation_images"])

    @property
    def said_of_calibration(self) -> str:
        """Where the BatchNorm statistics come from, in words."""
        count = len(self.indices["calibration_images"])
        return f"{count:,} training images" if count else "the supernet"


def scoring_images(
    supernet: Path,
    space: Space,
    options: ScoringOptions,
    *,
    data: PlaceOptions | DataConfig,
    seed: int,
    device: torch.device,
) -> ScoringImages:
    """Return the images for scores, the same for every architecture.

    They follow from the supernet's own data and seed, where these are known.
    """
    options_of_data, seed, apart = data_options(supernet, data, seed)
    loaded = load_data(options_of_data, seed)
    _check_fit(supernet, space, loaded)
    validation = fixed_part(loaded.validation, options.validation_images, seed, "scoring")
    calibration, size = torch.empty(0, dtype=torch.int64), 1
    if options.statistics != "supernet":
        count, size = whole_batches(loaded.train, options.calibration_images, options.calibration_batch)
        calibration = fixed_part(loaded.train, count, seed, "calibration")
    held = eval_batches(
        loaded.validation.subset(validation),
        loaded,
        options_of_data,
        batch_size=options.batch,
        device=device,
    )
    return ScoringImages(
        calibration=eval_batches(
            loaded.train.subset(calibration), loaded, options_of_data, batch_size=size, device=device
        ),
        validation=held,
        indices={
            "data": options_of_data.name,
            "seed": seed,
            "device": torch.cuda.get_device_name(device) if device.type == "cuda" else "cpu",
            "validation_images": validation.tolist(),
            "calibration_images": calibration.tolist(),
            "image_means": _means(held),
        },
        apart=apart,
        batches=len(calibration) // size + -(-len(validation) // options.batch),
        notes=loaded.notes,
    )


def data_options(supernet: Path, data: PlaceOptions | DataConfig, seed: int) -> tuple[DataConfig, int, bool]:
    """Return the data options and the seed of the supernet's training, and whether these are known.

    The seed made the split. `data` says where the images lie. Weights that another program wrote may not
    say how they were trained. Then `data` also says which images they are.
    """
    usual = {option.name: option.default for option in fields(DataConfig)}
    given = {name: value for name, value in flatten(data).items() if value != usual[name]}
    text = supernet_notes(supernet).get("config")
    if text is None:
        return DataConfig(**given), seed, False
    try:
        trained = of_run(SupernetConfig, text, source=f"'{supernet}'")
    except ValueError as error:
        raise Mistake("supernet", quoted(error)) from None
    places = {option.name for option in fields(PlaceOptions)}
    for name, value in given.items():
        if name not in places and value != getattr(trained.images, name):
            raise Mistake(
                f"data.{name}",
                f"the supernet was trained with {getattr(trained.images, name)!r}, and what scores "
                "its networks must be apart from those images",
                "leave it out",
            )
    return replace(trained.images, **given), trained.seed, True


def keep_identity(path: Path, content: Mapping[str, Any], *, begun: bool, run: Path) -> None:
    """Write down which images and weights scores belong to, and refuse to mix in others later.

    `begun` says whether there are scores already.
    """
    if not (path.exists() and begun):
        write_document(path, "scoring", 1, content)
        return
    before = read_document(path, "scoring", 1)
    for name, value in content.items():
        if name != "device" and name in before and not _same(before[name], value):
            raise Mistake(
                "run", f"what is in '{run}' was made with another {what(name)}", "name a new folder"
            )
    if before["device"] != content["device"]:
        print(
            f"earlier scores were made on {before['device']}, and new ones are made on {content['device']}. "
            "Rounding differs between them, so a few images may get another class"
        )


def _same(one: Any, other: Any) -> bool:
    """Return whether two values are equal; numbers may differ by the rounding of another device."""
    if isinstance(one, list) and isinstance(other, list) and one and isinstance(one[0], float):
        return len(one) == len(other) and all(map(lambda a, b: math.isclose(a, b, abs_tol=1e-3), one, other))
    return bool(one == other)


def _means(batches: Iterable[Batch]) -> list[float]:
    """Return the means of the first few images, which differ where other images are split alike."""
    first = next(iter(batches), None)
    return [] if first is None else [round(float(image.double().mean()), 6) for image in first.images[:16]]


def what(key: str) -> str:
    """Return in words what a key of scoring.json is about."""
    return {
        "supernet_sha256": "supernet",
        "costs_sha256": "table of costs",
        "data": "data set",
        "validation_images": "set of validation images",
        "calibration_images": "set of calibration images",
        "image_means": "data set",
        "statistics": "way to take BatchNorm statistics",
        "calibration_batch": "size of calibration batches",
        "momentum": "momentum of BatchNorm statistics",
        "precision": "precision",
    }.get(key, key)


def digest(supernet: Path) -> str:
    """Return a digest of a supernet's weights, by which they differ from others."""
    return sha256(weights_file(supernet))


def _check_fit(supernet: Path, space: Space, data: Data) -> None:
    given = data.num_classes, data.image_size, data.channels
    wanted = space.num_classes, space.image_size, space.in_chs
    if given != wanted:
        raise Mistake(
            "data.name",
            f"the images have {given[0]} classes, {given[1]} pixels and {given[2]} channels; the supernet "
            f"'{supernet}' is for {wanted[0]}, {wanted[1]} and {wanted[2]}",
        )
    if not len(data.validation):
        raise Mistake(
            "supernet",
            "it was trained on all images (`data.validation` 0), and none are left to score "
            "architectures with",
        )
