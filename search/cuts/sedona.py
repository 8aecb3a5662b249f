"""Algorithm 1 of SEDONA is two jobs for the loop: pretraining, and the search that starts from its weights.

A snapshot is the state of all weights, BatchNorm statistics and momentum, by name. Names of momentum begin
with "momentum/".
"""

import contextlib
import math
from collections.abc import Iterable, Iterator, Mapping
from typing import Any, NamedTuple

import torch
from accelerate import Accelerator
from torch import Tensor
from torch.nn import functional as F

from search.cuts.config import OLDEST, SEDONA_2021, DecouplingSearchConfig
from search.cuts.memory import SnapshotMemory, State
from search.evidence import Updates, outer_optimizer
from search.hypergradient import hypergradient
from search.relaxation import RelaxedNet
from tools.batchnorm import SharedBatchNorm
from tools.exact_means import exact_means
from tools.images.loaders import Batch, TrainLoader
from tools.optim import make_optimizer, make_schedule
from tools.seeding import torch_stream

MOMENTUM = "momentum/"


class Inner:
    """This class takes SGD steps with mixed gradients, and holds the weights that they train."""

    def __init__(self, net: RelaxedNet, config: DecouplingSearchConfig, num_steps: int) -> None:
        self.net = net
        self._weights = net.weights()
        self._optimizer = make_optimizer(config.recipe, self._weights.values())
        self._schedule = make_schedule(config.recipe, self._optimizer, num_steps)
        self._num_steps = num_steps

    def rate(self, step: int) -> float:
        """Return the learning rate of a step; after the last step it stays what it was there."""
        self._schedule.step_update(min(step, self._num_steps - 1))
        return float(self._optimizer.param_groups[0]["lr"])

    def update(self, batch: Batch, step: int, *, rate: float = 0.0, shared: bool = False) -> list[Tensor]:
        """Take one step, at the schedule's rate unless another is given; return the losses.

        With `shared` the batch is one rank's part, and gradients are means over all ranks.
        """
        self.rate(step)
        if rate:
            self._optimizer.param_groups[0]["lr"] = rate
        self.net.train()
        gradients = self.net.mixed_gradients(batch.images.to(self.net.alpha.dtype), batch.targets)
        for name, weight in self._weights.items():
            if shared:
                torch.distributed.all_reduce(gradients.of[name])
                gradients.of[name] /= torch.distributed.get_world_size()
            weight.grad = gradients.of[name]
        self._optimizer.step()
        self._optimizer.zero_grad()
        return gradients.losses

    def momentum_buffers(self) -> State:
        """Return the momentum by weight; it is zero where no step was taken yet."""
        state = self._optimizer.state
        return {
            name: state[weight]["momentum_buffer"] if state.get(weight) else torch.zeros_like(weight)
            for name, weight in self._weights.items()
        }

    def state(self) -> State:
        """Return a snapshot of the present state; its tensors are those in use."""
        values = self.net.state_dict()
        tensors = {name: value for name, value in values.items() if name not in ("alpha", "beta")}
        return tensors | {MOMENTUM + name: value for name, value in self.momentum_buffers().items()}

    @torch.no_grad()
    def load(self, state: State) -> None:
        """Set weights, statistics and momentum to a snapshot."""
        own = self.net.state_dict()
        for name, value in state.items():
            if not name.startswith(MOMENTUM):
                own[name].copy_(value)
        for name, weight in self._weights.items():
            buffer = torch.empty_like(weight, requires_grad=False)
            self._optimizer.state[weight]["momentum_buffer"] = buffer.copy_(state[MOMENTUM + name])


class Pretraining:
    """This job trains with alpha and beta at zero, and fills the memory with the best weights on the way."""

    def __init__(
        self,
        inner: Inner,
        config: DecouplingSearchConfig,
        accelerator: Accelerator,
        memory: SnapshotMemory,
        validation: Iterable[Batch],
    ) -> None:
        self._inner, self._accelerator, self._memory = inner, accelerator, memory
        self._validation = validation
        self._keeps_latest = config.search.compat == SEDONA_2021
        self._shared = accelerator.num_processes > 1
        self._done = 0

    def step(self, batch: Batch, step: int) -> Mapping[str, Tensor]:
        """Take one step on this process's rows of the batch."""
        with SharedBatchNorm() if self._shared else contextlib.nullcontext():
            losses = self._inner.update(batch, step, shared=self._shared)
        self._done = step + 1
        details = {f"loss/{layer}": loss for layer, loss in enumerate(losses[:-1], start=1)}
        return {"loss": losses[-1], "loss_of_heads": torch.stack(losses[:-1]).mean(), **details}

    def rate(self, step: int) -> float:
        """Return the learning rate of a step."""
        return self._inner.rate(step)

    def evaluate(self) -> Mapping[str, float]:
        """Return the classifier's loss and accuracy; the first process keeps these weights in its memory."""
        values = _evaluate(self._inner.net, self._validation)
        if self._accelerator.is_main_process:
            keep = self._memory.keep_latest if self._keeps_latest else self._memory.keep_best
            keep(self._inner.state(), self._done, values["validation_top1"])
        return values | {"score": values["validation_top1"]}

    def keep_best(self, step: int, score: float) -> None:
        """Do nothing, because the memory keeps the best weights."""

    def state_dict(self) -> dict[str, Any]:
        """Return all that the next step depends on."""
        memory = self._memory.state_dict() if self._accelerator.is_main_process else {}
        return {"inner": self._inner.state(), "memory": memory}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Return to a saved state."""
        self._inner.load(state["inner"])
        if self._accelerator.is_main_process:
            self._memory.load_state_dict(state["memory"])


class Episode(NamedTuple):
    """An episode is the batches of one update of alpha and beta."""

    inner: list[Batch]
    """The batches of the inner steps."""
    ordinary: Batch
    """The batch for the step with the updated alpha and beta."""
    validation: Batch
    """The validation images."""


class Search:
    """This job updates alpha and beta.

    Every process draws from a memory of its own; hypergradients are averaged.
    """

    def __init__(
        self,
        inner: Inner,
        config: DecouplingSearchConfig,
        accelerator: Accelerator,
        memory: SnapshotMemory,
    ) -> None:
        self._inner, self._net, self._config = inner, inner.net, config
        self._accelerator, self._memory = accelerator, memory
        self.updates = Updates.none()
        """The updates so far."""
        options = config.search
        with torch.no_grad():
            self._net.alpha.zero_()
            self._net.beta.zero_()
        self._compat = options.compat == SEDONA_2021
        self._optimizer = outer_optimizer(options, [self._net.alpha, self._net.beta])
        self._recorded = self._shares()

    def step(self, episode: Episode, step: int) -> Mapping[str, Tensor]:
        """Take one iteration of Algorithm 1."""
        config, inner, net = self._config, self._inner, self._net
        generator = torch_stream(config.seed, "draw", step, self._accelerator.process_index)
        drawn = self._memory.draw(generator)
        inner.load(self._memory.read(drawn))
        dtype = net.alpha.dtype
        rate = config.search.inner_lr or inner.rate(drawn.step)
        derivatives = hypergradient(
            net,
            [(batch.images.to(dtype), batch.targets) for batch in episode.inner],
            (episode.validation.images.to(dtype), episode.validation.targets),
            lr=rate,
            momentum=config.recipe.momentum,
            weight_decay=config.recipe.weight_decay,
            momentum_buffers=inner.momentum_buffers(),
            keep_graphs=config.search.keep_graphs,
            statistics=config.search.statistics,
            objective="training" if self._compat else "validation",
        )
        scale = 1 / rate if config.search.per_rate else 1.0
        net.alpha.grad, net.beta.grad = self._mean(derivatives.alpha * scale, derivatives.beta * scale)
        size = torch.sqrt(net.alpha.grad.square().sum() + net.beta.grad.square().sum())
        self.updates.add(net, self._gathered((drawn.origin, rate)))
        self._optimizer.step()
        losses = inner.update(episode.ordinary, drawn.step, rate=rate)
        if config.search.memory == OLDEST:
            self._memory.keep_latest(inner.state(), drawn.step + 1, drawn.score, drawn.origin)
        else:
            self._memory.replace(drawn, inner.state(), drawn.step + 1)
        return {
            "loss": derivatives.loss,
            "training_loss": losses[-1],
            "training_loss_of_heads": torch.stack(losses[:-1]).mean(),
            "hypergradient": size,
        }

    def rate(self, step: int) -> float:
        """Return the learning rate of alpha and beta."""
        return self._config.search.lr

    def evaluate(self) -> Mapping[str, float]:
        """Return the shares of signals and heads, and how far they moved since the last record.

        There is no best state, so the score is minus infinity.
        """
        shares = self._shares()
        moved = max(abs(value - self._recorded[name]) for name, value in shares.items())
        self._recorded = shares
        return {"largest_change": moved, **shares, "score": -math.inf}

    def keep_best(self, step: int, score: float) -> None:
        """Do nothing, because there is no best state."""

    def state_dict(self) -> dict[str, Any]:
        """Return all that the next step depends on; the processes' memories come one after the other."""
        memories: list[Any] = [self._memory.state_dict()]
        if self._accelerator.num_processes > 1:
            memories = [None] * self._accelerator.num_processes
            torch.distributed.all_gather_object(memories, self._memory.state_dict())
        return {
            "alpha": self._net.alpha.detach(),
            "beta": self._net.beta.detach(),
            "optimizer": self._optimizer.state_dict(),
            "recorded": self._recorded,
            "updates": self.updates.state_dict(),
            "memories": memories,
        }

    @torch.no_grad()
    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Return to a saved state, and share its memories out among the processes there are now."""
        self._net.alpha.copy_(state["alpha"])
        self._net.beta.copy_(state["beta"])
        self._optimizer.load_state_dict(state["optimizer"])
        self._recorded = dict(state["recorded"])
        self.updates.load_state_dict(state.get("updates", {}))
        ranks, rank = self._accelerator.num_processes, self._accelerator.process_index
        memories = state["memories"]
        if len(memories) == ranks:
            self._memory.load_state_dict(memories[rank])
        else:
            entries = [entry for memory in memories for entry in memory["entries"]]
            born = max(memory["born"] for memory in memories)
            self._memory.load_state_dict({"entries": entries[rank::ranks] or entries, "born": born})

    def _mean(self, *gradients: Tensor) -> list[Tensor]:
        means = [gradient.clone() for gradient in gradients]
        if self._accelerator.num_processes > 1:
            for mean in means:
                torch.distributed.all_reduce(mean)
                mean /= self._accelerator.num_processes
        return means

    def _gathered(self, drawn: tuple[int, float]) -> list[tuple[int, float]]:
        """Return what every process drew."""
        if self._accelerator.num_processes == 1:
            return [drawn]
        everyone: list[Any] = [None] * self._accelerator.num_processes
        torch.distributed.all_gather_object(everyone, drawn)
        return everyone

    def _shares(self) -> dict[str, float]:
        """Return softmax(alpha)_1 and softmax(beta) by layer."""
        signals = self._net.alpha.detach().double().softmax(1)[:, 0].tolist()
        mixtures = self._net.beta.detach().double().softmax(1).tolist()
        shares = {f"signal/{layer}": value for layer, value in enumerate(signals, start=1)}
        for layer, mixture in enumerate(mixtures, start=1):
            kinds = zip(self._net.head_kinds, mixture, strict=True)
            shares |= {f"heads/{layer}/{kind}": value for kind, value in kinds}
        return shares


def episodes(
    train: TrainLoader, validation: TrainLoader, inner_steps: int, start: int, stop: int
) -> Iterator[Episode]:
    """Yield the batches of updates start, start + 1, ... stop - 1."""
    steps = inner_steps + 1
    batches = train.batches(start * steps, stop * steps)
    for last in validation.batches(start, stop):
        own = [next(batches) for _ in range(steps)]
        yield Episode(own[:-1], own[-1], last)


def _evaluate(net: RelaxedNet, batches: Iterable[Batch]) -> dict[str, float]:
    """Return the classifier's loss and top-1 over all processes' batches."""

    def count(batch: Batch) -> Mapping[str, Tensor]:
        logits = net(batch.images.to(net.alpha.dtype))
        return {
            "images": torch.tensor(len(batch.targets), device=logits.device),
            "validation_loss": F.cross_entropy(logits, batch.targets, reduction="sum"),
            "validation_top1": (logits.argmax(1) == batch.targets).sum(),
        }

    return exact_means(net, count, batches)
