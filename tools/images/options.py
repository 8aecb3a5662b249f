"""Which images to train on and how to vary them: the options, and what is known of each data set.

Nothing here imports torch, so that options are read, checked and explained without waiting for it.
"""

import math
import re
from dataclasses import dataclass

from tools.images.preparation import RESIZE_RATIO, Preparation
from tools.mistake import Mistake
from tools.options.config import check_choice, check_range


@dataclass(frozen=True, kw_only=True)
class KnownSet:
    """What is fixed about a data set before any of its files is opened."""

    num_classes: int
    """0: as many as there are class folders."""
    image_size: int
    mean: tuple[float, ...]
    """Of each channel; one for grey images."""
    std: tuple[float, ...]
    layout: str
    """What --data.root must hold, in words that finish "put here ..."."""
    torchvision: str = ""
    """torchvision's class that reads (and downloads) it."""
    small: bool = True
    """Small images are decoded once, kept as one array and cropped with padding; others are streamed."""
    mirrors: bool = True
    """Whether an image seen in a mirror still belongs to its class."""


IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)

KNOWN_SETS = {
    "shapes": KnownSet(
        num_classes=10,
        image_size=32,
        mean=(0.458, 0.449, 0.433),
        std=(0.254, 0.251, 0.250),
        layout="nothing: the images are generated",
    ),
    "cifar10": KnownSet(
        num_classes=10,
        image_size=32,
        mean=(0.4914, 0.4822, 0.4465),
        std=(0.2470, 0.2435, 0.2616),
        layout="the folder cifar-10-batches-py of the official python version",
        torchvision="CIFAR10",
    ),
    "cifar100": KnownSet(
        num_classes=100,
        image_size=32,
        mean=(0.5071, 0.4865, 0.4409),
        std=(0.2673, 0.2564, 0.2762),
        layout="the folder cifar-100-python of the official python version",
        torchvision="CIFAR100",
    ),
    "mnist": KnownSet(
        num_classes=10,
        image_size=28,
        mean=(0.1307,),
        std=(0.3081,),
        layout="the four *-ubyte files of MNIST in MNIST/raw",
        torchvision="MNIST",
        mirrors=False,
    ),
    "fashion_mnist": KnownSet(
        num_classes=10,
        image_size=28,
        mean=(0.2860,),
        std=(0.3530,),
        layout="the four *-ubyte files of Fashion-MNIST in FashionMNIST/raw",
        torchvision="FashionMNIST",
    ),
    "tiny-imagenet": KnownSet(
        num_classes=200,
        image_size=64,
        mean=(0.4802, 0.4481, 0.3975),
        std=(0.2770, 0.2691, 0.2821),
        layout="train/<class>/images/*.JPEG, val/images/*.JPEG and val/val_annotations.txt,"
        " as tiny-imagenet-200.zip unpacks",
    ),
    "imagenet32": KnownSet(
        num_classes=1000,
        image_size=32,
        mean=(0.4811, 0.4575, 0.4079),
        std=(0.2605, 0.2533, 0.2683),
        layout="train_data_batch_1 ... train_data_batch_10 and val_data of the downsampled ImageNet,"
        " as they are or as .npz",
    ),
    "imagenet": KnownSet(
        num_classes=1000,
        image_size=224,
        mean=IMAGENET_MEAN,
        std=IMAGENET_STD,
        layout="train/<class>/*.JPEG and val/<class>/*.JPEG",
        small=False,
    ),
    "folder": KnownSet(
        num_classes=0,
        image_size=224,
        mean=IMAGENET_MEAN,
        std=IMAGENET_STD,
        layout="train/<class>/ with images (val/<class>/ and test/<class>/ if you have them),"
        " or just <class>/ with images",
        small=False,
    ),
}

POLICY = r"(rand|original|originalr|v0|v0r|3a)(-\w[\w.]*)*"
MOST = {
    "image_size": 10_000,
    "num_classes": 1_000_000,
    "train_size": 1_000_000_000,
    "test_size": 1_000_000_000,
    "workers": 1000,
    "color_jitter": 10,
    "mixup": math.inf,
    "cutmix": math.inf,
}
"""The most that these may be; more would only end in want of memory, or never."""
LOADERS = ("auto", "device", "stream")
STREAM_ONLY = ("color_jitter", "auto_augment", "erase")


@dataclass(frozen=True, kw_only=True)
class PlaceOptions:
    """Where the images lie, and how they are loaded, where something else says which they are."""

    root: str = ""
    """Folder that holds the data set; not needed for shapes."""
    download: bool = False
    """Fetch the data set into --data.root first (cifar10, cifar100, mnist, fashion_mnist)."""
    loader: str = "auto"
    """auto, device (all images decoded in memory beside the network, whole batches augmented at once)
    or stream (worker processes decode and augment image by image). auto streams imagenet and folder,
    and any set for which color-jitter, auto-augment or erase is asked."""
    workers: int = 2
    """Worker processes of the streaming loader, per rank; 0 decodes in the training process."""

    def __post_init__(self) -> None:
        check_choice("data.loader", self.loader, LOADERS)
        check_range("data.workers", self.workers, 0, MOST["workers"])


@dataclass(frozen=True, kw_only=True)
class DataConfig:
    """The images: where they come from, how they are split, and how they are varied in training."""

    name: str = "shapes"
    """Data set: shapes (generated, needs no files), cifar10, cifar100, mnist, fashion_mnist,
    tiny-imagenet, imagenet32, imagenet, or folder (your own images, one folder per class)."""
    root: str = ""
    """Folder that holds the data set; not needed for shapes."""
    download: bool = False
    """Fetch the data set into --data.root first (cifar10, cifar100, mnist, fashion_mnist)."""
    skip_broken: bool = False
    """Leave out image files of folder or imagenet that cannot be decoded, and say how many; without it a
    folder's are all named, and nothing is begun. Damage that the decoder passes over is not found."""
    image_size: int = 0
    """Side of the square images that the network sees; 0: the set's own (224 for imagenet and folder)."""
    num_classes: int = 0
    """Number of classes to generate for shapes; 0: 10. Other sets have theirs."""
    validation: float = 0.1
    """Part of the training images kept for validation, the same part of each class, fixed by the seed.
    The test images are the official test split; for imagenet, its val folder."""
    train_size: int = 0
    """Number of training images, before the validation part is taken from them: for shapes how many to
    generate (0: 10000), for other sets a subset with all classes in proportion (0: all)."""
    test_size: int = 0
    """Number of test images, chosen in the same way (0: 2000 for shapes, all for other sets)."""
    loader: str = "auto"
    """auto, device (all images decoded in memory beside the network, whole batches augmented at once)
    or stream (worker processes decode and augment image by image). auto streams imagenet and folder,
    and any set for which color-jitter, auto-augment or erase is asked."""
    workers: int = 2
    """Worker processes of the streaming loader, per rank; 0 decodes in the training process."""
    augment: str = "standard"
    """none, or standard: random crop with padding and flip for small images, random resized crop and
    flip for imagenet and folder when they are streamed."""
    crop_pad: int = 4
    """Pixels of padding on each side before the random crop of small images."""
    pad_mode: str = "zero"
    """What the padding holds: zero (black, as in the papers) or reflect."""
    flip: bool = True
    """Mirror half of the images (never for mnist, where a mirrored digit is another sign)."""
    rotate: float = 0.0
    """Rotate by up to this many degrees to either side (Tiny-ImageNet in SEDONA: pad, crop, rotate, flip)."""
    cutout: int = 0
    """Side in pixels of a square set to the mean colour at a random place; 0: none."""
    color_jitter: float = 0.0
    """Strength of random changes of brightness, contrast and saturation; 0: none."""
    auto_augment: str = ""
    """A policy in timm's words: rand-m9-mstd0.5 (RandAugment), original or v0 (AutoAugment)."""
    erase: float = 0.0
    """Probability that a random rectangle of an image is erased."""
    mixup: float = 0.0
    """Mixup's alpha; 0: off. Targets then are probabilities."""
    cutmix: float = 0.0
    """CutMix's alpha; 0: off. With both, each batch takes one of them."""

    def __post_init__(self) -> None:
        check_choice("data.name", self.name, tuple(KNOWN_SETS))
        check_choice("data.loader", self.loader, LOADERS)
        check_choice("data.augment", self.augment, ("none", "standard"))
        check_choice("data.pad_mode", self.pad_mode, ("zero", "reflect"))
        for field, high in MOST.items():
            check_range(f"data.{field}", getattr(self, field), 0, high)
        if self.auto_augment and not re.fullmatch(POLICY, self.auto_augment):
            raise Mistake(
                "data.auto_augment",
                f"unknown policy '{self.auto_augment}'",
                "such are rand-m9-mstd0.5, original and v0",
            )
        check_range("data.rotate", self.rotate, 0, 180)
        check_range("data.validation", self.validation, 0, 0.9)
        check_range("data.erase", self.erase, 0, 1)
        if self.name != "shapes" and not self.root:
            raise Mistake("data.root", f"{self.name} needs the folder that holds {self.known.layout}")
        if self.name != "shapes" and self.num_classes:
            raise Mistake("data.num_classes", f"only shapes can have any number; {self.name} has its own")
        if self.num_classes == 1:
            raise Mistake("data.num_classes", "there is nothing to tell apart with 1", "take 2 or more")
        if self.skip_broken and self.known.small:
            raise Mistake(
                "data.skip_broken",
                f"is for folder and imagenet, whose images are files; not for {self.name}",
            )
        if self.download and not self.known.torchvision:
            known = ", ".join(name for name, known in KNOWN_SETS.items() if known.torchvision)
            raise Mistake("data.download", f"{self.name} cannot be fetched; only {known} can")
        if self.loader == "device" and self._stream_only:
            raise Mistake("data.loader", f"device does not do {self._stream_only}", "leave it at auto")
        if self.loader == "device" and self.name == "imagenet":
            raise Mistake("data.loader", "imagenet does not fit in memory", "leave it at auto")
        for field in ("crop_pad", "cutout"):
            check_range(f"data.{field}", getattr(self, field), 0, self.size)
        if self.pad_mode == "reflect" and self.crop_pad >= self.size:
            raise Mistake(
                "data.crop_pad", f"{self.crop_pad} pixels of an image of {self.size} cannot be reflected"
            )

    @property
    def known(self) -> KnownSet:
        return KNOWN_SETS[self.name]

    @property
    def size(self) -> int:
        """Side of the images that the network sees."""
        return self.image_size or self.known.image_size

    @property
    def streamed(self) -> bool:
        """Whether worker processes decode the images during training."""
        if self.loader == "auto":
            return not self.known.small or bool(self._stream_only)
        return self.loader == "stream"

    @property
    def preparation(self) -> Preparation:
        """What is done to an image that is evaluated: to a file of images, or to any new one."""
        whole = self.known.small or not self.streamed
        resize = self.size if whole else round(self.size * RESIZE_RATIO)
        return Preparation(resize=resize, crop=self.size, mean=self.known.mean, std=self.known.std)

    @property
    def flips(self) -> bool:
        return self.flip and self.known.mirrors

    @property
    def _stream_only(self) -> str:
        return ", ".join(field.replace("_", "-") for field in STREAM_ONLY if getattr(self, field))
