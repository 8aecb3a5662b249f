"""The script as users run it."""

import json
from pathlib import Path

import pytest
import safetensors
import timm
import torch
from PIL import Image

from local_learning.options import HOW_BLOCKS_LEARN, OF_THE_MACHINE, OF_THE_RECORDS, WHERE_TO_CUT
from retrain.config import RetrainConfig
from tests.forked import run
from tests.script import SMALL, weights
from tools.options.config import flatten
from tools.run.meters import read_metrics

SCRIPT = "retrain_model.py"
MLP = [*SMALL, "--network", "mlp", "--width", "0.2"]
OWN = """
from torch import nn

from local_learning.build import register_network


class Rows(nn.LSTM):
    def forward(self, images):
        return super().forward(images.flatten(2).mT)[0].mT.unflatten(2, images.shape[2:])


def with_classifier(layer, num_classes):
    return nn.Sequential(
        layer, nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, num_classes))
    )


@register_network("short")
def short(num_classes, in_chs):
    conv = nn.Conv2d(in_chs, 8, 3, 2, padding=1, bias=False)
    return with_classifier(nn.Sequential(conv, nn.BatchNorm2d(8), nn.ReLU()), num_classes)


@register_network("recurrent")
def recurrent(num_classes, in_chs):
    return with_classifier(Rows(in_chs, 8, batch_first=True), num_classes)
"""
"""Networks of one layer."""

pytestmark = pytest.mark.slow


def test_a_run_leaves_what_it_says_and_its_config_makes_it_again(tmp_path: Path) -> None:
    options = [*SMALL, "--network", "resnet18", "--width", "0.0625", "--data.train-size", "320"]
    options += ["--recipe.steps", "10"]
    folder = tmp_path / "run"
    done = run(SCRIPT, *options, "--run", str(folder), "--trackers", "tensorboard")
    assert done.returncode == 0, done.stderr
    results = json.loads((folder / "results.json").read_text())
    for which in ("last", "best"):
        assert 0 <= results["test"][which]["top1"] <= results["test"][which]["top5"] <= 1
    assert f"{results['test']['last']['top1']:.2%}" in done.stdout
    assert str(folder) in done.stdout
    lines = read_metrics(folder / "metrics.jsonl")
    training = [line for line in lines if "loss" in line]
    assert [line["step"] for line in training] == [5, 10]
    assert all(line["images_per_second"] > 0 and line["learning_rate"] > 0 for line in training)
    assert [line["step"] for line in lines if "validation_top1" in line] == [8, 10]
    with safetensors.safe_open(folder / "weights.safetensors", "pt") as file:
        assert json.loads(file.metadata()["network"]) == "resnet18"
        assert len(json.loads(file.metadata()["classes"])) == 10
    assert list(folder.rglob("events.out.tfevents*"))

    again = run(SCRIPT, *options, "--run", str(folder), "--trackers", "tensorboard")
    assert again.returncode == 0
    assert "is finished" in again.stdout

    copy = tmp_path / "copy"
    assert run(SCRIPT, "--config", str(folder / "config.toml"), "--run", str(copy)).returncode == 0
    first, second = weights(folder), weights(copy)
    assert all(torch.equal(first[name], second[name]) for name in first)

    other = run(SCRIPT, *options, "--run", str(folder), "--recipe.lr", "0.2")
    assert other.returncode == 2
    assert "--recipe.lr (was 0.1, is 0.2)" in other.stderr


def test_ones_own_photos_at_the_size_of_imagenet(tmp_path: Path) -> None:
    """Whose narrow network has a convolution that torch gets wrong on some CPUs: see tools/layout."""
    for kind in ("cat", "dog"):
        (tmp_path / "photos" / kind).mkdir(parents=True)
        for index in range(10):
            noise = Image.effect_noise((20, 20), 50).convert("RGB")
            noise.save(tmp_path / "photos" / kind / f"{index}.png")
    folder = tmp_path / "run"
    options = ["--network", "resnet18", "--width", "0.125", "--device", "cpu", "--threads", "1"]
    options += ["--data.name", "folder", "--data.root", str(tmp_path / "photos")]
    options += ["--recipe.steps", "2", "--recipe.batch-size", "4", "--run", str(folder)]
    done = run(SCRIPT, *options)
    assert done.returncode == 0, done.stderr
    assert (folder / "weights.safetensors").exists()


@pytest.mark.parametrize(
    ("network", "precision", "within"),
    # In fp32 a rounding can tip a ReLU at its edge, which BatchNorm magnifies; in fp64 there is no excuse.
    [(["mlp", "0.2"], "fp32", 1e-6), (["resnet18", "0.0625"], "fp64", 1e-11)],
)
def test_two_ranks_give_the_weights_of_one(
    tmp_path: Path, network: list[str], precision: str, within: float
) -> None:
    options = [*SMALL, "--network", network[0], "--width", network[1], "--precision", precision]
    options += ["--recipe.steps", "4", "--recipe.lr", "0.01"]
    for ranks in (1, 2):
        done = run(SCRIPT, *options, "--run", str(tmp_path / str(ranks)), ranks=ranks)
        assert done.returncode == 0, done.stderr
        assert f"on {ranks} x cpu" in done.stdout
        assert "Warning" not in done.stderr
    one, two = weights(tmp_path / "1"), weights(tmp_path / "2")
    for name, value in one.items():
        torch.testing.assert_close(two[name], value, rtol=0, atol=within, msg=name)
    tests = [json.loads((tmp_path / name / "results.json").read_text())["test"] for name in ("1", "2")]
    assert tests[0]["last"]["top1"] == tests[1]["last"]["top1"]


@pytest.mark.parametrize("ranks", [1, 2])
def test_parts_of_a_batch_give_the_weights_of_the_whole(tmp_path: Path, ranks: int) -> None:
    for parts, processes in (("1", 1), ("4", ranks)):
        options = [*MLP, "--recipe.steps", "5", "--recipe.accumulate", parts, "--recipe.clip-norm", "0.5"]
        done = run(SCRIPT, *options, "--run", str(tmp_path / parts), ranks=processes)
        assert done.returncode == 0, done.stderr
    whole, parts_ = weights(tmp_path / "1"), weights(tmp_path / "4")
    for name, value in whole.items():
        torch.testing.assert_close(parts_[name], value, rtol=0, atol=1e-6, msg=name)


@pytest.mark.parametrize(
    ("rate", "says"),
    [
        ("1e30", "the loss at step 1 is not a finite number (learning rate 9.98459e+29)"),
        ("1e39", "the update of step 0 left values that are no numbers"),
    ],
)
def test_numbers_that_are_none_stop_the_run(tmp_path: Path, rate: str, says: str) -> None:
    folder = tmp_path / "run"
    options = [*MLP, "--recipe.steps", "40", "--recipe.lr", rate, "--recipe.checkpoint-every", "1"]
    done = run(SCRIPT, *options, "--run", str(folder))
    assert done.returncode == 1
    assert "Traceback" not in done.stderr
    assert says in done.stderr
    for path in (folder / "checkpoints").glob("*.pt"):
        state = torch.load(path, weights_only=True)
        assert all(value.isfinite().all() for value in state["job"]["network"].values())
    assert not (folder / "weights.safetensors").exists()


def test_a_network_whose_macs_cannot_be_counted_is_trained_all_the_same(tmp_path: Path) -> None:
    (tmp_path / "own.py").write_text(OWN)
    options = [*SMALL, "--network", "recurrent", "--plugins", str(tmp_path / "own.py"), "--recipe.steps", "1"]
    done = run(SCRIPT, *options, "--run", str(tmp_path / "run"))
    assert done.returncode == 0, done.stderr
    assert "MACs unknown" in done.stdout


def test_weights_start_a_run(tmp_path: Path) -> None:
    folder = tmp_path / "run"
    assert run(SCRIPT, *MLP, "--recipe.steps", "3", "--run", str(folder)).returncode == 0
    # A step so small that it changes nothing shows the weights it began with.
    frozen = ["--recipe.steps", "1", "--recipe.lr", "1e-30", "--recipe.min-lr", "0"]
    source = str(folder / "weights.safetensors")
    assert run(SCRIPT, *MLP, *frozen, "--weights", source, "--run", str(tmp_path / "a")).returncode == 0
    first, second = weights(folder), weights(tmp_path / "a")
    assert all(torch.equal(first[name], second[name]) for name in first)
    classes = ["--data.num-classes", "7"]
    done = run(SCRIPT, *MLP, *frozen, *classes, "--weights", source, "--run", str(tmp_path / "b"))
    assert done.returncode == 2
    assert "the network's is (7," in done.stderr
    done = run(
        SCRIPT,
        *MLP,
        *frozen,
        *classes,
        "--weights",
        source,
        "--reset-classifier",
        "--run",
        str(tmp_path / "c"),
    )
    assert done.returncode == 0, done.stderr


def test_timm_weights_start_a_run_under_timms_own_names(tmp_path: Path) -> None:
    model = timm.create_model("resnet10t", num_classes=10)
    torch.save(model.state_dict(), tmp_path / "resnet10t.pth")
    options = [*SMALL, "--network", "timm/resnet10t", "--data.image-size", "32", "--recipe.steps", "1"]
    options += ["--recipe.lr", "1e-30", "--recipe.min-lr", "0", "--data.train-size", "64"]
    folder = tmp_path / "run"
    done = run(SCRIPT, *options, "--weights", str(tmp_path / "resnet10t.pth"), "--run", str(folder))
    assert done.returncode == 0, done.stderr
    found = {name.split(".", 1)[1].lstrip("0123456789."): value for name, value in weights(folder).items()}
    for name, value in model.named_parameters():
        torch.testing.assert_close(found[name], value.detach(), rtol=0, atol=1e-20, msg=name)


def test_a_compiled_network_learns_as_it_does_uncompiled(tmp_path: Path) -> None:
    (tmp_path / "own.py").write_text(OWN)
    options = [*SMALL, "--network", "short", "--plugins", str(tmp_path / "own.py"), "--recipe.steps", "10"]
    # With inductor itself, tests of supernets are compiled.
    program = ["tests/programs/compiled.py", "aot_eager", SCRIPT, *options, "--compile"]
    said, found = [], []
    for name, words in (("plain", [SCRIPT, *options]), ("compiled", program)):
        done = run(*words, "--run", str(tmp_path / name))
        assert done.returncode == 0, done.stderr
        said.append(done.stdout)
        found.append(losses(tmp_path / name))
    assert said[1].endswith("compiled 1 of 1\n")
    assert found[1] == pytest.approx(found[0], rel=1e-3)


def test_bf16_still_learns_on_two_ranks(tmp_path: Path) -> None:
    folder = tmp_path / "run"
    options = [*SMALL, "--network", "resnet18", "--width", "0.125", "--precision", "bf16"]
    done = run(SCRIPT, *options, "--recipe.steps", "15", "--run", str(folder), ranks=2)
    assert done.returncode == 0, done.stderr
    assert losses(folder)[-1] < losses(folder)[0]


def losses(folder: Path) -> list[float]:
    return [line["loss"] for line in read_metrics(folder / "metrics.jsonl") if "loss" in line]


def test_what_reports_compare_trainings_by_are_options_of_a_training() -> None:
    names = set(flatten(RetrainConfig()))
    groups = {name.partition(".")[0] for name in names if "." in name}
    assert names | groups >= WHERE_TO_CUT | HOW_BLOCKS_LEARN | OF_THE_MACHINE | OF_THE_RECORDS
