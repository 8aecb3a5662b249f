"""Exported networks, used as somebody without Cleave uses them, are the networks that were trained."""

import json
import re
import sys
from hashlib import sha256
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
import safetensors.torch
import torch
from torch import Tensor, nn

from local_learning.blocks import DecoupledNet, decouple
from local_learning.build import build_chain
from local_learning.decoupling import load_decoupling
from retrain.export.config import ExportConfig
from retrain.export.formats import check_packages
from supernet.network.documents import save_architecture, space_to
from supernet.presets import preset
from supernet.space import Architecture
from supernet.supernet import build_architecture
from tests.forked import run
from tests.retrain.conftest import Alone
from tests.retrain.export.exporting import save, shapes_images, train_a_little
from tests.retrain.export.test_timm_folder import own
from tests.script import SMALL
from tools.cost import count_macs, count_params
from tools.images.options import DataConfig

SCRIPT = "export_model.py"
WITH_IMAGES = """
import sys, numpy, torch
images = torch.from_numpy(numpy.load("images.npy")).contiguous(memory_format=torch.channels_last)
"""
WITH_TIMM = """
import timm
sys.path.insert(0, "timm")
import cleave_network
model = timm.create_model("local-dir:timm", pretrained=True).eval()
with torch.no_grad():
    numpy.save("found.npy", model(images).numpy())
"""
WITH_TORCH = """
program = torch.export.load("network.pt2").module()
for count in (1, 7, 40):
    found = program(images[:count])
    found = found if isinstance(found, tuple) else (found,)
    assert all(len(each) == count for each in found)
numpy.save("found.npy", numpy.stack([each.detach().numpy() for each in found]))
"""


def found_by(alone: Alone, program: str, folder: Path, images: Tensor) -> Any:
    """What a program in the exported folder, without Cleave, makes of images."""
    np.save(folder / "images.npy", images.contiguous().numpy())
    alone(WITH_IMAGES + program, folder)
    return torch.from_numpy(np.load(folder / "found.npy"))


def by_onnx(folder: Path, images: Tensor) -> list[Tensor]:
    session = onnxruntime.InferenceSession(str(folder / "network.onnx"), providers=["CPUExecutionProvider"])
    return [torch.from_numpy(each) for each in session.run(None, {"images": images.contiguous().numpy()})]


def train(folder: Path, *options: str) -> Path:
    few = [*SMALL, "--recipe.steps", "6", "--recipe.lr", "0.02"]
    done = run("retrain_model.py", *few, *options, "--run", str(folder))
    assert done.returncode == 0, done.stderr
    return folder


def export(*options: str) -> str:
    done = run(SCRIPT, *options)
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of an architecture with a skip."""
    folder = tmp_path_factory.mktemp("tiny")
    file = folder / "found.json"
    save_architecture(file, Architecture((2, 3, 0, 1)), preset("tiny", num_classes=10, image_size=16))
    return train(folder / "run", "--architecture", str(file))


@pytest.fixture(scope="module")
def exported(tiny: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str]:
    """That architecture in all formats, and what was printed."""
    out = tmp_path_factory.mktemp("exported") / "tiny"
    said = export(
        *("--run-of", str(tiny), "--formats", "state", "timm", "onnx", "torch_export"),
        *("--out", str(out), "--images", "9"),
    )
    return out, said


def train_in_blocks(folder: Path, groups: list[int]) -> Path:
    """A run in three blocks with heads; the file of cuts is gone."""
    cuts = folder / "cuts.json"
    content = {"format": "cleave/decoupling", "version": 1, "cuts": [1, 3], "heads": ["aux1", "predsim"]}
    cuts.write_text(json.dumps(content | {"groups": groups}))
    done = train(folder / "run", "--network", "vgg6a", "--width", "0.125", "--decoupling", str(cuts))
    cuts.unlink()
    return done


def own_net(run: Path, file: str) -> DecoupledNet:
    """The network of a run in blocks, built and filled here."""
    chain = build_chain("vgg6a", num_classes=10, image_size=16, width=0.125)
    net = decouple(chain, load_decoupling(run / "decoupling.json"), 10, 16)
    net.with_names().load_state_dict(safetensors.torch.load_file(run / file))
    return net.eval()


def assert_moved(net: nn.Module) -> None:
    norms = [each for each in net.modules() if isinstance(each, nn.BatchNorm2d)]
    assert norms
    assert all(each.running_mean is not None and each.running_mean.abs().max() > 0 for each in norms)


# ---- whole networks ------------------------------------------------------------------------------------


@pytest.mark.slow
def test_all_formats_of_an_architecture(tiny: Path, exported: tuple[Path, str], alone: Alone) -> None:
    space, architecture = preset("tiny", num_classes=10, image_size=16), Architecture((2, 3, 0, 1))
    out, said = exported
    net = build_architecture(space, architecture).eval()
    net.load_state_dict(safetensors.torch.load_file(out / "state.safetensors"), strict=True)
    trained = safetensors.torch.load_file(tiny / "best.safetensors")
    assert all(torch.equal(tensor, trained[name]) for name, tensor in net.state_dict().items())
    assert_moved(net)
    images = shapes_images(40, 16)
    with torch.no_grad():
        wanted = net(images)
    assert torch.equal(found_by(alone, WITH_TIMM, out, images), wanted)
    torch.testing.assert_close(found_by(alone, WITH_TORCH, out, images)[0], wanted, rtol=1e-6, atol=1e-6)
    for count in (1, 40):
        torch.testing.assert_close(by_onnx(out, images[:count])[0], wanted[:count], rtol=1e-4, atol=1e-5)
    (images_in,) = onnx.load(out / "network.onnx").graph.input
    assert [each.dim_value for each in images_in.type.tensor_type.shape.dim] == [0, 3, 16, 16]

    note = json.loads((out / "export.json").read_text())
    macs, params = space.macs(architecture), space.params(architecture)
    assert (note["macs"], note["torch_flops"], note["params"]) == (macs, 2 * macs, params)
    counts = note["fvcore_by_operator"]
    assert counts["conv"] + counts["linear"] == macs
    assert note["fvcore"] == sum(counts.values()) > macs
    assert note["weights_sha256"] == sha256((tiny / "best.safetensors").read_bytes()).hexdigest()
    assert (note["image_shape"], note["batch_sizes"]) == ([3, 16, 16], [1, 9])
    known = DataConfig().known
    assert (tuple(note["mean"]), tuple(note["std"])) == (known.mean, known.std)
    assert note["input"] == {
        **{"mode": "RGB", "resize": 16, "interpolation": "bilinear", "crop": 16, "range": [0, 1]},
        **{"mean": note["mean"], "std": note["std"]},
    }
    assert "in red, green and blue, the shorter side scaled to 16 pixels" in said
    assert note["compared_on"] == "9 test images of shapes"
    assert {name: each["tolerance"] == 0 for name, each in note["formats"].items()} == {
        "state": True, "timm": True, "onnx": False, "torch_export": False,
    }  # fmt: skip
    for each in note["formats"].values():
        assert each["difference"] <= each["tolerance"]
        assert all((out / file).exists() for file in each["files"])
    assert f"{params:,} params; for one image {macs:,} MACs" in said
    assert f"{2 * macs:,} FLOPs by torch" in said


@pytest.mark.slow
def test_the_programs_of_the_documentation_load_them(exported: tuple[Path, str], tmp_path: Path) -> None:
    (tmp_path / "exported").symlink_to(exported[0])
    text = Path("docs/export.md").read_text(encoding="utf-8")
    programs = re.findall(r"^```python\n(.*?)^```$", text, re.MULTILINE | re.DOTALL)
    programs = [each for each in programs if "PIL" not in each]  # that one is run in test_predict
    assert len(programs) == 5
    check = """
images = torch.rand(5, *shape)
with torch.no_grad():
    wanted = network(images)
    assert torch.equal(plain(images), wanted) and torch.equal(model(images), wanted)
    torch.testing.assert_close(program(images), wanted)
(found,) = session.run(None, {"images": images.numpy()})
torch.testing.assert_close(torch.from_numpy(found), wanted, rtol=1e-4, atol=1e-5)
"""
    begin = f"import os\nos.chdir({str(tmp_path)!r})\n"
    (tmp_path / "programs.py").write_text(begin + "\n".join(programs) + check)
    done = run(str(tmp_path / "programs.py"))
    assert done.returncode == 0, done.stderr


@pytest.mark.slow
def test_an_exported_state_can_be_exported(tiny: Path, tmp_path: Path) -> None:
    one, two = tmp_path / "one", tmp_path / "two"
    export("--run-of", str(tiny), "--which", "last", "--out", str(one))
    export("--weights", str(one / "state.safetensors"), "--out", str(two))
    assert (one / "state.safetensors").read_bytes() == (two / "state.safetensors").read_bytes()
    last = safetensors.torch.load_file(tiny / "weights.safetensors")
    assert all(
        torch.equal(last[name], each)
        for name, each in safetensors.torch.load_file(two / "state.safetensors").items()
    )


# ---- networks in blocks --------------------------------------------------------------------------------


@pytest.mark.slow
def test_heads_are_dropped(tmp_path: Path, alone: Alone) -> None:
    folder, out = train_in_blocks(tmp_path, groups=[1, 1, 1]), tmp_path / "exported"
    export("--run-of", str(folder), "--formats", "state", "torch_export", "--out", str(out))
    net = own_net(folder, "best.safetensors")
    assert_moved(net)
    chain = build_chain("vgg6a", num_classes=10, image_size=16, width=0.125).eval()
    chain.load_state_dict(safetensors.torch.load_file(out / "state.safetensors"), strict=True)
    images = shapes_images(40, 16)
    with torch.no_grad():
        assert torch.equal(chain(images), net(images))
        torch.testing.assert_close(
            found_by(alone, WITH_TORCH, out, images)[0], net(images), rtol=1e-6, atol=1e-6
        )
    note = json.loads((out / "export.json").read_text())
    assert (note["outputs"], note["macs"]) == (["logits"], count_macs(chain, (3, 16, 16)))


@pytest.mark.slow
def test_heads_are_kept_as_exits_of_blocks_and_of_neuron_groups(tmp_path: Path, alone: Alone) -> None:
    folder = train_in_blocks(tmp_path, groups=[2, 1, 1])
    out = tmp_path / "exported"
    export(
        *("--run-of", str(folder), "--which", "last", "--exits", "--out", str(out)),
        *("--formats", "state", "onnx", "torch_export"),
    )
    net = own_net(folder, "weights.safetensors")
    images = shapes_images(40, 16)
    with torch.no_grad():
        wanted = [logits for of_block in net.all_logits(images) for logits in of_block]
    assert len(wanted) == 4
    note = json.loads((out / "export.json").read_text())
    assert note["outputs"] == ["block_1_group_1", "block_1_group_2", "block_2", "logits"]
    assert note["params"] == count_params(net)
    graph = onnx.load(out / "network.onnx").graph
    assert [each.name for each in graph.output] == note["outputs"]
    for found in (found_by(alone, WITH_TORCH, out, images), by_onnx(out, images)):
        for theirs, ours in zip(found, wanted, strict=True):
            torch.testing.assert_close(theirs, ours, rtol=1e-4, atol=1e-4)
    net.with_names().load_state_dict(safetensors.torch.load_file(out / "state.safetensors"), strict=True)

    trunk = tmp_path / "trunk"
    export("--run-of", str(folder), "--out", str(trunk))
    again = tmp_path / "again"
    export("--weights", str(trunk / "state.safetensors"), "--out", str(again))
    assert (trunk / "state.safetensors").read_bytes() == (again / "state.safetensors").read_bytes()
    done = run(SCRIPT, "--run-of", str(folder), "--formats", "timm", "--out", str(tmp_path / "timm"))
    assert done.returncode == 2
    assert "vgg6a is no model of timm: its blocks are split into 2, 1, 1 neuron groups" in done.stderr


# ---- other sources -------------------------------------------------------------------------------------


@pytest.mark.slow
def test_images_that_cannot_be_read_are_generated(tmp_path: Path) -> None:
    torch.manual_seed(0)
    net = build_chain("mlp", num_classes=10, image_size=28, in_chs=1)
    train_a_little(net, shapes_images(30, 28)[:, :1])
    data = DataConfig(name="mnist", root=str(tmp_path / "gone"))
    path = save(tmp_path / "grey.safetensors", net, "mlp", data=data)
    said = export("--weights", str(path), "--out", str(tmp_path / "out"), "--images", "5")
    assert "the images of mnist cannot be read" in said
    note = json.loads((tmp_path / "out" / "export.json").read_text())
    assert note["compared_on"] == "5 generated images, as mnist could not be read"
    assert (note["image_shape"], note["mean"], note["std"]) == ([1, 28, 28], [0.1307], [0.3081])
    assert (tmp_path / "out" / "state.safetensors").exists()


@pytest.mark.slow
def test_nothing_is_left_of_an_export_that_fails(tiny: Path, tmp_path: Path) -> None:
    tensors = safetensors.torch.load_file(tiny / "best.safetensors")
    with safetensors.safe_open(tiny / "best.safetensors", "pt") as file:
        notes = file.metadata()
    bad = tmp_path / "bad.safetensors"
    tensors["classifier.fc.weight"][0] = torch.finfo().max  # finite, but its sums are not
    safetensors.torch.save_file(tensors, bad, notes)
    done = run(SCRIPT, "--weights", str(bad), "--out", str(tmp_path / "out"))
    assert done.returncode == 1
    assert "state: logits differ by inf from the network's on 32 test images of shapes" in done.stderr
    assert sorted(tmp_path.iterdir()) == [bad]


# ---- mistakes ------------------------------------------------------------------------------------------


MISTAKES = [
    ([], "--run-of: name a finished run of retrain_model.py, or a file by --weights"),
    (["--run-of", "{tmp}/none"], "--run-of: '{tmp}/none' is no run's folder"),
    (["--weights", "{tmp}/none"], "--weights: there is no file '{tmp}/none'"),
    (["--weights", "README.md"], "--weights: 'README.md' is not the weights of a run of retrain_model.py"),
    (["--run-of", "{run}", "--weights", "x"], "--weights: cannot go with --run-of; choose one"),
    (["--weights", "x", "--which", "last"], "--which: chooses from the files of --run-of"),
    (["--run-of", "{run}", "--which", "worst"], "--which: unknown value 'worst'; known: best, last"),
    (["--run-of", "{run}", "--formats", "onx"], "--formats: unknown value 'onx'; did you mean 'onnx'?"),
    (["--run-of", "{run}", "--formats"], "--formats: name one or more of state, timm, onnx, torch_export"),
    (["--run-of", "{run}", "--formats", "state", "state"], "--formats: state is there twice"),
    (["--run-of", "{run}", "--out", ""], "--out: name a folder"),
    (["--run-of", "{run}", "--out", "{run}"], "--out: '{run}' is there already, and not empty"),
    (["--run-of", "{run}", "--images", "1"], "--images: 1 is out of range; it must be at least 2"),
    (["--run-of", "{run}", "--opset", "9"], "--opset: 9 is out of range; it must be at least 18"),
    (["--run-of", "{run}", "--exits", "--formats", "timm"], "--exits: timm's networks have one output"),
    (["--run-of", "{run}", "--exits"], "has no auxiliary heads, only the classifier; leave it out"),
    (["--run-of", "{run}", "--format", "onnx"], "unknown option '--format'; did you mean '--formats'?"),
]  # fmt: skip


@pytest.mark.slow
@pytest.mark.parametrize(("options", "says"), MISTAKES, ids=[" ".join(each) for each, _ in MISTAKES])
def test_a_mistake_is_one_line(tiny: Path, tmp_path: Path, options: list[str], says: str) -> None:
    places = {"run": str(tiny), "tmp": str(tmp_path)}
    line = [word.format(**places) for word in options]
    done = run(SCRIPT, *line, *([] if "--out" in line else ["--out", str(tmp_path / "out")]))
    assert done.returncode == 2, done
    assert says.format(**places) in done.stderr
    assert len(done.stderr.strip().splitlines()) == 1
    assert not (tmp_path / "out").exists()


@pytest.mark.slow
def test_runs_that_are_not_ready(tiny: Path, tmp_path: Path) -> None:
    folder = tmp_path / "run"
    folder.mkdir()
    for name in ("config.toml", "weights.safetensors"):
        (folder / name).write_bytes((tiny / name).read_bytes())
    out = ["--out", str(tmp_path / "out")]
    done = run(SCRIPT, "--run-of", str(folder), *out)
    assert (done.returncode, "has not finished" in done.stderr) == (2, True)
    (folder / "results.json").write_bytes((tiny / "results.json").read_bytes())
    done = run(SCRIPT, "--run-of", str(folder), *out)
    assert done.returncode == 2
    assert f"--which: there is no file '{folder / 'best.safetensors'}'; take --which last" in done.stderr
    assert run(SCRIPT, "--run-of", str(folder), "--which", "last", *out).returncode == 0


@pytest.mark.parametrize("name", ["onnx", "onnxscript", "onnxruntime"])
def test_a_package_that_is_missing_is_named_with_its_cure(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, name, None)  # Python's own way of saying that it is not there
    cure = re.escape(f"formats onnx: needs {name}, which is not installed; pip install -e '.[export]'")
    with pytest.raises(ValueError, match=f"^{cure}$"):
        check_packages()


def test_what_timm_lacks_is_said_before_anything_is_written(tmp_path: Path) -> None:
    space = own(["shuffle_k3"])
    net = build_architecture(space, Architecture((0,)))
    path = save(
        tmp_path / "w.safetensors",
        net,
        "own/0",
        data=DataConfig(image_size=16),
        architecture={"space": space_to(space), "choices": [0]},
    )
    done = run(SCRIPT, "--weights", str(path), "--formats", "state", "timm", "--out", str(tmp_path / "out"))
    assert done.returncode == 2
    assert "layer 1 is shuffle_k3, for which timm's strings have no block; take state" in done.stderr
    assert not (tmp_path / "out").exists()


def test_options_can_be_said_one_by_one() -> None:
    config = ExportConfig(run_of="x", formats=("onnx", "state"), exits=True)
    config.check_source()
    assert config.formats == ("onnx", "state")
