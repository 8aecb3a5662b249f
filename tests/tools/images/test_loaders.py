import multiprocessing
import os
import random
from collections.abc import Iterable
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from tools.failures import RunFailed
from tools.images import streaming
from tools.images.batches import Share, TrainingOrder
from tools.images.datasets import Data, load_data
from tools.images.images import ArrayImages, BadImage
from tools.images.loaders import (
    Batch,
    DeviceLoader,
    StreamLoader,
    TrainLoader,
    eval_batches,
    make_train_loader,
)
from tools.images.options import KNOWN_SETS, DataConfig


def shapes(**options: Any) -> tuple[DataConfig, Data]:
    config = DataConfig(train_size=50, test_size=23, num_classes=5, image_size=12, **options)
    return config, load_data(config, 0)


def train_loader(config: DataConfig, data: Data, **options: Any) -> TrainLoader:
    usual: dict[str, Any] = {"batch_size": 8, "seed": 3, "device": "cpu"}
    return make_train_loader(data.train, data, config, **usual | options)


def all_same(some: Iterable[Batch], others: Iterable[Batch]) -> bool:
    return all(same(*pair) for pair in zip(some, others, strict=True))


def same(one: Batch, other: Batch) -> bool:
    return all(torch.equal(mine, theirs) for mine, theirs in zip(one, other, strict=True))


def joined(parts: list[Batch]) -> Batch:
    return Batch(*(torch.cat(tensors) for tensors in zip(*parts, strict=True)))


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
        for number in range(10):
            size = (20 + number, 16)
            Image.effect_noise(size, 60 + number).convert("RGB").save(tmp_path / name / f"{number}.png")
    return tmp_path


def test_the_order_is_permutations_end_to_end() -> None:
    order = TrainingOrder(10, 4, seed=0)
    stream = torch.cat([order.indices(step) for step in range(10)])
    epochs = stream.view(4, 10)
    assert epochs.sort(1).values.tolist() == [list(range(10))] * 4
    assert len({tuple(epoch) for epoch in epochs.tolist()}) == 4
    # Any step, in any order, by an object that has seen no other.
    for step in (7, 2, 9):
        assert torch.equal(TrainingOrder(10, 4, seed=0).indices(step), stream[4 * step : 4 * step + 4])
        assert torch.equal(order.indices(step), stream[4 * step : 4 * step + 4])


def test_a_batch_may_be_larger_than_the_data() -> None:
    indices = TrainingOrder(3, 8, seed=0).indices(5)
    assert indices.shape == (8,)
    assert indices.bincount().min() >= 2


def test_shares_are_all_rows_once() -> None:
    for count in range(20):
        for world_size in range(1, 6):
            rows = [list(range(count))[Share(rank, world_size).rows(count)] for rank in range(world_size)]
            assert list(chain.from_iterable(rows)) == list(range(count))


VARIANTS: list[dict[str, Any]] = [
    {},
    {"cutout": 4, "rotate": 10.0, "pad_mode": "reflect"},
    {"mixup": 0.3},
    {"cutmix": 1.0, "mixup": 1.0},
    {"loader": "stream", "workers": 0},
    {"loader": "stream", "workers": 0, "mixup": 0.3, "cutout": 4, "rotate": 10.0},
    {"auto_augment": "rand-m9-mstd0.5", "color_jitter": 0.4, "erase": 0.5, "workers": 0},
    {"auto_augment": "original", "workers": 0},
]


@pytest.mark.parametrize("options", VARIANTS)
def test_batches_are_a_function_of_seed_and_step(options: dict[str, Any]) -> None:
    config, data = shapes(**options)
    loader = train_loader(config, data)
    assert isinstance(loader, StreamLoader if config.streamed else DeviceLoader)
    batches = list(loader.batches(0, 8))
    again = train_loader(config, data)
    assert all_same(batches[5:], again.batches(5, 8))
    assert same(batches[2], again.batch(2))
    assert same(batches[3], again.batch(3))
    assert same(batches[1], again.batch(1))
    assert not same(batches[0], train_loader(config, data, seed=4).batch(0))
    images, targets, indices = batches[0]
    assert images.shape == (8, 3, 12, 12)
    assert images.is_contiguous(memory_format=torch.channels_last)
    if config.mixup:
        torch.testing.assert_close(targets.sum(1), torch.ones(8))
    else:
        assert torch.equal(targets, data.train.labels[indices])


@pytest.mark.parametrize("options", VARIANTS)
def test_ranks_share_the_one_batch(options: dict[str, Any]) -> None:
    config, data = shapes(**options)
    whole = train_loader(config, data)
    ranks = [train_loader(config, data, rank=rank, world_size=4) for rank in range(4)]
    for step in (0, 6):
        assert same(whole.batch(step), joined([loader.batch(step) for loader in ranks]))


def test_steps_per_epoch() -> None:
    config, data = shapes()
    assert train_loader(config, data).steps_per_epoch == 45 / 8


@pytest.mark.parametrize("loader", ["device", "stream"])
@pytest.mark.parametrize("world_size", [1, 3])
def test_evaluation_sees_every_image_once(photos: Path, loader: str, world_size: int) -> None:
    options = {"loader": loader, "image_size": 8, "workers": 0, "validation": 0.4}
    config = DataConfig(name="folder", root=str(photos), **options)  # type: ignore[arg-type]
    data = load_data(config, 0)
    split = data.train
    ranks = [
        eval_batches(split, data, config, batch_size=4, device="cpu", rank=rank, world_size=world_size)
        for rank in range(world_size)
    ]
    seen = joined([batch for batches in ranks for batch in batches])
    assert sorted(seen.indices.tolist()) == list(range(len(split)))
    assert torch.equal(seen.targets, split.labels[seen.indices])
    assert seen.images.shape[1:] == (3, 8, 8)
    assert same(seen, joined([batch for batches in ranks for batch in batches]))


def test_evaluation_changes_nothing_but_the_scale() -> None:
    config, data = shapes()
    (batch,) = eval_batches(data.test, data, config, batch_size=100, device="cpu")
    mean, std = (torch.tensor(values).view(3, 1, 1) for values in (data.mean, data.std))
    restored = ((batch.images * std + mean) * 255).round().to(torch.uint8)
    assert torch.equal(restored.permute(0, 2, 3, 1), data.test.images)  # type: ignore[union-attr]
    assert not list(eval_batches(data.test.subset(torch.arange(0)), data, config, batch_size=9, device="cpu"))


def test_both_loaders_agree_where_nothing_is_random() -> None:
    config, data = shapes(augment="none", workers=0)
    streamed, _ = shapes(augment="none", loader="stream", workers=0)
    ours, theirs = train_loader(config, data).batch(0), train_loader(streamed, data).batch(0)
    assert same(ours, theirs)


@pytest.mark.parametrize("workers", [1, 2])
def test_workers_change_nothing(photos: Path, workers: int) -> None:
    def run(count: int) -> tuple[list[Batch], list[Batch]]:
        config = DataConfig(
            name="folder", root=str(photos), image_size=8, workers=count, color_jitter=0.4, cutmix=1.0
        )
        data = load_data(config, 0)
        loader = train_loader(config, data, batch_size=4)
        evaluated = eval_batches(data.train, data, config, batch_size=4, device="cpu")
        return list(loader.batches(2, 7)), list(evaluated)

    alone, shared = run(0), run(workers)
    assert all_same(alone[0], shared[0])
    assert all_same(alone[1], shared[1])
    assert not multiprocessing.active_children()


def test_decoding_in_the_training_process_leaves_its_generators_alone() -> None:
    config, data = shapes(loader="stream", workers=0)
    loader = train_loader(config, data)

    def draw() -> tuple[float, float, float]:
        return torch.rand(1).item(), random.random(), np.random.rand()  # noqa: NPY002

    for seed in (torch.manual_seed, random.seed, np.random.seed):
        seed(0)
    expected = draw()
    for seed in (torch.manual_seed, random.seed, np.random.seed):
        seed(0)
    list(loader.batches(0, 3))
    assert draw() == expected


@pytest.mark.parametrize("workers", [0, 2])
def test_a_corrupt_image_is_one_message(photos: Path, workers: int) -> None:
    config = DataConfig(name="folder", root=str(photos), image_size=8, workers=workers, validation=0.0)
    data = load_data(config, 0)
    for name in ("a", "b"):
        for number in range(10):
            path = photos / name / f"{number}.png"
            path.write_bytes(path.read_bytes()[:200])
    loader = train_loader(config, data)
    with pytest.raises(BadImage, match=rf"^{photos}/./\d\.png: cannot be decoded as an image.*remove it$"):
        list(loader.batches(0, 2))
    with pytest.raises(BadImage, match="cannot be decoded"):
        list(eval_batches(data.test, data, config, batch_size=4, device="cpu"))
    del loader
    assert not multiprocessing.active_children()


def test_a_dead_worker_is_one_message(photos: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    config = DataConfig(name="folder", root=str(photos), image_size=8, workers=1)
    data = load_data(config, 0)
    monkeypatch.setattr(streaming, "decode", lambda path: os._exit(1))
    with pytest.raises(RunFailed, match="worker process of the data loader died.*--data.workers 1"):  # noqa: RUF043
        list(train_loader(config, data).batches(0, 2))


def test_a_loader_that_is_left_half_way_leaves_no_workers(photos: Path) -> None:
    config = DataConfig(name="folder", root=str(photos), image_size=8, workers=2)
    loader = train_loader(config, load_data(config, 0))
    stream = loader.batches(0, 100)
    next(stream)
    assert len(multiprocessing.active_children()) == 2
    stream.close()  # type: ignore[attr-defined]
    assert not multiprocessing.active_children()
    loader.batch(4)
    loader.close()
    assert not multiprocessing.active_children()


@pytest.mark.parametrize(
    ("options", "sizes", "message"),
    [
        ({}, {"world_size": 3}, "8 images cannot be shared evenly among 3 processes"),
        ({"mixup": 0.1}, {"world_size": 8}, "1 per process is an odd number"),
    ],
)
def test_batches_that_do_not_fit(options: dict[str, Any], sizes: dict[str, int], message: str) -> None:
    config, data = shapes(**options)
    with pytest.raises(ValueError, match=message):
        train_loader(config, data, **sizes)


def test_training_on_no_images() -> None:
    config, data = shapes(validation=0.0)
    with pytest.raises(ValueError, match=r"there are no images to train on"):
        make_train_loader(data.validation, data, config, batch_size=8, seed=0, device="cpu")


def test_an_unknown_policy_is_named() -> None:
    config, data = shapes(auto_augment="rand-z9", workers=0)
    with pytest.raises(ValueError, match=r"data\.auto_augment: timm does not know the policy 'rand-z9'"):
        train_loader(config, data)


def test_small_images_may_be_streamed_from_their_files(photos: Path) -> None:
    (photos / "val" / "images").mkdir(parents=True)
    (photos / "val" / "val_annotations.txt").write_text("0.png\ta\n")
    Image.new("RGB", (64, 64)).save(photos / "val" / "images" / "0.png")
    for name in ("a", "b"):
        (photos / "train" / name).mkdir(parents=True)
        (photos / name).rename(photos / "train" / name / "images")
    config = DataConfig(
        name="tiny-imagenet", root=str(photos), loader="stream", image_size=16, workers=0, pad_mode="reflect"
    )
    data = load_data(config, 0)
    assert train_loader(config, data).batch(0).images.shape == (8, 3, 16, 16)
    (batch,) = eval_batches(data.test, data, config, batch_size=4, device="cpu")
    assert batch.images.shape == (1, 3, 16, 16)


def test_grey_images_stay_grey_in_both_loaders() -> None:
    images = ArrayImages(
        torch.randint(256, (20, 28, 28, 1), dtype=torch.uint8), torch.arange(20, dtype=torch.int64) % 10
    )
    known = KNOWN_SETS["fashion_mnist"]
    names = tuple("abcdefghij")
    data = Data(images, images, images, 10, 28, 1, known.mean, known.std, names)
    plain: dict[str, Any] = {"name": "fashion_mnist", "root": "unused", "augment": "none"}
    device, stream = (
        train_loader(DataConfig(loader=loader, workers=0, **plain), data) for loader in ("device", "stream")
    )
    assert device.batch(1).images.shape == (8, 1, 28, 28)
    assert all_same(device.batches(0, 3), stream.batches(0, 3))
    varied = DataConfig(
        auto_augment="rand-m9-mstd0.5", cutout=4, workers=0, **(plain | {"augment": "standard"})
    )
    assert train_loader(varied, data).batch(0).images.shape == (8, 1, 28, 28)
