"""This module streams batches of images that worker processes decode and augment one by one.

Everything that a worker is given can be pickled, so workers need not be forked.

What happens to an image is a function of the seed and its position in the endless order. It depends neither
on the number of workers or ranks nor on where a run was resumed. Workers pass on bytes, and the device that
trains normalises them.
"""

import itertools
import random
import signal
import warnings
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, get_worker_info
from torchvision.transforms import v2

from tools.failures import RunFailed
from tools.images.augment import Normalise, mix, to_device
from tools.images.batches import Batch, Share, TrainingOrder
from tools.images.datasets import Data
from tools.images.images import BadImage, FolderImages, Images, decode, fit
from tools.images.options import DataConfig
from tools.images.preparation import Preparation
from tools.mistake import Mistake
from tools.options.config import flag
from tools.seeding import derive

Transform = Callable[[Image.Image], Tensor]


class StreamLoader:
    """A `StreamLoader` makes training batches from files, or from an array that needs Pillow's transforms."""

    def __init__(
        self,
        split: Images,
        data: Data,
        config: DataConfig,
        *,
        order: TrainingOrder,
        seed: int,
        device: torch.device | str,
        share: Share,
    ) -> None:
        self.batch_size = order.batch_size
        self._order, self._config, self._seed = order, config, seed
        self._device, self._num_classes = torch.device(device), data.num_classes
        self._labels = split.labels
        self._normalise = Normalise(data.image_size, mean=data.mean, std=data.std, device=self._device)
        self._dataset = _TrainingImages(split, training_transform(data, config), order, seed, share)
        self._stream: Iterator[Any] | None = None
        self._next = 0

    @property
    def steps_per_epoch(self) -> float:
        return self._order.num_images / self.batch_size

    def batch(self, step: int) -> Batch:
        """Return one step's batch; when steps are asked for in order, batches are prepared ahead."""
        if self._stream is None or step != self._next:
            self._start(itertools.count(step))
        return self._take(step)

    def batches(self, start: int, stop: int) -> Iterator[Batch]:
        self._start(range(start, stop))
        try:
            for step in range(start, stop):
                yield self._take(step)
        finally:
            self.close()

    def close(self) -> None:
        """Stop the workers; the next batch starts new ones."""
        self._stream = None

    def _start(self, steps: Iterable[int]) -> None:
        self.close()
        self._stream = _run_workers(self._dataset, steps, self._config.workers, self._device)

    def _take(self, step: int) -> Batch:
        assert self._stream is not None
        images, indices = _receive(self._stream, self._config.workers)
        self._next = step + 1
        pixels = self._normalise(to_device(images, self._device))
        targets = to_device(self._labels[indices], self._device)
        if self._config.mixup or self._config.cutmix:
            pixels, targets = mix(
                pixels, targets, self._num_classes, self._config, seed=self._seed, step=step
            )
        return Batch(pixels, targets, to_device(indices, self._device))


class StreamedEvaluation:
    """A `StreamedEvaluation` makes evaluation batches from files."""

    def __init__(
        self,
        split: FolderImages,
        data: Data,
        config: DataConfig,
        *,
        batch_size: int,
        device: torch.device | str,
        share: Share,
    ) -> None:
        self._workers, self._device, self._labels = config.workers, torch.device(device), split.labels
        self._normalise = Normalise(data.image_size, mean=data.mean, std=data.std, device=self._device)
        parts = [part[share.rows(len(part))] for part in torch.split(torch.arange(len(split)), batch_size)]
        self._parts = [part for part in parts if len(part)]
        self._dataset = _EvaluationImages(split, evaluation_transform(config.preparation), self._parts)

    def __iter__(self) -> Iterator[Batch]:
        stream = _run_workers(self._dataset, range(len(self._parts)), self._workers, self._device)
        for _ in self._parts:
            images, indices = _receive(stream, self._workers)
            yield Batch(
                self._normalise(to_device(images, self._device)),
                to_device(self._labels[indices], self._device),
                to_device(indices, self._device),
            )


def training_transform(data: Data, config: DataConfig) -> Transform:
    """Return the transform from a decoded image to bytes (H, W, 3), varied as the options say."""
    size, standard = data.image_size, config.augment == "standard"
    steps: list[Callable[[Any], Any]] = []
    if not standard:
        steps.append(_to_size(config.preparation))
    elif config.known.small:
        mode = "reflect" if config.pad_mode == "reflect" else "constant"
        steps.append(_to_size(config.preparation))
        steps.append(v2.RandomCrop(size, config.crop_pad or None, padding_mode=mode))
    else:
        steps.append(v2.RandomResizedCrop(size))
    if config.rotate:
        steps.append(v2.RandomRotation(config.rotate))
    if config.flips and standard:
        steps.append(v2.RandomHorizontalFlip())
    if config.auto_augment:
        steps.append(_timm_policy(config.auto_augment, size, data.mean * (3 // data.channels)))
    if config.color_jitter:
        steps.append(v2.ColorJitter(*[config.color_jitter] * 3))
    steps.append(partial(_to_bytes, channels=data.channels))
    mean_colour = [round(255 * value) for value in data.mean]
    if config.cutout:
        steps.append(partial(_cut_out, side=config.cutout, colour=mean_colour))
    if config.erase:
        steps.append(partial(_erase, erasing=v2.RandomErasing(config.erase, value=mean_colour)))
    transform: Transform = v2.Compose(steps)
    return transform


def evaluation_transform(preparation: Preparation) -> Transform:
    """Return the transform from a decoded image to bytes (H, W, C)."""
    to_bytes = partial(_to_bytes, channels=len(preparation.mean))
    transform: Transform = v2.Compose([_to_size(preparation), to_bytes])
    return transform


def _to_size(preparation: Preparation) -> Callable[[Image.Image], Image.Image]:
    return partial(fit, resize=preparation.resize, crop=preparation.crop)


def _timm_policy(policy: str, size: int, mean: Sequence[float]) -> Callable[[Any], Any]:
    # Imported here, because timm takes seconds to import and few runs need it.
    from timm.data.auto_augment import auto_augment_transform, rand_augment_transform

    make = rand_augment_transform if policy.startswith("rand") else auto_augment_transform
    # These two are timm's own values.
    hints = {"translate_const": int(size * 0.45), "img_mean": tuple(round(255 * value) for value in mean)}
    try:
        made: Callable[[Any], Any] = make(policy, hints)
    except (AssertionError, KeyError, ValueError) as error:
        raise Mistake("data.auto_augment", f"timm does not know the policy '{policy}' ({error})") from None
    return made


def _to_bytes(image: Image.Image, *, channels: int) -> Tensor:
    """Return bytes (H, W, C); grey sets are in colour only for the transforms, some of which need it."""
    return torch.from_numpy(np.array(image))[..., :channels].contiguous()


def _erase(pixels: Tensor, *, erasing: v2.RandomErasing) -> Tensor:
    erased: Tensor = erasing(pixels.permute(2, 0, 1))
    return erased.permute(1, 2, 0)


def _cut_out(pixels: Tensor, *, side: int, colour: Sequence[int]) -> Tensor:
    spans = []
    for length in pixels.shape[:2]:
        start = int(torch.randint(length, ())) - side // 2
        spans.append(slice(max(0, start), max(0, start + side)))
    pixels[spans[0], spans[1]] = torch.tensor(colour, dtype=torch.uint8)
    return pixels


class _TrainingImages(Dataset[tuple[Tensor, Tensor] | str]):
    """By step, this rank's bytes (B, H, W, 3) and indices, or what is wrong with one of the images."""

    def __init__(
        self, split: Images, transform: Transform, order: TrainingOrder, seed: int, share: Share
    ) -> None:
        self._split, self._transform, self._order, self._seed = split, transform, order, seed
        self._rows = share.rows(order.batch_size)

    def __getitem__(self, step: int) -> tuple[Tensor, Tensor] | str:
        indices = self._order.indices(step)[self._rows]
        first = step * self._order.batch_size + self._rows.start
        with _generators_kept():
            return _load(indices, lambda row: self._image(int(indices[row]), first + row))

    def _image(self, index: int, position: int) -> Tensor:
        image = _open(self._split, index)
        _seed_generators(derive(self._seed, "augment", position))
        return self._transform(image)


class _EvaluationImages(Dataset[tuple[Tensor, Tensor] | str]):
    def __init__(self, split: Images, transform: Transform, parts: list[Tensor]) -> None:
        self._split, self._transform, self._parts = split, transform, parts

    def __getitem__(self, number: int) -> tuple[Tensor, Tensor] | str:
        indices = self._parts[number]
        return _load(indices, lambda row: self._transform(_open(self._split, int(indices[row]))))


def _load(indices: Tensor, image: Callable[[int], Tensor]) -> tuple[Tensor, Tensor] | str:
    """Load a batch, or return a message: an exception would arrive wrapped in the worker's traceback."""
    try:
        return torch.stack([image(row) for row in range(len(indices))]), indices
    except BadImage as error:
        return str(error)


def _open(split: Images, index: int) -> Image.Image:
    if isinstance(split, FolderImages):
        return decode(split.path(index))
    return Image.fromarray(split.images[index].expand(-1, -1, 3).contiguous().numpy())


def _seed_generators(value: int) -> None:
    """Seed the generators of other people's transforms, but not the device's, which is not ours to set."""
    torch.default_generator.manual_seed(value)
    np.random.seed(value % 2**32)  # noqa: NPY002
    random.seed(value)


@contextmanager
def _generators_kept() -> Iterator[None]:
    """Without workers, leave the training's own global generators unchanged."""
    if get_worker_info() is not None:
        yield
        return
    kept = torch.get_rng_state(), np.random.get_state(), random.getstate()  # noqa: NPY002
    try:
        yield
    finally:
        torch.set_rng_state(kept[0])
        np.random.set_state(kept[1])  # noqa: NPY002
        random.setstate(kept[2])


def _run_workers(
    dataset: Dataset[Any], steps: Iterable[int], workers: int, device: torch.device
) -> Iterator[Any]:
    with warnings.catch_warnings():
        # Python 3.12 warns when a process with threads is forked; the children only decode, on one thread.
        warnings.filterwarnings("ignore", message=".*fork.*", category=DeprecationWarning)
        # The user decides how many workers are worthwhile.
        warnings.filterwarnings("ignore", message="This DataLoader will create", category=UserWarning)
        loader: DataLoader[Any] = DataLoader(
            dataset,
            batch_size=None,  # an item of the dataset is a batch already
            sampler=steps,
            num_workers=workers,
            collate_fn=_as_it_is,
            pin_memory=device.type == "cuda",
            worker_init_fn=_leave_signals_to_the_trainer,
            # With the global generator, it would change the training's random numbers.
            generator=torch.Generator(),
        )
        return iter(loader)


def _leave_signals_to_the_trainer(worker: int) -> None:
    # Ctrl-C and a scheduler's SIGTERM reach the whole group, but the trainer still needs its next batch.
    for signum in (signal.SIGINT, signal.SIGTERM):
        signal.signal(signum, signal.SIG_IGN)


def _as_it_is(item: Any) -> Any:
    return item


def _receive(stream: Iterator[Any], workers: int) -> tuple[Tensor, Tensor]:
    try:
        item = next(stream)
    except RuntimeError as error:
        if "DataLoader worker (pid" not in str(error):
            raise
        raise RunFailed(
            "a worker process of the data loader died, most often for lack of memory; "
            f"try fewer than {flag('data.workers')} {workers}, or a smaller batch"
        ) from error
    if isinstance(item, str):
        raise BadImage(item)
    images, indices = item
    return images, indices
