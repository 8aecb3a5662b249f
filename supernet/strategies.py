"""Strategies are made by name; another one trains the tail alone."""

import torch
from torch import Tensor, nn

from supernet.engine import SupernetEngine
from supernet.layerwise import GreedyStrategy
from supernet.objectives import CrossEntropyObjective, Objective
from supernet.options import STRATEGIES, LayerwiseOptions, PathOptions
from supernet.sampling import sample, stream
from supernet.strategy import Strategy
from supernet.supernet import Supernet
from tools.batchnorm import frozen_statistics
from tools.mistake import Mistake
from tools.optim import MakeOptimizer
from tools.options.plugins import call

register_strategy = STRATEGIES.register


def make_strategy(
    name: str,
    net: Supernet,
    *,
    optimizer: MakeOptimizer,
    seed: int,
    objective: Objective | None = None,
    engine: SupernetEngine | None = None,
    paths: PathOptions | None = None,
    layerwise: LayerwiseOptions | None = None,
) -> Strategy:
    """Make the strategy of this name: spos, fair, greedy, nongreedy, or a registered one.

    Without an objective it is cross-entropy, and without an engine plain PyTorch. New weights of decoders
    come from torch's global generator. A strategy gets `layerwise` as its options if its row says so, or if
    it derives from GreedyStrategy; every other one gets `paths`.
    """
    STRATEGIES.check("strategy", name)
    row = STRATEGIES[name]
    by_layer = row.by_layer or (isinstance(row.maker, type) and issubclass(row.maker, GreedyStrategy))
    strategy = call(
        row.maker,
        net,
        optimizer=optimizer,
        seed=seed,
        objective=objective or CrossEntropyObjective(num_classes=net.space.num_classes),
        engine=engine or SupernetEngine(),
        options=(layerwise or LayerwiseOptions()) if by_layer else (paths or PathOptions()),
    )
    if not isinstance(strategy, Strategy) or not strategy.optimizers:
        raise Mistake(f"`strategy` {name}", "must make a Strategy that has an optimiser or more")
    return strategy


class TailTraining(Strategy):
    """This strategy trains the part that gives the logits, behind uniform paths, and nothing else.

    It is for supernets that were trained by views, whose classifier is untrained (`part` "fc"). It is also
    for those that were trained greedily by local decoders alone (`part` "tail").
    """

    def __init__(
        self,
        net: Supernet,
        *,
        optimizer: MakeOptimizer,
        seed: int,
        objective: Objective,
        engine: SupernetEngine,
        part: str,
    ) -> None:
        super().__init__(net, seed=seed, objective=objective, engine=engine)
        assert isinstance(net.tail, nn.Sequential)
        self._fc_only = part == "fc"
        self._body, self._fc = net.tail[:-1], net.tail[-1]
        self._optimize(optimizer, [self._fc if self._fc_only else net.tail])

    def step(self, images: Tensor, targets: Tensor, step: int) -> dict[str, Tensor]:
        """Train the tail or the classifier behind the step's path."""
        path = self.net.space.canonical(sample(self.net.space, stream(self.seed, "tail path", step)))
        with self.engine.precision(), frozen_statistics(self.net):
            with torch.no_grad():
                features = self.net.middle(self.net.begin(images), path)
            with torch.set_grad_enabled(not self._fc_only):
                features = self._body(features)
            loss = self.objective.loss(self._fc(features), targets)
        self.engine.backward(loss)
        self.engine.update(self.optimizers[0])
        return {"loss_of_tail": loss.detach()}
