"""The images on which architectures are scored: apart from those that the supernet was trained on."""

from collections.abc import Iterable
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any

import torch

from search.architecture_config import ArchitectureSearchConfig
from supernet.config import SupernetConfig
from supernet.space import Space
from supernet.storage import supernet_notes
from tools.config import flag, from_toml
from tools.data import DataConfig
from tools.datasets import Data, fixed_part, load_data, whole_batches
from tools.loaders import Batch, eval_batches

PLACES = ("root", "workers", "download", "loader")
"""Options that may differ from those of the supernet's training: the images are the same."""


@dataclass(frozen=True, kw_only=True)
class ScoringImages:
    """Batches that come again the same, and which images are in them."""

    calibration: Iterable[Batch]
    validation: Iterable[Batch]
    indices: dict[str, Any]
    """Which they are of their splits, in their order."""
    apart: bool
    """Whether they are known to be apart from those that the supernet was trained on."""
    batches: int
    """How many batches both have together."""

    @property
    def num_validation(self) -> int:
        """Images that are scored."""
        return len(self.indices["validation_images"])

    @property
    def said_of_calibration(self) -> str:
        """In words."""
        count = len(self.indices["calibration_images"])
        return f"{count:,} training images" if count else "the supernet"


def scoring_images(config: ArchitectureSearchConfig, space: Space, device: torch.device) -> ScoringImages:
    """The same for every architecture and whatever the search's seed: they hang on the supernet's."""
    asked, seed, apart = _data_options(config)
    data = load_data(asked, seed)
    _check_fit(space, data)
    options = config.scoring
    validation = fixed_part(data.validation, options.validation_images, seed, "scoring")
    calibration, size = torch.empty(0, dtype=torch.int64), 1
    if options.statistics != "supernet":
        count, size = whole_batches(data.train, options.calibration_images, options.calibration_batch)
        calibration = fixed_part(data.train, count, seed, "calibration")
    return ScoringImages(
        calibration=eval_batches(data.train.subset(calibration), data, asked, batch_size=size, device=device),
        validation=eval_batches(
            data.validation.subset(validation), data, asked, batch_size=options.batch, device=device
        ),
        indices={
            "data": asked.name,
            "seed": seed,
            "device": torch.cuda.get_device_name(device) if device.type == "cuda" else "cpu",
            "validation_images": validation.tolist(),
            "calibration_images": calibration.tolist(),
        },
        apart=apart,
        batches=len(calibration) // size + -(-len(validation) // options.batch),
    )


def _data_options(config: ArchitectureSearchConfig) -> tuple[DataConfig, int, bool]:
    """Those of the supernet's training, whose seed made the split; the search says where the images lie.

    Whether that is known comes third: weights that another program wrote may not say it.
    """
    text = supernet_notes(Path(config.supernet)).get("config")
    if text is None:
        return config.data, config.seed, False
    trained = from_toml(SupernetConfig, text, source=f"--supernet: '{config.supernet}'")
    given = {
        each.name: getattr(config.data, each.name)
        for each in fields(DataConfig)
        if getattr(config.data, each.name) != each.default
    }
    for name, value in given.items():
        if name not in PLACES and value != getattr(trained.data, name):
            raise ValueError(
                f"{flag(f'data.{name}')}: the supernet was trained with {getattr(trained.data, name)!r}, and "
                "the images of a search must be apart from those; leave it out"
            )
    return replace(trained.data, **given), trained.seed, True


def _check_fit(space: Space, data: Data) -> None:
    found = data.num_classes, data.image_size, data.channels
    wanted = space.num_classes, space.image_size, space.in_chs
    if found != wanted:
        raise ValueError(
            f"--data.name: the images have {found[0]} classes, {found[1]} pixels and {found[2]} "
            f"channels; the supernet is for {wanted[0]}, {wanted[1]} and {wanted[2]}"
        )
    if not len(data.validation):
        raise ValueError(
            "--supernet: it was trained on all images (--data.validation 0), and none are left to score "
            "architectures with"
        )
