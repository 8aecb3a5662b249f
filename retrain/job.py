"""This module defines the job that the loop works on: a network trained in blocks, or as one."""

import contextlib
import math
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import torch
from accelerate import Accelerator
from timm.layers.norm_act import convert_sync_batchnorm
from timm.utils.model_ema import ModelEmaV3
from torch import Tensor
from tqdm import tqdm

from local_learning.alignment import gradient_alignment
from local_learning.blocks import DecoupledNet, file_names
from local_learning.later.refresh import Refresh, ways_down
from local_learning.rules.engine import Part, Rule, loss_name
from local_learning.rules.whole import Whole
from retrain.config import RetrainConfig
from retrain.engine import AccelerateEngine
from retrain.evaluation import about_chance, evaluate, evaluate_in_stages, heads_at_chance, votes
from retrain.pipeline.setup import ProcessSetup
from retrain.pipeline.shards import Shards, order_of
from retrain.rates import Rates
from tools.batchnorm import SharedBatchNorm
from tools.images.loaders import Batch
from tools.kernels.modules import use_kernels
from tools.layout import use_channels_last
from tools.optim import make_optimizer, make_schedule
from tools.options.plugins import call
from tools.run.launch import on_main
from tools.run.meters import Sums


class Training:
    """A `Training` is a job: blocks with losses, optimisers and schedules, and the rule that updates them."""

    def __init__(
        self,
        net: DecoupledNet,
        config: RetrainConfig,
        accelerator: Accelerator,
        *,
        num_steps: int,
        evaluate_every: int,
        num_images: int,
        validation: Iterable[Batch],
        keep: Callable[[Mapping[str, Tensor], int, float], None],
        setup: ProcessSetup,
        num_classes: int,
    ) -> None:
        recipe, role, neighbours = config.recipe, setup.role, setup.neighbours
        self._recipe, self._accelerator = recipe, accelerator
        self._role, self._neighbours, self._num_steps, self._every = (
            role,
            neighbours,
            num_steps,
            evaluate_every,
        )
        self._waiting = setup.waiting
        self._num_classes, self._warned, self._last_step = num_classes, set[int](), 0
        self._validation, self._keep = validation, keep
        self._names, self._votes = file_names(net), votes(net)
        self._ways = ways_down(net) if config.local.refresh else {}
        self._rates = rates = Rates(config, len(net.blocks), num_steps)
        whole = {
            index: order_of(rates.optimizer(index, net.blocks[index]), net.blocks[index])
            for index in role.own
        }
        net.keep_only(role.own, setup.piece)
        self._shards = Shards(role, net, whole)
        self._shared_bn: contextlib.AbstractContextManager[Any] = contextlib.nullcontext()
        if role.copies > 1 and config.sync_batchnorm:
            if accelerator.device.type == "cpu":
                self._shared_bn = SharedBatchNorm(role.group)
            else:
                net = convert_sync_batchnorm(net, role.group)  # type: ignore[no-untyped-call]
        self._dtype = torch.float64 if config.precision == "fp64" else torch.float32
        self.net = net.to(accelerator.device, self._dtype).train()
        use_channels_last(self.net)
        use_kernels(self.net, config.kernels)
        self.ema: ModelEmaV3 | None = (
            ModelEmaV3(net, decay=recipe.ema, use_warmup=True) if recipe.ema else None
        )
        self._optimizers = [rates.optimizer(index, net.blocks[index]) for index in role.own]
        self._orders = [
            order_of(optimizer, net.blocks[index])
            for index, optimizer in zip(role.own, self._optimizers, strict=True)
        ]
        # Every process reports the last block's learning rate.
        self._clock = make_optimizer(recipe, [torch.nn.Parameter(torch.zeros(1))])
        self._timed = [*zip(role.own, self._optimizers, strict=True), (len(net.blocks) - 1, self._clock)]
        self._set_rates(0)
        self._schedules = [make_schedule(recipe, optimizer, num_steps) for _, optimizer in self._timed]
        self._engine = engine = AccelerateEngine(
            net,
            self._optimizers,
            accelerator,
            role=role,
            neighbours=neighbours,
            seed=config.seed,
            clip_norm=recipe.clip_norm,
            compile_mode=config.compile_mode if config.compile else "",
        )
        self._rule: Rule = call(config.rule_row.maker, engine, options=config.gluing, num_images=num_images)
        self._whole = Whole(engine)
        local = config.local
        self._in_blocks = range(
            round(local.whole_first / 100 * num_steps),
            num_steps - round(local.join_last / 100 * num_steps),
        )
        self._refresh = (
            Refresh(
                *(net, self._ways, role.own),
                every=local.refresh,
                momentum=local.momentum,
                post=setup.post(self._dtype) if role.is_part else None,
            )
            if self._ways
            else None
        )
        # Counted from each evaluation, so that every interval has its measurement.
        self._aligns = config.alignment_every if config.alignment and evaluate_every else 0
        self._cosines = Sums()

    @property
    def final_network(self) -> DecoupledNet:
        """Return the network that is evaluated and saved: the average of the weights, if one is kept."""
        network: DecoupledNet = self.net if self.ema is None else self.ema.module
        return network

    def step(self, batch: Batch | None, step: int) -> Mapping[str, Tensor]:
        """Make one update of the blocks on this process's rows; without a batch, the rows come from below."""
        self._last_step = step
        self._set_rates(step)
        for schedule in self._schedules:
            schedule.step_update(step)
        if not self.net.training:
            self.net.train()
        self._engine.begin(step)
        if self._neighbours is not None:
            self._neighbours.begin(step)
        parts = self._parts(batch, step)
        with self._shared_bn:
            if self._aligns and step % self._every % self._aligns == 0:
                cosines = gradient_alignment(self.net, parts[0].images, parts[0].targets)
                self._cosines.add({f"alignment/{layer}": torch.tensor(c) for layer, c in cosines.items()})
            rule = self._rule if step in self._in_blocks else self._whole
            report = rule.step(parts)
        if self._refresh is not None:
            self._refresh.after(step)
        if self.ema is not None:
            self.ema.update(self.net, step=step)
        values = dict(report.losses)
        if self._role.groups > 1:  # so that the mean over the groups' processes is the block's loss
            values[loss_name(self._role.own.start, self._engine.num_blocks)] *= self._role.groups
        if report.logits:
            values["train_top1"] = torch.stack(
                [
                    _share_right(part.targets, logits)
                    for part, logits in zip(parts, report.logits, strict=True)
                ]
            ).mean()
        if self._neighbours is not None:
            rank = self._accelerator.process_index
            values |= {
                f"{name}/{rank}": torch.tensor(value)
                for name, value in self._neighbours.traffic.taken().items()
            }
        return values

    def _set_rates(self, step: int) -> None:
        for index, optimizer in self._timed:
            self._rates.set(optimizer, index, step)

    def _parts(self, batch: Batch | None, step: int) -> list[Part]:
        count = self._recipe.accumulate
        if batch is None:
            assert self._neighbours is not None
            # All steps up to the next evaluation will certainly come.
            until = min(self._num_steps, (step // self._every + 1) * self._every if self._every else math.inf)
            return self._neighbours.take_parts(count, int(until) - step)
        columns = (batch.images.to(self._dtype), batch.targets, batch.indices)
        return [Part(*rows) for rows in zip(*(column.chunk(count) for column in columns), strict=True)]

    def rate(self, step: int) -> float:
        """Return the last block's learning rate of a step."""
        self._schedules[-1].step_update(step)
        return float(self._clock.param_groups[0]["lr"])

    def measure(self, network: DecoupledNet, batches: Iterable[Batch]) -> Mapping[str, float]:
        """Return the accuracies of a network of this job's shape."""
        if self._neighbours is None:
            return evaluate(network, batches, self._accelerator)
        return evaluate_in_stages(
            network,
            batches,
            self._accelerator,
            role=self._role,
            neighbours=self._neighbours,
            votes=self._votes,
        )

    def by_file_names(self, network: DecoupledNet) -> dict[str, Tensor]:
        """Return all tensors of a network of this job's shape on the first process, named as in files."""
        own = {self._names[name]: tensor.cpu() for name, tensor in network.state_dict().items()}
        if not self._role.is_part:
            return own
        own = self._shards.together(own)
        all_of_them: list[dict[str, Tensor]] = [{}] * self._accelerator.num_processes
        main = self._accelerator.is_main_process
        torch.distributed.gather_object(
            own if self._role.speaks else {}, all_of_them if main else None, 0, self._role.control
        )
        return {name: tensor for tensors in all_of_them for name, tensor in tensors.items()}

    def load_from_file(self, network: DecoupledNet, tensors: Mapping[str, Tensor]) -> None:
        """Load tensors that are named as in files into a network of this job's shape."""
        own = {name: tensors[self._names[name]] for name in network.state_dict()}
        network.load_state_dict(self._shards.own(own))

    def evaluate(self) -> Mapping[str, float]:
        """Return validation metrics; the score is the top-1 of the network that will be saved."""
        self._share_buffers()
        values: dict[str, float] = {}
        networks = {"": self.net} if self.ema is None else {"raw_": self.net, "": self.ema.module}
        for prefix, network in networks.items():
            accuracies = self.measure(network, self._validation)
            values |= {f"validation_{prefix}{name}": value for name, value in accuracies.items()}
        self._warn(values)
        values |= {name: float(mean) for name, mean in self._cosines.means().items()}
        self._cosines = Sums()
        return values | {"score": values["validation_top1"]}

    def _warn(self, values: Mapping[str, float]) -> None:
        """Name heads that have not learnt in a quarter of the steps, once and before the end."""
        if (
            self._num_steps // 4 <= self._last_step < self._num_steps - 1
            and self._accelerator.is_main_process
        ):
            for block, accuracy in heads_at_chance(values, self._num_classes).items():
                if block not in self._warned:
                    tqdm.write(about_chance(block, accuracy, self._num_classes))
                    self._warned.add(block)

    def keep_best(self, step: int, score: float) -> None:
        """Write the network as the best so far."""
        tensors = self.by_file_names(self.final_network)
        if self._role.is_part:
            on_main(self._accelerator, lambda: self._keep(tensors, step, score))
        else:
            self._keep(tensors, step, score)

    def state_dict(self) -> dict[str, Any]:
        """Return everything that the next step depends on."""
        self._share_buffers()
        scaler, shards = self._accelerator.scaler, self._shards
        optimizers = zip(self._role.own, self._optimizers, self._orders, strict=True)
        state = {
            "network": self.net.state_dict(),
            "optimizers": {
                index: shards.named(optimizer.state_dict(), order) for index, optimizer, order in optimizers
            },
            "rule": self._rule.state_dict(),
            "refresh": self._refresh.state_dict() if self._refresh else {},
            "alignment": self._cosines.state_dict(),
            "ema": self.ema.module.state_dict() if self.ema else {},
            "scaler": scaler.state_dict() if scaler else {},
        }
        with self._waiting():
            state = shards.together(state)
        state["optimizers"] = {k: shards.numbered(k, named) for k, named in state["optimizers"].items()}
        return state

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go back to a saved state."""
        shards = self._shards
        _load_own(self.net, shards.own(state["network"]))
        for index, optimizer, order in zip(self._role.own, self._optimizers, self._orders, strict=True):
            optimizer.load_state_dict(shards.own_optimizer(index, state["optimizers"][index], order))
        self._rule.load_state_dict(state["rule"])
        if self._refresh is not None:
            self._refresh.load_state_dict(state["refresh"])
        if "alignment" in state:  # an older checkpoint has none
            self._cosines.load_state_dict(state["alignment"], torch.device("cpu"))
        if self.ema:
            _load_own(self.ema.module, shards.own(state["ema"]))
        if self._accelerator.scaler:
            self._accelerator.scaler.load_state_dict(state["scaler"])

    def _share_buffers(self) -> None:
        """Give BatchNorm statistics of the role's first process to all, where each process kept its own."""
        if self._role.copies > 1:
            first = self._accelerator.process_index - self._role.copy
            for network in dict.fromkeys((self.net, self.final_network)):
                for buffer in network.buffers():
                    torch.distributed.broadcast(buffer, first, group=self._role.group)


def _share_right(targets: Tensor, logits: Tensor) -> Tensor:
    labels = targets if targets.ndim == 1 else targets.argmax(1)
    return (logits.argmax(1) == labels).float().mean()


def _load_own(net: torch.nn.Module, saved: Mapping[str, Tensor]) -> None:
    """Load a net's tensors from those of a whole network, of which the net may have only some blocks."""
    own = net.state_dict().keys()
    if missing := own - saved.keys():
        raise KeyError(f"it lacks {min(missing)}")
    net.load_state_dict({name: saved[name] for name in own})
