"""Architectures of a space are trained, cut and searched like any other network."""

import json
from pathlib import Path

import pytest
import safetensors
import torch

from retrain.config import RetrainConfig
from retrain.truth.config import TruthConfig
from search.cuts.config import DecouplingSearchConfig
from supernet.network.documents import load_architecture, save_architecture
from supernet.network.network import Network
from supernet.presets import preset
from supernet.space import Architecture
from supernet.supernet import build_architecture
from tests.forked import run, run_up_to
from tests.script import SMALL, weights
from tools.options.config import from_toml, to_toml
from tools.run.folder import Run
from tools.run.weights import load_weights
from tools.seeding import seed_globals

CHOICES = Architecture((0, 3, 2, 1))
FEW = [*SMALL, "--recipe.steps", "4", "--recipe.lr", "0.02"]


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "found.json"
    save_architecture(path, CHOICES, preset("tiny", num_classes=1000, image_size=224))
    return path


@pytest.mark.slow
def test_it_trains_whole_and_in_pieces(file: Path, tmp_path: Path) -> None:
    space = preset("tiny", num_classes=10, image_size=16)
    for name, options in {
        "whole": [],
        "pieces": ["--decoupling", "uniform:2:linear", "--dropout", "0.2"],
    }.items():
        folder = tmp_path / name
        done = run("retrain_model.py", *FEW, "--architecture", str(file), *options, "--run", str(folder))
        assert done.returncode == 0, done.stderr
        assert f"tiny/0321 ({space.params(CHOICES):,} params, {space.macs(CHOICES):,} MACs)" in done.stdout
    trained = weights(tmp_path / "whole")
    chain = build_architecture(space, CHOICES)
    load_weights(chain, trained, source=file)
    loaded = chain.state_dict()
    assert all(torch.equal(loaded[name], value) for name, value in trained.items())
    cuts = json.loads((tmp_path / "pieces" / "decoupling.json").read_text())
    assert (cuts["network"], cuts["num_layers"], cuts["cuts"]) == ("tiny/0321", 3, [1])


@pytest.mark.parametrize("kind", [RetrainConfig, TruthConfig, DecouplingSearchConfig])
@pytest.mark.parametrize(("architecture", "began"), [("found.json", "timm"), ("", "torch")])
def test_a_run_of_before_that_goes_on_says_how_its_classifier_began(
    kind: type[RetrainConfig], architecture: str, began: str, tmp_path: Path
) -> None:
    asked, run = kind(architecture=architecture), Run(tmp_path)
    run.checkpoints.mkdir()
    (run.checkpoints / "step-00000001.json").touch()
    lines = to_toml(asked).splitlines()
    run.config_path.write_text("\n".join(line for line in lines if not line.startswith("classifier_init")))
    for _ in range(2):  # the first start writes the options of today, the second reads them
        config = run.continued(asked)
        run.open(config, free=())
        run.close()
        assert from_toml(kind, run.config_path.read_text(), source="config.toml").classifier_init == began


@pytest.mark.parametrize("classifier_init", ["torch", "timm"])
def test_its_classifier_begins_as_asked_for(file: Path, classifier_init: str) -> None:
    config = RetrainConfig(architecture=str(file), classifier_init=classifier_init, seed=4)
    chain = Network.chosen(config).chain(10, 16, 3)
    seed_globals(4, "init")
    space = preset("tiny", num_classes=10, image_size=16)
    wanted = build_architecture(space, CHOICES, classifier_init=classifier_init).state_dict()
    assert all(torch.equal(value, wanted[name]) for name, value in chain.state_dict().items())
    assert bool(chain.classifier.get_parameter("fc.bias").any()) == (classifier_init == "torch")


@pytest.mark.slow
def test_a_run_keeps_its_architecture_whatever_becomes_of_the_file(file: Path, tmp_path: Path) -> None:
    folder = tmp_path / "run"
    line = [*FEW, "--recipe.checkpoint-every", "2", "--architecture", str(file), "--run", str(folder)]
    run_up_to("step-00000004.json", "retrain_model.py", *line)
    file.unlink()
    done = run("retrain_model.py", *line)
    assert done.returncode == 0, done.stderr
    _, kept = load_architecture(folder / "architecture.json", num_classes=10, image_size=16)
    assert kept == CHOICES
    with safetensors.safe_open(folder / "weights.safetensors", "pt") as opened:
        notes = json.loads(opened.metadata()["architecture"])
    assert (notes["space"]["name"], notes["choices"], notes["stem"]) == ("tiny", [0, 3, 2, 1], "fused")


def forget_the_count(folder: Path) -> None:
    """Make a run's files those of a time when all counted the stem's layers, and none said so."""
    for path in folder.glob("*.json"):
        document = json.loads(path.read_text())
        if document.pop("stem", None):
            path.write_text(json.dumps(document))
    options = (folder / "config.toml").read_text()
    (folder / "config.toml").write_text(options.replace('stem = "unit"', 'stem = "fused"'))


@pytest.mark.slow
def test_a_run_of_before_goes_on_with_its_stem_apart(file: Path, tmp_path: Path) -> None:
    line = [*FEW, "--recipe.checkpoint-every", "2", "--architecture", str(file)]
    line += ["--decoupling", "uniform:2:linear"]
    whole, stopped = tmp_path / "whole", tmp_path / "stopped"
    assert run("retrain_model.py", *line, "--stem", "unit", "--run", str(whole)).returncode == 0
    run_up_to("step-00000004.json", "retrain_model.py", *line, "--stem", "unit", "--run", str(stopped))
    forget_the_count(stopped)
    done = run("retrain_model.py", *line, "--run", str(stopped))
    assert done.returncode == 0, done.stderr
    assert "cut after 2" in done.stdout
    expected, found = weights(whole), weights(stopped)
    assert list(expected) == list(found)
    assert all(torch.equal(expected[name], found[name]) for name in expected)
    # What it leaves is read by a run that counts the stem with the first layer.
    forget_the_count(whole)
    options = ["--decoupling", str(whole / "decoupling.json")]
    options += ["--weights", str(whole / "weights.safetensors"), "--recipe.steps", "1"]
    after = tmp_path / "after"
    done = run(
        "retrain_model.py",
        *line[:-2],
        *options,
        "--recipe.lr",
        "1e-9",
        "--recipe.min-lr",
        "0",
        "--run",
        str(after),
    )
    assert done.returncode == 0, done.stderr
    cuts = json.loads((after / "decoupling.json").read_text())
    assert (cuts["num_layers"], cuts["cuts"], cuts["stem"]) == (3, [1], "fused")
    first = "layers.0.stem.0.conv.weight"
    torch.testing.assert_close(weights(after)[first], expected["layers.0.conv.weight"])


@pytest.mark.slow
def test_its_cuts_are_searched(file: Path, tmp_path: Path) -> None:
    few = [
        "--heads",
        "linear",
        "aux1",
        "--search.steps",
        "2",
        "--search.inner-steps",
        "1",
    ]
    few += ["--search.validation-batch", "32", "--search.show", "2"]
    folder = tmp_path / "run"
    done = run("search_decoupling.py", *FEW, *few, "--architecture", str(file), "--run", str(folder))
    assert done.returncode == 0, done.stderr
    found = json.loads((folder / "decoupling-2.json").read_text())
    assert (found["network"], found["num_layers"], found["stem"]) == ("tiny/0321", 3, "fused")
    learned = json.loads((folder / "relaxation.json").read_text())
    assert (len(learned["alpha"]), learned["stem"]) == (2, "fused")
    # A search of before has learned about the bare stem too.
    forget_the_count(folder)
    line = [*FEW, *few, "--architecture", str(file), "--run", str(tmp_path / "other")]
    done = run("search_decoupling.py", *line, "--search.pretrained-run", str(folder))
    assert done.returncode == 2
    assert "was pretrained with other options: --stem ('unit' there)" in done.stderr


@pytest.mark.parametrize(
    ("options", "says"),
    [
        (["--network", "vgg19"], "--network: cannot go with --architecture"),
        (["--width", "0.5"], "--width: goes with --network; the file of --architecture says it all"),
        (["--decoupling", "published:4"], "tiny/0321"),
    ],
)
def test_what_does_not_go_together_is_refused(
    file: Path, tmp_path: Path, options: list[str], says: str
) -> None:
    line = [*FEW, "--architecture", str(file), *options, "--run", str(tmp_path / "run")]
    done = run("retrain_model.py", *line)
    assert done.returncode == 2
    assert says in done.stderr
    assert len(done.stderr.strip().splitlines()) == 1


def test_a_file_that_is_none_is_named(tmp_path: Path) -> None:
    missing = tmp_path / "none.json"
    done = run("retrain_model.py", *FEW, "--architecture", str(missing), "--run", str(tmp_path / "run"))
    assert done.returncode == 2
    assert f"--architecture: there is no file '{missing}'" in done.stderr
