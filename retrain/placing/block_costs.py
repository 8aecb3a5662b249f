"""This module measures the costs of a network's blocks one by one on a device, and keeps them in a file."""

import copy
import math
import time
from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from local_learning.blocks import Block, DecoupledNet
from local_learning.rules.catalogue import RULES, RuleRow
from retrain.placing.forecast import BlockCost, BlockCosts, Line, Subject
from tools.batchnorm import frozen_statistics
from tools.cost import saved_activation_bytes
from tools.files.atomic import read_document, write_document
from tools.layout import use_channels_last
from tools.mistake import Mistake, quoted
from tools.optim import MakeOptimizer

_REPEATS = 5
"""The fastest of this many rounds counts; there are fewer if they take longer than ENOUGH seconds."""
ENOUGH = 10.0


def measure_block_costs(
    net: DecoupledNet,
    subject: Subject,
    make_optimizer: MakeOptimizer,
    *,
    device: torch.device,
    batch_sizes: tuple[int, int],
    autocast: Callable[[], AbstractContextManager[Any]],
) -> BlockCosts:
    """Measure times, sizes and activations of each block as its rule trains it, and of backpropagation.

    The net stays as it is and where it is; a copy of one block at a time is measured on the device. Each time
    is the best of several.
    """
    assert 0 < batch_sizes[0] < batch_sizes[1]
    dtype = next(net.parameters()).dtype
    gpus = [device] if device.type == "cuda" else []
    with torch.random.fork_rng(devices=gpus), torch.enable_grad():
        torch.manual_seed(0)
        bench = _Bench(RULES[subject.rule], make_optimizer, autocast)
        blocks = bench.measure_all(net, [_Batch.random(rows, subject, device, dtype) for rows in batch_sizes])
        batches = [_Batch.random(rows, subject, device, dtype) for rows in batch_sizes]
        whole = bench.measure(net.joined().blocks[0], batches, first=True, last=True)
    on_gpu = device.type == "cuda"
    return BlockCosts(
        **asdict(subject),
        device=torch.cuda.get_device_name(device) if on_gpu else "CPU",
        threads=0 if on_gpu else torch.get_num_threads(),
        batch_sizes=batch_sizes,
        image_bytes=math.prod(subject.image_shape) * dtype.itemsize,
        blocks=tuple(blocks),
        whole=whole,
    )


def block_seconds(
    net: DecoupledNet,
    subject: Subject,
    make_optimizer: MakeOptimizer,
    *,
    device: torch.device,
    rows: int,
    autocast: Callable[[], AbstractContextManager[Any]],
) -> list[float]:
    """Return the seconds that a step of each block takes alone, on so many rows."""
    dtype = next(net.parameters()).dtype
    with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []), torch.enable_grad():
        torch.manual_seed(0)
        batches = [_Batch.random(count, subject, device, dtype) for count in (max(1, rows // 2), rows)]
        costs = _Bench(RULES[subject.rule], make_optimizer, autocast).measure_all(net, batches)
    return [cost.passes.at(rows) + cost.update for cost in costs]


def save_block_costs(path: Path, costs: BlockCosts) -> None:
    """Write the costs of blocks to a file."""
    write_document(path, "block-costs", 1, asdict(costs))


def load_block_costs(path: Path) -> BlockCosts:
    """Read the costs of blocks from a file.

    Raises:
        ValueError: The file cannot be read as such; the message is one line that names the option and the
            file.
    """
    try:
        content = read_document(path, "block-costs", 1)
        del content["format"], content["version"]
        content["blocks"] = tuple(_block_cost(block) for block in content["blocks"])
        content["whole"] = _block_cost(content["whole"])
        for key in ("cuts", "heads", "groups", "image_shape", "batch_sizes"):
            content[key] = tuple(content[key])
        costs = BlockCosts(**content)
    except ValueError as error:
        raise Mistake("cluster.profile", quoted(error)) from None
    except (KeyError, TypeError, AttributeError) as error:
        raise Mistake("cluster.profile", f"{path} is not whole, or was changed: {error}") from None
    counts = (*costs.batch_sizes, costs.image_bytes, costs.threads, costs.num_layers)
    if len(costs.batch_sizes) != 2 or any(type(count) is not int for count in counts):
        raise Mistake("cluster.profile", f"{path} does not say at which two batch sizes it was measured")
    if not len(costs.blocks) == len(costs.cuts) + 1 == len(costs.groups):
        raise Mistake("cluster.profile", f"{path} has {len(costs.blocks)} blocks; its cuts say otherwise")
    return costs


def check_subject(path: Path, costs: BlockCosts, subject: Subject) -> None:
    """Refuse costs of another network, of other blocks, or of another way of training."""
    for name, wanted in asdict(subject).items():
        measured = getattr(costs, name)
        if measured != wanted:
            what = name.replace("_", " ").replace("num ", "number of ")
            raise Mistake(
                "cluster.profile",
                f"{path} was measured with {what} {_in_words(measured)}, not {_in_words(wanted)}",
                "name another file, to which new measurements are written",
            )


def _in_words(value: object) -> str:
    return (", ".join(map(str, value)) or "none") if isinstance(value, tuple) else str(value)


def _block_cost(content: dict[str, Any]) -> BlockCost:
    lines: dict[str, Any] = {name: Line(**content.pop(name)) for name in ("forward", "passes", "kept")}
    numbers = [*content.values(), *(x for line in lines.values() for x in (line.fixed, line.per_row))]
    for number in numbers:
        if type(number) not in (int, float) or not (math.isfinite(number) and number >= 0):
            raise TypeError(f"{number!r} is no cost")
    return BlockCost(**lines, **content)


# ---- measuring -----------------------------------------------------------------------------------------


@dataclass
class _Batch:
    """A batch on its way through the blocks."""

    images: Tensor
    targets: Tensor
    inputs: Tensor

    @classmethod
    def random(cls, rows: int, subject: Subject, device: torch.device, dtype: torch.dtype) -> "_Batch":
        images = torch.randn(rows, *subject.image_shape, device=device, dtype=dtype)
        images = images.contiguous(memory_format=torch.channels_last)
        return cls(images, torch.arange(rows, device=device) % subject.num_classes, images)

    @property
    def rows(self) -> int:
        return len(self.images)


@dataclass(frozen=True)
class _Bench:
    """A bench on which one block after the other is measured."""

    rule: RuleRow
    make_optimizer: MakeOptimizer
    autocast: Callable[[], AbstractContextManager[Any]]

    def measure_all(self, net: DecoupledNet, batches: list[_Batch]) -> list[BlockCost]:
        """Return the costs of every block."""
        last = len(net.blocks) - 1
        return [
            self.measure(block, batches, first=index == 0, last=index == last)
            for index, block in enumerate(net.blocks)
        ]

    def measure(self, block: Block, batches: list[_Batch], *, first: bool, last: bool) -> BlockCost:
        """Return the costs of a block; afterwards, the batches hold its outputs."""
        block = copy.deepcopy(block).to(batches[0].images.device).train()
        use_channels_last(block)
        optimizer = self.make_optimizer(block.parameters())
        for group in optimizer.param_groups:
            group["lr"] = 0.0  # weights that diverge would not be those of a real training

        def forward(batch: _Batch) -> Tensor:
            with torch.no_grad(), self.autocast():
                outputs: Tensor = block.layers(batch.inputs)
            # Accelerate returns the outputs of a trained block in full precision.
            return outputs if self.rule.forwards > 1 else outputs.to(batch.images.dtype)

        def train(batch: _Batch) -> None:
            inputs = batch.inputs.detach()
            if self.rule.errors_come_down and not first:
                inputs.requires_grad_()
            if block.head is None:
                with frozen_statistics(block), self.autocast():
                    outputs = block.layers(inputs)
                torch.autograd.backward(outputs, torch.ones_like(outputs))
            else:
                with self.autocast():
                    loss = block.loss(inputs, batch.targets, batch.images)[0]
                torch.autograd.backward(loss)

        def passes(batch: _Batch) -> None:
            if block.head is None:
                forward(batch)
            train(batch)

        def update() -> None:
            optimizer.step()
            optimizer.zero_grad()

        kept = []
        for batch in batches:
            # The input of a block is a leaf like its weights, but it takes memory of its own.
            kept.append(saved_activation_bytes(lambda batch=batch: train(batch), leaves=True))  # type: ignore[misc]
            optimizer.zero_grad()
        forwards, trained, updates = ([math.inf] * 2 for _ in range(3))
        begin = time.perf_counter()
        for number in range(_REPEATS):
            if number and time.perf_counter() - begin > ENOUGH:
                break
            for n, batch in enumerate(batches):
                forwards[n] = min(forwards[n], _seconds(lambda batch=batch: forward(batch), batch))  # type: ignore[misc]
                trained[n] = min(trained[n], _seconds(lambda batch=batch: passes(batch), batch))  # type: ignore[misc]
                updates[n] = min(updates[n], _seconds(update, batch))
        for batch in batches:
            batch.inputs = forward(batch)
        (small, large), outputs = (batch.rows for batch in batches), batches[-1].inputs
        state = (value for values in optimizer.state.values() for value in values.values())
        return BlockCost(
            forward=Line.through((small, forwards[0]), (large, forwards[1])),
            passes=Line.through((small, trained[0]), (large, trained[1])),
            update=min(updates),
            parameters=sum(p.nbytes for p in block.parameters() if p.requires_grad),
            optimizer=sum(value.nbytes for value in state if isinstance(value, Tensor)),
            kept=Line.through((small, kept[0]), (large, kept[1])),
            outputs=outputs.nbytes // large,
            elements=outputs.numel() // large,
        )


def _seconds(run: Callable[[], object], batch: _Batch) -> float:
    _wait(batch.images)
    start = time.perf_counter()
    run()
    _wait(batch.images)
    return time.perf_counter() - start


def _wait(tensor: Tensor) -> None:
    if tensor.is_cuda:
        torch.cuda.synchronize(tensor.device)
