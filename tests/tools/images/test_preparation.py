"""What a preparation says is what evaluation does."""

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor

from tools.images.datasets import load_data
from tools.images.loaders import eval_batches
from tools.images.options import KNOWN_SETS, DataConfig
from tools.images.preparation import Preparation

SIZES = [(40, 25), (25, 41), (33, 33), (12, 12), (9, 30), (64, 37)]


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    rng = np.random.default_rng(0)
    for name in ("a", "b"):
        (tmp_path / "photos/train" / name).mkdir(parents=True)
        (tmp_path / "photos/test" / name).mkdir(parents=True)
        for number, (width, height) in enumerate(SIZES):
            pixels = rng.integers(0, 256, (height, width, 3), dtype=np.uint8)
            for split in ("train", "test"):
                Image.fromarray(pixels).save(tmp_path / "photos" / split / name / f"{number}.png")
    return tmp_path / "photos"


def by_hand(path: Path, wanted: Preparation) -> Tensor:
    """An image as the description says, by Pillow and NumPy in float64."""
    image: Image.Image = Image.open(path)
    short = min(image.size)
    image = image.resize([side * wanted.resize // short for side in image.size], Image.Resampling.BILINEAR)
    left, top = (round((side - wanted.crop) / 2) for side in image.size)
    pixels = np.asarray(image.crop((left, top, left + wanted.crop, top + wanted.crop)), dtype=np.float64)
    return torch.from_numpy((pixels / 255 - wanted.mean) / wanted.std).permute(2, 0, 1)


@pytest.mark.parametrize("loader", ["stream", "device"])
@pytest.mark.parametrize("size", [16, 21, 32])
def test_evaluation_does_what_the_preparation_says(photos: Path, loader: str, size: int) -> None:
    config = DataConfig(name="folder", root=str(photos), image_size=size, loader=loader, workers=0)
    data = load_data(config, 0)
    (batch,) = eval_batches(data.test, data, config, batch_size=100, device="cpu")
    wanted = config.preparation
    assert (wanted.resize, wanted.crop) == (round(size * 8 / 7) if loader == "stream" else size, size)
    files = [photos / "test" / name / f"{number}.png" for name in ("a", "b") for number in range(len(SIZES))]
    found = torch.stack([by_hand(path, wanted) for path in files])
    torch.testing.assert_close(batch.images.double(), found, rtol=0, atol=2e-6)


@pytest.mark.parametrize("name", KNOWN_SETS)
def test_a_description_can_be_read_again(name: str) -> None:
    fed = (
        DataConfig(name=name, root="somewhere").preparation if name != "shapes" else DataConfig().preparation
    )
    assert Preparation.described(fed.describe()) == fed
    assert fed.mode == ("L" if "mnist" in name else "RGB")
    assert fed.resize == (fed.crop if KNOWN_SETS[name].small else 256)
