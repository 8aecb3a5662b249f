"""This module holds the options of the images, and what is known of each data set.

Nothing here imports torch, so options are read, checked and explained without waiting for it.
"""

import math
import re
from dataclasses import dataclass
from pathlib import Path

from tools.images.preparation import RESIZE_RATIO, Preparation
from tools.mistake import Mistake
from tools.options.config import check_choice, check_range


@dataclass(frozen=True, kw_only=True)
class KnownSet:
    """A `KnownSet` says what is fixed about a data set before any of its files is opened."""

    num_classes: int
    """The set has this many classes; 0 means as many as there are class folders."""
    image_size: int
    """The network sees square images with this side, unless an option says otherwise."""
    mean: tuple[float, ...]
    """Each channel has this mean; grey images have one channel."""
    std: tuple[float, ...]
    """Each channel has this standard deviation."""
    layout: str
    """The folder of --data.root must hold this; the words complete "put there ..."."""
    torchvision: str = ""
    """torchvision's class of this name reads the set, and downloads it."""
    small: bool = True
    """Small images are decoded once, kept as one array and cropped with padding; others are streamed."""
    mirrors: bool = True
    """Whether a mirrored image still belongs to its class."""


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
LARGEST = {
    "image_size": 10_000,
    "num_classes": 1_000_000,
    "train_size": 1_000_000_000,
    "test_size": 1_000_000_000,
    "workers": 1000,
    "color_jitter": 10,
    "mixup": math.inf,
    "cutmix": math.inf,
}
"""Options may not be larger than this; more would only run out of memory, or never end."""
LOADERS = ("auto", "device", "stream")
STREAM_ONLY = ("color_jitter", "auto_augment", "erase")


@dataclass(frozen=True, kw_only=True)
class PlaceOptions:
    """The options say where the images lie and how they are loaded, but not which images they are."""

    root: str = ""
    """Read the data set from this folder; shapes needs none."""
    download: bool = False
    """Download the data set into --data.root first (cifar10, cifar100, mnist, fashion_mnist)."""
    loader: str = "auto"
    """Load the images by auto, device or stream. device decodes all images into memory beside the network,
    and augments whole batches at once. stream lets worker processes decode and augment image by image. auto
    streams imagenet and folder, and any set for which color-jitter, auto-augment or erase is given."""
    workers: int = 2
    """Start this many worker processes per rank to stream images; 0 decodes in the training process."""

    def __post_init__(self) -> None:
        check_choice("data.loader", self.loader, LOADERS)
        check_range("data.workers", self.workers, 0, LARGEST["workers"])


@dataclass(frozen=True, kw_only=True)
class DataConfig:
    """The options say which images to use, how to split them, and how to vary them in training."""

    name: str = "shapes"
    """Use the data set shapes (generated), cifar10, cifar100, mnist, fashion_mnist, tiny-imagenet,
    imagenet32, imagenet, or folder (your own images). shapes needs no files. A folder has one folder of
    images per class."""
    root: str = ""
    """Read the data set from this folder; shapes needs none."""
    download: bool = False
    """Download the data set into --data.root first (cifar10, cifar100, mnist, fashion_mnist)."""
    skip_broken: bool = False
    """Leave out image files of folder or imagenet that cannot be decoded, and say how many. Without this, the
    broken files of a folder are all named, and nothing is begun. Damage that the decoder passes over is not
    found."""
    image_size: int = 0
    """Show the network square images with this side; 0 takes the set's own (224 for imagenet and folder)."""
    num_classes: int = 0
    """Generate this many classes of shapes; 0 means 10. Other sets have their own number of classes."""
    validation: float = 0.1
    """Keep this part of the training images for validation, the same part of each class. The seed decides
    which images. The test images are the official test split; for imagenet, its val folder."""
    train_size: int = 0
    """Use this many training images, before the validation part is taken from them; 0 uses all (10000 for
    shapes). shapes generates this many. Other sets give a subset with all classes in proportion."""
    test_size: int = 0
    """Use this many test images, with all classes in proportion; 0 uses all (2000 for shapes)."""
    loader: str = "auto"
    """Load the images by auto, device or stream. device decodes all images into memory beside the network,
    and augments whole batches at once. stream lets worker processes decode and augment image by image. auto
    streams imagenet and folder, and any set for which color-jitter, auto-augment or erase is given."""
    workers: int = 2
    """Start this many worker processes per rank to stream images; 0 decodes in the training process."""
    augment: str = "standard"
    """Augment the training images in the standard way, or not at all (none). standard is a random crop with
    padding and a flip for small images. For imagenet and folder, when they are streamed, it is a random
    resized crop and a flip."""
    crop_pad: int = 4
    """Pad small images by this many pixels on each side before the random crop."""
    pad_mode: str = "zero"
    """Fill the padding with zero (black, as in the papers) or reflect (the mirrored image)."""
    flip: bool = True
    """Mirror half of the images, but never those of mnist, where a mirrored digit is another sign."""
    rotate: float = 0.0
    """Rotate images by up to this many degrees to either side. SEDONA does so for Tiny-ImageNet: pad, crop,
    rotate, flip."""
    cutout: int = 0
    """Set a square with this side in pixels to the mean colour, at a random place; 0 sets none."""
    color_jitter: float = 0.0
    """Change brightness, contrast and saturation at random with this strength; 0 changes nothing."""
    auto_augment: str = ""
    """Apply this policy in timm's words: rand-m9-mstd0.5 (RandAugment), original or v0 (AutoAugment)."""
    erase: float = 0.0
    """Erase a random rectangle of an image with this probability."""
    mixup: float = 0.0
    """Mix pairs of images by mixup with this alpha; 0 turns it off. Targets are then probabilities."""
    cutmix: float = 0.0
    """Mix pairs of images by CutMix with this alpha; 0 turns it off. With mixup too, each batch takes one of
    the two."""

    def __post_init__(self) -> None:
        check_choice("data.name", self.name, tuple(KNOWN_SETS))
        check_choice("data.loader", self.loader, LOADERS)
        check_choice("data.augment", self.augment, ("none", "standard"))
        check_choice("data.pad_mode", self.pad_mode, ("zero", "reflect"))
        for field, high in LARGEST.items():
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
        """Return what is known of the data set."""
        return KNOWN_SETS[self.name]

    @property
    def cure(self) -> str:
        """Return what to do where the folder of the images is not as it should be."""
        fetch = "; `data.download` fetches it" if self.known.torchvision else ""
        return f"for {self.name} put there {self.known.layout}{fetch}"

    def check_root(self) -> None:
        """Refuse a folder that is not there, unless the images are generated or will be downloaded."""
        if self.name == "shapes" or self.download:
            return
        root = Path(self.root)
        if not root.is_dir():
            raise Mistake("data.root", f"{root} is not a folder", self.cure)

    @property
    def size(self) -> int:
        """Return the side of the images that the network sees."""
        return self.image_size or self.known.image_size

    @property
    def streamed(self) -> bool:
        """Return whether worker processes decode the images during training."""
        if self.loader == "auto":
            return not self.known.small or bool(self._stream_only)
        return self.loader == "stream"

    @property
    def preparation(self) -> Preparation:
        """Return what is done to an image that is evaluated, whether it is of the data set or new."""
        whole = self.known.small or not self.streamed
        resize = self.size if whole else round(self.size * RESIZE_RATIO)
        return Preparation(resize=resize, crop=self.size, mean=self.known.mean, std=self.known.std)

    @property
    def flips(self) -> bool:
        """Return whether training mirrors images."""
        return self.flip and self.known.mirrors

    def idle_in_training(self) -> dict[str, str]:
        """Return the options that have no effect in a training on these images, each with the reason."""
        idle = {"root": "`data.name` shapes"} if self.name == "shapes" else {}
        if self.augment == "none":
            return idle | dict.fromkeys(("crop_pad", "pad_mode", "flip"), "`data.augment` none")
        if self.streamed and not self.known.small:
            return idle | dict.fromkeys(
                ("crop_pad", "pad_mode"), f"the random crop of {self.name}, when streamed,"
            )
        return idle if self.crop_pad else idle | {"pad_mode": "`data.crop_pad` 0"}

    @property
    def _stream_only(self) -> str:
        return ", ".join(field.replace("_", "-") for field in STREAM_ONLY if getattr(self, field))
