import io
import pickle
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from tests.tools.imitations import write_downsampled, write_images, write_tiny_imagenet
from tools.images.datasets import load_data, stratified
from tools.images.images import ArrayImages, BadImage, FolderImages, decode
from tools.images.options import DataConfig
from tools.images.sources import ArraysOnly


def folder_set(root: Path, **options: Any) -> DataConfig:
    return DataConfig(name="folder", root=str(root), **options)


@given(st.lists(st.integers(0, 4), min_size=1, max_size=60), st.data())
def test_a_stratified_choice_keeps_proportions(labels: list[int], data: st.DataObject) -> None:
    count = data.draw(st.integers(0, len(labels)))
    chosen, rest = stratified(torch.tensor(labels), count, 0, "validation")
    assert len(chosen) == count
    assert sorted([*chosen.tolist(), *rest.tolist()]) == list(range(len(labels)))
    sizes = {label: labels.count(label) for label in set(labels)}
    taken = {label: sum(labels[index] == label for index in chosen.tolist()) for label in sizes}
    shares = {label: size * count / len(labels) for label, size in sizes.items()}
    if all(1 <= shares[label] <= size - 1 for label, size in sizes.items()):
        assert all(abs(taken[label] - shares[label]) < 1 for label in sizes)
    if sum(size > 1 for size in sizes.values()) <= count <= len(labels) - len(sizes):
        assert all(1 <= taken[label] <= size - 1 for label, size in sizes.items() if size > 1)


def test_a_split_is_fixed_by_its_seed_and_purpose() -> None:
    labels = torch.arange(300) % 3
    chosen, _ = stratified(labels, 30, 0, "validation")
    assert torch.equal(chosen, stratified(labels, 30, 0, "validation")[0])
    assert not torch.equal(chosen, stratified(labels, 30, 1, "validation")[0])
    assert not torch.equal(chosen, stratified(labels, 30, 0, "test")[0])


def test_shapes_has_three_splits() -> None:
    config = DataConfig(train_size=300, test_size=50, validation=0.2, num_classes=5, image_size=16)
    data = load_data(config, seed=0)
    assert [len(split) for split in (data.train, data.validation, data.test)] == [240, 60, 50]
    assert (data.num_classes, data.image_size, data.channels, len(data.class_names)) == (5, 16, 3, 5)
    assert data.validation.labels.bincount().tolist() == [12] * 5
    assert isinstance(data.train, ArrayImages)
    assert isinstance(data.validation, ArrayImages)
    together = torch.cat([data.train.images, data.validation.images]).flatten(1)
    assert len(set(map(tuple, together.tolist()))) == 300


def test_the_seed_splits_shapes_but_draws_no_other_images() -> None:
    config = DataConfig(train_size=100, test_size=20, image_size=8)
    first, second = load_data(config, 0), load_data(config, 1)
    assert isinstance(first.test, ArrayImages)
    assert isinstance(second.test, ArrayImages)
    assert torch.equal(first.test.images, second.test.images)
    assert isinstance(first.train, ArrayImages)
    assert isinstance(second.train, ArrayImages)
    assert not torch.equal(first.train.images, second.train.images)


def test_no_validation() -> None:
    data = load_data(DataConfig(train_size=100, test_size=20, image_size=8, validation=0.0), 0)
    assert (len(data.train), len(data.validation)) == (100, 0)


def test_a_plain_tree_is_split_in_three(tmp_path: Path) -> None:
    for name in ("cat", "dog"):
        write_images(tmp_path / name, 20)
    data = load_data(folder_set(tmp_path, validation=0.2), 0)
    assert [len(split) for split in (data.train, data.validation, data.test)] == [29, 7, 4]
    assert data.class_names == ("cat", "dog")
    splits = [data.train, data.validation, data.test]
    paths = {split.path(i) for split in splits if isinstance(split, FolderImages) for i in range(len(split))}
    assert len(paths) == 40
    assert isinstance(data.test, FolderImages)
    assert data.class_names[int(data.test.labels[0])] == data.test.path(0).parent.name


def test_a_tree_may_bring_its_own_splits(tmp_path: Path) -> None:
    for split, count in (("train", 5), ("val", 2), ("test", 3)):
        for name in ("a", "b"):
            write_images(tmp_path / split / name, count)
    data = load_data(folder_set(tmp_path), 0)
    assert [len(split) for split in (data.train, data.validation, data.test)] == [10, 4, 6]


def test_a_tree_in_memory_is_scaled_and_cut_square(tmp_path: Path) -> None:
    write_images(tmp_path / "a", 9, size=(20, 10))
    write_images(tmp_path / "b", 9, mode="L")
    data = load_data(folder_set(tmp_path, loader="device", image_size=6), 0)
    assert isinstance(data.train, ArrayImages)
    assert data.train.images.shape[1:] == (6, 6, 3)


def test_a_subset_keeps_all_classes(tmp_path: Path) -> None:
    for name in "abc":
        write_images(tmp_path / name, 20)
    data = load_data(folder_set(tmp_path, train_size=12, test_size=3, validation=0.0), 0)
    assert data.train.labels.bincount().tolist() == [4, 4, 4]
    assert data.test.labels.bincount().tolist() == [1, 1, 1]


def test_tiny_imagenets_layout(tmp_path: Path) -> None:
    write_tiny_imagenet(tmp_path)
    data = load_data(DataConfig(name="tiny-imagenet", root=str(tmp_path), validation=0.2), 0)
    assert [len(split) for split in (data.train, data.validation, data.test)] == [16, 4, 2]
    assert isinstance(data.test, ArrayImages)
    assert data.test.labels.tolist() == [1, 0]
    assert data.test.images[:, 0, 0, 0].tolist() == [1, 2]


@pytest.mark.parametrize("pickled", [True, False])
def test_downsampled_imagenet(tmp_path: Path, pickled: bool) -> None:
    write_downsampled(tmp_path, pickled=pickled)
    data = load_data(DataConfig(name="imagenet32", root=str(tmp_path), validation=0.25), 0)
    assert [len(split) for split in (data.train, data.validation, data.test)] == [30, 10, 4]
    assert isinstance(data.test, ArrayImages)
    assert data.test.labels.tolist() == [0, 1, 0, 1]
    assert data.test.images[0, 0, 1].tolist() == [7, 0, 0]


class Harm:
    def __reduce__(self) -> tuple[Any, ...]:
        return print, ("this must not run",)


def test_a_pickle_that_asks_for_more_than_arrays_is_refused(tmp_path: Path) -> None:
    with pytest.raises(pickle.UnpicklingError, match="print"):
        ArraysOnly(io.BytesIO(pickle.dumps(Harm()))).load()
    write_downsampled(tmp_path, pickled=True)
    (tmp_path / "val_data").write_bytes(pickle.dumps({"data": Harm(), "labels": []}))
    with pytest.raises(ValueError, match=r"val_data: is not a file of the downsampled ImageNet"):
        load_data(DataConfig(name="imagenet32", root=str(tmp_path)), 0)


@pytest.mark.parametrize("name", ["cifar10", "mnist", "imagenet", "tiny-imagenet", "imagenet32", "folder"])
def test_a_missing_root_says_what_to_put_there(tmp_path: Path, name: str) -> None:
    missing = tmp_path / "nowhere"
    with pytest.raises(ValueError, match=rf"data\.root: {missing} is not a folder; for {name} put there"):
        load_data(DataConfig(name=name, root=str(missing)), 0)


@pytest.mark.parametrize("name", ["cifar10", "cifar100", "mnist", "fashion_mnist"])
def test_an_empty_root_says_what_to_put_there_and_how_to_fetch_it(tmp_path: Path, name: str) -> None:
    with pytest.raises(ValueError, match=r"a file is missing .* data\.download fetches it"):
        load_data(DataConfig(name=name, root=str(tmp_path)), 0)


def test_a_cifar_file_of_other_bytes_is_never_unpickled(tmp_path: Path) -> None:
    folder = tmp_path / "cifar-10-batches-py"
    folder.mkdir()
    for name in [*(f"data_batch_{number}" for number in range(1, 6)), "test_batch", "batches.meta"]:
        (folder / name).write_bytes(pickle.dumps(Harm()))
    with pytest.raises(ValueError, match="not the official one"):
        load_data(DataConfig(name="cifar10", root=str(tmp_path)), 0)


def test_broken_trees(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="two or more class folders, found 0"):
        load_data(folder_set(tmp_path), 0)
    write_images(tmp_path / "a", 5)
    (tmp_path / "b").mkdir()
    with pytest.raises(ValueError, match=f"the class folder {tmp_path / 'b'} holds no image"):
        load_data(folder_set(tmp_path), 0)
    with pytest.raises(ValueError, match="has no folder train; for imagenet put there"):
        load_data(DataConfig(name="imagenet", root=str(tmp_path)), 0)


def test_splits_of_a_tree_with_different_classes(tmp_path: Path) -> None:
    for name in ("train/a", "train/b", "val/a", "val/c"):
        write_images(tmp_path / name, 2)
    with pytest.raises(ValueError, match="differ in their classes, such as b"):
        load_data(folder_set(tmp_path), 0)


def test_too_few_images_for_a_split(tmp_path: Path) -> None:
    for name in "abc":
        write_images(tmp_path / name, 1 if name == "c" else 60)
    with pytest.raises(ValueError, match=r"class 'c' has too few images to set some apart as test images"):
        load_data(folder_set(tmp_path), 0)
    write_images(tmp_path / "c" / "more", 3)  # few, but enough for one on each side
    data = load_data(folder_set(tmp_path), 0)
    for split in (data.train, data.validation, data.test):
        assert set(split.labels.tolist()) == {0, 1, 2}
    with pytest.raises(ValueError, match=r"data\.train_size: 5 images are too few for 10 classes"):
        load_data(DataConfig(train_size=5), 0)


def test_a_cut_short_image_is_named(tmp_path: Path) -> None:
    path = tmp_path / "photo.png"
    Image.effect_noise((40, 40), 50).save(path)
    path.write_bytes(path.read_bytes()[:600])
    with pytest.raises(BadImage, match=rf"{path}: cannot be decoded as an image"):
        decode(path)
    path.write_text("no image")
    with pytest.raises(BadImage, match=rf"{path}: cannot be decoded as an image"):
        decode(path)


@pytest.mark.parametrize("mode", ["L", "P", "RGBA", "CMYK", "1"])
def test_every_image_comes_out_in_three_channels(tmp_path: Path, mode: str) -> None:
    path = tmp_path / "photo.tiff"
    Image.new(mode, (4, 4)).save(path)
    assert decode(path).mode == "RGB"
