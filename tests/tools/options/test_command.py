"""How a script ends, in a line."""

from typing import Any

import pytest

from tests.scripts import config_of
from tools.options.command import main

FEWER, STREAMED = "--data.train-size takes fewer of them", "--data.loader stream keeps them in their files"


@pytest.mark.parametrize(
    ("script", "advice"),
    [
        ("retrain_model.py", f"; where images fill it, {FEWER} and {STREAMED}"),
        ("rank_report.py", f"; where images fill it, {STREAMED}"),
        ("predict_images.py", ""),
        ("export_model.py", ""),
    ],
)
def test_where_memory_runs_out_a_script_advises_what_it_has(
    script: str, advice: str, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    class Left(Exception):
        pass

    def leave(code: int) -> None:
        raise Left(code)

    def run_out(_: Any) -> None:
        raise MemoryError("60 GiB")

    monkeypatch.setattr("os._exit", leave)
    monkeypatch.setattr("sys.argv", [script])
    with pytest.raises(Left, match=r"^1$"):
        main(config_of(script), run_out, "", bare=True)
    assert capfd.readouterr().err == f"{script}: out of memory (60 GiB){advice}\n"
