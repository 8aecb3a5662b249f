"""What a truth's run folder says of the trainings that are still to come."""

from pathlib import Path
from typing import Any

import pytest
from accelerate import Accelerator

from local_learning.decoupling import Decoupling, save_decoupling
from retrain.truth.config import TruthConfig
from retrain.truth.plan import KIND, VERSION, config_of, read_plan
from supernet.network.documents import save_architecture
from supernet.network.network import Network, kept_in_run
from supernet.presets import preset
from supernet.space import Architecture
from tools.files.atomic import write_document
from tools.run.folder import Run


def first_training(folder: Path, config: TruthConfig, kind: str, **more: Any) -> str:
    """With which weights of the classifier the first training of a plan begins."""
    networks = [{"choices": [0, 0, 0, 0], "name": "uniform:2:linear"}]
    content = {"kind": kind, "about": "tiny", "repeats": 1, "seed": 0, "networks": networks}
    write_document(folder / "plan.json", KIND, VERSION, content | more)
    run = Run(folder)
    plan = read_plan(run)
    return config_of(config, run, plan, plan.trials[0]).classifier_init


def test_all_networks_of_a_truth_begin_alike(tmp_path: Path) -> None:
    (tmp_path / "architectures").mkdir()
    space = preset("tiny", num_classes=10, image_size=16)
    save_architecture(tmp_path / "architectures/0001.json", Architecture((0, 0, 0, 0)), space)
    config = TruthConfig(space="tiny")
    assert first_training(tmp_path, config, "architectures", classifier_init="torch") == "torch"
    assert first_training(tmp_path, config, "architectures", classifier_init="timm") == "timm"
    # A plan of before the option says nothing, and its first networks began with timm's range.
    assert first_training(tmp_path, config, "architectures") == "timm"


@pytest.mark.parametrize(("architecture", "wanted"), [("a.json", "timm"), ("", "torch")])
def test_only_architectures_have_such_a_classifier(tmp_path: Path, architecture: str, wanted: str) -> None:
    (tmp_path / "decouplings").mkdir()
    save_decoupling(tmp_path / "decouplings/0001.json", Decoupling((1,), ("linear",)), "tiny", 5)
    config = TruthConfig(decouplings=("uniform:2:linear",), architecture=architecture)
    assert first_training(tmp_path, config, "decouplings") == wanted


@pytest.mark.parametrize("notes", [{}, {"stem": "unit"}, {"stem": "fused"}])
def test_the_cuts_of_a_truth_that_goes_on_stay_where_they_were(notes: dict[str, str], tmp_path: Path) -> None:
    """A run of before says nowhere how it counts: the stem as a layer, and one may cut right behind it."""
    cuts = (1, 3)
    for name in ("decouplings", "trainings/0001-0/checkpoints"):
        (tmp_path / name).mkdir(parents=True)
    (tmp_path / "trainings/0001-0/checkpoints/step-00000001.json").touch()
    space = preset("tiny", num_classes=10, image_size=16)
    save_architecture(tmp_path / "architecture.json", Architecture((0, 1, 2, 3)), space, **notes)
    file = tmp_path / "decouplings/0001.json"
    save_decoupling(file, Decoupling(cuts, ("linear", "linear")), "tiny/0123", 4, **notes)
    networks = [{"name": str(file), "cuts": list(cuts)}]
    content = {"kind": "decouplings", "about": "tiny/0123", "repeats": 1, "seed": 0, "networks": networks}
    write_document(tmp_path / "plan.json", KIND, VERSION, content)
    run = Run(tmp_path)
    config = TruthConfig(architecture="gone.json", decouplings=(str(file),))
    plan = read_plan(run)
    training = config_of(kept_in_run(config, run, Accelerator(cpu=True)), run, plan, plan.trials[0])
    assert training.stem == notes.get("stem", "unit")
    assert Network.chosen(training).cuts_of(training.decoupling).decoupling.cuts == cuts
