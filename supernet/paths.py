"""These strategies train whole paths end to end: Single Path One-Shot, and FairNAS."""

import torch
from torch import Tensor

from supernet.engine import SupernetEngine
from supernet.objectives import Objective
from supernet.options import PathOptions
from supernet.sampling import LimitedSampler, bins, permutations, sample, sample_network, stream
from supernet.space import Architecture
from supernet.strategy import SharedStem, Strategy
from supernet.supernet import Supernet
from tools.mistake import Mistake
from tools.optim import MakeOptimizer


class EndToEnd(Strategy):
    """These strategies have one optimiser for the whole supernet."""

    def __init__(
        self,
        net: Supernet,
        *,
        optimizer: MakeOptimizer,
        seed: int,
        objective: Objective,
        engine: SupernetEngine,
        options: PathOptions,
    ) -> None:
        super().__init__(net, seed=seed, objective=objective, engine=engine)
        self.options = options
        self._ending = self._like_net(objective.ending(net))
        if self._ending is not net.tail:
            self.decoders.append(self._ending)
        self._optimize(optimizer, [net.stem, net.layers, self._ending])

    def begin(self, images: Tensor) -> Tensor:
        """Return the stem's output."""
        with self.engine.precision():
            return self.net.begin(images)

    def path_loss(self, features: Tensor, path: Architecture, targets: Tensor) -> Tensor:
        """Go forward from the stem's output and backward, without an update; return the path's loss."""
        with self.engine.precision():
            outputs = self._ending(self.net.middle(features, path))
            loss = self.objective.loss(outputs, targets)
        self.engine.backward(loss)
        for layer, choice in enumerate(path.choices):
            self.updates[layer, choice] += 1
        return loss.detach()


class SinglePath(EndToEnd):
    """Each batch trains one path, drawn uniformly (Guo et al., Single Path One-Shot, Eq. 7).

    It is drawn from all different networks, or from all strings of choices. A network with skips has
    several strings.
    """

    def __init__(
        self,
        net: Supernet,
        *,
        optimizer: MakeOptimizer,
        seed: int,
        objective: Objective,
        engine: SupernetEngine,
        options: PathOptions,
    ) -> None:
        super().__init__(
            net, optimizer=optimizer, seed=seed, objective=objective, engine=engine, options=options
        )
        self._sampler: LimitedSampler | None = None
        self._bins = [(0, 0)]
        if options.max_macs or options.min_macs:
            self._sampler = LimitedSampler(net.space.full, networks=options.draw == "networks")
            self._bins = _bins(options, self._sampler)

    def path(self, step: int) -> Architecture:
        """Return the path of a step."""
        rng = stream(self.seed, "path", step)
        space = self.net.space
        if self._sampler is not None:
            low, high = rng.choice(self._bins)
            path = self._sampler.draw(rng, high, low)
        elif self.options.draw == "networks":
            path = sample_network(space, rng)
        else:
            path = sample(space, rng)
        return space.canonical(path) if self.options.canonical else path

    def step(self, images: Tensor, targets: Tensor, step: int) -> dict[str, Tensor]:
        """Train the step's path on the batch."""
        task = self.objective.task(images, targets, step)
        loss = self.path_loss(self.begin(task.images), self.path(step), task.targets)
        self.engine.update(self.optimizers[0])
        return {"loss": loss}


class StrictFairness(EndToEnd):
    """Each batch trains m paths in which every candidate stands once; one update (FairNAS, Algorithm 1).

    The stem sees the batch once, because all paths share its output.
    """

    def __init__(
        self,
        net: Supernet,
        *,
        optimizer: MakeOptimizer,
        seed: int,
        objective: Objective,
        engine: SupernetEngine,
        options: PathOptions,
    ) -> None:
        super().__init__(
            net, optimizer=optimizer, seed=seed, objective=objective, engine=engine, options=options
        )
        self._members = _fair_members(net, options.skip)

    def paths(self, step: int) -> list[Architecture]:
        """Return the paths of a step."""
        return permutations(self.net.space, self._members, stream(self.seed, "paths", step))

    def step(self, images: Tensor, targets: Tensor, step: int) -> dict[str, Tensor]:
        """Train the step's paths on the batch, with one update."""
        task = self.objective.task(images, targets, step)
        paths = self.paths(step)
        stem = SharedStem(self.net, task.images, self.engine)
        losses = [self.path_loss(stem.features, path, task.targets) for path in paths]
        scale = 1 / len(paths) if self.options.shared_scale == "mean" else 1.0
        stem.backward(scale)
        if scale != 1:
            for parameter in self._ending.parameters():
                if parameter.grad is not None:
                    parameter.grad *= scale
        self.engine.update(self.optimizers[0])
        return {"loss": torch.stack(losses).mean()}


def _fair_members(net: Supernet, skip: str) -> list[tuple[int, ...]]:
    """Return the candidates of each layer that take turns."""
    space = net.space
    counts = {len(layer) for layer in space.layers}
    weighted = {len(layer.weighted) for layer in space.layers}
    with_skip = skip == "op" or (skip == "auto" and len(counts) == 1)
    if len(counts if with_skip else weighted) > 1:
        numbers = ", ".join(map(str, sorted(counts if with_skip else weighted)))
        counted, other = ("with", "left_out") if with_skip else ("without", "op")
        raise Mistake(
            "`strategy` fair",
            f"every layer must have as many candidates; {counted} skip those of {space.name} have "
            f"{numbers} (`paths.skip` {other} counts the other way)",
        )
    return [tuple(range(len(layer))) if with_skip else layer.weighted for layer in space.layers]


def _bins(options: PathOptions, sampler: LimitedSampler) -> list[tuple[int, int]]:
    """Return the intervals of MACs that hold at least one path."""
    low, high = int(options.min_macs), int(options.max_macs or sampler.cost.most)
    every = bins(low, high, int(options.bin_macs)) if options.bin_macs else [(low, high)]
    filled = [(start, stop) for start, stop in every if sampler.count(stop, start)]
    if not filled:
        option = "paths.max_macs" if options.max_macs else "paths.min_macs"
        raise Mistake(
            option,
            f"no path has {low:,} to {high:,} MACs",
            f"the cheapest has {sampler.cost.least:,}, the dearest {sampler.cost.most:,}",
        )
    return filled
