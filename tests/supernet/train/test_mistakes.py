"""What a user gets wrong is one line that says so."""

from pathlib import Path

import pytest
from safetensors.torch import save_file

from supernet.options import LayerwiseOptions
from supernet.presets import preset
from supernet.supernet import Supernet
from supernet.train.config import SupernetConfig
from tests.forked import run
from tests.script import SMALL

SCRIPT = "train_supernet.py"
MISTAKES = [
    (["--space", "tony"], "did you mean 'tiny'?"),
    (["--space", "missing.toml"], "cannot read missing.toml"),
    (["--strategy", "fairnas"], "--strategy: unknown value 'fairnas'"),
    (["--objective", "simclr"], "--objective: unknown value"),
    (["--objective", "infonce"], "--tail-steps: this training leaves the fc untrained"),
    (["--tail-steps", "5"], "--tail-steps: this training has trained the tail already"),
    (["--layerwise.partner", "all"], "--layerwise.partner: unknown value"),
    (["--strategy", "fair", "--paths.skip", "op"], "have 3, 4 (--paths.skip left_out counts the other way)"),
    (["--paths.max-macs", "1000"], "the cheapest has 188,544"),
    (["--paths.bin-macs", "10"], "--paths.bin-macs:"),
    (["--paths.min-macs", "300e3", "--paths.max-macs", "200e3"], "--paths.max-macs: must be over"),
    (["--paths.bin-macs", "0.5"], "--paths.bin-macs: 0.5 is out of range"),
    (["--strategy", "greedy", "--layerwise.partner", "layer"], "--layerwise.partner: --strategy greedy"),
    (["--strategy", "fair", "--paths.max-macs", "1e6"], "--paths.max-macs: --strategy fair"),
    (
        ["--contrast.temperature", "0.1"],
        "--contrast.temperature: --strategy spos by --objective cross_entropy",
    ),
    (["--recipe.accumulate", "2"], "--recipe.accumulate:"),
    (["--recipe.ema", "0.9"], "--recipe.ema:"),
    (["--recipe.batch-size", "1"], "--recipe.batch-size:"),
    (["--data.validation", "0"], "--data.validation:"),
    (["--records.calibration-images", "1"], "--records.calibration-images: 1 is out of range"),
    (["--weights", "missing.safetensors"], "--weights: there is no file 'missing.safetensors'"),
    (["--precision", "fp16"], "--precision: fp16 needs a CUDA device"),
    (["--spaces", "tiny"], "unknown option '--spaces'; did you mean '--space'?"),
]


@pytest.mark.parametrize(("options", "says"), MISTAKES, ids=lambda value: " ".join(value)[:40])
def test_a_mistake_is_one_line(options: list[str], says: str, tmp_path: Path) -> None:
    base = dict(zip(SMALL[::2], SMALL[1::2], strict=True)) | {"--space": "tiny", "--recipe.steps": "2"}
    base |= dict(zip(options[::2], options[1::2], strict=True))
    line = [word for pair in base.items() for word in pair]
    done = run(SCRIPT, *line, "--run", str(tmp_path / "run"))
    assert done.returncode == 2, done
    assert says in done.stderr
    assert len(done.stderr.strip().splitlines()) == 1, done.stderr


def test_a_space_file_names_what_is_wrong(tmp_path: Path) -> None:
    space = tmp_path / "mine.toml"
    space.write_text('[[stages]]\nops = ["mbconv_k4_e2"]\ndepth = 2\nout_chs = 12\n')
    done = run(SCRIPT, *SMALL, "--space", str(space), "--run", str(tmp_path / "run"))
    assert done.returncode == 2
    assert f"{space}: stages 1: ops: operation 'mbconv_k4_e2': kernels have an odd side" in done.stderr


@pytest.mark.slow
def test_weights_of_another_space_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "tiny.safetensors"
    save_file(Supernet(preset("tiny", num_classes=10, image_size=16)).state_dict(), path)
    given = ["--weights", str(path), "--run", str(tmp_path / "other")]
    other = run(SCRIPT, *SMALL, "--recipe.steps", "2", "--space", "nas_bench_macro", *given)
    assert other.returncode == 2
    assert "does not fit the network" in other.stderr


def test_what_a_strategy_leaves_untrained() -> None:
    local = LayerwiseOptions(last_decoder="local")
    greedy = SupernetConfig(strategy="greedy", layerwise=local, tail_steps=1)
    assert greedy.trains_tail_apart == "tail"
    both = SupernetConfig(strategy="greedy", layerwise=local, objective="infonce", tail_steps=1)
    assert both.trains_tail_apart == "tail"
    assert SupernetConfig(objective="infonce", tail_steps=1).trains_tail_apart == "fc"
    assert SupernetConfig().trains_tail_apart == ""


def test_half_precision_with_a_scaled_loss_updates_at_once() -> None:
    with pytest.raises(ValueError, match=r"layerwise\.update: fp16"):
        SupernetConfig(strategy="greedy", precision="fp16", layerwise=LayerwiseOptions(update="deferred"))
