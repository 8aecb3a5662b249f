"""Training in blocks, by the script as users run it."""

import json
import math
import shutil
import statistics
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import safetensors
import torch
from torch import Tensor, nn

from local_learning.blocks import decouple
from local_learning.build import build_chain
from local_learning.decoupling import Decoupling, load_decoupling, read_decoupling, save_decoupling
from local_learning.heads import make_head
from tests.forked import run, run_up_to
from tests.retrain.test_resume import assert_same_run
from tests.script import SMALL, weights
from tools.cost import count_macs
from tools.images.datasets import load_data
from tools.images.images import ArrayImages
from tools.images.options import DataConfig
from tools.run.meters import read_metrics

SCRIPT = "retrain_model.py"
BASE = [*SMALL, "--data.train-size", "160", "--data.test-size", "60"]  # an epoch has 4 steps
BASE += ["--recipe.lr", "0.02", "--recipe.steps", "6", "--recipe.log-every", "3"]
VGG = [*BASE, "--network", "vgg6a", "--width", "0.125"]
RESNET = [*BASE, "--network", "resnet18", "--width", "0.0625"]

BACKPROP = VGG
AUX = [*VGG, "--decoupling", "uniform:3:aux2"]
REPLAY = [*VGG, "--decoupling", "uniform:3:linear", "--rule", "replay"]
GLUING = [*VGG, "--decoupling", "uniform:3:linear", "--rule", "gluing"]
CACHE = [*GLUING, "--gluing.cache", "--data.augment", "none"]
GROUPED = [*RESNET, "--decoupling", "uniform:2:conv1c2f", "--groups", "2"]

# Steps that change nothing show what a run began with.
FROZEN = ["--recipe.steps", "1", "--recipe.lr", "1e-30", "--recipe.min-lr", "0"]

STATISTICS = ("running_mean", "running_var", "num_batches_tracked")

Made = Callable[..., Path]

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Made:
    """Gives the folder of a finished run with some options; equal options are run once."""
    folders: dict[tuple[tuple[str, ...], int], Path] = {}

    def make(*options: str, ranks: int = 1) -> Path:
        key = (options, ranks)
        if key not in folders:
            folder = tmp_path_factory.mktemp("made") / "run"
            done = run(SCRIPT, *options, "--run", str(folder), ranks=ranks)
            assert done.returncode == 0, done.stderr
            assert f"on {ranks} x cpu" in done.stdout
            folders[key] = folder
        return folders[key]

    return make


def results(folder: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((folder / "results.json").read_text())
    return found


def training_lines(folder: Path) -> list[dict[str, Any]]:
    return [line for line in read_metrics(folder / "metrics.jsonl") if "loss" in line]


def parameters(folder: Path) -> dict[str, Tensor]:
    return {name: value for name, value in weights(folder).items() if not name.endswith(STATISTICS)}


def assert_equal(found: dict[str, Tensor], expected: dict[str, Tensor]) -> None:
    assert found.keys() == expected.keys()
    for name, value in expected.items():
        assert torch.equal(found[name], value), name


def assert_begun_with(folder: Path, expected: dict[str, Tensor]) -> None:
    """That a frozen run began with these; what began at 0 has moved by next to nothing."""
    found = parameters(folder)
    assert found.keys() == expected.keys()
    for name, value in expected.items():
        torch.testing.assert_close(found[name], value, rtol=0, atol=1e-20, msg=name)


def under(tensors: dict[str, Tensor], *prefixes: str) -> dict[str, Tensor]:
    return {name: value for name, value in tensors.items() if name.startswith(prefixes)}


RULES = {
    "aux2": (AUX, Decoupling((1, 3), ("aux2",) * 2), "loss"),
    "predsim": ([*VGG, "--decoupling", "uniform:3:predsim"], Decoupling((1, 3), ("predsim",) * 2), "loss"),
    "infopro_contrast": (
        [*VGG, "--decoupling", "uniform:3:infopro_contrast"],
        Decoupling((1, 3), ("infopro_contrast",) * 2),
        "loss",
    ),
    "balanced": (
        [*VGG, "--decoupling", "balanced:2:linear", "--balance", "macs"],
        # Layer 1 takes 110,592 multiply-accumulates, 2 and 3 take 294,912 each, 4 takes 147,456.
        Decoupling((2,), ("linear",)),
        "loss",
    ),
    "groups": (GROUPED, Decoupling((4, 8), ("conv1c2f",) * 2, 2), "loss"),
    "replay": (REPLAY, Decoupling((1, 3), ("linear",) * 2), ""),
    "gluing": (GLUING, Decoupling((1, 3), ("linear",) * 2), "gluing"),
    "cache": (CACHE, Decoupling((1, 3), ("linear",) * 2), "gluing"),
}


@pytest.mark.parametrize("name", RULES)
def test_a_run_in_blocks_leaves_what_it_says(made: Made, name: str) -> None:
    options, decoupling, local = RULES[name]
    folder, numbers = made(*options), range(1, decoupling.num_blocks)
    network = options[options.index("--network") + 1]
    chain = build_chain(
        network, num_classes=10, image_size=16, width=float(options[options.index("--width") + 1])
    )

    kept = read_decoupling(folder / "decoupling.json")
    assert (kept.decoupling, kept.network, kept.num_layers) == (decoupling, network, chain.num_layers)

    lines = training_lines(folder)
    assert [line["step"] for line in lines] == [3, 6]
    always = {"step", "loss", "train_top1", "learning_rate", "images_per_second"}
    for line in lines:
        assert line.keys() == always | {f"{local}/{k}" for k in numbers if local}
        assert all(math.isfinite(value) for value in line.values())
        assert line["images_per_second"] > 0

    tensors, has_heads = weights(folder), local == "loss"
    heads = under(tensors, "heads.")
    assert tensors.keys() - heads.keys() == chain.state_dict().keys()
    assert {name.split(".")[1] for name in heads} == ({str(k) for k in numbers} if has_heads else set())
    with safetensors.safe_open(folder / "weights.safetensors", "pt") as file:
        assert json.loads(file.metadata()["decoupling"])["cuts"] == list(decoupling.cuts)

    found = results(folder)
    assert (found["cuts"], found["heads"]) == (list(decoupling.cuts), list(decoupling.heads))
    assert found["groups"] == decoupling.groups
    assert found["head_params"] == sum(
        value.numel() for value in under(parameters(folder), "heads.").values()
    )
    assert found["busiest_module_macs"] > 0
    measured = {"loss", "top1", "top5"}
    if has_heads:
        measured |= {f"{ensemble}_top{k}" for ensemble in ("last_two", "layerwise") for k in (1, 5)}
        measured |= {f"heads_top1/{k}" for k in numbers}
    for tested in found["test"].values():
        assert tested.keys() == measured
        assert all(0 <= value <= 1 for name, value in tested.items() if name != "loss")


def test_the_busiest_module_is_the_block_with_the_most_macs(made: Made) -> None:
    chain = build_chain("vgg6a", num_classes=10, image_size=16, width=0.125)
    heads = [make_head("aux2", 16, 16, 10, width=0.125), make_head("aux2", 64, 4, 10, width=0.125)]
    macs = [
        count_macs(nn.Sequential(chain.layers[0], heads[0]), (3, 16, 16)),
        count_macs(nn.Sequential(*chain.layers[1:3], heads[1]), (16, 16, 16)),
        count_macs(nn.Sequential(*chain.layers[3:], chain.classifier), (64, 4, 4)),
    ]
    assert results(made(*AUX))["busiest_module_macs"] == max(macs)


def test_results_are_those_of_the_weights_in_the_file(made: Made) -> None:
    config = DataConfig(image_size=16, train_size=160, test_size=60, validation=0.2)
    data = load_data(config, seed=0)
    assert isinstance(data.test, ArrayImages)
    images = data.test.images.permute(0, 3, 1, 2) / 255
    mean, std = (torch.tensor(values).view(1, 3, 1, 1) for values in (data.mean, data.std))
    chain = build_chain("vgg6a", num_classes=10, image_size=16, width=0.125)
    net = decouple(chain, Decoupling((1, 3), ("aux2",) * 2), 10, 16).eval()
    net.with_names().load_state_dict(weights(made(*AUX)))
    with torch.no_grad():
        below, middle, classifier = (logits for (logits,) in net.all_logits((images - mean) / std))
    tested = results(made(*AUX))["test"]["last"]
    expected = {
        "": classifier,
        "last_two_": middle.log_softmax(1) + classifier.log_softmax(1),
        "layerwise_": below.softmax(1) + 2 * middle.softmax(1) + 4 * classifier.softmax(1),
    }
    places = data.test.labels[:, None]
    for name, scores in expected.items():
        behind = (scores > scores.gather(1, places)).sum(1)  # so many classes come before the right one
        for k in (1, 5):
            assert tested[f"{name}top{k}"] == pytest.approx((behind < k).double().mean()), (name, k)
    for k, scores in ((1, below), (2, middle)):
        found = (scores.argmax(1) == data.test.labels).double().mean()
        assert tested[f"heads_top1/{k}"] == pytest.approx(found)


def test_top_5_of_the_heads_together_is_told(made: Made, tmp_path: Path) -> None:
    folder = tmp_path / "run"
    shutil.copytree(made(*AUX), folder)
    tested = results(folder)["test"]["last"]
    told = [f"last two together top-1 {tested['last_two_top1']:.2%}, top-5 {tested['last_two_top5']:.2%}"]
    told += [f"all by depth top-1 {tested['layerwise_top1']:.2%}, top-5 {tested['layerwise_top5']:.2%}"]
    again = run(SCRIPT, *AUX, "--run", str(folder))  # it is done, and says what it found
    assert again.returncode == 0, again.stderr
    assert "; ".join(told) in again.stdout
    # A run of before has no such numbers.
    kept = results(folder)
    for each in kept["test"].values():
        del each["last_two_top5"], each["layerwise_top5"]
    (folder / "results.json").write_text(json.dumps(kept))
    again = run(SCRIPT, *AUX, "--run", str(folder))
    assert again.returncode == 0, again.stderr
    assert f"last two together top-1 {tested['last_two_top1']:.2%}; all by depth" in again.stdout


def test_backprop_ignores_the_cuts(made: Made) -> None:
    cut = made(*AUX, "--rule", "backprop")
    assert_equal(weights(cut), weights(made(*BACKPROP)))
    assert load_decoupling(cut / "decoupling.json") == RULES["aux2"][1]
    tested = results(cut)
    assert "cuts" not in tested
    assert tested["test"] == results(made(*BACKPROP))["test"]


def test_alignment_is_told_for_all_blocks_but_the_last_and_changes_nothing(made: Made) -> None:
    watched = made(*AUX, "--alignment")
    lines = [line for line in read_metrics(watched / "metrics.jsonl") if "validation_top1" in line]
    assert [line["step"] for line in lines] == [4, 6]
    for line in lines:
        cosines = {name: value for name, value in line.items() if name.startswith("alignment/")}
        assert cosines.keys() == {"alignment/1", "alignment/2", "alignment/3"}
        assert all(-1 <= value <= 1 for value in cosines.values())
        assert len(set(cosines.values())) == 3
    assert_equal(weights(watched), weights(made(*AUX)))


@pytest.mark.parametrize(
    ("options", "measured"),
    [([], {4: range(1, 5), 6: range(5, 7)}), (["--alignment-every", "3"], {4: [1, 4], 6: [5]})],
)
def test_alignment_is_the_mean_over_the_interval(
    made: Made, options: list[str], measured: dict[int, list[int]]
) -> None:
    each = cosines(made(*AUX, "--alignment", "--recipe.evaluate-every", "1"))
    assert list(each) == list(range(1, 7))
    found = cosines(made(*AUX, "--alignment", *options))
    assert found.keys() == measured.keys()
    for step, steps in measured.items():
        for layer, cosine in found[step].items():
            assert cosine == pytest.approx(statistics.fmean(each[k][layer] for k in steps), rel=1e-12)


def cosines(folder: Path) -> dict[int, dict[str, float]]:
    """By the step of the evaluation and by layer."""
    lines = [line for line in read_metrics(folder / "metrics.jsonl") if "validation_top1" in line]
    return {
        line["step"]: {name: value for name, value in line.items() if name.startswith("alignment/")}
        for line in lines
    }


@pytest.mark.parametrize("name", ["aux2", "replay"])
def test_bf16_trains_weights_in_fp32(made: Made, name: str) -> None:
    options = RULES[name][0]
    folder = made(*options, "--precision", "bf16")
    tensors = parameters(folder)
    assert all(value.dtype == torch.float32 and value.isfinite().all() for value in tensors.values())
    first, exact = training_lines(folder)[0], training_lines(made(*options))[0]
    assert first["loss"] != exact["loss"]
    assert first["loss"] == pytest.approx(exact["loss"], rel=0.05)


def test_copies_are_of_the_weights_that_the_network_starts_from(made: Made, tmp_path: Path) -> None:
    trained = made(*AUX)
    options = [*VGG, "--decoupling", "uniform:2:aug1=copy", "--weights", str(trained / "weights.safetensors")]
    start, given = parameters(made(*options, *FROZEN)), parameters(trained)
    copies = {name: value for name, value in start.items() if name.startswith("heads.1.layer5.")}
    assert copies
    for name, value in copies.items():
        torch.testing.assert_close(value, given[name.replace("heads.1.layer5.", "layers.4.")])


def test_a_rate_of_0_keeps_a_block_as_it_was(made: Made) -> None:
    start, end = parameters(made(*AUX, *FROZEN)), parameters(made(*AUX, "--block-rates", "1", "0", "0.5"))
    for name, value in start.items():
        kept = name.startswith(("layers.1.", "layers.2.", "heads.2."))
        assert torch.allclose(end[name], value, rtol=0, atol=1e-20) == kept, name


def test_compiled_blocks_learn_as_others_do(made: Made, tmp_path: Path) -> None:
    path = tmp_path / "decoupling.json"
    save_decoupling(path, Decoupling((1,), ("linear",)))  # the last block is the classifier alone
    options = [*BASE, "--network", "mlp", "--width", "0.1", "--decoupling", str(path)]
    plain, compiled = made(*options), tmp_path / "run"
    # With inductor itself, tests of supernets are compiled.
    program = ["tests/programs/compiled.py", "aot_eager", SCRIPT, *options, "--compile"]
    done = run(*program, "--run", str(compiled))
    assert done.returncode == 0, done.stderr
    assert done.stdout.endswith("compiled 2 of 2\n")
    for line, expected in zip(training_lines(compiled), training_lines(plain), strict=True):
        for name in ("loss", "loss/1"):
            assert line[name] == pytest.approx(expected[name], rel=1e-3)


RESUMED = {
    "replay": [*REPLAY, "--dropout", "0.3"],
    "cache": [*CACHE, "--gluing.h-every", "2"],
    "groups and alignment": [
        *GROUPED,
        *("--alignment", "--recipe.ema", "0.9", "--block-rates", "1", "0.5", "2"),
    ],
    # Of seven steps the first two and the last are of the whole network; step 4 is amid a refresh.
    "help from above": [
        *(*VGG, "--decoupling", "uniform:3:aug2+man", "--local.refresh", "3", "--local.momentum", "0.5"),
        *("--local.whole-first", "28", "--local.join-last", "14", "--local.movement", "0.01"),
        *("--local.head-rate", "0.5", "--local.head-warmup", "0.8"),
    ],
}
# Steps 1 to 4 see every image once: what follows needs what the cache was given. Evaluations may leave
# checkpoints too, and step 4 is amid an interval of theirs.
OFTEN = ["--recipe.steps", "7", "--recipe.checkpoint-every", "2", "--recipe.evaluate-every", "3"]


@pytest.mark.parametrize("name", RESUMED)
def test_a_killed_run_goes_on_as_if_nothing_had_been(made: Made, tmp_path: Path, name: str) -> None:
    options, folder = [*RESUMED[name], *OFTEN], tmp_path / "run"
    for doomed in (2, 6):  # with no checkpoint yet, and on the way to another
        run_up_to(f"step-{doomed:08d}.json", SCRIPT, *options, "--run", str(folder))
    done = run(SCRIPT, *options, "--run", str(folder))
    assert done.returncode == 0, done.stderr
    assert f"continuing {folder} from step 4" in done.stdout
    assert_same_run(made(*options), folder)


def test_a_killed_run_on_two_ranks_goes_on_as_if_nothing_had_been(made: Made, tmp_path: Path) -> None:
    options, folder = [*RESUMED["cache"], *OFTEN, "--data.train-size", "110"], tmp_path / "run"
    run_up_to("step-00000006.json", SCRIPT, *options, "--run", str(folder), ranks=2)
    done = run(SCRIPT, *options, "--run", str(folder), ranks=2)
    assert done.returncode == 0, done.stderr
    assert f"continuing {folder} from step 4" in done.stdout
    assert "on 2 x cpu" in done.stdout
    assert_same_run(made(*options, ranks=2), folder)


def test_cuts_that_were_measured_stay_what_they_were(made: Made, tmp_path: Path) -> None:
    folder, path = tmp_path / "run", tmp_path / "run" / "decoupling.json"
    options = [*VGG, "--decoupling", "balanced:3:linear", "--balance", "time"]
    run_up_to("step-00000006.json", SCRIPT, *options, "--recipe.checkpoint-every", "3", "--run", str(folder))
    chosen, written = load_decoupling(path), path.stat()
    done = run(SCRIPT, *options, "--recipe.checkpoint-every", "3", "--run", str(folder))
    assert done.returncode == 0, done.stderr
    assert "continuing" in done.stdout
    assert (path.stat().st_ino, path.stat().st_mtime_ns) == (written.st_ino, written.st_mtime_ns)
    assert results(folder)["cuts"] == list(chosen.cuts)
    # The measurement leaves no trace: it is the run for which the cuts were given.
    assert_equal(weights(folder), weights(made(*VGG, "--decoupling", str(path))))


def test_other_cuts_may_be_given_while_there_is_no_checkpoint(tmp_path: Path) -> None:
    folder, given = tmp_path / "run", tmp_path / "decoupling.json"
    save_decoupling(given, Decoupling((2,), ("linear",)))
    options = [*VGG, "--recipe.steps", "3", "--run", str(folder)]
    run_up_to("step-00000003.json", SCRIPT, *options, "--decoupling", "uniform:3:linear")
    assert load_decoupling(folder / "decoupling.json").cuts == (1, 3)
    done = run(SCRIPT, *options, "--decoupling", str(given))
    assert done.returncode == 0, done.stderr
    assert load_decoupling(folder / "decoupling.json").cuts == (2,)
    assert results(folder)["cuts"] == [2]


SHORT = ["--precision", "fp64", "--recipe.steps", "3", "--recipe.lr", "0.01", "--recipe.log-every", "1"]


@pytest.mark.parametrize("name", ["aux2", "groups", "replay", "gluing", "cache"])
def test_two_ranks_are_one(made: Made, name: str) -> None:
    options = [*RULES[name][0], *SHORT]
    if name == "cache":  # 88 images to train on: most are seen thrice, by both ranks
        options += ["--data.train-size", "110", "--recipe.steps", "6", "--gluing.h-every", "2"]
    assert_close_runs(made(*options), made(*options, ranks=2))


@pytest.mark.parametrize(
    "way",
    [
        ["uniform:3:linear", "--rule", "replay"],
        ["uniform:3:aug1", "--local.refresh", "1", "--local.whole-first", "30", "--local.join-last", "30"],
    ],
)
def test_two_ranks_in_parts_are_one_in_one_part(made: Made, way: list[str]) -> None:
    # BatchNorm would tell parts from the whole; this network has none.
    options = [*BASE, "--network", "timm/test_vit", "--data.image-size", "32", *SHORT, "--decoupling", *way]
    assert_close_runs(made(*options), made(*options, "--recipe.accumulate", "2", ranks=2))


def test_what_two_ranks_began_one_may_end(made: Made, tmp_path: Path) -> None:
    options, folder = [*REPLAY, *SHORT, "--recipe.checkpoint-every", "2"], tmp_path / "run"
    run_up_to("step-00000003.json", SCRIPT, *options, "--run", str(folder), ranks=2)
    done = run(SCRIPT, *options, "--run", str(folder))
    assert done.returncode == 0, done.stderr
    assert f"continuing {folder} from step 2" in done.stdout
    assert_close_runs(made(*REPLAY, *SHORT), folder)


def assert_close_runs(one: Path, two: Path) -> None:
    expected, found = weights(one), weights(two)
    assert expected.keys() == found.keys()
    for name, value in expected.items():
        torch.testing.assert_close(found[name], value, rtol=0, atol=1e-11, msg=name)
    for line, other in zip(training_lines(one), training_lines(two), strict=True):
        for name in line.keys() - {"images_per_second"}:
            assert other[name] == pytest.approx(line[name], rel=1e-10), name
    assert results(one)["test"]["last"] == pytest.approx(results(two)["test"]["last"], rel=1e-10)


def test_weights_bring_the_heads_of_the_same_decoupling(made: Made) -> None:
    source = made(*AUX)
    begun = made(*AUX, *FROZEN, "--weights", str(source / "weights.safetensors"))
    assert_begun_with(begun, parameters(source))


def test_weights_go_into_backprop_without_the_heads(made: Made) -> None:
    source = made(*AUX)
    begun = made(*BACKPROP, *FROZEN, "--weights", str(source / "weights.safetensors"))
    assert_begun_with(begun, under(parameters(source), "layers.", "classifier."))


def test_weights_without_heads_leave_them_as_initialised(made: Made) -> None:
    source, fresh = made(*BACKPROP), made(*AUX, *FROZEN)
    begun = made(*AUX, *FROZEN, "--weights", str(source / "weights.safetensors"))
    assert_begun_with(begun, parameters(source) | under(parameters(fresh), "heads."))


def test_weights_of_other_heads_leave_them_as_initialised(made: Made) -> None:
    source, fresh = made(*RULES["predsim"][0]), made(*AUX, *FROZEN)
    begun = made(*AUX, *FROZEN, "--weights", str(source / "weights.safetensors"))
    expected = under(parameters(source), "layers.", "classifier.") | under(parameters(fresh), "heads.")
    assert_begun_with(begun, expected)


def test_a_reset_classifier_means_reset_heads(made: Made) -> None:
    source, fresh = made(*AUX), made(*AUX, *FROZEN)
    given = ["--weights", str(source / "weights.safetensors"), "--reset-classifier"]
    expected = under(parameters(source), "layers.") | under(parameters(fresh), "heads.", "classifier.")
    assert_begun_with(made(*AUX, *FROZEN, *given), expected)
    seven = parameters(made(*AUX, *FROZEN, *given, "--data.num-classes", "7"))
    assert seven["heads.1.fc.weight"].shape[0] == seven["classifier.fc.weight"].shape[0] == 7
    assert_equal(under(seven, "layers."), under(parameters(source), "layers."))


def test_weights_of_neuron_groups_do_not_fit_a_network_without(made: Made, tmp_path: Path) -> None:
    source = made(*GROUPED) / "weights.safetensors"
    done = run(SCRIPT, *RESNET, "--weights", str(source), "--run", str(tmp_path / "run"))
    assert done.returncode == 2
    assert len(done.stderr.strip().splitlines()) == 1, done.stderr
    assert f"--weights: '{source}' does not fit the network: layers." in done.stderr
    assert "the network's is" in done.stderr
    begun = made(*GROUPED, *FROZEN, "--weights", str(source))
    assert_begun_with(begun, parameters(source.parent))
