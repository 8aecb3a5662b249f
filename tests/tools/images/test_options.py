import subprocess
import sys
from typing import Any

import pytest

from tools.images.options import KNOWN_SETS, DataConfig, PlaceOptions
from tools.options.config import flatten, parse


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"name": "cifra10"}, "data.name: unknown value 'cifra10'; did you mean 'cifar10'"),
        ({"name": "cifar10"}, "data.root: cifar10 needs .*cifar-10-batches-py"),
        ({"image_size": -1}, "data.image_size: -1"),
        ({"validation": 1.0}, "data.validation: 1"),
        ({"validation": float("nan")}, "data.validation: nan"),
        ({"mixup": -0.1}, "data.mixup: -0.1"),
        ({"num_classes": 1}, "data.num_classes: there is nothing to tell apart"),
        ({"name": "cifar10", "root": "x", "num_classes": 5}, "data.num_classes: only shapes"),
        ({"download": True}, "data.download: shapes cannot be fetched"),
        ({"loader": "device", "auto_augment": "v0"}, "data.loader: device does not do auto-augment"),
        ({"loader": "device", "name": "imagenet", "root": "x"}, "data.loader: imagenet does not fit"),
        ({"auto_augment": "random"}, "data.auto_augment: unknown policy 'random'"),
        ({"pad_mode": "reflect", "crop_pad": 32}, "data.crop_pad: 32 pixels of an image of 32"),
        ({"augment": "some"}, "data.augment: unknown value 'some'"),
    ],
)
def test_a_mistake_names_its_option(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        DataConfig(**options)


@pytest.mark.parametrize(
    ("options", "message"),
    [({"loader": "disk"}, "data.loader: unknown value 'disk'"), ({"workers": -1}, "data.workers: -1")],
)
def test_places_are_checked_as_they_are_with_all_else(options: dict[str, Any], message: str) -> None:
    for cls in (PlaceOptions, DataConfig):
        with pytest.raises(ValueError, match=message):
            cls(**options)


def test_places_are_the_same_options_as_of_a_training(capsys: pytest.CaptureFixture[str]) -> None:
    assert flatten(PlaceOptions()).items() <= flatten(DataConfig()).items()
    helps = []
    for cls in (PlaceOptions, DataConfig):
        with pytest.raises(SystemExit):
            parse(cls, ["--help-all"], prog="x", description="")
        helps.append(" ".join(capsys.readouterr().out.replace("│", " ").split()))
    for option in ("--root", "--download", "--loader", "--workers"):
        help_of = helps[0].partition(f" {option}")[2].partition("(default")[0]
        assert len(help_of) > 40
        assert f" {option}{help_of}(default" in helps[1]


def test_auto_streams_large_sets_and_what_only_streaming_can_do() -> None:
    streamed = {name for name in KNOWN_SETS if DataConfig(name=name, root="x").streamed}
    assert streamed == {"imagenet", "folder"}
    assert DataConfig(auto_augment="rand-m9-mstd0.5").streamed
    assert DataConfig(loader="stream").streamed
    assert not DataConfig(name="folder", root="x", loader="device").streamed


def test_a_digit_is_never_mirrored() -> None:
    assert not DataConfig(name="mnist", root="x").flips
    assert DataConfig(name="fashion_mnist", root="x").flips
    assert not DataConfig(flip=False).flips


def test_the_options_are_read_without_torch_and_numpy() -> None:
    code = (
        "import sys, tools.images.options; print([m for m in ('torch', 'numpy', 'PIL') if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
