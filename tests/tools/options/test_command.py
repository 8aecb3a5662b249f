"""How a script ends, in a line."""

from pathlib import Path
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


@pytest.mark.parametrize(
    ("script", "words", "says"),
    [
        ("train_supernet.py", "--weights gone", "--weights: there is no file 'gone'"),
        ("retrain_model.py", "--architecture gone", "--architecture: there is no file 'gone'"),
        ("search_architecture.py", "--supernet gone", "--supernet: there is no file 'gone'"),
        ("make_truth.py", "--architectures gone", "--architectures: there is no file 'gone'"),
        ("export_model.py", "--weights gone", "--weights: there is no file 'gone'"),
        ("retrain_model.py", "--data.name folder --data.root gone", "--data.root: gone is not a folder"),
        ("train_supernet.py", "--space tinny", "--space: space 'tinny' is unknown; did you mean 'tiny'?"),
        ("make_truth.py", "--space tinny", "--space: space 'tinny' is unknown; did you mean 'tiny'?"),
        (
            "retrain_model.py",
            "--network vgg91",
            "--network: network 'vgg91' is unknown; did you mean 'vgg19'?",
        ),
        ("search_decoupling.py", "--network none", "--network: network 'none' is unknown; the networks are "),
    ],
)
def test_files_and_names_are_looked_for_before_the_work_begins(
    script: str,
    words: str,
    says: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
) -> None:
    begun: list[Any] = []
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("sys.argv", [script, *words.split()])
    with pytest.raises(SystemExit, match=r"^2$"):
        main(config_of(script), begun.append, "")
    assert capfd.readouterr().err.startswith(f"{script}: {says}")
    assert not begun


def test_a_run_that_exists_goes_on_without_the_files_that_it_began_with(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    begun: list[Any] = []
    run = tmp_path / "run"
    run.mkdir()
    (run / "config.toml").touch()
    monkeypatch.setattr("sys.argv", ["retrain_model.py", "--weights", "gone", "--run", str(run)])
    main(config_of("retrain_model.py"), begun.append, "")
    assert [config.weights for config in begun] == ["gone"]
