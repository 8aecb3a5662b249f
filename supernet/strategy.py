"""All strategies share a supernet, an objective, an engine, optimisers, and a count of updates."""

import contextlib
from abc import ABC, abstractmethod
from collections.abc import Iterable, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from local_learning.losses import upcast
from supernet.engine import SupernetEngine
from supernet.objectives import Objective
from supernet.supernet import Supernet
from tools.batchnorm import frozen_statistics
from tools.optim import MakeOptimizer


class Strategy(ABC):
    """A strategy is how a batch trains a supernet.

    What a step draws is a function of (seed, step). `decoders` are the networks that the strategy needs
    beside the supernet's own; `updates[l, j]` counts the updates of candidate j of layer l.
    """

    def __init__(self, net: Supernet, *, seed: int, objective: Objective, engine: SupernetEngine) -> None:
        self.net, self.seed, self.objective, self.engine = net, seed, objective, engine
        self.decoders = nn.ModuleList()
        self.optimizers: list[torch.optim.Optimizer] = []
        widest = max(len(layer) for layer in net.space.layers)
        self.updates = torch.zeros(len(net.layers), widest, dtype=torch.int64)

    @abstractmethod
    def step(self, images: Tensor, targets: Tensor, step: int) -> dict[str, Tensor]:
        """Go forward and backward, and update; return losses by name, "loss" among them."""

    def state_dict(self) -> dict[str, Any]:
        """Return what the next step depends on besides its number."""
        return {
            "net": self.net.state_dict(),
            "decoders": self.decoders.state_dict(),
            "optimizers": [optimizer.state_dict() for optimizer in self.optimizers],
            "updates": self.updates.clone(),
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Return to a saved state."""
        self.net.load_state_dict(state["net"])
        self.decoders.load_state_dict(state["decoders"])
        for optimizer, saved in zip(self.optimizers, state["optimizers"], strict=True):
            optimizer.load_state_dict(saved)
        self.updates.copy_(state["updates"])

    def _like_net(self, module: nn.Module) -> nn.Module:
        """Move a new module to where the supernet is, in its precision."""
        reference = next(self.net.parameters())
        return module.to(reference.device, reference.dtype)

    def _optimize(self, optimizer: MakeOptimizer, modules: Iterable[nn.Module]) -> None:
        """Give these modules an optimiser of their own."""
        parameters = dict.fromkeys(parameter for module in modules for parameter in module.parameters())
        self.optimizers.append(self.engine.prepare(optimizer(list(parameters))))


class SharedStem:
    """A shared stem gives its output to several networks that start from it.

    They work on `features`, a leaf that gathers their gradients. `backward` then sends the sum through the
    stem once, which is the same as going through it for each of them. With `again` the stem runs once more
    for that, so that its graph is not alive beside theirs.
    """

    def __init__(
        self,
        net: Supernet,
        images: Tensor,
        engine: SupernetEngine,
        *,
        trained: bool = True,
        again: bool = False,
    ) -> None:
        self._net, self._engine, self._images = net, engine, images
        self._trained = trained and len(net.stem) > 0
        self._opened: Tensor | None = None
        if self._trained and not again:
            self._opened = self._open()
            features = self._opened.detach()
        else:
            with torch.no_grad(), frozen_statistics(net.stem) if self._trained else contextlib.nullcontext():
                features = self._open()
        # In single precision, because half precision would round the sum of the gradients.
        self.features = upcast(features.detach().clone()).requires_grad_(self._trained)

    def backward(self, scale: float) -> None:
        """Send the gathered gradients, times a factor, through the stem."""
        if self._trained and self.features.grad is not None:
            opened = self._open() if self._opened is None else self._opened
            gradient = (self.features.grad * scale).to(opened.dtype)
            opened.backward(gradient)  # type: ignore[no-untyped-call]

    def _open(self) -> Tensor:
        with self._engine.precision():
            return self._net.begin(self._images)
