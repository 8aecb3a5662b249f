"""This module scores a supernet's networks, all of them at once.

Networks that begin with the same candidates share their beginning, for BatchNorm statistics as in
validation. In training mode a layer normalises by the batch. So its activations, and with them its
statistics, depend on nothing behind it. The numbers are those of each network extracted, calibrated and
validated alone, bit for bit.
"""

import copy
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import AbstractContextManager, nullcontext
from itertools import chain
from typing import Any

import torch
from torch import Tensor, nn

from search.trie import Work, shared_out, work
from supernet.calibrate import gathering, images_of
from supernet.space import Architecture
from supernet.supernet import Supernet
from tools.options.config import check_range

Batches = Iterable[Sequence[Any]]


class SubnetEvaluator:
    """This evaluator gives the fraction of validation images that networks of a supernet classify correctly.

    Batches begin with images and targets, and must come again in the same order each time they are read.
    Those of an iterator are kept. Each batch is taken once for all networks, and no score is computed
    twice. Without calibration batches the statistics are those of the supernet. With a `momentum` they are
    moving averages instead of means over the batches. Where processes work together, each must ask for the
    same networks, and each takes its share.
    """

    def __init__(
        self,
        supernet: Supernet,
        calibration_batches: Batches,
        validation_batches: Batches,
        *,
        momentum: float | None = None,
        autocast: Callable[[], AbstractContextManager[None]] = nullcontext,
        on_batch: Callable[[], None] = lambda: None,
    ) -> None:
        if momentum is not None:
            check_range("momentum", momentum, 0, 1, open_low=True)
        self._net = supernet
        self._calibration = _repeatable(calibration_batches)
        self._validation = _repeatable(validation_batches)
        self._momentum, self._autocast, self._on_batch = momentum, autocast, on_batch
        self.scores: dict[Architecture, float] = {}
        """All scores that are known. Add those that another evaluator with equal batches computed."""
        self.work = Work(0, 0, 0, 0)
        """What one image takes through the networks of the last call that were not known before."""

    @torch.inference_mode(False)  # inference tensors lack the counts by which writes into inputs are noticed
    def __call__(self, architectures: Iterable[Architecture]) -> list[float]:
        """Return the architectures' scores, in their order."""
        wanted = list(architectures)
        for architecture in wanted:
            self._net.space.validate(architecture)
        new = sorted(set(wanted) - self.scores.keys(), key=lambda architecture: architecture.choices)
        self.work = work(new, self._net.space)
        if new:
            self.scores |= self._shared(new)
        return [self.scores[architecture] for architecture in wanted]

    def _shared(self, architectures: list[Architecture]) -> dict[Architecture, float]:
        """Compute scores, with all processes taking a share."""
        if not torch.distributed.is_initialized() or torch.distributed.get_world_size() == 1:
            return self._scored(architectures)
        rank, world = torch.distributed.get_rank(), torch.distributed.get_world_size()
        mine = self._scored(shared_out(architectures, self._net.space, world)[rank])
        scores = torch.tensor([mine.get(known, 0.0) for known in architectures], dtype=torch.float64)
        scores = scores.to(next(self._net.parameters()).device)
        torch.distributed.all_reduce(scores)
        return dict(zip(architectures, scores.tolist(), strict=True))

    @torch.no_grad()
    def _scored(self, architectures: Sequence[Architecture]) -> dict[Architecture, float]:
        root = _Node("the stem", nn.Sequential(*self._net.stem))
        leaves = {architecture: self._leaf(root, architecture) for architecture in architectures}
        nodes = list(root.all())
        batches = iter(self._calibration if leaves else ())
        first = next(batches, None)
        if first is not None:
            with gathering([node.module for node in nodes], self._momentum):
                for batch in chain([first], batches):
                    self._run(root, batch, counts=False)
        for node in nodes:
            node.module.eval()
        seen = 0
        for batch in self._validation if leaves else ():
            self._run(root, batch, counts=True)
            seen += len(batch[1])
        if leaves and not seen:
            raise ValueError("there are no images to score architectures with")
        return {architecture: int(leaf.correct) / seen for architecture, leaf in leaves.items()}

    def _leaf(self, root: "_Node", architecture: Architecture) -> "_Node":
        """Return the end of an architecture's way through the tree; missing nodes are added."""
        node = root
        for layer, choice in enumerate(architecture.choices):
            if choice not in node.children:
                op = self._net.space.layers[layer][choice]
                module = self._net.candidate(layer, choice)
                node.children[choice] = _Node(f"layer {layer + 1}: {op}", module)
            node = node.children[choice]
        return node.children.setdefault(0, _Node("the tail", self._net.tail))

    def _run(self, root: "_Node", batch: Sequence[Any], *, counts: bool) -> None:
        """Take a batch through the whole tree."""
        reference = next(self._net.parameters())
        with self._autocast():
            images = images_of(batch).to(reference.device, reference.dtype)
            if images.is_inference():
                images = images.clone()
            self._walk(root, images, batch[1].to(reference.device) if counts else None)
        self._on_batch()

    def _walk(self, node: "_Node", features: Tensor, targets: Tensor | None) -> None:
        """Go through the tree depth first, so that only one way's activations exist at once."""
        outputs = outputs_of(node.module, features, node.name)
        if not node.children and targets is not None:
            node.correct = node.correct + (outputs.argmax(1) == targets).sum()
        for child in node.children.values():
            self._walk(child, outputs, targets)


def outputs_of(module: nn.Module, features: Tensor, name: str) -> Tensor:
    """Return what a module makes of features that others need too; one that writes into them is refused."""
    version = features._version
    outputs: Tensor = module(features)
    if features._version != version:
        raise ValueError(
            f"{name} writes into its input, which other candidates need too; let it work on a copy"
        )
    return outputs


def _repeatable(batches: Batches) -> Batches:
    return list(batches) if isinstance(batches, Iterator) else batches


class _Node:
    """A node is a module behind one beginning of architectures: shared weights, and statistics of its own."""

    def __init__(self, name: str, module: nn.Module) -> None:
        self.name = name
        shared: list[Any] = list(module.parameters())
        # Hooks are the same, too: to copy the empty dictionaries of each module would take most of the time.
        for part in module.modules():
            shared += [each for name, each in vars(part).items() if name.endswith("_hooks")]
        self.module = copy.deepcopy(module, {id(each): each for each in shared})
        self.children: dict[int, _Node] = {}
        self.correct: Tensor | int = 0

    def all(self) -> Iterator["_Node"]:
        """Yield this node and all nodes behind it."""
        yield self
        for child in self.children.values():
            yield from child.all()
