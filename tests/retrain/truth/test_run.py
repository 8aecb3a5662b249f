"""Many networks trained for a ranking: the same whatever the workers, and whatever happens to them."""

import json
import os
import signal
import statistics
import time
from pathlib import Path
from typing import Any

import psutil
import pytest
import torch

from local_learning.decoupling import Decoupling, save_decoupling
from retrain.config import RetrainConfig
from retrain.truth.config import TruthConfig
from retrain.truth.plan import ARCHITECTURES, TruthPlan, config_of, draw_networks
from supernet.network.documents import load_architecture, save_architecture
from supernet.presets import preset
from supernet.space import Architecture, Space
from tests.forked import Script, run, run_up_to
from tests.script import SMALL, Running, chance, command, finish, start, wait_until, weights
from tests.tools.imitations import imitation
from tools.options.config import flatten, from_toml
from tools.options.recipes import Recipe
from tools.options.shared import FREE
from tools.run.folder import Run
from tools.run.meters import read_metrics

SCRIPT = "make_truth.py"
TINY = [*SMALL, "--space", "tiny", "--recipe.lr", "0.02"]
MANY = [*TINY, "--networks", "8", "--recipe.steps", "6", "--recipe.checkpoint-every", "2"]
MANY += ["--recipe.evaluate-every", "0", "--data.validation", "0"]
LONG = [*TINY, "--networks", "2", "--jobs", "2", "--recipe.steps", "400"]
TIMED = ("training_seconds",)
ALL_BEGIN = """
import os, pathlib, time
present = pathlib.Path({!r})
if "RANK" not in os.environ:
    (present / str(os.getpid())).touch()
    deadline = time.monotonic() + 60
    while len(list(present.iterdir())) < 4 and time.monotonic() < deadline:
        time.sleep(0.01)
"""
"""A plugin by which no worker begins before all four are there."""


@pytest.fixture(scope="module")
def space() -> Space:
    return preset("tiny", num_classes=10, image_size=16)


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """8 networks, uninterrupted, by one worker."""
    return made(tmp_path_factory.mktemp("whole") / "run", *MANY)


def made(folder: Path, *options: str, ranks: int = 1) -> Path:
    done = run(SCRIPT, *options, "--run", str(folder), ranks=ranks)
    assert done.returncode == 0, done.stderr
    return folder


def lines_of(folder: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (folder / "truth.jsonl").read_text().splitlines()]


def results_of(folder: Path) -> dict[str, Any]:
    found = json.loads((folder / "results.json").read_text())
    return {name: value for name, value in found.items() if name not in TIMED}


def assert_same_truth(one: Path, other: Path) -> None:
    assert (one / "truth.jsonl").read_bytes() == (other / "truth.jsonl").read_bytes()
    assert results_of(one) == results_of(other)


def finished(folder: Path) -> int:
    return len(list(folder.glob("trainings/*/results.json")))


def begun(folder: Path, step: int = 1) -> list[Path]:
    """Trainings that have come to a step."""
    paths = folder.glob("trainings/*/metrics.jsonl")
    return [path.parent for path in paths if any(line["step"] >= step for line in read_metrics(path))]


def descendants(process: Running) -> list[psutil.Process]:
    found: list[psutil.Process] = psutil.Process(process.pid).children(recursive=True)
    return found


def assert_all_gone(processes: list[psutil.Process]) -> None:
    _, alive = psutil.wait_procs(processes, timeout=30)
    assert not alive, f"still there: {alive}"


@pytest.mark.slow
def test_networks_are_different_and_each_has_its_line(whole: Path, space: Space) -> None:
    lines = lines_of(whole)
    drawn = [Architecture(tuple(line["choices"])) for line in lines]
    assert len({space.canonical(each) for each in drawn}) == 8
    assert drawn == draw_networks(space, 8, seed=0)
    for number, (each, line) in enumerate(zip(drawn, lines, strict=True), start=1):
        assert (line["macs"], line["params"]) == (space.macs(each), space.params(each))
        test = json.loads((whole / f"trainings/{number:04d}-0/results.json").read_text())["test"]["last"]
        assert (line["accuracy"], line["top5"], line["loss"]) == (test["top1"], test["top5"], test["loss"])
    assert len({line["loss"] for line in lines}) == 8
    accuracies = [line["accuracy"] for line in lines]
    results = results_of(whole)
    assert (results["networks"], results["repeats"]) == (8, 1)
    assert results["max_accuracy"] == max(accuracies)
    assert lines[results["best"]["number"] - 1]["accuracy"] == max(accuracies)
    assert not list(whole.glob("**/*.pt"))
    assert not list(whole.glob("**/*.safetensors"))


@pytest.mark.slow
def test_a_signal_and_a_kill_at_random_moments_change_nothing(whole: Path, tmp_path: Path) -> None:
    folder, random = tmp_path / "run", chance()
    options = [*MANY, "--jobs", "2", "--run", str(folder)]
    for most, end in ((1, terminate), (4, Script.kill)):  # early enough for both to find it at work
        wanted = random.randint(0, most)
        with start(command(SCRIPT, *options)) as process:
            wait_until(lambda wanted=wanted: finished(folder) >= wanted, process)  # type: ignore[misc]
            time.sleep(random.random() / 5)
            end(process)
    done = run(SCRIPT, *options)
    assert done.returncode == 0, done.stderr
    assert "trainings are finished" in done.stdout
    assert_same_truth(whole, folder)


def terminate(process: Script) -> None:
    wait_until(lambda: bool(descendants(process)), process)  # before, a signal finds nobody who heeds it
    workers = descendants(process)
    process.strike(0, signal.SIGTERM)
    done = finish(process)
    assert done.returncode == 143, done
    (said,) = done.stderr.strip().splitlines()
    assert "stopped by SIGTERM; " in said
    assert "of 8 trainings are finished, those under way have checkpoints, and the same" in said
    assert_all_gone(workers)


@pytest.mark.slow
def test_two_ranks_of_two_workers_give_the_same(whole: Path, tmp_path: Path) -> None:
    folder, present = tmp_path / "run", tmp_path / "present"
    present.mkdir()
    (tmp_path / "own.py").write_text(ALL_BEGIN.format(str(present)))
    line = [*MANY, "--jobs", "2", "--plugins", str(tmp_path / "own.py"), "--run", str(folder)]
    done = run(SCRIPT, *line, ranks=2)
    assert done.returncode == 0, done.stderr
    assert len(list(present.iterdir())) == 4, "each rank has two"
    assert "2 trainings at once on each of 2 x cpu" in done.stdout
    workers = {path.read_text() for path in folder.glob("trainings/*/.lock")}
    assert 2 < len(workers) <= 4, "those of one rank did all"
    assert_same_truth(whole, folder)


@pytest.mark.slow
def test_a_training_is_that_of_retrain_model(tmp_path: Path) -> None:
    options = [*SMALL, "--recipe.lr", "0.02", "--recipe.steps", "4", "--seed", "3"]
    folder = made(
        tmp_path / "truth",
        *options,
        "--space",
        "tiny",
        "--networks",
        "2",
        "--max-macs",
        "4e5",
        "--keep-weights",
    )
    second = lines_of(folder)[1]
    assert second["seed"] == 3
    assert second["macs"] <= 4e5
    file = folder / "architectures" / "0002.json"
    _, architecture = load_architecture(file, num_classes=10, image_size=16)
    assert list(architecture.choices) == second["choices"]
    line = [*options, "--architecture", str(file), "--run", str(tmp_path / "alone")]
    assert run("retrain_model.py", *line).returncode == 0
    alone = json.loads((tmp_path / "alone" / "results.json").read_text())
    assert second["accuracy"] == alone["test"]["last"]["top1"]
    assert second["validation"] == alone["validation"]["last"]["validation_top1"]
    for name in ("weights.safetensors", "best.safetensors"):
        mine, other = weights(folder / "trainings/0002-0", name), weights(tmp_path / "alone", name)
        assert mine.keys() == other.keys()
        assert all(torch.equal(value, other[key]) for key, value in mine.items())


@pytest.mark.slow
def test_cuts_of_one_network_are_compared_in_repeats(tmp_path: Path) -> None:
    mine = tmp_path / "mine.json"
    save_decoupling(mine, Decoupling((1, 3), ("linear", "aux1")))
    line = [*SMALL, "--network", "vgg6a", "--width", "0.125", "--recipe.lr", "0.02", "--recipe.steps", "2"]
    line += ["--decouplings", str(mine), "uniform:2:linear", "balanced:2:linear", "--repeats", "2"]
    folder = tmp_path / "run"
    run_up_to("truth.jsonl", SCRIPT, *line, "--run", str(folder))
    save_decoupling(mine, Decoupling((2, 3), ("linear", "aux1")))  # too late: the plan is made
    made(folder, *line)
    lines = lines_of(folder)
    assert [entry["seed"] for entry in lines] == [0, 0, 0, 1, 1, 1]
    assert [entry["name"] for entry in lines[:3]] == [str(mine), "uniform:2:linear", "balanced:2:linear"]
    assert (lines[0]["cuts"], lines[0]["heads"], lines[0]["groups"]) == ([1, 3], ["linear", "aux1"], 1)
    assert all(entry["network"] == "vgg6a" for entry in lines)
    for once, again in zip(lines[:3], lines[3:], strict=True):
        assert once["cuts"] == again["cuts"]
        assert once["loss"] != again["loss"], "a repeat must have a seed of its own"
    results = results_of(folder)
    means = [(lines[i]["accuracy"] + lines[i + 3]["accuracy"]) / 2 for i in range(3)]
    assert results["mean_accuracy"] == pytest.approx(sum(means) / 3)
    spread = [(lines[i]["accuracy"] - lines[i + 3]["accuracy"]) ** 2 / 2 for i in range(3)]
    assert results["std_between_repeats"] == pytest.approx((sum(spread) / 3) ** 0.5)
    noise, found = sum(spread) / 3 / 2, statistics.variance(means)
    assert results.get("reliability", 0) == pytest.approx(max(0, 1 - noise / found) if found else 0)
    assert "is finished" in run(SCRIPT, *line, "--run", str(folder)).stdout


@pytest.mark.slow
def test_architectures_come_from_files(space: Space, tmp_path: Path) -> None:
    one, lines = tmp_path / "one.json", tmp_path / "scores.jsonl"
    save_architecture(one, Architecture((0, 3, 2, 1)), space)
    lines.write_text('{"choices": [1, 1, 1, 1], "score": 0.5}\n{"choices": [0, 3, 2, 1], "score": 0.4}\n')
    line = [*TINY, "--recipe.steps", "2", "--architectures", str(one), str(lines)]
    folder = made(tmp_path / "run", *line)
    assert [entry["choices"] for entry in lines_of(folder)] == [[0, 3, 2, 1], [1, 1, 1, 1]]
    done = run(SCRIPT, *line, "--repeats", "2", "--run", str(folder))
    assert done.returncode == 2
    assert "was made with other options: --repeats (was 1, is 2)" in done.stderr


@pytest.mark.slow
@pytest.mark.parametrize("ranks", [1, 2])
def test_a_network_that_cannot_be_trained_ends_the_run_and_is_named(ranks: int, tmp_path: Path) -> None:
    line = [*TINY, "--networks", "2", "--recipe.steps", "30", "--recipe.lr", "1e6"]
    done = run(SCRIPT, *line, "--run", str(tmp_path / "run"), ranks=ranks)
    assert done.returncode == 1, done
    (said,) = done.stderr.strip().splitlines()
    assert "training 000" in said
    assert "(tiny/" in said
    assert "is not a finite number" in said or "no numbers" in said


@pytest.mark.slow
def test_ctrl_c_stops_all_in_good_order(tmp_path: Path) -> None:
    folder = tmp_path / "run"
    line = command(SCRIPT, *LONG, "--recipe.checkpoint-every", "1000", "--run", str(folder))
    process = start(line)
    wait_until(lambda: len(begun(folder, 5)) == 2, process)
    workers = descendants(process)
    for each in (psutil.Process(process.pid), *workers):  # as a terminal does it
        each.send_signal(signal.SIGINT)
    done = finish(process)
    assert done.returncode == 130, done
    (said,) = done.stderr.strip().splitlines()
    assert "stopped by SIGINT; 0 of 2 trainings are finished" in said
    assert_all_gone(workers)
    assert len({path.parent for path in folder.glob("trainings/*/checkpoints/*.pt")}) == 2
    refused = run(SCRIPT, *LONG, "--recipe.checkpoint-every", "999", "--run", str(folder))
    assert refused.returncode == 2
    assert "--recipe.checkpoint-every (was 1000, is 999)" in refused.stderr


@pytest.mark.slow
def test_workers_do_not_outlive_the_script(tmp_path: Path) -> None:
    folder = tmp_path / "run"
    process = start(command(SCRIPT, *LONG, "--run", str(folder)))
    wait_until(lambda: len(begun(folder, 5)) == 2, process)
    workers = descendants(process)
    assert len(workers) >= 2
    process.strike(0, signal.SIGKILL)
    finish(process)
    assert_all_gone(workers)
    assert len({path.parent for path in folder.glob("trainings/*/checkpoints/*.pt")}) == 2


@pytest.mark.slow
def test_a_worker_that_is_killed_is_noticed(tmp_path: Path) -> None:
    folder = tmp_path / "run"
    process = start(command(SCRIPT, *LONG, "--run", str(folder)))
    wait_until(lambda: len(begun(folder, 5)) == 2, process)
    os.kill(int((folder / "trainings/0002-0/.lock").read_text()), signal.SIGKILL)
    done = finish(process)
    assert done.returncode == 1, done
    (said,) = done.stderr.strip().splitlines()
    assert "training 0002-0 (tiny/" in said
    assert "was ended by SIGKILL" in said


@pytest.mark.parametrize("stem", ["fused", "unit"])
def test_a_truth_of_before_counts_the_stem_as_it_did(stem: str, space: Space, tmp_path: Path) -> None:
    plan = TruthPlan(ARCHITECTURES, "tiny", ({"choices": [0, 1, 2, 3]},), 1, "torch")
    path = tmp_path / ARCHITECTURES / "0001.json"
    path.parent.mkdir()
    notes = {"stem": stem} if stem == "fused" else {}  # before, no file said so
    save_architecture(path, Architecture((0, 1, 2, 3)), space, **notes)
    config = TruthConfig(space="tiny", decoupling="uniform:2:linear")
    (trial,) = plan.trials
    assert config_of(config, Run(tmp_path), plan, trial).stem == stem


@pytest.mark.slow
def test_images_of_a_folder_are_read_in_the_workers_and_by_processes_of_theirs(tmp_path: Path) -> None:
    imitation("folder", tmp_path / "photos")
    options = ["--device", "cpu", "--threads", "1", "--space", "tiny", "--networks", "2"]
    options += ["--data.name", "folder", "--data.root", str(tmp_path / "photos"), "--data.image-size", "16"]
    options += ["--recipe.steps", "2", "--recipe.batch-size", "8", "--recipe.lr", "0.02"]
    alone, helped = (made(tmp_path / count, *options, "--data.workers", count) for count in ("0", "2"))
    assert_same_truth(alone, helped)


def test_drawn_networks_keep_the_limit_and_depend_on_the_seed(space: Space) -> None:
    drawn = draw_networks(space, 20, seed=1, max_macs=350_000)
    assert all(space.macs(each) <= 350_000 for each in drawn)
    assert len(set(drawn)) == 20
    assert drawn == [space.canonical(each) for each in drawn]
    assert drawn == draw_networks(space, 20, seed=1, max_macs=350_000)
    assert drawn != draw_networks(space, 20, seed=2, max_macs=350_000)
    assert len(draw_networks(space, space.num_networks, seed=0)) == space.num_networks
    with pytest.raises(ValueError, match=f"has only {space.num_networks:,} different networks, not"):
        draw_networks(space, space.num_networks + 1, seed=0)
    with pytest.raises(ValueError, match="the cheapest has"):
        draw_networks(space, 1, seed=0, max_macs=10)


def test_networks_of_a_space_too_large_to_list_are_drawn() -> None:
    large = preset("lwsl_table1", num_classes=10, image_size=64)
    least = large.fixed_cost.macs + sum(min(cost.macs for cost in row) for row in large.costs)
    drawn = draw_networks(large, 50, seed=0, max_macs=2 * least)
    assert len({large.canonical(each) for each in drawn}) == 50
    assert all(large.macs(each) <= 2 * least for each in drawn)
    assert len(set(draw_networks(large, 50, seed=0))) == 50
    with pytest.raises(ValueError, match="different networks of at most"):
        draw_networks(large, 500, seed=0, max_macs=least)


def mistakes() -> list[tuple[list[str], str]]:
    space = ["--space", "tiny"]
    return [
        ([], "--space: name a space to draw --networks from; or give --architectures, or --decouplings"),
        ([*space, "--decouplings", "uniform:2:aux1"], "--decouplings: cannot go with --space"),
        (["--architectures", "x.json", "--decouplings", "uniform:2:aux1"], "cannot go with --architectures"),
        (
            ["--space", "tiny", "--architectures", "x.json"],
            "--space: cannot go with --architectures that say",
        ),
        ([*space, "--networks", "100000"], "--networks: space tiny has only "),
        ([*space, "--max-macs", "1e3"], "--max-macs: no network of tiny has at most 1,000 MACs"),
        (["--space", "tinny"], "--space: space 'tinny' is unknown; did you mean 'tiny'?"),
        (["--architectures", "missing.json"], "--architectures: there is no file 'missing.json'"),
        ([*space, "--architectures", "missing.jsonl"], "--architectures: there is no file 'missing.jsonl'"),
        (["--architectures", "missing.jsonl"], "--space: the lines of missing.jsonl do not say of which"),
        (["--decouplings", "uniform:2:aux1", "missing"], "--decouplings: there is no file 'missing'"),
        (["--decouplings", "uniform:99:aux1"], "--decouplings uniform:99:aux1: "),
        (["--decouplings", "uniform:2:aux1", "uniform:2:aux1"], "is named twice; --repeats trains again"),
        (["--decouplings", "uniform:2:aux1", "--networks", "3"], "--networks: goes with --space alone"),
        ([*space, "--network", "vgg19"], "--network: cannot go with --space; leave vgg19 out"),
        ([*space, "--repeats", "0"], "--repeats: 0 is out of range"),
        ([*space, "--jobs", "0"], "--jobs: 0 is out of range"),
        ([*space, "--decoupling", "balanced:2:linear"], "--balance: time measured beside other trainings"),
        ([*space, "--recipe.accumulate", "5"], "--recipe.accumulate: 5 parts do not divide"),
        ([*space, "--decoupling", "uniform:99:linear"], "training 0001-0 (tiny/"),
    ]


@pytest.mark.slow
@pytest.mark.parametrize(("options", "says"), mistakes(), ids=lambda value: " ".join(value)[:50])
def test_a_mistake_is_one_line(options: list[str], says: str, tmp_path: Path) -> None:
    done = run(SCRIPT, *SMALL, "--recipe.steps", "2", *options, "--run", str(tmp_path / "run"))
    assert done.returncode == 2, done
    assert says in done.stderr
    assert len(done.stderr.strip().splitlines()) == 1


def test_options_go_to_toml_and_back() -> None:
    config = TruthConfig(decouplings=("uniform:2:aux1", "uniform:3:aux1"), repeats=3, jobs=2)
    assert config.training(decoupling="uniform:2:aux1").decoupling == "uniform:2:aux1"
    assert from_toml(TruthConfig, 'space = "tiny"\nnetworks = 5\n', source="x").networks == 5


BEFORE = """
run = "gone"
seed = 3
space = "tiny"
networks = 5
sync_batchnorm = false
extend = false
alignment = false
parallel = "none"
plan = false
[pipeline]
queue = 9
transfer = "full"
patience = 40.0
[cluster]
devices = [3]
profile = "none.json"
speed = 3.0
bandwidth = 1.0
latency = 2.0
memory = 5.0
[recipe]
steps = 7
"""
"""The config.toml of a truth of before, which had all options of retrain_model.py."""


def test_a_truth_of_before_goes_on_whatever_meant_nothing_to_it(tmp_path: Path) -> None:
    today = TruthConfig(space="tiny", networks=5, seed=3, recipe=Recipe(steps=7))
    (tmp_path / "trainings/0001-0/checkpoints").mkdir(parents=True)
    (tmp_path / "trainings/0001-0/checkpoints/step-00000001.json").touch()
    (tmp_path / "config.toml").write_text(BEFORE)
    run = Run(tmp_path)
    run.open(run.continued(today), free=FREE)
    run.close()
    kept = (tmp_path / "config.toml").read_text()
    assert from_toml(TruthConfig, kept, source="x") == run.continued(today)
    assert "cluster" not in kept


@pytest.mark.parametrize(
    ("was", "now"),
    [("plan = false", "plan = true"), ("extend = false", "extend = true"), ('"full"', '"bf16"')],
)
def test_what_no_truth_ever_did_is_refused_in_a_file(was: str, now: str) -> None:
    with pytest.raises(
        ValueError, match=r"^mine.toml: '.*' is no longer an option; everything is done as with"
    ):
        from_toml(TruthConfig, BEFORE.replace(was, now), source="mine.toml")


def test_a_training_is_given_all_that_the_options_of_a_truth_say() -> None:
    own = {"space", "networks", "max_macs", "architectures", "decouplings", "repeats", "jobs", "keep_weights"}
    own |= {"fidelity.width", "fidelity.image_size"}
    options = flatten(TruthConfig(network="vgg19", decoupling="uniform:2:linear", seed=5, trackers=("x",)))
    training = flatten(TruthConfig(network="vgg19", decoupling="uniform:2:linear", seed=5).training())
    assert {name: options[name] for name in options.keys() - own - {"trackers"}} == {
        name: training[name] for name in options.keys() - own - {"trackers"}
    }
    retired = training.keys() - options.keys()
    assert retired == TruthConfig.RETIRED.keys()
    default = flatten(RetrainConfig())
    assert all(training[name] == default[name] for name in retired)
