"""Blocks on Accelerate: each wrapped for data parallelism of its own, in mixed precision, compiled."""

import contextlib
from collections.abc import Sequence
from typing import Any

import torch
from accelerate import Accelerator
from torch import Tensor, nn

from local_learning.blocks import DecoupledNet, Outcome
from local_learning.rules.engine import Engine, Part


class AccelerateEngine(Engine):
    """Every block is a model and has an optimiser of its own, so that it may go backward on its own."""

    def __init__(
        self,
        net: DecoupledNet,
        optimizers: Sequence[torch.optim.Optimizer],
        accelerator: Accelerator,
        *,
        clip_norm: float = 0.0,
        compile_mode: str = "",
    ) -> None:
        super().__init__(net, optimizers)
        self._accelerator, self._clip_norm = accelerator, clip_norm
        self._models: list[nn.Module] = [accelerator.prepare(block) for block in net.blocks]
        self.optimizers = [accelerator.prepare(optimizer) for optimizer in optimizers]
        self._callables: list[Any] = list(self._models)
        if compile_mode:
            # All blocks run one and the same forward: torch would compile it for the first few of them only,
            # and take the sizes in which they differ for dynamic ones.
            limit = torch._dynamo.config.recompile_limit
            torch._dynamo.config.recompile_limit = max(limit, 4 * len(self._models))
            self._callables = [
                torch.compile(model, mode=compile_mode, dynamic=False) for model in self._models
            ]

    def run(self, index: int, inputs: Tensor, part: Part) -> Outcome:
        outcome: Outcome = self._callables[index](inputs, part.targets, part.images)
        return outcome

    def trained_features(self, index: int, inputs: Tensor) -> Tensor:
        outputs: Tensor = self._callables[index](inputs)
        return outputs

    def backward(self, tensor: Tensor, gradient: Tensor | None = None) -> None:
        if gradient is not None:
            gradient = gradient * self._accelerator.num_processes
        self._accelerator.backward(tensor, gradient=gradient)

    def error_signal(self, inputs: Tensor) -> Tensor:
        """That of the mean over the whole batch, where a process has the mean over its own rows."""
        signal: Tensor = super().error_signal(inputs) / self._accelerator.num_processes
        scaler = self._accelerator.scaler
        if not scaler:
            return signal
        # In half precision small ones would be lost unscaled; after an overflow there are none.
        return torch.nan_to_num(signal.float() / scaler.get_scale(), nan=0.0, posinf=0.0, neginf=0.0)

    def update(self, index: int) -> None:
        optimizer = self.optimizers[index]
        if self._clip_norm:
            self._accelerator.unscale_gradients(optimizer)
            nn.utils.clip_grad_norm_(self.net.blocks[index].parameters(), self._clip_norm)
        optimizer.step()
        optimizer.zero_grad()

    def precision(self) -> contextlib.AbstractContextManager[Any]:
        context: contextlib.AbstractContextManager[Any] = self._accelerator.autocast()
        return context

    def part(self, index: int, *, last: bool) -> contextlib.AbstractContextManager[Any]:
        if last:
            return contextlib.nullcontext()
        context: contextlib.AbstractContextManager[Any] = self._accelerator.no_sync(self._models[index])
        return context
