"""Folders as people have them: other kinds of images, broken ones, other files, and very few of them."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from tests.tools.imitations import write_images
from tools.images.datasets import Data, load_data
from tools.images.images import BadImage, FolderImages, decode
from tools.images.inspection import look
from tools.images.loaders import eval_batches, make_train_loader
from tools.images.options import DataConfig


def read(root: Path, **options: Any) -> Data:
    return load_data(DataConfig(name="folder", root=str(root), **({"image_size": 16} | options)), 0)


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    """Three classes of ten; a broken image in two of them."""
    for name in ("cat", "dog", "owl"):
        write_images(tmp_path / name, 10, size=(20, 18))
    (tmp_path / "dog" / "3.png").write_bytes((tmp_path / "dog" / "3.png").read_bytes()[:60])
    (tmp_path / "owl" / "4.jpg").write_text("no image")
    return tmp_path


def names_of(data: Data) -> set[str]:
    splits = [data.train, data.validation, data.test]
    return {
        str(split.path(index).relative_to(split.root))
        for split in splits
        if isinstance(split, FolderImages)
        for index in range(len(split))
    }


def decodes(path: Path) -> bool:
    try:
        decode(path)
    except BadImage:
        return False
    return True


@pytest.mark.filterwarnings("ignore:Corrupt EXIF data")
@pytest.mark.parametrize("kind", ["png", "jpg", "bmp", "ppm", "tif", "webp"])
def test_a_look_finds_whatever_cannot_be_decoded(tmp_path: Path, kind: str) -> None:
    whole, cut = tmp_path / f"whole.{kind}", tmp_path / f"cut.{kind}"
    Image.effect_noise((40, 30), 60).convert("RGB").save(whole)
    content = whole.read_bytes()
    assert look(whole) == ((40, 30), "")
    for count in [*range(0, 40, 7), *range(40, len(content), max(1, len(content) // 25)), len(content) - 2]:
        cut.write_bytes(content[:count])
        assert (not look(cut).fault) == decodes(cut), count
    cut.write_bytes(content + b"what some cameras write behind it")
    assert look(cut) == ((40, 30), "")


@pytest.mark.parametrize("progressive", [False, True])
def test_a_look_finds_a_jpeg_that_is_broken_within(progressive: bool, tmp_path: Path) -> None:
    whole, damaged, rng = tmp_path / "whole.jpg", tmp_path / "damaged.jpg", np.random.default_rng(0)
    Image.effect_noise((120, 90), 60).convert("RGB").save(whole, progressive=progressive)
    content, broken = whole.read_bytes(), 0
    for place in range(700, len(content) - 300, len(content) // 20):
        for damage in (rng.bytes(200), b"\xff" * 200, bytes(200), b""):
            damaged.write_bytes(content[:place] + damage + content[place + 200 :])
            assert (not look(damaged).fault) == decodes(damaged), place
            broken += bool(look(damaged).fault)
    assert content.endswith(b"\xff\xd9")
    assert broken > 20


def test_broken_images_are_all_named_at_once(photos: Path) -> None:
    with pytest.raises(
        ValueError, match=r"^data\.root: 2 files below .* dog/3\.png .*owl/4\.jpg \(its"
    ) as said:
        read(photos)
    assert "data.skip_broken" in str(said.value)
    for number in range(20):
        (photos / "owl" / f"bad{number}.png").touch()
    with pytest.raises(ValueError, match=r"22 files .* and 10 more; replace or remove them") as said:
        read(photos)
    assert str(said.value).count(".png (") == 11
    assert "\n" not in str(said.value)


def test_broken_images_are_left_out_if_asked(photos: Path) -> None:
    names = names_of(read(photos, skip_broken=True))
    assert len(names) == 29
    assert names.isdisjoint({"dog/3.png", "owl/4.jpg"})
    for path in (photos / "dog").iterdir():
        path.write_text("no image")
    with pytest.raises(ValueError, match=rf"no image of the class folder {photos / 'dog'} can be decoded"):
        read(photos, skip_broken=True)


def test_broken_images_of_imagenet_are_left_out_if_asked(photos: Path) -> None:
    for part in ("train", "val"):
        (photos / part).mkdir()
    for name in ("cat", "dog", "owl"):
        write_images(photos / "val" / name, 1)
        (photos / name).rename(photos / "train" / name)
    counts = []
    for skip in (False, True):
        config = DataConfig(name="imagenet", root=str(photos), skip_broken=skip)
        data = load_data(config, 0)
        counts.append((len(data.train) + len(data.validation), len(data.test)))
    assert counts == [(31, 3), (29, 3)]
    with pytest.raises(ValueError, match=r"data\.skip_broken: is for folder and imagenet"):
        DataConfig(skip_broken=True)


@pytest.mark.parametrize("loader", ["stream", "device"])
def test_images_of_all_kinds_and_of_one_pixel_are_read(tmp_path: Path, loader: str) -> None:
    sizes = [(1, 1), (1, 9), (300, 2), (20, 20)]
    for name in ("cat", "dog"):
        (tmp_path / name).mkdir()
        for mode in ("L", "LA", "P", "RGBA", "I;16"):
            for number, size in enumerate(sizes):
                Image.new(mode, size).save(tmp_path / name / f"{mode}{number}.png")
    config = DataConfig(name="folder", root=str(tmp_path), image_size=16, loader=loader, workers=0)
    data = load_data(config, 0)
    batches = list(
        make_train_loader(data.train, data, config, batch_size=40, seed=0, device="cpu").batches(0, 2)
    )
    batches += eval_batches(data.test, data, config, batch_size=4, device="cpu")
    assert {batch.images.shape[1:] for batch in batches} == {(3, 16, 16)}


def test_transparency_and_16_bits_keep_the_colours(tmp_path: Path) -> None:
    palette = Image.new("P", (2, 1))
    palette.putpalette([10, 20, 30, 40, 50, 60])
    palette.putdata([0, 1])
    palette.save(tmp_path / "palette.png", transparency=bytes([7, 200]))
    assert np.asarray(decode(tmp_path / "palette.png")).tolist() == [[[10, 20, 30], [40, 50, 60]]]
    grey = np.array([[0, 300, 30_000, 65_535]], dtype=np.uint16)
    Image.fromarray(grey).save(tmp_path / "grey.png")
    assert np.asarray(decode(tmp_path / "grey.png"))[0, :, 0].tolist() == [0, 1, 117, 255]


def test_very_few_images_end_in_a_sentence(tmp_path: Path) -> None:
    for name, count in (("cat", 2), ("dog", 9)):
        write_images(tmp_path / name, count)
    with pytest.raises(ValueError, match=r"class 'cat' has too few .* validation .* data\.validation 0$"):
        read(tmp_path)
    assert len(read(tmp_path, validation=0.0).train) == 9


def test_a_folder_says_what_is_chosen(photos: Path) -> None:
    (photos / "cat" / "notes.txt").touch()
    (photos / "cat" / ".hidden").touch()
    (photos / "dog" / "raw.HEIC").touch()
    said = " ".join(read(photos, skip_broken=True).notes)
    for part in (
        "holds 29 images of 3 classes: cat, dog, owl",
        "sees 16 x 16 pixels (--data.image-size)",
        "passed over: 1 with .txt, 1 with .heic; images have .jpg",
        "2 files are left out as broken (--data.skip-broken): dog/3.png (",
        "3 images became the test set: 10% of all, but one or more of each class. A folder test beside",
        "3 others became the validation set (--data.validation 0.1)",
        "leaves 23 for training; --seed decides which",
    ):
        assert part in said
    assert "29 of the images are smaller, down to 20 x 18, and are scaled up" in " ".join(
        read(photos, skip_broken=True, image_size=32).notes
    )


def test_a_folder_with_its_own_splits_says_so(tmp_path: Path) -> None:
    for part, count in (("train", 5), ("val", 2), ("test", 3)):
        for name in ("cat", "dog"):
            write_images(tmp_path / part / name, count)
    said = " ".join(read(tmp_path).notes)
    assert "holds 20 images" in said
    assert "became" not in said
    assert (
        "The test set has 6 images of a folder of its own. The validation set has 4 images of a fol" in said
    )
    assert said.endswith("That leaves 10 for training.")
