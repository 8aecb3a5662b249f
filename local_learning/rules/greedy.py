"""In greedy block-wise learning every block follows its own loss on the outputs of the one below.

DGL, SEDONA, PredSim, InfoPro and GN-DGL differ only in cuts, heads and losses. With one block this is
backpropagation.
"""

from collections.abc import Sequence

from local_learning.rules.engine import Engine, Means, Part, Stateless, StepReport, loss_name


class Greedy(Stateless):
    """This rule is z_k = f_k(sg z_{k-1}).

    The outputs that are passed on are those from before the block's update.
    """

    def __init__(self, engine: Engine) -> None:
        self._engine = engine

    def step(self, parts: Sequence[Part]) -> StepReport:
        """Update every block here once; each is finished before the next one runs."""
        engine, means = self._engine, Means(len(parts))
        features = [part.inputs for part in parts]
        logits = []
        for index in engine.own:
            top = index == engine.num_blocks - 1
            for number, part in enumerate(parts):
                with engine.part(index, last=number == len(parts) - 1):
                    outcome = engine.run(index, features[number], part)
                    features[number] = outcome.outputs.detach()
                    if index == engine.own[-1] and not top:
                        # The block above need not wait for what follows.
                        engine.hand_up(features[number], part)
                    engine.backward(outcome.loss / len(parts))
                means.add(loss_name(index, engine.num_blocks), outcome.loss)
                if top:
                    logits.append(outcome.logits[0].detach())
                del outcome  # and with it the graph
            engine.update(index)
        return StepReport(means.values, logits)
