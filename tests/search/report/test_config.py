"""The options of rank_report.py: what is refused, what runs are called, and options of before."""

from pathlib import Path

import pytest

from search.report.config import RankReportConfig
from tools.images.options import DataConfig
from tools.options.config import flatten, from_toml, parse, to_toml


def parsed(*arguments: str) -> RankReportConfig:
    return parse(RankReportConfig, arguments, prog="rank_report.py", description="")


def with_data_of_before(config: RankReportConfig, data: DataConfig) -> str:
    """A run's config.toml as it was written when [data] held all options of images."""
    start, _, _ = to_toml(config).replace("image_size = 0\n", "").partition("[data]\n")
    return f"{start}[data]\n{to_toml(data)}"


def test_a_config_of_before_the_data_options_became_few_is_taken(tmp_path: Path) -> None:
    made = RankReportConfig(supernet=("runs/spos",), truth="truth.csv")
    path = tmp_path / "config.toml"
    path.write_text(with_data_of_before(made, DataConfig()))
    assert parsed("--config", str(path)) == made
    path.write_text(with_data_of_before(made, DataConfig(name="cifar10", root="data", image_size=16)))
    config = parsed("--config", str(path), "--data.root", "other")
    assert flatten(config.data) == flatten(DataConfig(name="cifar10", root="other", image_size=16))
    assert from_toml(RankReportConfig, to_toml(config), source="text") == config


@pytest.mark.parametrize(
    ("flags", "size"),
    [
        ([], 32),
        (["--image-size", "16"], 16),
        (["--data.image-size", "16"], 16),
        (["--data.name", "mnist", "--data.root", "x"], 28),
    ],
)
def test_a_space_is_for_images_of_one_size(flags: list[str], size: int) -> None:
    assert parsed("--space", "tiny", "--truth", "truth.csv", *flags).space_size == size
