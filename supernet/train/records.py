"""While a supernet is trained, probe architectures, shift and memory are recorded."""

import resource
import sys
from collections.abc import Iterable, Mapping
from typing import Any

import torch
from accelerate import Accelerator
from torch import Tensor
from torch.nn import functional as F

from local_learning.chain import Chain
from local_learning.losses import upcast
from supernet.additive import counted
from supernet.calibrate import calibrate
from supernet.sampling import sample, stream
from supernet.space import Architecture, Space
from supernet.supernet import Supernet
from supernet.train.config import SupernetConfig
from supernet.train.shift import Shift, representation_shift
from tools.exact_means import exact_means
from tools.images.datasets import Data, fixed_part, whole_batches
from tools.images.images import Images
from tools.images.loaders import Batch, eval_batches
from tools.similarity import off_diagonal_mean


def probes(space: Space, count: int, seed: int) -> list[Architecture]:
    """Return the cheapest architecture, the dearest, and `count` random ones, in their canonical form.

    They are the same for a seed.
    """
    rng = stream(seed, "probes")
    macs = counted(space.full, "macs")
    chosen = [macs.cheapest, macs.dearest]
    chosen += [sample(space, rng) for _ in range(count)]
    return list(dict.fromkeys(map(space.canonical, chosen)))


class Records:
    """These records evaluate a supernet on fixed images."""

    def __init__(self, config: SupernetConfig, data: Data, accelerator: Accelerator, space: Space) -> None:
        options = config.records
        self._accelerator = accelerator
        self._dtype = torch.float64 if config.precision == "fp64" else torch.float32
        self.probes = probes(space, options.probes, config.seed)

        def whole(split: Images, batch_size: int) -> Iterable[Batch]:
            device = accelerator.device
            return eval_batches(split, data, config.images, batch_size=batch_size, device=device)

        def some(split: Images, count: int, purpose: str) -> Images:
            return split.subset(fixed_part(split, count, config.seed, purpose))

        count, batch = whole_batches(data.train, options.calibration_images, options.calibration_batch)
        self._calibration = whole(some(data.train, count, "calibration"), batch)
        self._validation = eval_batches(
            some(data.validation, options.validation_images, "probe images"),
            data,
            config.images,
            batch_size=256,
            device=accelerator.device,
            rank=accelerator.process_index,
            world_size=accelerator.num_processes,
        )
        self._shift: Iterable[Batch] = ()
        seen = min(options.shift_images, len(data.validation))
        if seen >= 4:
            parts = -(-seen // 250)
            size = seen // parts
            self._shift = whole(some(data.validation, parts * size, "shift"), size)

    def accuracies(self, net: Supernet) -> dict[str, float]:
        """Return validation loss and top-1 of the probes, and their means.

        Each probe has BatchNorm statistics of its own.
        """
        of_probes: dict[str, float] = {}
        total: dict[str, float] = {}
        for architecture in self.probes:
            chain = net.extract(architecture)
            calibrate(chain, self._calibration)
            for name, value in self._score(chain).items():
                of_probes[f"{name}/{architecture}"] = value
                total[name] = total.get(name, 0.0) + value / len(self.probes)
        return total | of_probes

    def shift(self, net: Supernet) -> Shift:
        """Return the shift of every layer."""
        return representation_shift(net, (batch.images.to(self._dtype) for batch in self._shift))

    @property
    def compares(self) -> bool:
        """Whether there are images for the shift."""
        return self._shift != ()

    def _score(self, chain: Chain) -> dict[str, float]:
        def count(batch: Batch) -> Mapping[str, Tensor]:
            with self._accelerator.autocast():
                logits = chain(batch.images.to(self._dtype))
            return {
                "images": torch.tensor(len(batch.targets), device=logits.device),
                "validation_loss": F.cross_entropy(upcast(logits), batch.targets, reduction="sum"),
                "validation_top1": (logits.argmax(1) == batch.targets).sum(),
            }

        return exact_means(chain, count, self._validation)


def shift_metrics(shift: Shift) -> dict[str, float]:
    """Return the mean similarity between different modules of each layer, and the mean cosine over layers."""
    values: dict[str, float] = {}
    kinds = {"similarity": shift.outputs, "branch_similarity": shift.branches, "cka": shift.cka}
    for name, matrices in kinds.items():
        layers = [float(off_diagonal_mean(matrix)) for matrix in matrices]
        if name == "similarity":
            values[name] = sum(layers) / len(layers)
        values |= {f"{name}/{number}": value for number, value in enumerate(layers, start=1)}
    return values


def shift_line(shift: Shift) -> dict[str, Any]:
    """Return all matrices, as a line of shift.jsonl."""
    return {name: [matrix.tolist() for matrix in matrices] for name, matrices in shift._asdict().items()}


def peak_memory(device: torch.device) -> int:
    """Return the most bytes held: allocated on CUDA since the last reset, or by the process on a CPU."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit
