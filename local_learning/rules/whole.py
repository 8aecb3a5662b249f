"""For a part of the steps, blocks can be trained as one network, and their heads beside it."""

import contextlib
from collections.abc import Sequence

import torch

from local_learning.rules.engine import Engine, Means, Part, Stateless, StepReport, loss_name


class Whole(Stateless):
    """This rule is backpropagation through all blocks; each local head learns on features that are constants.

    All blocks must be here.
    """

    def __init__(self, engine: Engine) -> None:
        self._engine = engine

    def step(self, parts: Sequence[Part]) -> StepReport:
        """Update all blocks once."""
        engine, means = self._engine, Means(len(parts))
        logits = []
        for number, part in enumerate(parts):
            with contextlib.ExitStack() as contexts:
                for index in engine.own:
                    contexts.enter_context(engine.part(index, last=number == len(parts) - 1))
                features, losses = part.inputs, []
                for index in engine.own:
                    outcome = engine.run(index, features, part, joined=index < engine.num_blocks - 1)
                    features = outcome.outputs
                    losses.append(outcome.loss)
                    means.add(loss_name(index, engine.num_blocks), outcome.loss)
                logits.append(outcome.logits[0].detach())
                engine.backward(torch.stack(losses).sum() / len(parts))
                del outcome, features, losses
        for index in engine.own:
            engine.update(index)
        return StepReport(means.values, logits)
