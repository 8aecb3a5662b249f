"""Scores of a supernet's networks, all of them at once.

Networks that begin with the same candidates share their beginning, in taking BatchNorm statistics as in
validation: in training mode a layer normalises by the batch, so that its activations, and with them its
statistics, depend on nothing behind it. Numbers are those of each network extracted, calibrated and
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
    """The fraction of validation images that networks of a supernet classify correctly.

    Batches begin with images and targets, must come again in the same order whenever they are asked for
    (those of an iterator are kept), and are each taken once for all networks; no score is computed twice.
    Without calibration batches the statistics are those of the supernet; with a `momentum` they are no means
    over the batches, but averages that forget. Where processes work together, each must ask for the same, and
    each takes its share.
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
        """All that are known; add what another evaluator with equal batches found."""
        self.work = Work(0, 0, 0, 0)
        """Of one image through all networks of the last call that were not known."""

    @torch.inference_mode(False)  # what writes into its input is found by counts that are not kept there
    def __call__(self, architectures: Iterable[Architecture]) -> list[float]:
        """Their scores, in their order."""
        asked = list(architectures)
        for each in asked:
            self._net.space.validate(each)
        new = sorted(set(asked) - self.scores.keys(), key=lambda each: each.choices)
        self.work = work(new, self._net.space)
        if new:
            self.scores |= self._shared(new)
        return [self.scores[each] for each in asked]

    def _shared(self, architectures: list[Architecture]) -> dict[Architecture, float]:
        """Scores by all processes together."""
        if not torch.distributed.is_initialized() or torch.distributed.get_world_size() == 1:
            return self._scored(architectures)
        rank, world = torch.distributed.get_rank(), torch.distributed.get_world_size()
        mine = self._scored(shared_out(architectures, self._net.space, world)[rank])
        found = torch.tensor([mine.get(each, 0.0) for each in architectures], dtype=torch.float64)
        found = found.to(next(self._net.parameters()).device)
        torch.distributed.all_reduce(found)
        return dict(zip(architectures, found.tolist(), strict=True))

    @torch.no_grad()
    def _scored(self, architectures: Sequence[Architecture]) -> dict[Architecture, float]:
        root = _Node("the stem", nn.Sequential(*self._net.stem))
        leaves = {each: self._leaf(root, each) for each in architectures}
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
        return {each: int(leaf.correct) / seen for each, leaf in leaves.items()}

    def _leaf(self, root: "_Node", architecture: Architecture) -> "_Node":
        """The end of an architecture's way through the tree, which grows where there was none."""
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
        """Depth first, so that no more than one way's activations are there at once."""
        version = features._version
        outputs: Tensor = node.module(features)
        if features._version != version:
            raise ValueError(
                f"{node.name} writes into its input, which other candidates need too; let it work on a copy"
            )
        if not node.children and targets is not None:
            node.correct = node.correct + (outputs.argmax(1) == targets).sum()
        for child in node.children.values():
            self._walk(child, outputs, targets)


def _repeatable(batches: Batches) -> Batches:
    return list(batches) if isinstance(batches, Iterator) else batches


class _Node:
    """A module behind one beginning of architectures: shared weights, and statistics of its own."""

    def __init__(self, name: str, module: nn.Module) -> None:
        self.name = name
        parameters: dict[int, Any] = {id(each): each for each in module.parameters()}
        self.module = copy.deepcopy(module, parameters)
        self.children: dict[int, _Node] = {}
        self.correct: Tensor | int = 0

    def all(self) -> Iterator["_Node"]:
        """This one and all behind it."""
        yield self
        for child in self.children.values():
            yield from child.all()
