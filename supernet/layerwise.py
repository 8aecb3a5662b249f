"""These strategies train layer by layer (LWSL).

Each layer learns by a loss of its own, and its graph is gone before the next layer runs. The input of a
layer is the detached mean of the outputs of the modules below (Eq. 3). Modules are the candidates that
have weights.
"""

import contextlib
import random
from collections.abc import Iterator

import torch
from torch import Tensor, nn

from local_learning.losses import upcast
from supernet.engine import SupernetEngine
from supernet.objectives import Objective
from supernet.options import LayerwiseOptions
from supernet.sampling import stream
from supernet.strategy import SharedStem, Strategy
from supernet.supernet import Supernet
from tools.batchnorm import frozen_statistics
from tools.optim import MakeOptimizer


class GreedyStrategy(Strategy):
    """Each module of layer i learns by the loss at decoder i on its own output (LWSL, Algorithm 1, Eq. 4).

    Decoders 1 to n - 1 are local; the last is the supernet's tail.
    """

    def __init__(
        self,
        net: Supernet,
        *,
        optimizer: MakeOptimizer,
        seed: int,
        objective: Objective,
        engine: SupernetEngine,
        options: LayerwiseOptions,
    ) -> None:
        super().__init__(net, seed=seed, objective=objective, engine=engine)
        self.options = options
        self.modules = [layer.weighted for layer in net.space.layers]
        self._ends = [self._make_decoders(index) for index in range(len(self.modules))]
        for index, ends in enumerate(self._ends):
            trained = [net.candidate(index, choice) for choice in self.modules[index]]
            if index == 0 and options.stem == "layer":
                trained.append(net.stem)
            self._optimize(optimizer, [*trained, *ends])

    def step(self, images: Tensor, targets: Tensor, step: int) -> dict[str, Tensor]:
        """Train every layer once on the batch, from the first layer to the last."""
        task = self.objective.task(images, targets, step)
        trained = self.options.stem == "layer"
        stem = SharedStem(self.net, task.images, self.engine, trained=trained, again=True)
        features, losses = stem.features, dict[str, Tensor]()
        self._uses = [[0] * len(ends) for ends in self._ends]
        for index, modules in enumerate(self.modules):
            mean, of_modules = _Mean(), list[Tensor]()
            if self.options.skip_in_mean and len(modules) < len(self.net.space.layers[index]):
                mean.add(features)
            for place, choice in enumerate(modules):
                with self.engine.precision():
                    outputs = self.net.candidate(index, choice)(features)
                mean.add(outputs)
                with self.engine.precision():
                    loss = self.objective.loss(self._decode(outputs, index, place, step), task.targets)
                self.engine.backward(loss)
                of_modules.append(loss.detach())
                self.updates[index, choice] += 1
                del outputs, loss
            if index == 0:
                stem.backward(1 / len(modules))
            if self.options.decoder_gradient == "mean":
                self._average_decoders(index)
            if self.options.update == "immediate":
                self.engine.update(self.optimizers[index])
            losses[f"loss/{index + 1}"] = torch.stack(of_modules).mean()
            features = mean.value
        if self.options.update == "deferred":
            for optimizer in self.optimizers:
                self.engine.update(optimizer)
        return {"loss": losses[f"loss/{len(self.modules)}"], **losses}

    def _decode(self, outputs: Tensor, index: int, place: int, step: int) -> Tensor:
        """Return the outputs that a layer's loss looks at, given the outputs of its module at `place`."""
        end = place % len(self._ends[index])
        self._uses[index][end] += 1
        decoded: Tensor = self._ends[index][end](outputs)
        return decoded

    def _make_decoders(self, index: int) -> list[nn.Module]:
        """Make the decoder of a layer's loss, or one for each module that may stand before it."""
        if index == len(self.modules) - 1 and self.options.last_decoder == "tail":
            ending = self._like_net(self.objective.ending(self.net))
            if ending is not self.net.tail:
                self.decoders.append(ending)
            return [ending]
        below, modules = self._below_decoder(index)
        count = len(modules) if self.options.decoders == "module" else 1
        out_chs = self.net.space.layers[below].out_chs
        made = [self._like_net(self.objective.decoder(out_chs)) for _ in range(count)]
        self.decoders.extend(made)
        return made

    def _below_decoder(self, index: int) -> tuple[int, tuple[int, ...]]:
        """Return the layer on which a layer's decoder stands, and that layer's modules."""
        return index, self.modules[index]

    def _average_decoders(self, index: int) -> None:
        """Turn the sums of gradients at the layer's decoders into means over the modules that used them."""
        for end, uses in zip(self._ends[index], self._uses[index], strict=True):
            for parameter in end.parameters():
                if parameter.grad is not None:
                    parameter.grad /= uses


class NonGreedyStrategy(GreedyStrategy):
    """Each module of layer i learns by the loss behind a module of layer i + 1 (LWSL, Algorithm 2, Eq. 5).

    That module, the partner, is random and is not trained by this loss. Decoders 2 to n are local. Decoder
    n + 1 is the supernet's tail, to which the last layer goes directly.
    """

    def partners(self, step: int) -> list[list[int]]:
        """Return the partner of each module, for each layer but the last.

        A partner is the number of a candidate of the next layer.
        """
        drawn = []
        for index, modules in enumerate(self.modules[:-1]):
            rng = stream(self.seed, "partners", step, index)
            drawn.append(_draw(rng, len(modules), self._candidates(index + 1), self.options.partner))
        return drawn

    def step(self, images: Tensor, targets: Tensor, step: int) -> dict[str, Tensor]:
        """Draw partners, and train every layer once on the batch."""
        self._partners = self.partners(step)
        return super().step(images, targets, step)

    def _decode(self, outputs: Tensor, index: int, place: int, step: int) -> Tensor:
        if index == len(self.modules) - 1:
            return super()._decode(outputs, index, place, step)
        choice = self._partners[index][place]
        partner = self.net.candidate(index + 1, choice)
        with _untouched(partner, self.options.partner_statistics):
            stacked = partner(outputs)
        return super()._decode(stacked, index, self._candidates(index + 1).index(choice), step)

    def _below_decoder(self, index: int) -> tuple[int, tuple[int, ...]]:
        if index == len(self.modules) - 1:
            return super()._below_decoder(index)
        return index + 1, self._candidates(index + 1)

    def _candidates(self, index: int) -> tuple[int, ...]:
        """Return the candidates of a layer that may be partners."""
        every = tuple(range(len(self.net.space.layers[index])))
        return every if self.options.skip_as_partner else self.modules[index]


class _Mean:
    """This class takes the running mean of tensors, detached, in single precision at least.

    The first tensor is not copied. So add the next one only when nothing else needs the first any more.
    """

    def __init__(self) -> None:
        self.value = torch.empty(0)
        self._count = 0

    def add(self, values: Tensor) -> None:
        self._count += 1
        values = upcast(values.detach())
        match self._count:
            case 1:
                self.value = values
            case 2:
                self.value = torch.lerp(self.value, values, 0.5)
            case count:
                self.value.lerp_(values, 1 / count)


def _draw(rng: random.Random, count: int, candidates: tuple[int, ...], how: str) -> list[int]:
    """Draw partners for `count` modules."""
    if how == "layer":
        return [rng.choice(candidates)] * count
    if how == "permutation":
        order = rng.sample(candidates, len(candidates))
        return [order[place % len(order)] for place in range(count)]
    return [rng.choice(candidates) for _ in range(count)]


@contextlib.contextmanager
def _untouched(partner: nn.Module, statistics: str) -> Iterator[None]:
    """Run a module without training it: its weights get no gradient, but its input does."""
    trained = [parameter for parameter in partner.parameters() if parameter.requires_grad]
    training = partner.training
    for parameter in trained:
        parameter.requires_grad_(False)
    try:
        with frozen_statistics(partner) if statistics == "batch" else contextlib.nullcontext():
            partner.train(training and statistics != "eval")
            yield
    finally:
        partner.train(training)
        for parameter in trained:
            parameter.requires_grad_(True)
