"""In Features Replay (Huo et al., 2018) blocks learn from error signals that are some steps old.

At step t, block k (of 1..K) runs the input of batch t - (K - k) again, with its present weights. It goes
backward from the error signal that block k + 1 computed for the same batch at step t - 1.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from local_learning.rules.engine import Engine, Means, Part, StepReport
from tools.batchnorm import frozen_statistics


class Replay:
    """This rule follows backpropagation's gradients, late by one step per block.

    The first K - k steps of block k are idle. Running statistics of BatchNorm move when a batch passes for
    the first time, not at its replay.
    """

    def __init__(self, engine: Engine) -> None:
        self._engine = engine
        # A block's inputs of the latest batches, oldest first; a batch is a list of parts.
        self._history: dict[int, list[list[Tensor]]] = {index: [] for index in engine.below_top}
        # What the block above left for a block: one error signal per part, and nothing at first.
        self._errors: dict[int, list[Tensor]] = {index: [] for index in engine.below_top}

    def step(self, parts: Sequence[Part]) -> StepReport:
        """Update every block here that has an error signal."""
        engine = self._engine
        features = self._play(parts)
        self._fetch(len(parts), late_by=0)
        errors: dict[int, list[Tensor]] = {index: [] for index in engine.below_top}
        means = Means(len(parts))
        logits: list[Tensor] = []
        if engine.has_top:
            logits, signals = self._train_top(parts, features, means)
            self._hand_over(engine.num_blocks - 1, signals, errors)
        for index in reversed(engine.below_top):
            if self._errors[index]:
                self._hand_over(index, self._replay(index), errors)
        self._errors = errors
        return StepReport(means.values, logits)

    @torch.no_grad()
    def _play(self, parts: Sequence[Part]) -> list[Tensor]:
        """Run a new batch through the blocks here but the top one, and keep every block's inputs."""
        engine, features = self._engine, [part.inputs for part in parts]
        for index, history in self._history.items():
            history.append(features)
            features = [engine.features(index, part) for part in features]
        features = [part.detach() for part in features]
        if not engine.has_top:
            for outputs, part in zip(features, parts, strict=True):
                engine.hand_up(outputs, part)
        return features

    def _train_top(
        self, parts: Sequence[Part], features: Sequence[Tensor], means: Means
    ) -> tuple[list[Tensor], list[Tensor]]:
        """Train the top block by backpropagation.

        Its logits are returned, and its error signals for the block below.
        """
        engine, top = self._engine, self._engine.num_blocks - 1
        logits, signals = [], []
        for number, part in enumerate(parts):
            below = features[number].requires_grad_(top > 0)
            with engine.part(top, last=number == len(parts) - 1):
                outcome = engine.run(top, below, part)
                engine.backward(outcome.loss / len(parts))
            means.add("loss", outcome.loss)
            logits.append(outcome.logits[0].detach())
            if top:
                signals.append(engine.error_signal(below))
            del outcome
        engine.update(top)
        return logits, signals

    def _replay(self, index: int) -> list[Tensor]:
        """Run the oldest inputs of a block with gradient; return the error signals for the block below."""
        engine, below_errors = self._engine, []
        inputs = self._history[index].pop(0)
        for number, (part, error) in enumerate(zip(inputs, self._errors[index], strict=True)):
            below = part.detach().requires_grad_(index > 0)
            with (
                engine.part(index, last=number == len(inputs) - 1),
                frozen_statistics(engine.net.blocks[index]),
            ):
                engine.backward(engine.trained_features(index, below), error)
            if index:
                below_errors.append(engine.error_signal(below))
        engine.update(index)
        return below_errors

    def _hand_over(self, index: int, signals: list[Tensor], errors: dict[int, list[Tensor]]) -> None:
        """Give a block's error signals to the block below, here or elsewhere."""
        if index > self._engine.own.start:
            errors[index - 1] = signals
        elif index:
            for signal in signals:
                self._engine.hand_down(signal)

    def _fetch(self, count: int, *, late_by: int) -> None:
        """Take the error signals that another process left for the last block here, if there are any yet.

        They belong to the batch before. The first comes once this block holds all the batches between.
        """
        if self._engine.has_top:
            return
        last = self._engine.own[-1]
        under_way = self._engine.num_blocks - 1 - last
        if not self._errors[last] and len(self._history[last]) + late_by > under_way:
            self._errors[last] = [self._engine.from_above() for _ in range(count)]

    def state_dict(self) -> dict[str, Any]:
        """Return the inputs and error signals that are still to be used, by block."""
        if any(self._history.values()):
            parts = len(next(history[-1] for history in self._history.values() if history))
            self._fetch(parts, late_by=1)
        rows = self._engine.all_rows
        return {
            "history": {k: [list(map(rows, batch)) for batch in kept] for k, kept in self._history.items()},
            "errors": {k: list(map(rows, errors)) for k, errors in self._errors.items()},
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Return to a saved state."""
        engine = self._engine
        device = next(engine.net.parameters()).device
        for index in engine.below_top:
            self._history[index] = [
                [engine.own_rows(part).to(device) for part in batch] for batch in state["history"][index]
            ]
            self._errors[index] = [engine.own_rows(error).to(device) for error in state["errors"][index]]
