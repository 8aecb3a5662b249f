"""What the processes of a run of blocks are given before they begin."""

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from retrain.config import RetrainConfig
from retrain.pipeline import setup
from tools.options.config import parse
from tools.run.folder import Run

WORDS = ["--decoupling", "uniform:3:aux1", "--parallel", "blocks"]


@pytest.mark.parametrize(("words", "patience"), [([], 28.0), (["--pipeline.patience", "7"], 7.0)])
def test_processes_watch_each_other_as_long_as_the_options_say(
    words: list[str], patience: float, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Made(Exception):
        pass

    def watchdog(**options: Any) -> None:
        raise Made(options["patience"])

    monkeypatch.setattr(setup, "on_main", lambda *_: None)
    monkeypatch.setattr(setup, "load_placement", lambda _: None)
    monkeypatch.setattr(setup, "role_of", lambda *_: SimpleNamespace(control=object()))
    monkeypatch.setattr(setup, "Watchdog", watchdog)
    net: Any = SimpleNamespace(blocks=[None] * 3)
    ranks: Any = SimpleNamespace(process_index=0)
    data: Any = None
    config = parse(RetrainConfig, [*WORDS, *words], prog="x", description="")
    with pytest.raises(Made, match=rf"^{patience}$"):
        setup.block_setup(net, config, "a network", data, Run(tmp_path), ranks)
