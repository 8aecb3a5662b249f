"""Supernets by the script as users train them."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from supernet.network.documents import load_space
from supernet.network.storage import load_supernet
from supernet.presets import preset
from supernet.space import Architecture
from supernet.supernet import Supernet
from supernet.train.measure import load_measured, measure
from tests.forked import run, run_up_to
from tests.script import SMALL, weights
from tools.cost import saved_activation_bytes
from tools.run.meters import read_metrics

SCRIPT = "train_supernet.py"
BASE = [
    *SMALL,
    *("--space", "tiny", "--recipe.steps", "6", "--recipe.evaluate-every", "3", "--recipe.lr", "0.02"),
    *("--recipe.checkpoint-every", "2", "--records.probes", "1", "--records.calibration-images", "64"),
    *("--records.calibration-batch", "32", "--records.shift-images", "40"),
    *("--records.latency-batch", "0"),
]
VIEWS = ["--objective", "infonce", "--tail-steps", "3"]
FEW = """\
stem = [{op = "conv_k3", out_chs = 8, stride = 2}]
[[stages]]
ops = ["mbconv_k3_e2", "mbconv_k5_e2", "skip"]
first = ["mbconv_k3_e2", "mbconv_k5_e2"]
depth = 2
out_chs = 16
stride = 2
[tail]
conv_chs = 16
"""
MEASURED = ("images_per_second", "peak_memory_mib")

pytestmark = pytest.mark.slow


def trained(folder: Path, *options: str, ranks: int = 1) -> Path:
    done = run(SCRIPT, *BASE, *options, "--run", str(folder), ranks=ranks)
    assert done.returncode == 0, done.stderr
    assert f"on {ranks} x cpu" in done.stdout
    return folder


Made = Callable[..., Path]


@pytest.fixture(scope="module")
def few(tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    """A space of few modules, as an option."""
    path = tmp_path_factory.mktemp("few") / "few.toml"
    path.write_text(FEW)
    return ["--space", str(path)]


@pytest.fixture(scope="module")
def made(few: list[str], tmp_path_factory: pytest.TempPathFactory) -> Made:
    """Gives the folder of a finished run in that space, to be read only; equal options are run once."""
    folders: dict[tuple[tuple[str, ...], int], Path] = {}

    def make(*options: str, ranks: int = 1) -> Path:
        if (options, ranks) not in folders:
            folder = tmp_path_factory.mktemp("made") / "run"
            folders[options, ranks] = trained(folder, *few, *options, ranks=ranks)
        return folders[options, ranks]

    return make


@pytest.mark.parametrize("classifier_init", ["torch", "timm"])
def test_the_classifier_begins_as_asked_for(classifier_init: str, tmp_path: Path) -> None:
    still = ["--recipe.steps", "1", "--recipe.lr", "1e-9", "--recipe.min-lr", "0"]
    still += ["--records.probes", "0", "--records.shift-images", "0"]
    folder = trained(tmp_path / "run", *still, "--classifier-init", classifier_init)
    bias = weights(folder)["tail.fc.bias"]
    # torch draws it like the weights, within 1 / sqrt(64); timm leaves it at 0.
    assert (0.01 < bias.abs().max() < 0.125) if classifier_init == "torch" else bias.abs().max() < 1e-6


def lines_of(path: Path) -> list[dict[str, Any]]:
    return [
        {name: value for name, value in line.items() if name not in MEASURED} for line in read_metrics(path)
    ]


def results_of(folder: Path) -> Any:
    return json.loads((folder / "results.json").read_text())


EXACT = [
    "--precision",
    "fp64",
    "--recipe.clip-norm",
    "1",
    "--recipe.steps",
    "4",
    "--recipe.evaluate-every",
    "2",
]
FAIR = ("--strategy", "fair", *EXACT)
GREEDY = ("--strategy", "greedy", *EXACT)
SPOS = ("--strategy", "spos", *VIEWS, *EXACT)
NONGREEDY = ("--strategy", "nongreedy", *VIEWS, *EXACT)


@pytest.mark.parametrize(
    ("options", "ranks", "deadly"),
    [
        (("--strategy", "fair", "--recipe.optimizer", "adam"), 1, "step-00000006.json"),
        (GREEDY, 1, "best.safetensors"),
        (NONGREEDY, 1, "step-00000006.json"),
        (SPOS, 2, "step-00000002.json"),
        (NONGREEDY, 2, "results.json"),
    ],
)
def test_killed_and_continued_equals_uninterrupted(
    options: tuple[str, ...], ranks: int, deadly: str, made: Made, few: list[str], tmp_path: Path
) -> None:
    expected, folder = made(*options, ranks=ranks), tmp_path / "run"
    run_up_to(deadly, SCRIPT, *BASE, *few, *options, "--run", str(folder), ranks=ranks)
    trained(folder, *few, *options, ranks=ranks)
    for name in ("weights.safetensors", "best.safetensors"):
        ours, theirs = weights(folder, name), weights(expected, name)
        assert ours.keys() == theirs.keys()
        assert all(torch.equal(ours[key], value) for key, value in theirs.items()), name
    for name in ("metrics.jsonl", "shift.jsonl"):
        assert lines_of(folder / name) == lines_of(expected / name)
    assert results_of(folder)["updates"] == results_of(expected)["updates"]


@pytest.mark.parametrize(
    "options", [FAIR, GREEDY, SPOS, NONGREEDY], ids=["fair", "greedy", "spos", "nongreedy"]
)
def test_two_ranks_give_the_numbers_of_one(options: tuple[str, ...], made: Made) -> None:
    one, two = made(*options), made(*options, ranks=2)
    ours, theirs = weights(one), weights(two)
    for name, value in theirs.items():
        torch.testing.assert_close(ours[name], value, rtol=1e-8, atol=1e-10, msg=name)
    for line, other in zip(lines_of(one / "metrics.jsonl"), lines_of(two / "metrics.jsonl"), strict=True):
        assert line.keys() == other.keys()
        for name in line.keys() - {"saved_mib"}:
            assert line[name] == pytest.approx(other[name], rel=1e-7, abs=1e-9), name


def test_what_a_run_leaves(tmp_path: Path) -> None:
    folder = trained(tmp_path / "run", "--strategy", "nongreedy", "--records.latency-batch", "1")
    space = preset("tiny", num_classes=10, image_size=16)
    assert load_space(folder / "space.json") == space
    net = load_supernet(folder)
    assert net.space == space
    loaded = net.state_dict()
    assert all(torch.equal(loaded[name], value) for name, value in weights(folder).items())
    measured = load_measured(folder / "costs.json")
    cheap, dear = Architecture((0, 3, 0, 3)), Architecture((2, 2, 2, 2))
    assert 0 < measured.saved(cheap) < measured.saved(dear)
    assert measured.latency(cheap) > 0
    results = results_of(folder)
    assert results["updates"] == [[6, 6, 6], [6, 6, 6, 0], [6, 6, 6], [6, 6, 6, 0]]
    assert results["saved_bytes_per_step"] > 0
    metrics = read_metrics(folder / "metrics.jsonl")
    (last,) = (line for line in metrics if line["step"] == 6 and "similarity" in line)
    assert {f"similarity/{layer}" for layer in range(1, 5)} < last.keys()
    accuracies = [value for name, value in last.items() if name.startswith("validation_top1/")]
    assert len(accuracies) == 3  # the cheapest, the dearest, and one more
    assert last["validation_top1"] == pytest.approx(sum(accuracies) / 3)
    losses = [line for line in metrics if "loss/1" in line]
    assert {f"loss/{layer}" for layer in range(1, 5)} < losses[-1].keys()
    shifts = read_metrics(folder / "shift.jsonl")
    assert [line["step"] for line in shifts] == [3, 6]
    matrix = torch.tensor(shifts[-1]["outputs"][0])
    assert matrix.shape == (3, 3)
    torch.testing.assert_close(matrix.diagonal(), torch.ones(3))
    torch.testing.assert_close(matrix, matrix.T)
    assert float((matrix.sum() - 3) / 6) == pytest.approx(last["similarity/1"], abs=1e-6)


def test_the_measured_activations_add_up() -> None:
    space = preset("tiny", num_classes=10, image_size=16)
    measured = measure(space, batch_size=1, device="cpu", repeats=1)
    net = Supernet(space).train()
    images = torch.randn(4, 3, 16, 16).contiguous(memory_format=torch.channels_last)
    for choices in ((0, 3, 0, 3), (2, 1, 2, 2)):
        chain = net.extract(Architecture(choices))
        real = saved_activation_bytes(lambda chain=chain: chain(images).sum()) / 4  # type: ignore[misc]
        assert measured.saved(Architecture(choices)) == pytest.approx(real, rel=0.02)


def test_a_finished_run_says_so_and_other_options_are_refused(made: Made, few: list[str]) -> None:
    folder = made()
    again = run(SCRIPT, *BASE, *few, "--run", str(folder))
    assert again.returncode == 0
    assert "is finished" in again.stdout
    other = run(SCRIPT, *BASE, *few, "--run", str(folder), "--strategy", "greedy")
    assert other.returncode == 2
    assert "--strategy (was 'spos', is 'greedy')" in other.stderr


@pytest.mark.parametrize(
    ("strategy", "steps"), [("spos", 140), ("fair", 60), ("greedy", 70), ("nongreedy", 70)]
)
def test_a_supernet_learns_by_every_strategy(
    strategy: str, steps: int, few: list[str], tmp_path: Path
) -> None:
    options = [*few, "--data.num-classes", "3", "--data.train-size", "1000", "--recipe.steps", str(steps)]
    options += ["--recipe.batch-size", "64", "--recipe.optimizer", "adam", "--recipe.lr", "0.02"]
    options += ["--data.augment", "none", "--recipe.checkpoint-every", str(steps)]
    options += ["--recipe.label-smoothing", "0", "--recipe.evaluate-every", str(steps)]
    options += ["--records.probes", "0", "--records.shift-images", "0"]
    folder = trained(tmp_path / "run", *options, "--strategy", strategy)
    # Of three classes; of the images one part in three is chance.
    assert results_of(folder)["validation"]["last"]["validation_top1/11"] > 0.45


def test_weights_of_another_supernet_start_one(made: Made, few: list[str], tmp_path: Path) -> None:
    first = made()
    given = ["--weights", str(first / "weights.safetensors"), "--recipe.lr", "1e-9", "--recipe.min-lr", "0"]
    second = trained(tmp_path / "second", *few, "--strategy", "greedy", *given)
    ours, theirs = weights(second), weights(first)
    learnt = [name for name in ours if name.endswith("weight")]
    assert all(torch.allclose(ours[name], theirs[name], atol=1e-5) for name in learnt)


def test_a_space_of_ones_own_and_that_it_must_stay_what_it_was(tmp_path: Path) -> None:
    space = tmp_path / "mine.toml"
    space.write_text(
        'stem = [{op = "conv_k3", out_chs = 12, stride = 2}]\n'
        "[[stages]]\n"
        'ops = ["mbconv_k3_e2", "fused_k3_e2", "shuffle_k3", "skip"]\n'
        'first = ["mbconv_k3_e2", "mbconv_k5_e2_se0.25"]\n'
        "depth = 2\nout_chs = 24\nstride = 2\n"
        "[tail]\nconv_chs = 32\n"
    )
    options = [*BASE, "--space", str(space), "--run", str(tmp_path / "run")]
    run_up_to("step-00000004.json", SCRIPT, *options)
    space.write_text(space.read_text().replace("conv_chs = 32", "conv_chs = 40"))
    changed = run(SCRIPT, *options)
    assert changed.returncode == 2
    assert "the space was" in changed.stderr
    space.write_text(space.read_text().replace("conv_chs = 40", "conv_chs = 32"))
    assert run(SCRIPT, *options).returncode == 0
    assert load_supernet(tmp_path / "run").space.size == 8


def test_other_arithmetic_still_trains(made: Made) -> None:
    folder = made("--strategy", "nongreedy", "--precision", "bf16")
    assert results_of(folder)["validation"]["last"]["validation_loss"] < 3


@pytest.mark.parametrize(
    ("backend", "strategy", "space", "parts"),
    [
        # A part is compiled anew where it is a partner, and where modules are compared.
        (
            "aot_eager",
            "nongreedy",
            'stem = [{op = "conv_k3", out_chs = 4, stride = 2}]\n'
            '[[stages]]\nops = ["conv_k3", "conv_k5"]\ndepth = 2\nout_chs = 4\nstride = 2\n[tail]\n',
            5,
        ),
        # Each part takes inductor's own compiler some seconds, so there are but a stem and a layer.
        (
            "inductor",
            "spos",
            'stem = [{op = "conv_k3", out_chs = 4, stride = 2}]\n'
            '[[stages]]\nops = ["conv_k3"]\ndepth = 1\nout_chs = 4\nstride = 2\n[tail]\n',
            2,
        ),
    ],
    ids=["aot_eager", "inductor"],
)
def test_compiled_it_learns_what_it_learns_otherwise(
    backend: str, strategy: str, space: str, parts: int, tmp_path: Path
) -> None:
    path = tmp_path / "mine.toml"
    path.write_text(space)
    options = ["--space", str(path), "--strategy", strategy, "--recipe.steps", "3", "--records.probes", "0"]
    options += ["--records.shift-images", "40" if strategy == "nongreedy" else "0"]
    plain = trained(tmp_path / "plain", *options)
    program = ["tests/programs/compiled.py", backend, SCRIPT, *BASE, *options, "--compile"]
    compiled = run(*program, "--run", str(tmp_path / "compiled"))
    assert compiled.returncode == 0, compiled.stderr
    done, wanted = map(int, compiled.stdout.splitlines()[-1].removeprefix("compiled ").split(" of "))
    assert done == wanted >= parts
    for name, value in weights(plain).items():
        torch.testing.assert_close(weights(tmp_path / "compiled")[name], value, rtol=1e-3, atol=1e-4)
