import json
import os
import re
import subprocess
import sys
from hashlib import sha256
from pathlib import Path

import pytest
import safetensors
import safetensors.torch
import torch
from torch import nn

from tools.run.weights import load_weights, read_notes, read_weights, save_weights, write_tensors


class Toy(nn.Module):
    def __init__(self, classes: int) -> None:
        super().__init__()
        self.layers = nn.Conv2d(2, 4, 3)
        self.classifier = nn.Linear(4, classes)


def network(classes: int = 3) -> Toy:
    return Toy(classes)


NOTES = {
    "network": "toy",
    "classes": ["ä", "b"],
    "config": "seed = 1",
    "step": 3,
    "decoupling": {"cuts": [1]},
}
ONE_WRITER = """
import sys
from pathlib import Path
from tests.tools.run.test_weights import NOTES, network
from tools.run.weights import load_weights, read_weights, save_weights

net, given = network(), Path(sys.argv[2])
load_weights(net, read_weights(given), source=given)
save_weights(Path(sys.argv[1]), net, NOTES)
"""


def test_the_same_weights_are_the_same_bytes_in_every_process(tmp_path: Path) -> None:
    net, sums = network(), set()
    for number in range(20):
        notes = dict(list(NOTES.items())[:: 1 - 2 * (number % 2)])
        save_weights(tmp_path / "here.safetensors", net, notes)
        sums.add(sha256((tmp_path / "here.safetensors").read_bytes()).hexdigest())
    writers = [
        subprocess.Popen(
            [sys.executable, "-c", ONE_WRITER, str(tmp_path / seed), str(tmp_path / "here.safetensors")],
            env=os.environ | {"PYTHONHASHSEED": seed, "PYTHONPATH": os.getcwd(), "OMP_NUM_THREADS": "1"},
        )
        for seed in ("1", "2")
    ]
    for seed, writer in zip(("1", "2"), writers, strict=True):
        assert writer.wait() == 0
        sums.add(sha256((tmp_path / seed).read_bytes()).hexdigest())
    assert len(sums) == 1


def test_the_order_of_the_notes_is_all_that_differs_from_the_librarys_own_file(tmp_path: Path) -> None:
    tensors = {"b": torch.rand(3, 4).t(), "a": torch.arange(5), "ä": torch.ones(1, dtype=torch.float16)}
    notes = {key: json.dumps(value) for key, value in NOTES.items()}
    ours, theirs = tmp_path / "ours.safetensors", tmp_path / "theirs.safetensors"
    for given in (notes, None):
        write_tensors(ours, tensors, given)
        safetensors.torch.save_file({n: each.contiguous() for n, each in tensors.items()}, theirs, given)
        assert sorted(ours.read_bytes()) == sorted(theirs.read_bytes())
        assert read_notes(ours) == read_notes(theirs) == (NOTES if given else {})
        found = read_weights(theirs)  # as files of before were
        assert read_weights(ours).keys() == found.keys()
        assert all(torch.equal(each, found[name]) for name, each in read_weights(ours).items())
    assert ours.read_bytes() == theirs.read_bytes()  # without notes


def test_weights_are_written_in_one_place_alone() -> None:
    house = Path(__file__).resolve().parents[3]
    writers = re.compile(r"safetensors\.(torch|numpy)\.save|serialize_file|save_model")
    for package in ("tools", "local_learning", "supernet", "search", "retrain"):
        for path in (house / package).rglob("*.py"):
            count = len(writers.findall(path.read_text("utf-8")))
            assert count == (path == house / "tools/run/weights.py"), path


@pytest.mark.parametrize("name", ["w.safetensors", "w.pt", "wrapped.pth"])
def test_weights_come_back_whatever_their_layout(tmp_path: Path, name: str) -> None:
    torch.manual_seed(0)
    net, path = network(), tmp_path / name
    net.layers.weight.data = net.layers.weight.data.clone(memory_format=torch.channels_last)
    if name == "w.safetensors":
        save_weights(path, net, {"network": "toy", "classes": ["a", "b"]})
        with safetensors.safe_open(path, "pt") as file:
            assert file.metadata()["format"] == "cleave/weights"
            assert json.loads(file.metadata()["classes"]) == ["a", "b"]
    else:
        torch.save({"state_dict": net.state_dict()} if "wrapped" in name else net.state_dict(), path)
    other = network()
    load_weights(other, read_weights(path), source=path)
    for mine, theirs in zip(net.parameters(), other.parameters(), strict=True):
        assert torch.equal(mine, theirs)


def test_weights_that_do_not_fit_say_where() -> None:
    net, source = network(), Path("w.safetensors")
    tensors = dict(network(5).state_dict())
    with pytest.raises(ValueError, match=r"classifier.weight has shape \(5, 4\), the network's is \(3, 4\)"):
        load_weights(net, tensors, source=source)
    load_weights(net, tensors, source=source, skip=("classifier.",))
    assert torch.equal(net.layers.weight, tensors["layers.weight"])
    del tensors["layers.bias"]
    with pytest.raises(ValueError, match=r"it lacks layers\.bias"):
        load_weights(net, tensors, source=source)
    tensors["layers.bias"] = tensors["layers.scale"] = torch.zeros(4)
    with pytest.raises(ValueError, match=r"the network lacks: layers\.scale"):
        load_weights(net, tensors, source=source)


class Payload:
    def __reduce__(self) -> tuple[object, tuple[str]]:
        return print, ("code out of a file has run",)


@pytest.mark.parametrize("name", ["w.safetensors", "w.pt"])
def test_foreign_files_are_refused_and_run_nothing(
    tmp_path: Path, name: str, capfd: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / name
    with pytest.raises(ValueError, match="there is no file"):
        read_weights(path)
    torch.save({"weight": Payload()}, path)
    with pytest.raises(ValueError, match=r"cannot read .* as weights"):
        read_weights(path)
    torch.save({"step": 3}, tmp_path / "w.pt")
    with pytest.raises(ValueError, match="something other than named tensors"):
        read_weights(tmp_path / "w.pt")
    assert "has run" not in capfd.readouterr().out


def test_weights_of_a_later_version_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "w.safetensors"
    safetensors.torch.save_file(
        {"weight": torch.zeros(1)}, path, {"format": "cleave/weights", "version": "2"}
    )
    with pytest.raises(ValueError, match="version 2 of cleave/weights is not known here"):
        read_weights(path)
