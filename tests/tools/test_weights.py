import json
from pathlib import Path

import pytest
import safetensors
import safetensors.torch
import torch
from torch import nn

from tools.weights import load_weights, read_weights, save_weights


class Toy(nn.Module):
    def __init__(self, classes: int) -> None:
        super().__init__()
        self.layers = nn.Conv2d(2, 4, 3)
        self.classifier = nn.Linear(4, classes)


def network(classes: int = 3) -> Toy:
    return Toy(classes)


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
