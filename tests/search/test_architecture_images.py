"""What a search takes from the weights of a supernet."""

from dataclasses import replace
from pathlib import Path

from search.architecture_images import data_options
from supernet.config import SupernetConfig
from supernet.presets import preset
from supernet.storage import save_supernet
from supernet.supernet import Supernet
from tools.config import to_toml
from tools.data import DataConfig


def test_options_that_are_refused_today_are_read_from_weights_of_yesterday(tmp_path: Path) -> None:
    config = replace(SupernetConfig(), seed=7, data=DataConfig(image_size=16, train_size=300))
    text = to_toml(config).replace("eps = 1e-08", "eps = 0.001")
    assert text != to_toml(config)
    net = Supernet(preset("tiny", num_classes=10, image_size=16))
    save_supernet(tmp_path / "weights.safetensors", net, {"config": text})
    data, seed, known = data_options(tmp_path / "weights.safetensors", DataConfig(), 0)
    assert (data.image_size, data.train_size, seed, known) == (16, 300, 7, True)
