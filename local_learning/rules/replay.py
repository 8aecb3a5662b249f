"""Features Replay (Huo et al., 2018): blocks learn from error signals that are some steps old.

At step t block k (of 1..K) runs the input of batch t - (K - k) again, with its weights of now, and goes
backward from the error signal that block k + 1 found for the same batch at step t - 1.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from local_learning.rules.engine import Engine, Means, Part, Report
from tools.batchnorm import frozen_statistics


class Replay:
    """Backpropagation's gradients, late by one step per block; the first K - k steps of block k are idle.

    Running statistics of BatchNorm move when a batch passes for the first time, not at its replay.
    """

    def __init__(self, engine: Engine) -> None:
        self._engine = engine
        # Block k's inputs of the latest batches, oldest first; a batch is a list of parts.
        self._history: list[list[list[Tensor]]] = [[] for _ in range(engine.num_blocks - 1)]
        # What block k + 1 left for block k: one error signal per part, and nothing at first.
        self._errors: list[list[Tensor]] = [[] for _ in range(engine.num_blocks - 1)]

    def step(self, parts: Sequence[Part]) -> Report:
        """One update of every block that has an error signal."""
        engine, top = self._engine, self._engine.num_blocks - 1
        inputs = self._play([part.images for part in parts])
        errors: list[list[Tensor]] = [[] for _ in range(top)]
        means, logits = Means(len(parts)), []
        for number, part in enumerate(parts):
            below = inputs[number].requires_grad_(top > 0)
            with engine.part(top, last=number == len(parts) - 1):
                outcome = engine.run(top, below, part)
                engine.backward(outcome.loss / len(parts))
            means.add("loss", outcome.loss)
            logits.append(outcome.logits[0].detach())
            if top:
                errors[top - 1].append(engine.error_signal(below))
            del outcome
        engine.update(top)
        for index in reversed(range(top)):
            if self._errors[index]:
                below_errors = self._replay(index)
                if index:
                    errors[index - 1] = below_errors
        self._errors = errors
        return Report(means.values, logits)

    @torch.no_grad()
    def _play(self, inputs: list[Tensor]) -> list[Tensor]:
        """Run a new batch up to the last block, and keep every block's inputs."""
        for index, history in enumerate(self._history):
            history.append(inputs)
            inputs = [self._engine.features(index, part) for part in inputs]
        return [part.detach() for part in inputs]

    def _replay(self, index: int) -> list[Tensor]:
        """Run the oldest inputs of a block with gradient; returns the error signals for the one below."""
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

    def state_dict(self) -> dict[str, Any]:
        """Inputs and error signals that are still to be used."""
        return {"history": self._history, "errors": self._errors}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go back to a saved state."""
        device = next(self._engine.net.parameters()).device
        self._history = [[[p.to(device) for p in batch] for batch in each] for each in state["history"]]
        self._errors = [[error.to(device) for error in each] for each in state["errors"]]
