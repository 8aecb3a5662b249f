"""Predictions of new images are what the run's own test would have said of them."""

import json
import re
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from retrain.predict.config import PredictConfig
from supernet.network.documents import save_architecture
from supernet.presets import preset
from supernet.space import Architecture
from tests.forked import run
from tests.retrain.conftest import Alone
from tools.images.datasets import load_data
from tools.images.images import ArrayImages
from tools.images.options import DataConfig

SCRIPT = "predict_images.py"
COLOURS = {"blue": (60, 60, 190), "green": (60, 190, 60), "red": (190, 60, 60)}
FEW = [
    *("--device", "cpu", "--threads", "1", "--data.workers", "0", "--data.image-size", "32"),
    *("--recipe.steps", "24", "--recipe.batch-size", "16", "--recipe.lr", "0.02"),
]


def make_photos(root: Path) -> None:
    """Three classes that are hard to tell apart, wider or higher than they are high or wide."""
    rng = np.random.default_rng(0)
    for split, count in (("train", 24), ("test", 30)):
        for name, colour in COLOURS.items():
            folder = root / split / name
            folder.mkdir(parents=True)
            for number in range(count):
                height, width = rng.integers(24, 80, 2)
                shade = rng.normal(colour, 90, 3)
                # What the middle shows is not what the sides show, so a squashed image is another one.
                pixels = rng.normal(shade[[1, 2, 0]], 40, (height, width, 3))
                side = min(height, width)
                top, left = (height - side) // 2, (width - side) // 2
                pixels[top : top + side, left : left + side] = rng.normal(shade, 40, (side, side, 3))
                Image.fromarray(pixels.clip(0, 255).astype("uint8")).save(folder / f"{number}.png")


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with photos, the run that was trained on them, and its export."""
    folder = tmp_path_factory.mktemp("place")
    make_photos(folder / "photos")
    file = folder / "found.json"
    save_architecture(file, Architecture((2, 3, 0, 1)), preset("tiny", num_classes=3, image_size=32))
    data = ["--data.name", "folder", "--data.root", str(folder / "photos")]
    train = ["--architecture", str(file), *data, *FEW, "--run", str(folder / "run")]
    export = ["--run-of", str(folder / "run"), "--formats", "state", "timm", "onnx", "torch_export"]
    for script, options in (
        ("retrain_model.py", train),
        ("export_model.py", [*export, "--out", str(folder / "exported")]),
    ):
        done = run(script, *options)
        assert done.returncode == 0, done.stderr
    return folder


def found_in_test(folder: Path, which: str = "best") -> float:
    """What the run found on its test images."""
    accuracy: float = json.loads((folder / "run/results.json").read_text())["test"][which]["top1"]
    return accuracy


def predicted(out: Path, *options: str) -> list[dict[str, Any]]:
    done = run(SCRIPT, *options, "--out", str(out), "--device", "cpu", "--threads", "1")
    assert done.returncode == 0, done.stderr
    return [json.loads(line) for line in out.read_text().splitlines()]


def accuracy(lines: list[dict[str, Any]]) -> float:
    """The part of the images whose most probable class is the name of their folder."""
    hits: list[bool] = [line["classes"][0] == Path(line["image"]).parent.name for line in lines]
    return sum(hits) / len(hits)


def exported_alone(place: Path, formats: str, folder: Path) -> Path:
    """The export as it is with one format only."""
    shutil.copytree(place / "exported", folder)
    note = json.loads((folder / "export.json").read_text())
    note["formats"] = {formats: note["formats"][formats]}
    (folder / "export.json").write_text(json.dumps(note))
    if formats != "state":
        (folder / "state.safetensors").unlink()
    return folder


@pytest.mark.slow
def test_the_tests_images_are_predicted_as_the_test_counted_them(place: Path, tmp_path: Path) -> None:
    images = ["--images", str(place / "photos/test")]
    best = found_in_test(place)
    assert 0.4 < best < 1, "too easy or too hard to tell anything"
    lines = predicted(tmp_path / "run.jsonl", "--run-of", str(place / "run"), *images)
    assert len(lines) == 90
    assert accuracy(lines) == best
    for line in lines:
        assert set(line["classes"]) == set(COLOURS)
        assert line["probabilities"] == sorted(line["probabilities"], reverse=True)
        assert sum(line["probabilities"]) == pytest.approx(1)
    last = predicted(tmp_path / "last.jsonl", "--run-of", str(place / "run"), "--which", "last", *images)
    assert accuracy(last) == found_in_test(place, "last")
    for name in ("state", "timm", "onnx"):
        folder = exported_alone(place, name, tmp_path / name)
        again = predicted(tmp_path / f"{name}.jsonl", "--export", str(folder), *images, "--batch", "7")
        for one, other in zip(lines, again, strict=True):
            assert one["image"] == other["image"]
            assert one["classes"] == other["classes"]
            assert one["probabilities"] == pytest.approx(other["probabilities"], abs=1e-5)


def program() -> str:
    """That of the documentation which feeds an exported network."""
    text = Path("docs/export.md").read_text(encoding="utf-8")
    (found,) = (each for each in re.findall(r"^```python\n(.*?)^```$", text, re.M | re.S) if "PIL" in each)
    return str(found)


@pytest.mark.slow
def test_the_program_of_the_documentation_gives_the_accuracy_that_was_tested(
    place: Path, alone: Alone
) -> None:
    assert float(alone(program(), place)) == found_in_test(place)
    squashed = re.sub(r"(?m)^    scaled = .*$", '    scaled = [fed["crop"]] * 2', program())
    assert float(alone(squashed, place)) != found_in_test(place)


@pytest.mark.slow
def test_the_program_gives_it_for_images_that_are_taken_as_they_are(tmp_path: Path, alone: Alone) -> None:
    sizes = ["--data.train-size", "300", "--data.test-size", "60"]
    done = run(
        "retrain_model.py",
        "--network",
        "vgg6a",
        "--width",
        "0.1",
        *FEW,
        *sizes,
        "--run",
        str(tmp_path / "run"),
    )
    assert done.returncode == 0, done.stderr
    source = ["--run-of", str(tmp_path / "run"), "--formats", "onnx", "--out", str(tmp_path / "exported")]
    assert run("export_model.py", *source).returncode == 0
    data = load_data(DataConfig(image_size=32, train_size=300, test_size=60), 0)
    assert isinstance(data.test, ArrayImages)
    for number, (pixels, label) in enumerate(zip(data.test.images, data.test.labels.tolist(), strict=True)):
        folder = tmp_path / "photos/test" / data.class_names[label]
        folder.mkdir(parents=True, exist_ok=True)
        Image.fromarray(pixels.numpy()).save(folder / f"{number}.png")
    assert float(alone(program(), tmp_path)) == found_in_test(tmp_path)
    images = ["--images", str(tmp_path / "photos")]
    lines = predicted(tmp_path / "run.jsonl", "--run-of", str(tmp_path / "run"), *images)
    assert accuracy(lines) == found_in_test(tmp_path)


@pytest.mark.slow
def test_images_of_any_kind_are_classified_and_others_listed_at_once(place: Path, tmp_path: Path) -> None:
    colour = Image.open(place / "photos/test/red/0.png")
    kinds = {"grey": "L", "clear": "RGBA", "palette": "P", "black and white": "1", "print": "CMYK"}
    (tmp_path / "more").mkdir()
    for name, mode in kinds.items():
        suffix = ".jpg" if mode == "CMYK" else ".png"
        colour.convert(mode).save(tmp_path / "more" / f"{name}{suffix}")
    (tmp_path / "more" / "notes.txt").write_text("passed over, for it has no image's name")
    (tmp_path / "more" / "torn.png").write_bytes((place / "photos/test/red/0.png").read_bytes()[:200])
    (tmp_path / "words.txt").write_text("named, so it is tried")
    named = [str(tmp_path / "more"), str(tmp_path / "words.txt"), str(place / "photos/test/red/0.png")]
    out = ["--out", str(tmp_path / "out.jsonl"), "--top", "2", "--threads", "1", "--device", "cpu"]
    done = run(SCRIPT, "--run-of", str(place / "run"), "--images", *named, *out)
    assert done.returncode == 1
    first, *listed = done.stderr.strip().splitlines()
    assert first == f"{SCRIPT}: 2 of 8 files have no prediction:"
    assert [re.sub(r":.*", "", line).strip() for line in listed] == [
        str(tmp_path / "more" / "torn.png"),
        str(tmp_path / "words.txt"),
    ]
    lines = [json.loads(line) for line in (tmp_path / "out.jsonl").read_text().splitlines()]
    assert {Path(line["image"]).stem for line in lines} == {*kinds, "0"}
    clear, plain = (next(x for x in lines if Path(x["image"]).stem == name) for name in ("clear", "0"))
    assert clear["probabilities"] == plain["probabilities"]
    assert all(len(line["classes"]) == 2 for line in lines)
    names = ", ".join(
        f"{name} {p:.1%}" for name, p in zip(plain["classes"], plain["probabilities"], strict=True)
    )
    assert f"{place / 'photos/test/red/0.png'}  {names}\n" in done.stdout


MISTAKES = [
    (["--images", "{image}"], "--run-of: name a finished run of retrain_model.py, or a folder by --export"),
    (["--run-of", "{run}"], "--images: name image files, or folders of them"),
    (["--run-of", "{run}", "--images", "{tmp}/no.png"], "--images: '{tmp}/no.png' is no file or folder"),
    (["--run-of", "{run}", "--images", "{tmp}"], "--images: '{tmp}' is a folder without images"),
    (["--run-of", "{tmp}/none", "--images", "{image}"], "--run-of: '{tmp}/none' is no run's folder"),
    (["--export", "{tmp}", "--images", "{image}"], "--export: '{tmp}' is no folder of export_model.py"),
    (["--export", "{old}", "--images", "{image}"], "--export: '{old}' does not say how images are prepared"),
    (["--export", "{code}", "--images", "{image}"], "--export: '{code}' has a program of torch.export alone"),
    (["--run-of", "{run}", "--images", "{image}", "--out", "{image}"], "--out: '{image}' is there already"),
]  # fmt: skip


@pytest.mark.slow
@pytest.mark.parametrize(("options", "says"), MISTAKES, ids=[" ".join(each) for each, _ in MISTAKES])
def test_a_mistake_is_one_line(place: Path, tmp_path: Path, options: list[str], says: str) -> None:
    old = exported_alone(place, "onnx", tmp_path / "old.folder/export")
    note = json.loads((old / "export.json").read_text())
    del note["input"]
    (old / "export.json").write_text(json.dumps(note))
    places = {
        **{"run": str(place / "run"), "image": str(place / "photos/test/red/0.png"), "old": str(old)},
        "code": str(exported_alone(place, "torch_export", tmp_path / "code.folder/export")),
        "tmp": str(tmp_path),
    }
    done = run(SCRIPT, *(word.format(**places) for word in options))
    assert done.returncode == 2, done
    assert says.format(**places) in done.stderr
    assert len(done.stderr.strip().splitlines()) == 1


def test_one_network_at_a_time() -> None:
    for options, says in (
        ({"run_of": "x", "export": "y"}, "export: cannot go with run_of"),
        ({"weights": "x", "export": "y"}, "export: cannot go with weights"),
        ({"export": "y", "which": "last"}, "which: chooses from the files of run_of"),
    ):
        with pytest.raises(ValueError, match=f"^{says}"):
            PredictConfig(**options)  # type: ignore[arg-type]
