"""This module runs blocks on Accelerate, each with its own data parallelism, precision and compilation."""

import contextlib
from collections import Counter
from collections.abc import Sequence
from typing import Any

import torch
from accelerate import Accelerator
from torch import Tensor, nn

from local_learning.blocks import DecoupledNet, Outcome
from local_learning.rules.engine import Engine, Part
from local_learning.slices import Slice
from retrain.pipeline.neighbours import Neighbours
from retrain.pipeline.role import Role
from tools.seeding import seed_globals


class AccelerateEngine(Engine):
    """An `AccelerateEngine` prepares each block as its own model with its own optimiser.

    So every block can go backward on its own.
    """

    def __init__(
        self,
        net: DecoupledNet,
        optimizers: Sequence[torch.optim.Optimizer],
        accelerator: Accelerator,
        *,
        role: Role,
        neighbours: Neighbours | None = None,
        seed: int = 0,
        clip_norm: float = 0.0,
        compile_mode: str = "",
    ) -> None:
        super().__init__(net, [accelerator.prepare(optimizer) for optimizer in optimizers], role.own)
        self._accelerator, self._role, self._neighbours = accelerator, role, neighbours
        self._seed, self._step = seed, 0
        self._passes: Counter[int] = Counter()
        self._clip_norm = clip_norm
        self._models = {index: self._prepared(net.blocks[index]) for index in role.own}
        self._callables: dict[int, Any] = dict(self._models)
        if compile_mode:
            # All blocks run the same forward function. torch would compile it for the first few blocks only,
            # and treat the sizes in which they differ as dynamic.
            limit = torch._dynamo.config.recompile_limit
            torch._dynamo.config.recompile_limit = max(limit, 4 * len(self._models))
            self._callables = {
                index: torch.compile(model, mode=compile_mode, dynamic=False)
                for index, model in self._models.items()
            }

    def begin(self, step: int) -> None:
        """Note that everything drawn from here on belongs to this step."""
        self._step = step
        self._passes.clear()

    def hand_up(self, outputs: Tensor, part: Part) -> None:
        assert self._neighbours is not None
        self._neighbours.hand_up(outputs, part)

    def hand_down(self, tensor: Tensor) -> None:
        assert self._neighbours is not None
        self._neighbours.hand_down(tensor)

    def from_above(self) -> Tensor:
        assert self._neighbours is not None
        return self._neighbours.from_above()

    def from_below(self) -> Tensor:
        assert self._neighbours is not None
        return self._neighbours.from_below()

    def all_rows(self, rows: Tensor) -> Tensor:
        if self._role.copies == 1:
            return rows
        plain = rows.contiguous()
        parts = [torch.empty_like(plain) for _ in range(self._role.copies)]
        torch.distributed.all_gather(parts, plain, group=self._role.group)
        gathered = torch.cat(parts)
        if rows.ndim == 4 and rows.is_contiguous(memory_format=torch.channels_last):
            # Another memory layout would round differently.
            gathered = gathered.contiguous(memory_format=torch.channels_last)
        return gathered

    def own_rows(self, rows: Tensor) -> Tensor:
        return rows.chunk(self._role.copies)[self._role.copy]

    def run(self, index: int, inputs: Tensor, part: Part, *, joined: bool = False) -> Outcome:
        self._draw_anew(index)
        outcome: Outcome = self._callables[index](inputs, part.targets, part.images, joined)
        return outcome

    def features(self, index: int, inputs: Tensor) -> Tensor:
        self._draw_anew(index)
        return super().features(index, inputs)

    def trained_features(self, index: int, inputs: Tensor) -> Tensor:
        self._draw_anew(index)
        outputs: Tensor = self._callables[index](inputs)
        return outputs

    def backward(self, tensor: Tensor, gradient: Tensor | None = None) -> None:
        if gradient is not None:
            gradient = gradient * self._role.copies
        self._accelerator.backward(tensor, gradient=gradient)

    def error_signal(self, inputs: Tensor) -> Tensor:
        """Return the error signal of the mean over the whole batch, not only over this process's rows."""
        signal: Tensor = super().error_signal(inputs) / self._role.copies
        scaler = self._accelerator.scaler
        if not scaler:
            return signal
        # In half precision small values would be lost without the scale; after an overflow there are none.
        return torch.nan_to_num(signal.float() / scaler.get_scale(), nan=0.0, posinf=0.0, neginf=0.0)

    def update(self, index: int) -> None:
        optimizer = self.optimizers[index]
        if self._clip_norm:
            self._accelerator.unscale_gradients(optimizer)
            self._clip(index)
        optimizer.step()
        optimizer.zero_grad()

    def _clip(self, index: int) -> None:
        """Limit the norm of a block's gradients, including those of its other neuron groups."""
        block = self.net.blocks[index]
        if not isinstance(block, Slice):
            nn.utils.clip_grad_norm_(block.parameters(), self._clip_norm)
            return
        trained = [parameter for parameter in block.parameters() if parameter.grad is not None]
        square = nn.utils.get_total_norm([p.grad for p in trained if p.grad is not None]).square()
        torch.distributed.all_reduce(square, group=self._role.group)
        nn.utils.clip_grads_with_norm_(trained, self._clip_norm, square.sqrt())

    def precision(self) -> contextlib.AbstractContextManager[Any]:
        context: contextlib.AbstractContextManager[Any] = self._accelerator.autocast()
        return context

    def part(self, index: int, *, last: bool) -> contextlib.AbstractContextManager[Any]:
        if last:
            return contextlib.nullcontext()
        context: contextlib.AbstractContextManager[Any] = self._accelerator.no_sync(self._models[index])
        return context

    def _prepared(self, block: nn.Module) -> nn.Module:
        """Return a block as its own model, whose gradients are shared by the processes that train it."""
        if not self._role.is_part:
            model: nn.Module = self._accelerator.prepare(block)
            return model
        model = self._accelerator.prepare_model(block, evaluation_mode=True)  # only for the precision
        if self._role.copies == 1:
            return model
        options = self._accelerator.ddp_handler.to_kwargs()
        return nn.parallel.DistributedDataParallel(model, process_group=self._role.group, **options)

    def _draw_anew(self, index: int) -> None:
        """Set the random generators for a block's next pass, whichever process runs the blocks before it.

        The first block's first pass goes on from where the loop sets them at each step.
        """
        number = self._passes[index]
        self._passes[index] += 1
        if index or number:
            block = self.net.blocks[index]
            group = (block.index,) if isinstance(block, Slice) else ()
            seed_globals(self._seed, "pass", self._step, self._role.copy, index, number, *group)
