"""This module writes the formats of an export, and runs each one to see what it computes."""

import importlib
import io
import logging
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from retrain.export.source import Restored, restore
from retrain.export.timm_folder import read_timm, timm_model, write_timm
from tools.files.atomic import write_bytes
from tools.mistake import Mistake
from tools.run.weights import save_tensors

Outputs = tuple[Tensor, ...]
Runner = Callable[[Tensor], Outputs]

ONNX_PACKAGES = ("onnx", "onnxscript", "onnxruntime")
PROTOBUF_BYTES = 2**31 - 2**20
"""An ONNX file is one protobuf message, which must be shorter than 2 GiB."""
FLOAT32 = 1e-4
"""Other runtimes compute in float32 in their own order, so logits may differ by this much.

It is relative to the largest logit: a network of a hundred layers may lose some hundred times 2**-24."""


@dataclass(frozen=True)
class WrittenFormat:
    """A `WrittenFormat` is a format that was written."""

    files: list[str]
    run: Runner
    """This runs the network that was read back from the files."""
    tolerance: float
    """The logits may differ by this much at most, relative to the largest one; at 0 no bit may differ."""
    notes: Mapping[str, Any]


@dataclass(frozen=True)
class ExportedNetwork:
    """An `ExportedNetwork` is the network that is exported."""

    restored: Restored
    network: nn.Module
    """The network is the trunk, or the trunk with its heads as exits."""
    exits: bool
    opset: int

    @property
    def outputs(self) -> list[str]:
        """Return the names of the network's outputs."""
        return self.restored.outputs if self.exits else ["logits"]


def check_packages(names: Sequence[str] = ONNX_PACKAGES, *, label: str = "`formats` onnx") -> None:
    """Refuse to begin an export that needs packages which are not installed."""
    for name in names:
        try:
            importlib.import_module(name)
        except ImportError:
            raise Mistake(
                label, f"needs {name}, which is not installed", "pip install -e '.[export]'"
            ) from None


def write_state(folder: Path, subject: ExportedNetwork) -> WrittenFormat:
    """Write the tensors of the plain module, with the notes from which the module is built."""
    restored = subject.restored
    notes = dict(restored.notes)
    if not subject.exits and restored.net.decoupling.groups == 1:
        notes["decoupling"] = {"cuts": [], "heads": []}
    path = folder / "state.safetensors"
    save_tensors(path, subject.network.state_dict(), notes)
    again = restore(path)
    network = again.with_exits() if subject.exits else again.trunk()
    return WrittenFormat([path.name], eager(network), 0.0, {})


def write_timm_folder(folder: Path, subject: ExportedNetwork) -> WrittenFormat:
    """Write a folder for timm.create_model."""
    model = timm_model(subject.restored)
    files = write_timm(folder / "timm", subject.restored, model)
    network = read_timm(folder / "timm")
    # A linear layer that becomes a convolution adds its products in another order.
    tolerance = 0.0 if model.exact else FLOAT32
    return WrittenFormat([f"timm/{name}" for name in files], eager(network), tolerance, {"model": model.name})


def write_torch_export(folder: Path, subject: ExportedNetwork) -> WrittenFormat:
    """Write a program of torch.export that takes batches of any size."""
    program = _program(subject)
    data = io.BytesIO()
    torch.export.save(program, data)
    path = folder / "network.pt2"
    write_bytes(path, data.getbuffer())
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="The given buffer is not writable")
        network = torch.export.load(path).module()
    return WrittenFormat([path.name], eager(network), FLOAT32, {})


def write_onnx(folder: Path, subject: ExportedNetwork) -> WrittenFormat:
    """Write an ONNX file that takes batches of any size."""
    if sum(tensor.nbytes for tensor in subject.network.state_dict().values()) > PROTOBUF_BYTES:
        raise Mistake("`formats` onnx", "a file of ONNX holds less than 2 GiB", "take state or torch_export")
    batch = ({0: torch.export.Dim("batch", min=1)},)
    logging.getLogger("torch.onnx").setLevel(logging.ERROR)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch warns about its own parts
        exported = torch.onnx.export(
            _program(subject),
            dynamo=True,
            opset_version=subject.opset,
            input_names=["images"],
            output_names=subject.outputs,
            dynamic_shapes=batch,
            verbose=False,
        )
    assert exported is not None
    path = folder / "network.onnx"
    write_bytes(path, exported.model_proto.SerializeToString())
    return WrittenFormat([path.name], read_onnx(path), FLOAT32, {"opset": subject.opset})


def read_onnx(path: Path) -> Runner:
    """Return a function that runs an ONNX file on the CPU."""
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = torch.get_num_threads()
    session = onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])

    def run(images: Tensor) -> Outputs:
        given = {"images": images.cpu().contiguous().numpy()}
        return tuple(map(torch.from_numpy, session.run(None, given)))

    return run


WRITERS: dict[str, Callable[[Path, ExportedNetwork], WrittenFormat]] = {
    "state": write_state,
    "timm": write_timm_folder,
    "onnx": write_onnx,
    "torch_export": write_torch_export,
}


def _program(subject: ExportedNetwork) -> torch.export.ExportedProgram:
    images = torch.zeros(2, *subject.restored.image_shape)  # with one image, the batch would be fixed
    batch = ({0: torch.export.Dim("batch", min=1)},)
    with torch.no_grad():
        return torch.export.export(subject.network, (images,), dynamic_shapes=batch)


def eager(network: nn.Module) -> Runner:
    """Return a function that runs a module and always returns a tuple."""

    @torch.no_grad()
    def run(images: Tensor) -> Outputs:
        outputs = network(images)
        return outputs if isinstance(outputs, tuple) else (outputs,)

    return run
