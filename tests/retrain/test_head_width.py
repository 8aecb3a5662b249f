"""Which width heads have in a run, and that a search's decoupling trains the heads that it was found with."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from accelerate import Accelerator

from local_learning.decoupling import Decoupling, load_decoupling, save_decoupling
from retrain.config import RetrainConfig
from retrain.networks import choose_decoupling, make_net
from retrain.truth.config import TruthConfig
from search.cuts.config import DecouplingSearchConfig, SearchOptions
from search.cuts.findings import FinishedSearch, write_cut_findings
from search.cuts.networks import make_relaxed, settled
from search.evidence import Updates
from supernet.network.documents import save_architecture
from supernet.network.network import Network
from supernet.presets import preset
from supernet.space import Architecture
from tools.images.datasets import Data, load_data
from tools.images.options import DataConfig
from tools.options.config import of_run, to_toml
from tools.run.folder import Run

IMAGES = DataConfig(image_size=16, train_size=100, test_size=20)


@pytest.fixture(scope="module")
def data() -> Data:
    return load_data(IMAGES, 0)


@pytest.fixture
def file(tmp_path: Path) -> str:
    path = tmp_path / "found.json"
    save_architecture(path, Architecture((0, 3, 2, 1)), preset("tiny", num_classes=10, image_size=16))
    return str(path)


def width(config: RetrainConfig, data: Data) -> str | float:
    network = Network.chosen(config)
    chain = network.chain(data.num_classes, data.image_size, data.channels)
    return choose_decoupling(config, network, chain, data).head_width


@pytest.mark.parametrize("cut", ["uniform:2:aux1", "balanced:2:aux1"])
def test_papers_numbers_are_for_the_papers_networks(cut: str, file: str, data: Data) -> None:
    options = {"data": IMAGES, "decoupling": cut, "balance": "macs"}
    for network, usual in (
        ({"network": "resnet18", "width": 0.125}, "paper"),
        ({"network": "timm/test_efficientnet"}, "map"),
        ({"architecture": file}, "map"),
    ):
        assert width(RetrainConfig(**options, **network), data) == usual  # type: ignore[arg-type]
        asked = RetrainConfig(**options, **network, head_width="0.5")  # type: ignore[arg-type]
        assert width(asked, data) == 0.5


def test_a_file_is_trained_as_it_was_searched(file: str, data: Data, tmp_path: Path) -> None:
    path = tmp_path / "decoupling.json"
    for recorded in ("paper", "map", 0.25):
        save_decoupling(path, Decoupling((1,), ("aux1",), head_width=recorded))
        config = RetrainConfig(data=IMAGES, architecture=file, decoupling=str(path))
        assert width(config, data) == recorded
    asked = RetrainConfig(data=IMAGES, architecture=file, decoupling=str(path), head_width="paper")
    assert width(asked, data) == "paper"


@pytest.mark.parametrize("head_width", ["", "paper", "0.1"])
def test_what_a_search_finds_has_the_heads_that_it_searched_with(
    head_width: str, file: str, data: Data, tmp_path: Path
) -> None:
    run, accelerator = Run(tmp_path / "search"), Accelerator(cpu=True)
    run.path.mkdir()
    run.metrics_path.touch()
    config = DecouplingSearchConfig(
        architecture=file,
        data=DataConfig(image_size=16, train_size=100, test_size=20, validation=0.4),
        heads=("aux1", "conv1c2f"),
        head_width=head_width,
        search=SearchOptions(show=(2,)),
    )
    network = Network.of_run(config, run, accelerator)
    config = settled(config, network)
    assert config.head_width == (head_width or "map")
    net = make_relaxed(config, network, data, accelerator)
    alpha, beta = torch.zeros(2, 2), torch.zeros(2, 2)
    alpha[1, 0] = beta[1, 1] = 1.0
    updates = Updates([[(0, 0.1)]] * 20, [torch.zeros(2, 3, dtype=torch.float64)] * 20)
    write_cut_findings(run, config, network, net, data, [FinishedSearch(run, alpha, beta, updates)])
    path = run.path / "decoupling-2.json"
    assert (load_decoupling(path).cuts, load_decoupling(path).heads) == ((2,), ("conv1c2f",))
    training = RetrainConfig(data=IMAGES, architecture=file, decoupling=str(path))
    network = Network.chosen(training)
    chain = network.chain(data.num_classes, data.image_size, data.channels)
    trained = make_net(training, network, chain, choose_decoupling(training, network, chain, data), data)
    searched = net.get_submodule("heads.1.1").state_dict()
    assert trained.blocks[0].head is not None
    found = trained.blocks[0].head.state_dict()
    assert {name: value.shape for name, value in found.items()} == {
        name: value.shape for name, value in searched.items()
    }


@pytest.mark.parametrize("kind", [RetrainConfig, TruthConfig, DecouplingSearchConfig])
def test_a_run_of_before_goes_on_with_the_papers_heads(kind: type[Any]) -> None:
    given = kind is not DecouplingSearchConfig
    lines = to_toml(replace(kind(), decoupling="uniform:2:linear") if given else kind()).splitlines()
    named = "\n".join(lines)
    assert of_run(kind, named, source="config.toml").head_width == ""
    before = "\n".join(line for line in lines if not line.startswith("head_width"))
    assert of_run(kind, before, source="config.toml").head_width == "paper"
    if given:  # one without cuts has no heads
        whole = before.replace("uniform:2:linear", "")
        assert of_run(kind, whole, source="config.toml").head_width == ""
    if kind is TruthConfig:
        assert of_run(TruthConfig, before, source="config.toml").training().head_width == "paper"
