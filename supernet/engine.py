"""An engine turns a strategy's losses into updates, in plain PyTorch or on several processes."""

import contextlib
from collections.abc import Sequence
from typing import Any

import torch
from accelerate import Accelerator
from torch import Tensor, nn


class SupernetEngine:
    """This engine is plain PyTorch on one process."""

    def prepare(self, optimizer: torch.optim.Optimizer) -> torch.optim.Optimizer:
        """Return the optimiser as this engine uses it."""
        return optimizer

    def precision(self) -> contextlib.AbstractContextManager[Any]:
        """Return the context in which forward passes run."""
        return contextlib.nullcontext()

    def backward(self, loss: Tensor) -> None:
        """Go backward from a loss to gradients."""
        loss.backward()  # type: ignore[no-untyped-call]

    def update(self, optimizer: torch.optim.Optimizer) -> None:
        """Take one step on the gradients there are; weights without one stay, and keep their momentum."""
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)


class AccelerateSupernetEngine(SupernetEngine):
    """This engine runs in mixed precision and takes means of gradients over the processes.

    All processes train the same path. Gradients are shared once an update, as one vector.
    DistributedDataParallel would wait for the gradients of all candidates, and most candidates have none.
    """

    def __init__(self, accelerator: Accelerator, *, clip_norm: float = 0.0) -> None:
        self._accelerator, self._clip_norm = accelerator, clip_norm

    def prepare(self, optimizer: torch.optim.Optimizer) -> torch.optim.Optimizer:
        prepared: torch.optim.Optimizer = self._accelerator.prepare(optimizer)
        return prepared

    def precision(self) -> contextlib.AbstractContextManager[Any]:
        context: contextlib.AbstractContextManager[Any] = self._accelerator.autocast()
        return context

    def backward(self, loss: Tensor) -> None:
        self._accelerator.backward(loss)

    def update(self, optimizer: torch.optim.Optimizer) -> None:
        trained = [
            parameter
            for group in optimizer.param_groups
            for parameter in group["params"]
            if parameter.grad is not None
        ]
        if self._accelerator.num_processes > 1:
            _share([parameter.grad for parameter in trained])
        if self._clip_norm:
            self._accelerator.unscale_gradients(optimizer)
            nn.utils.clip_grad_norm_(trained, self._clip_norm)
        super().update(optimizer)


def _share(gradients: Sequence[Tensor]) -> None:
    """Replace gradients by their means over the processes."""
    flat = torch.cat([gradient.reshape(-1) for gradient in gradients])
    torch.distributed.all_reduce(flat)
    flat /= torch.distributed.get_world_size()
    parts = torch.split(flat, [gradient.numel() for gradient in gradients])
    for gradient, part in zip(gradients, parts, strict=True):
        gradient.copy_(part.view(gradient.shape))
