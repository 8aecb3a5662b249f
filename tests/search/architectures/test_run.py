"""Searches for architectures by the script, as users make them."""

import functools
import json
import math
import shutil
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from search.architectures.config import ArchitectureSearchConfig
from search.architectures.evaluations import in_units, read_evaluations
from search.architectures.methods import asked_limits
from supernet.additive import activations, latency
from supernet.calibrate import calibrate
from supernet.network.documents import load_architecture
from supernet.network.storage import load_supernet, save_supernet, supernet_notes
from supernet.presets import preset
from supernet.space import Architecture
from supernet.supernet import Supernet
from supernet.train.config import SupernetConfig
from supernet.train.measure import load_measured
from tests.forked import Script, run, run_up_to
from tests.script import SMALL
from tools.images.datasets import load_data
from tools.images.loaders import eval_batches
from tools.images.options import DataConfig
from tools.options.config import from_toml, to_toml
from tools.run.meters import read_metrics

SCRIPT = "search_architecture.py"
PLACE = ["--device", "cpu", "--threads", "1"]
BASE = [*PLACE, "--population", "8", "--generations", "3", "--scoring.calibration-images", "64"]
BASE += ["--scoring.calibration-batch", "32", "--max-macs", "420e3"]
SHORT = ["--generations", "1"]

Whole = Callable[..., Path]

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def supernet(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One that can tell some classes apart, so that scores differ."""
    folder = tmp_path_factory.mktemp("trained") / "supernet"
    line = [*SMALL, "--space", "tiny", "--recipe.steps", "40", "--recipe.lr", "0.05", "--records.probes", "0"]
    line += ["--records.shift-images", "0", "--recipe.evaluate-every", "0", "--seed", "5"]
    done = run("train_supernet.py", *line, "--run", str(folder))
    assert done.returncode == 0, done.stderr
    return folder


def searched(supernet: Path, folder: Path, *options: str, ranks: int = 1) -> Path:
    line = [*BASE, "--supernet", str(supernet), *options, "--run", str(folder)]
    done = run(SCRIPT, *line, ranks=ranks)
    assert done.returncode == 0, done.stderr
    assert f"on {ranks} x cpu" in done.stdout
    return folder


@pytest.fixture(scope="module")
def whole(supernet: Path, tmp_path_factory: pytest.TempPathFactory) -> Whole:
    """A finished search with these options, which is made once; it must be left as it is."""

    @functools.cache
    def found(*options: str, ranks: int = 1) -> Path:
        return searched(supernet, tmp_path_factory.mktemp("whole") / "run", *options, ranks=ranks)

    return found


@pytest.fixture(scope="module")
def begun(supernet: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A search of one generation that was killed before it; it must be left as it is."""
    folder = tmp_path_factory.mktemp("begun") / "run"
    line = [*BASE, *SHORT, "--supernet", str(supernet), "--run", str(folder)]
    run_up_to("evaluations.jsonl:2", SCRIPT, *line)
    return folder


def documents(folder: Path) -> dict[str, Any]:
    """All that a search found, without what was measured."""
    files = [folder / "best.json", *folder.glob("top/*.json"), *folder.glob("front/*.json")]
    found = {str(path.relative_to(folder)): json.loads(path.read_text()) for path in files}
    results = json.loads((folder / "results.json").read_text())
    del results["seconds"]
    return found | {"results": results}


def generations_of(folder: Path) -> list[dict[str, Any]]:
    """What metrics say of each generation, without what was measured."""
    measured = ("seconds", "networks_per_second", "new")
    lines = {line["step"]: line for line in read_metrics(folder / "metrics.jsonl")}
    return [{name: each for name, each in line.items() if name not in measured} for line in lines.values()]


def lines_of(folder: Path) -> list[str]:
    return (folder / "evaluations.jsonl").read_text().splitlines()


@pytest.mark.parametrize(
    ("options", "ranks"),
    [
        (["--method", "nsga2"], 1),
        (["--method", "regularised", "--breeding.brood", "4"], 1),
        ([], 2),
    ],
)
def test_killed_and_continued_equals_uninterrupted(
    options: list[str], ranks: int, whole: Whole, supernet: Path, tmp_path: Path
) -> None:
    expected = whole(*options, ranks=ranks)
    assert len({json.loads(line)["score"] for line in lines_of(expected)}) > 3, "scores do not differ"
    folder = tmp_path / "run"
    line = [*BASE, "--supernet", str(supernet), *options, "--run", str(folder)]
    run_up_to("evaluations.jsonl:3", SCRIPT, *line, ranks=ranks)
    path = folder / "evaluations.jsonl"
    kept = len(lines_of(folder))
    assert 0 < kept < len(lines_of(expected))
    path.write_bytes(path.read_bytes()[:-20])  # as a kill amid the last line leaves it
    searched(supernet, folder, *options, ranks=ranks)
    scored = [entry for entry in lines_of(folder) if entry.endswith("}")]
    assert sorted(scored) == sorted(lines_of(expected)), "something is scored twice, or otherwise"
    assert documents(folder) == documents(expected)
    assert generations_of(folder) == generations_of(expected)


def with_data_of_before(text: str, **options: Any) -> str:
    """A run's config.toml as it was written when [data] held all options of images."""
    start, _, _ = text.partition("[data]\n")
    return f"{start}[data]\n{to_toml(DataConfig(**options))}"


def test_a_run_of_before_the_data_options_became_few_goes_on(
    whole: Whole, begun: Path, supernet: Path, tmp_path: Path
) -> None:
    expected = whole(*SHORT)
    trained = from_toml(SupernetConfig, (supernet / "config.toml").read_text(), source="file").data
    for name, said in (("nothing said", {}), ("as trained", {"image_size": 16, "validation": 0.2})):
        folder = shutil.copytree(begun, tmp_path / name)
        path = folder / "config.toml"
        path.write_text(with_data_of_before(path.read_text(), **said))
        assert all(getattr(trained, option) == value for option, value in said.items())
        assert lines_of(searched(supernet, folder, *SHORT)) == lines_of(expected)
        again = tmp_path / f"{name}, again"
        done = run(SCRIPT, "--config", str(path), "--run", str(again))
        assert done.returncode == 0, done.stderr
        assert lines_of(again) == lines_of(expected)
    path.write_text(with_data_of_before(path.read_text(), validation=0.3))
    done = run(SCRIPT, "--config", str(path), "--run", str(tmp_path / "other"))
    assert done.returncode == 2
    assert "--data.validation: the supernet was trained with 0.2" in done.stderr


def test_an_end_that_was_cut_off_is_made_again(whole: Whole, supernet: Path, tmp_path: Path) -> None:
    expected = documents(shutil.copytree(whole(), tmp_path / "run"))
    (tmp_path / "run" / "results.json").unlink()
    (tmp_path / "run" / "metrics.jsonl").unlink()
    folder = searched(supernet, tmp_path / "run", "--top", "3")
    found = documents(folder)
    assert len(list(folder.glob("top/*.json"))) == 3
    assert len(generations_of(folder)) == 4
    assert found == {name: value for name, value in expected.items() if name in found}


def test_two_ranks_give_the_scores_of_one(whole: Whole) -> None:
    one, two = (whole(ranks=ranks) for ranks in (1, 2))
    assert lines_of(one) == lines_of(two)
    assert documents(one) == documents(two)


def test_the_seed_decides(whole: Whole, supernet: Path, tmp_path: Path) -> None:
    """That the same seed draws the same networks is seen where a search goes on."""
    one, other = whole(*SHORT), tmp_path / "other"
    searched(supernet, other, "--generations", "0", "--seed", "2")
    first = lines_of(other)
    assert lines_of(one)[: len(first)] != first
    scoring = [json.loads((folder / "scoring.json").read_text()) for folder in (one, other)]
    assert scoring[0] == scoring[1], "scores of different seeds must be of the same images"


def test_a_score_is_what_the_network_alone_gets(supernet: Path, tmp_path: Path) -> None:
    folder = searched(supernet, tmp_path / "run", *SHORT, "--scoring.validation-images", "100")
    net = load_supernet(supernet)
    config = from_toml(SupernetConfig, supernet_notes(supernet)["config"], source="notes")
    assert config.seed == 5
    data = load_data(config.data, config.seed)
    scoring = json.loads((folder / "scoring.json").read_text())
    chosen = torch.tensor(scoring["validation_images"])
    assert len(set(chosen.tolist())) == 100
    assert int(torch.bincount(data.validation.labels[chosen]).min()) >= 8, "classes are not in proportion"

    def batches(images: Any, size: int) -> Any:
        return eval_batches(images, data, DataConfig(), batch_size=size, device="cpu")

    taken = data.train.subset(torch.tensor(scoring["calibration_images"]))
    assert len(taken) == 64
    torch.set_num_threads(1)
    lines = [json.loads(line) for line in lines_of(folder)]
    for line in lines[:3] + lines[-3:]:
        architecture = Architecture(tuple(line["choices"]))
        chain = net.extract(architecture)
        calibrate(chain, batches(taken, 32))
        (batch,) = batches(data.validation.subset(chosen), 100)
        hits = int((chain.eval()(batch.images).argmax(1) == batch.targets).sum())
        assert line["score"] == hits / 100
        assert line["macs"] == net.space.macs(architecture) <= 420e3
        assert line["params"] == net.space.params(architecture)


def test_what_a_run_leaves_goes_into_retraining(whole: Whole, supernet: Path, tmp_path: Path) -> None:
    folder = whole("--method", "nsga2")
    space = load_supernet(supernet).space
    scored = read_evaluations(folder / "evaluations.jsonl", space)
    best = sorted(scored, key=lambda each: -each.score)[:3]
    for number, each in enumerate(best, start=1):
        _, found = load_architecture(folder / f"top/0{number}.json", num_classes=10, image_size=16)
        assert found == each.architecture
    assert (folder / "best.json").read_text() == (folder / "top/01.json").read_text()
    costs = [json.loads(path.read_text())["macs"] for path in sorted(folder.glob("front/*.json"))]
    assert costs == sorted(costs)
    for name in ("course", "front-macs", "operations"):
        assert (folder / f"{name}.png").stat().st_size > 10_000
    line = [*SMALL, "--architecture", str(folder / "best.json"), "--recipe.steps", "2"]
    done = run("retrain_model.py", *line, "--run", str(tmp_path / "retrained"))
    assert done.returncode == 0, done.stderr
    assert f"tiny/{best[0].architecture}" in done.stdout


def test_a_finished_search_is_shown_and_kept(whole: Whole, supernet: Path, tmp_path: Path) -> None:
    folder = shutil.copytree(whole(*SHORT), tmp_path / "run")
    before = lines_of(folder)
    line = [*BASE, "--supernet", str(supernet), "--run", str(folder)]
    assert len(list(folder.glob("top/*.json"))) == 10
    shown = run(SCRIPT, *line, "--generations", "1", "--top", "2")
    assert len(list(folder.glob("top/*.json"))) == 2
    assert shown.returncode == 0
    assert "is finished" in shown.stdout
    best = json.loads((folder / "results.json").read_text())["best"][0]
    assert f"best: {best['architecture']}, score {best['score']:.4f}, {best['macs']:,} MACs" in shown.stdout
    images = len(json.loads((folder / "scoring.json").read_text())["validation_images"])
    noise = 100 * math.sqrt(best["score"] * (1 - best["score"]) / images)
    told = f"its score is uncertain by {noise:.1f} points, over {images:,} validation images (standard error)"
    assert told in shown.stdout
    other = run(SCRIPT, *line, "--generations", "2")
    assert other.returncode == 2
    assert "--generations (was 1, is 2)" in other.stderr
    assert lines_of(folder) == before


def test_scores_of_another_supernet_are_not_mixed_in(supernet: Path, begun: Path, tmp_path: Path) -> None:
    other = tmp_path / "other.safetensors"
    content = bytearray((supernet / "weights.safetensors").read_bytes())
    content[-1] ^= 1
    other.write_bytes(content)
    done = run(SCRIPT, *BASE, *SHORT, "--supernet", str(other), "--run", str(begun))
    assert done.returncode == 2
    assert "was made with another supernet; name a new folder" in done.stderr


def test_other_searches_can_be_drawn_beside(whole: Whole, supernet: Path, tmp_path: Path) -> None:
    folder = shutil.copytree(whole(*SHORT), tmp_path / "run")
    runs = [tmp_path / seed / "random" for seed in ("0", "1")]
    for seed, place in enumerate(runs):
        searched(supernet, place, "--method", "random", "--generations", "0", "--seed", str(seed))
    before = (folder / "course.png").read_bytes()
    line = [*BASE, "--generations", "1", "--supernet", str(supernet), "--run", str(folder), "--compare"]
    done = run(SCRIPT, *line, *map(str, runs))
    assert done.returncode == 0, done.stderr
    assert (folder / "course.png").read_bytes() != before
    scoring = json.loads((runs[0] / "scoring.json").read_text())
    (runs[0] / "scoring.json").write_text(json.dumps(scoring | {"supernet_sha256": "0"}))
    done = run(SCRIPT, *line, str(runs[0]))
    assert done.returncode == 2
    assert f"--compare: the scores in '{runs[0]}' are of another supernet" in done.stderr


def test_a_table_of_other_costs_is_refused(supernet: Path, begun: Path, tmp_path: Path) -> None:
    table = json.loads((supernet / "costs.json").read_text())
    wrong = {
        "elsewhere": ({"space": "cream"}, "is of space cream"),
        "larger": ({"image_size": 32}, "is of space tiny at 32 pixels; the supernet is of tiny at 16"),
        "null": ({"fixed_seconds": None}, "a cost is None; it must be a finite number"),
    }
    for name, (change, says) in wrong.items():
        (tmp_path / f"{name}.json").write_text(json.dumps(table | change))
        line = [*BASE, "--supernet", str(supernet), "--costs", str(tmp_path / f"{name}.json")]
        done = run(SCRIPT, *line, "--run", str(tmp_path / "run"))
        assert done.returncode == 2
        assert says in done.stderr
    line = [*BASE, *SHORT, "--supernet", str(supernet), "--run", str(begun)]
    (tmp_path / "new.json").write_text(json.dumps(table | {"fixed_seconds": 1.0}))
    done = run(SCRIPT, *line, "--costs", str(tmp_path / "new.json"))
    assert done.returncode == 2
    assert "was made with another table of costs" in done.stderr


def test_weights_that_tell_nothing_of_their_training_are_searched_with_a_warning(tmp_path: Path) -> None:
    torch.manual_seed(0)
    net = Supernet(preset("tiny", num_classes=10, image_size=16))
    save_supernet(tmp_path / "bare.safetensors", net, {})
    line = [*BASE, "--supernet", str(tmp_path / "bare.safetensors"), "--generations", "0"]
    line += ["--data.image-size", "16", "--data.train-size", "640", "--data.test-size", "100"]
    done = run(SCRIPT, *line, "--run", str(tmp_path / "run"))
    assert done.returncode == 0, done.stderr
    assert "may be among those that it was trained on" in done.stdout


def test_what_is_as_cheap_as_the_best_includes_the_best(supernet: Path, tmp_path: Path) -> None:
    measured = load_measured(supernet / "costs.json")
    for limited in (latency(measured), activations(measured)):
        for each in preset("tiny", num_classes=10, image_size=16).architectures():
            printed = in_units(limited.name, limited.of(each))
            if limited.name == "latency":
                config = ArchitectureSearchConfig(max_latency=printed)
            else:
                config = ArchitectureSearchConfig(max_activations=printed)
            (limit,) = asked_limits(config, {limited.name: limited})
            assert limit.high == limited.of(each)


def test_measured_costs_can_be_limited(supernet: Path, tmp_path: Path) -> None:
    table = json.loads((supernet / "costs.json").read_text())
    most = 1e3 * (table["fixed_seconds"] + sum(map(max, table["seconds"])))
    least = 1e3 * (table["fixed_seconds"] + sum(map(min, table["seconds"])))
    folder = tmp_path / "run"
    line = [*BASE, "--supernet", str(supernet), "--population", "4", "--max-latency", str((least + most) / 2)]
    line += [
        *SHORT,
        "--max-activations",
        "0.2",
        "--method",
        "nsga2",
        "--breeding.objectives",
        "latency",
        "params",
    ]
    done = run(SCRIPT, *line, "--run", str(folder))
    assert done.returncode == 0, done.stderr
    assert table["device"] in done.stdout
    assert "hold for nothing else" in done.stdout
    for entry in map(json.loads, lines_of(folder)):
        exact = table["fixed_seconds"] + sum(
            row[choice] for row, choice in zip(table["seconds"], entry["choices"], strict=True)
        )
        assert entry["latency_ms"] == pytest.approx(1e3 * exact, abs=1e-3)
        assert 1e3 * exact <= (least + most) / 2 + 1e-9  # what is written down is rounded
        assert entry["activations_mib"] <= 0.2
    assert json.loads((folder / "results.json").read_text())["latency_of"]["device"] == table["device"]
    bare = tmp_path / "bare.safetensors"
    bare.write_bytes((supernet / "weights.safetensors").read_bytes())
    done = run(SCRIPT, *BASE, "--supernet", str(bare), "--max-latency", "5", "--run", str(tmp_path / "no"))
    assert done.returncode == 2
    assert "--max-latency: latency needs a table of measured costs" in done.stderr


def test_statistics_matter(supernet: Path, tmp_path: Path) -> None:
    line = [*PLACE, "--supernet", str(supernet), "--population", "4", "--generations", "0"]
    found = set()
    for statistics in ("cumulative", "ema", "supernet"):
        folder = tmp_path / statistics
        done = run(SCRIPT, *line, "--scoring.statistics", statistics, "--run", str(folder))
        assert done.returncode == 0, done.stderr
        found.add(tuple(lines_of(folder)))
    assert len(found) == 3


def test_a_signal_ends_a_search_in_good_order(whole: Whole, supernet: Path, tmp_path: Path) -> None:
    folder = tmp_path / "run"
    line = [*BASE, "--supernet", str(supernet), "--run", str(folder)]
    with Script(SCRIPT, *line, deadly="evaluations.jsonl:2", signum=signal.SIGTERM) as process:
        done = process.finish()
    assert done.returncode == 128 + signal.SIGTERM, done
    assert "stopped by SIGTERM; the scores of" in done.stderr
    expected = whole()
    assert 0 < len(lines_of(folder)) < len(lines_of(expected))
    searched(supernet, folder)
    assert documents(folder) == documents(expected)
    assert lines_of(folder) == lines_of(expected)


def mistakes() -> list[tuple[list[str], str]]:
    return [
        (["--supernet", "missing"], "--supernet: there is no file 'missing'"),
        (["--max-macs", "1e3"], "--max-macs: no architecture of tiny has at most 1,000 MACs; the cheapest, "),
        (["--max-macs", "190e3"], "and 8 are needed for a population"),
        (["--population", "900"], "--population: tiny has only 144 networks, and 900 are needed for"),
        (["--population", "900", "--max-macs", "9e9"], "--population: tiny has only 144 networks, and 900"),
        (["--max-params", "-1"], "--max-params: -1 is out of range"),
        (["--method", "annealing"], "--method: unknown value 'annealing'"),
        (["--method", "random", "--breeding.parents", "5"], "--breeding.parents: --method random does not"),
        (["--breeding.crossover", "two_point"], "--breeding.crossover: unknown value"),
        (["--breeding.mutation", "0"], "--breeding.mutation: 0 is out of range"),
        (["--method", "nsga2", "--breeding.objectives", "flops"], "--breeding.objectives: unknown value"),
        (["--scoring.statistics", "batch"], "--scoring.statistics: unknown value"),
        (["--scoring.momentum", "0.2"], "--scoring.momentum: --scoring.statistics cumulative does not look"),
        (
            ["--data.name", "cifar10", "--data.root", "x"],
            "--data.name: the supernet was trained with 'shapes'",
        ),
        (["--data.validation", "0.3"], "--data.validation: the supernet was trained with 0.2"),
        (["--costs", "missing.json"], "--costs: cannot read missing.json"),
        (["--compare", "missing"], "--compare: there are no scores in 'missing'"),
        (["--method", "exhaustive"], "--generations: --method exhaustive does not look at it"),
        (["--population", "1"], "--population: 1 is out of range"),
        (["--generation", "3"], "unknown option '--generation'; did you mean '--generations'?"),
    ]


@pytest.mark.parametrize(("options", "says"), mistakes(), ids=lambda value: " ".join(value)[:40])
def test_a_mistake_is_one_line(options: list[str], says: str, supernet: Path, tmp_path: Path) -> None:
    base = dict(zip(BASE[::2], BASE[1::2], strict=True)) | {"--supernet": str(supernet)}
    base |= dict(zip(options[::2], options[1::2], strict=True))
    done = run(SCRIPT, *[word for pair in base.items() for word in pair], "--run", str(tmp_path / "run"))
    assert done.returncode == 2, done
    assert says in done.stderr
    assert len(done.stderr.strip().splitlines()) == 1
    assert "Traceback" not in done.stderr


def test_lines_that_are_no_scores_are_refused(supernet: Path, begun: Path, tmp_path: Path) -> None:
    folder = shutil.copytree(begun, tmp_path / "run")
    with (folder / "evaluations.jsonl").open("a") as file:
        file.write('{"choices": [0, 0, 9, 0], "score": 0.5}\n')
    done = run(SCRIPT, *BASE, *SHORT, "--supernet", str(supernet), "--run", str(folder))
    assert done.returncode == 2
    assert "layer 3 of space tiny has candidates" in done.stderr


def test_the_options_say_that_they_are_whole() -> None:
    config = ArchitectureSearchConfig(method="nsga2")
    assert config.breeding.objectives == ("macs",)
    assert (config.population, config.generations, config.breeding.parents) == (50, 20, 10)
