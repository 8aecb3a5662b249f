"""BlockProp (Gotmare et al., 2018): blocks are joined by gluing variables instead of a backward pass.

h_k stands for the inputs of block k. The h-step moves the h_k downhill on the penalties and the loss, from
the last one down; the W-step then lets every block learn to give the h_{k+1} that were found.
"""

import math
from collections.abc import Mapping, Sequence
from typing import Any

import psutil
import torch
from torch import Tensor

from local_learning.options import GluingOptions
from local_learning.rules.engine import Engine, Means, Part, Report
from tools.batchnorm import frozen_statistics


class Gluing:
    """Algorithm 1; with `cache`, Algorithm 2, which keeps the h found for each of `num_images` images.

    L = sum_k penalty_k |h_{k+1} - b_k(h_k)|^2 + loss(b_K(h_K)), summed over the batch in the h-step (each
    image has its own h) and averaged in the W-step. BatchNorm's running statistics move in the W-step only.
    """

    def __init__(self, engine: Engine, options: GluingOptions, *, num_images: int = 0) -> None:
        boundaries = engine.num_blocks - 1
        self._engine, self._options = engine, options
        self._penalties = per_boundary("--gluing.penalty", options.penalty, boundaries)
        self._steps = per_boundary("--gluing.step", options.step, boundaries)
        self._cache: list[Tensor] = []
        self._visits = torch.zeros(num_images if options.cache else 0, dtype=torch.int32)

    def step(self, parts: Sequence[Part]) -> Report:
        """An h-step on every part, and a W-step of every block."""
        engine, top = self._engine, self._engine.num_blocks - 1
        with frozen_statistics(engine.net), engine.precision():
            if self._options.cache:
                glued = [self._glue(part) for part in parts]
            else:
                forward = [self._forward(part) for part in parts]
                glued = [self._h_step(h, h, part) for h, part in zip(forward, parts, strict=True)]
        means, logits = Means(len(parts)), []
        for place, index in enumerate(engine.own):
            for number, (part, h) in enumerate(zip(parts, glued, strict=True)):
                with engine.part(index, last=number == len(parts) - 1):
                    if index == top:
                        outcome = engine.run(index, h[place], part)
                        loss = outcome.loss
                        logits.append(outcome.logits[0].detach())
                        means.add("loss", loss)
                    else:
                        gap = _squares(engine.trained_features(index, h[place]) - h[place + 1])
                        gap = gap / len(h[place])
                        loss = self._penalties[index] * gap
                        means.add(f"gluing/{index + 1}", gap)
                    engine.backward(loss / len(parts))
            engine.update(index)
        return Report(means.values, logits)

    def _glue(self, part: Part) -> list[Tensor]:
        """h_1 = x, and h_2 .. h_K after the h-step from what is stored for these images."""
        rows = part.indices.cpu()
        visits, refresh = self._visits[rows], self._options.refresh
        fresh = (visits == 0) | (
            visits % refresh == 0 if refresh else torch.zeros_like(visits, dtype=torch.bool)
        )
        due = fresh | (visits % self._options.h_every == 0)
        h = self._recall(part, rows, fresh)
        if due.any():
            moved = self._h_step(h, h if fresh.all() else self._one_block_on(h), part)
            h = [h[0], *(_choose(due, new, old) for new, old in zip(moved[1:], h[1:], strict=True))]
            for kept, found in zip(self._cache, h[1:], strict=True):
                kept[rows] = found.to(kept.device)
        self._visits[rows] += 1
        return h

    @torch.no_grad()
    def _forward(self, part: Part) -> list[Tensor]:
        """The inputs of every block here, and of the one above."""
        engine, h = self._engine, [part.inputs]
        for index in engine.below_top:
            h.append(engine.features(index, h[-1]).detach())
        if not engine.has_top:
            engine.hand_up(h[-1], part)
        return h

    def _recall(self, part: Part, rows: Tensor, fresh: Tensor) -> list[Tensor]:
        """The stored h of these images; those of fresh ones from a forward pass."""
        if not fresh.any():
            return [part.images, *(kept[rows].to(part.images.device) for kept in self._cache)]
        h = self._forward(part)
        if not self._cache:
            self._cache = self._make_room(h[1:])
        stored = [kept[rows].to(part.images.device) for kept in self._cache]
        return [h[0], *(_choose(fresh, new, old) for new, old in zip(h[1:], stored, strict=True))]

    @torch.no_grad()
    def _one_block_on(self, h: list[Tensor]) -> list[Tensor]:
        """What the block below makes of each h."""
        return [h[0], *(self._engine.features(index, each) for index, each in enumerate(h[:-1]))]

    def _h_step(self, h: list[Tensor], predicted: list[Tensor], part: Part) -> list[Tensor]:
        """Line 7 to 16 of Algorithm 1: from the top down, each with the new one above.

        `predicted` is what the block below gives for each of the h; right after a forward pass, the h.
        """
        engine, h = self._engine, list(h)
        top, first = engine.num_blocks - 1, engine.own.start
        if not engine.has_top:
            h[-1] = engine.from_above()
        for index in reversed(range(max(1, first), engine.own.stop)):
            place = index - first
            variable = h[place]
            for _ in range(self._options.h_steps):
                variable = variable.detach().requires_grad_()
                outputs = engine.features(index, variable)
                if index == top:
                    energy = engine.objective(outputs, part) * len(outputs)
                else:
                    energy = self._penalties[index] * _squares(outputs - h[place + 1])
                energy = energy + self._penalties[index - 1] * _squares(variable - predicted[place])
                (slope,) = torch.autograd.grad(energy, variable)
                variable = variable - self._steps[index - 1] * slope
            h[place] = variable.detach()
        if first:
            engine.hand_down(h[0])
        return h

    def _make_room(self, h: list[Tensor]) -> list[Tensor]:
        count = len(self._visits)
        size = count * sum(each[0].numel() * each.element_size() for each in h)
        available = psutil.virtual_memory().available
        if size > 0.9 * available:
            raise ValueError(
                f"--gluing.cache: {count:,} images' gluing variables take {size / 2**30:.1f} GiB, of which "
                f"{available / 2**30:.1f} GiB are free; cut where the maps are smaller, or go without it"
            )
        return [each.new_zeros((count, *each.shape[1:]), device="cpu") for each in h]

    def state_dict(self) -> dict[str, Any]:
        """The stored gluing variables, where any are."""
        return {"cache": self._cache, "visits": self._visits} if self._options.cache else {}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go back to a saved state."""
        if self._options.cache:
            self._cache, self._visits = list(state["cache"]), state["visits"]


def per_boundary(option: str, values: tuple[float, ...], boundaries: int) -> tuple[float, ...]:
    """One value per boundary between blocks, where one for all may have been given."""
    if len(values) not in (1, boundaries):
        raise ValueError(
            f"{option}: {len(values)} values for {boundaries} boundaries; give one, or one for each"
        )
    return values if len(values) == boundaries else values * boundaries


def _squares(difference: Tensor) -> Tensor:
    return difference.to(torch.promote_types(difference.dtype, torch.float32)).square().sum()


def _choose(rows: Tensor, new: Tensor, old: Tensor) -> Tensor:
    shape = (len(rows), *[1] * (new.ndim - 1))
    assert math.prod(new.shape) == math.prod(old.shape)
    return torch.where(rows.to(new.device).view(shape), new, old)
