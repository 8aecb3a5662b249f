"""BlockProp joins blocks by gluing variables instead of a backward pass (Gotmare et al., 2018).

h_k stands for the inputs of block k. The h-step moves the h_k downhill on the penalties and the loss, from
the last one down. In the W-step every block then learns to give the new h_{k+1}.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from local_learning.options import GluingOptions
from local_learning.rules.engine import Engine, Means, Part, StepReport
from local_learning.rules.gluing_cache import GluingCache, Inputs
from tools.batchnorm import frozen_statistics
from tools.mistake import Mistake


class Gluing:
    """This rule is Algorithm 1 or, with `cache`, Algorithm 2.

    Algorithm 2 keeps the h of each of `num_images` images from one visit to the next.

    L = sum_k penalty_k |h_{k+1} - b_k(h_k)|^2 + loss(b_K(h_K)), summed over the batch in the h-step (each
    image has its own h) and averaged in the W-step. BatchNorm's running statistics move in the W-step
    only.
    """

    def __init__(self, engine: Engine, options: GluingOptions, *, num_images: int = 0) -> None:
        boundaries = engine.num_blocks - 1
        self._engine, self._options = engine, options
        self._penalties = per_boundary("gluing.penalty", options.penalty, boundaries)
        self._steps = per_boundary("gluing.step", options.step, boundaries)
        self._variables = range(max(1, engine.own.start), engine.own.stop)
        """The blocks here whose inputs are gluing variables."""
        self._cache = GluingCache(options, num_images) if options.cache else None

    def step(self, parts: Sequence[Part]) -> StepReport:
        """Take an h-step on every part, and a W-step of every block."""
        engine, top = self._engine, self._engine.num_blocks - 1
        with frozen_statistics(engine.net), engine.precision():
            if self._cache:
                glued = [self._glue(part, self._cache) for part in parts]
            else:
                forward = [self._forward(part.inputs, part) for part in parts]
                glued = [self._h_step(h, h, part) for h, part in zip(forward, parts, strict=True)]
        means, logits = Means(len(parts)), []
        for index in engine.own:
            for number, (part, h) in enumerate(zip(parts, glued, strict=True)):
                with engine.part(index, last=number == len(parts) - 1):
                    if index == top:
                        outcome = engine.run(index, h[index], part)
                        loss = outcome.loss
                        logits.append(outcome.logits[0].detach())
                        means.add("loss", loss)
                    else:
                        gap = _squares(engine.trained_features(index, h[index]) - h[index + 1])
                        gap = gap / len(h[index])
                        loss = self._penalties[index] * gap
                        means.add(f"gluing/{index + 1}", gap)
                    engine.backward(loss / len(parts))
            engine.update(index)
        return StepReport(means.values, logits)

    def _glue(self, part: Part, cache: GluingCache) -> Inputs:
        """Return the inputs of every block here and of the one above, after the h-step from what is stored.

        What is done depends on all images of the part, wherever their rows are, so all processes do the
        same. Between h-steps a block needs nothing of another one but the variable of the block above.
        """
        engine, own = self._engine, part.indices.cpu()
        everyone = engine.all_rows(part.indices).cpu()
        fresh, due = cache.wanted(own)
        some_fresh, some_due = (bool(rows.any()) for rows in cache.wanted(everyone))
        all_fresh, all_due = (bool(rows.all()) for rows in cache.wanted(everyone))
        h, moved = self._recall(part, fresh if some_fresh else None, cache), {}
        if some_due:
            moved = self._h_step(h, h if all_fresh else self._one_block_on(h, part), part)
            h |= {block: _choose(due, moved[block], h[block]) for block in self._variables}
            cache.store(everyone, {block: engine.all_rows(h[block]) for block in self._variables})
        cache.seen(everyone)
        if all_due:
            return h | moved
        if engine.own.start:
            engine.hand_down(h[engine.own.start])
        return h if engine.has_top else h | {engine.own.stop: engine.from_above()}

    def _recall(self, part: Part, fresh: Tensor | None, cache: GluingCache) -> Inputs:
        """Return the stored variables of these images; those of `fresh` images come from a forward pass."""
        engine, h = self._engine, cache.recall(part.indices.cpu(), part.indices.device)
        if fresh is not None:
            passed = self._forward(engine.from_below() if engine.own.start else part.images, part)
            stored = h or passed  # at first all are fresh
            h = {block: _choose(fresh, passed[block], stored[block]) for block in self._variables}
        return h if engine.own.start else {0: part.images} | h

    @torch.no_grad()
    def _forward(self, inputs: Tensor, part: Part) -> Inputs:
        """Return the inputs of every block here, and of the one above."""
        engine = self._engine
        h = {engine.own.start: inputs}
        for index in engine.below_top:
            h[index + 1] = engine.features(index, h[index]).detach()
        if not engine.has_top:
            engine.hand_up(h[engine.own.stop], part)
        return h

    @torch.no_grad()
    def _one_block_on(self, h: Inputs, part: Part) -> Inputs:
        """Return what the block below makes of each h."""
        engine = self._engine
        made = {index + 1: engine.features(index, h[index]) for index in engine.below_top}
        if not engine.has_top:
            engine.hand_up(made[engine.own.stop], part)
        if engine.own.start:
            made[engine.own.start] = engine.from_below()
        return made

    def _h_step(self, h: Inputs, predicted: Inputs, part: Part) -> Inputs:
        """Take the h-step, lines 7 to 16 of Algorithm 1: from the top down, each with the new one above.

        `predicted` is what the block below gives for each h. Right after a forward pass it is the h
        itself.
        """
        engine, h = self._engine, dict(h)
        if not engine.has_top:
            h[engine.own.stop] = engine.from_above()
        for index in reversed(self._variables):
            variable = h[index]
            for _ in range(self._options.h_steps):
                variable = variable.detach().requires_grad_()
                outputs = engine.features(index, variable)
                if index == engine.num_blocks - 1:
                    energy = engine.objective(outputs, part) * len(outputs)
                else:
                    energy = self._penalties[index] * _squares(outputs - h[index + 1])
                energy = energy + self._penalties[index - 1] * _squares(variable - predicted[index])
                (slope,) = torch.autograd.grad(energy, variable)
                variable = variable - self._steps[index - 1] * slope
            h[index] = variable.detach()
        if engine.own.start:
            engine.hand_down(h[engine.own.start])
        return h

    def state_dict(self) -> dict[str, Any]:
        """Return what is stored for the blocks here, if anything is."""
        state = self._cache.state_dict() if self._cache else {}
        if self._engine.own.start:
            state.pop("visits", None)  # the processes with the first block save them
        return state

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Return to a saved state."""
        if self._cache:
            self._cache.load_state_dict(state, self._variables)


def per_boundary(option: str, values: tuple[float, ...], boundaries: int) -> tuple[float, ...]:
    """Return one value per boundary between blocks; a single value holds for all."""
    if len(values) not in (1, boundaries):
        raise Mistake(
            option, f"{len(values)} values for {boundaries} boundaries", "give one, or one for each"
        )
    return values if len(values) == boundaries else values * boundaries


def _squares(difference: Tensor) -> Tensor:
    return difference.to(torch.promote_types(difference.dtype, torch.float32)).square().sum()


def _choose(rows: Tensor, new: Tensor, old: Tensor) -> Tensor:
    return torch.where(rows.to(new.device).view(len(rows), *[1] * (new.ndim - 1)), new, old)
