"""A user's mistake: one line that names it, exit code 2, no traceback."""

from pathlib import Path

import pytest
import torch
from PIL import Image

from tests.forked import run

SCRIPT = "retrain_model.py"


def config_file(folder: Path) -> None:
    (folder / "bad.toml").write_text("[recipe]\nbatchsize = 3\n")


def empty_tree(folder: Path) -> None:
    (folder / "tree" / "train").mkdir(parents=True)


def tree_with_a_truncated_image(folder: Path, where: str) -> None:
    for split in ("train", "val", "test"):
        for name in ("cat", "dog"):
            place = folder / "tree" / split / name
            place.mkdir(parents=True)
            for index in range(8):
                Image.effect_noise((20, 20), 50).convert("RGB").save(place / f"{index}.png")
    path = folder / "tree" / where / "dog" / "7.png"
    path.write_bytes(path.read_bytes()[:-100])


def foreign_weights(folder: Path) -> None:
    (folder / "w.safetensors").write_bytes(b"not weights at all")


def foreign_checkpoint(folder: Path) -> None:
    (folder / "run").mkdir()
    (folder / "run" / "thesis.tex").touch()


def nothing(folder: Path) -> None:
    pass


MISTAKES = [
    (nothing, ["--netwrok", "mlp"], "unknown option '--netwrok'; did you mean '--network'?"),
    (nothing, ["--recipe.lr", "fast"], "--recipe.lr"),
    (nothing, ["--recipe.lr", "-0.1"], "--recipe.lr: -0.1 is out of range"),
    (nothing, ["--recipe.batch-size", "0"], "--recipe.batch-size: 0 is out of range"),
    (nothing, ["--recipe.optimizer", "adan"], "did you mean 'adam'?"),
    (nothing, ["--data.name", "cifra10", "--data.root", "."], "did you mean 'cifar10'?"),
    (nothing, ["--data.name", "cifar10", "--data.root", "{}/none"], "--data.download"),
    (nothing, ["--data.name", "cifar10"], "--data.root: cifar10 needs the folder"),
    (nothing, ["--config", "{}/none.toml"], "--config: cannot read"),
    (config_file, ["--config", "{}/bad.toml"], "unknown key 'recipe.batchsize'; did you mean 'batch_size'?"),
    (nothing, ["--network", "resnet51"], "network 'resnet51' is unknown; did you mean 'resnet50'?"),
    (
        nothing,
        ["--network", "timm/resnet5o"],
        "network 'timm/resnet5o' is unknown; did you mean 'timm/resnet50",
    ),
    (
        nothing,
        ["--network", "resnet18", "--data.image-size", "4"],
        "image_size is 4; resnet18 needs at least 8",
    ),
    (nothing, ["--recipe.optimizer", "adam", "--recipe.beta2", "1"], "--recipe.beta2: 1 is out of range"),
    (nothing, ["--recipe.epochs", "inf"], "--recipe.epochs: inf is out of range"),
    (nothing, ["--width", "0"], "--width: 0 is out of range"),
    (nothing, ["--device", "cuda"], "--device: this machine has no CUDA device"),
    (nothing, ["--device", "cpu", "--precision", "fp16"], "--precision: fp16 needs a CUDA device"),
    (empty_tree, ["--data.name", "folder", "--data.root", "{}/tree"], "two or more class folders"),
    (foreign_weights, ["--network", "mlp", "--weights", "{}/w.safetensors"], "cannot read"),
    (nothing, ["--network", "mlp", "--weights", "{}/none.safetensors"], "there is no file"),
    (foreign_checkpoint, ["--run", "{}/run"], "holds files but no run"),
    (foreign_weights, ["--run", "{}/w.safetensors/run"], "--run: cannot write in folder"),
    (
        nothing,
        ["--trackers", "tensorbord"],
        "--trackers: unknown value 'tensorbord'; did you mean 'tensorboard'?",
    ),
    (nothing, ["--trackers", "wandb"], "--trackers: the package of wandb is not installed"),
    (nothing, ["--recipe.milestones", "0.5"], "--recipe.milestones"),
    (nothing, ["--data.train-size", "5"], "--data.train-size"),
]


@pytest.mark.slow
@pytest.mark.parametrize(("prepare", "arguments", "says"), MISTAKES, ids=[" ".join(m[1]) for m in MISTAKES])
def test_one_line_and_exit_code_2(tmp_path: Path, prepare: object, arguments: list[str], says: str) -> None:
    assert callable(prepare)
    if "--device" in arguments and "cuda" in arguments and torch.cuda.is_available():
        pytest.skip("no mistake on this machine")
    prepare(tmp_path)
    filled = [argument.format(tmp_path) for argument in arguments]
    if "--run" not in filled:
        filled += ["--run", str(tmp_path / "run")]
    if "--device" not in filled:
        filled += ["--device", "cpu"]
    done = run(SCRIPT, *filled, "--recipe.steps", "1")
    assert done.returncode == 2, done.stderr
    assert says in done.stderr
    assert "Traceback" not in done.stderr
    assert len(done.stderr.strip().splitlines()) == 1, done.stderr


@pytest.mark.slow
@pytest.mark.parametrize(("where", "ranks"), [("train", 1), ("test", 2)])
def test_a_truncated_image_is_named(tmp_path: Path, where: str, ranks: int) -> None:
    tree_with_a_truncated_image(tmp_path, where)
    options = [
        "--device",
        "cpu",
        "--threads",
        "1",
        "--data.name",
        "folder",
        "--data.root",
        f"{tmp_path}/tree",
    ]
    options += [
        "--data.image-size",
        "16",
        "--network",
        "mlp",
        "--recipe.batch-size",
        "4",
        "--recipe.steps",
        "8",
    ]
    done = run(SCRIPT, *options, "--run", str(tmp_path / "run"), ranks=ranks)
    assert done.returncode == 2, done.stderr
    assert f"cannot be decoded as images: {where}/dog/7.png (" in done.stderr
    if ranks == 1:
        assert "Traceback" not in done.stderr


@pytest.mark.slow
def test_a_mended_mistake_goes_on_in_the_same_run(tmp_path: Path) -> None:
    options = ["--device", "cpu", "--threads", "1", "--recipe.steps", "1", "--run", str(tmp_path / "run")]
    options += ["--data.train-size", "200", "--data.test-size", "20"]
    assert run(SCRIPT, *options, "--network", "resnet51").returncode == 2
    done = run(SCRIPT, *options, "--network", "mlp")
    assert done.returncode == 0, done.stderr
