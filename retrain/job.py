"""A network trained in blocks, or as one: the job that the loop works on."""

import contextlib
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import torch
from accelerate import Accelerator
from timm.layers.norm_act import convert_sync_batchnorm
from timm.utils.model_ema import ModelEmaV3
from torch import Tensor

from local_learning.alignment import gradient_alignment
from local_learning.blocks import DecoupledNet
from local_learning.rules.engine import Part, Rule
from local_learning.rules.gluing import Gluing
from local_learning.rules.greedy import Greedy
from local_learning.rules.replay import Replay
from retrain.config import RetrainConfig
from retrain.engine import AccelerateEngine
from retrain.evaluation import evaluate
from tools.batchnorm import SharedBatchNorm
from tools.layout import use_channels_last
from tools.loaders import Batch
from tools.optim import make_optimizer, make_schedule


class Training:
    """A training job: blocks, each with its loss, optimiser and schedule, and the rule that updates them."""

    def __init__(
        self,
        net: DecoupledNet,
        config: RetrainConfig,
        accelerator: Accelerator,
        *,
        num_steps: int,
        num_images: int,
        validation: Iterable[Batch],
        keep: Callable[[DecoupledNet, int, float], None],
    ) -> None:
        recipe = config.recipe
        self._recipe, self._accelerator = recipe, accelerator
        self._validation, self._keep = validation, keep
        self._shared_bn: contextlib.AbstractContextManager[Any] = contextlib.nullcontext()
        if accelerator.num_processes > 1 and config.sync_batchnorm:
            if accelerator.device.type == "cpu":
                self._shared_bn = SharedBatchNorm()
            else:
                net = convert_sync_batchnorm(net)  # type: ignore[no-untyped-call]
        self._dtype = torch.float64 if config.precision == "fp64" else torch.float32
        self.net = net.to(accelerator.device, self._dtype)
        use_channels_last(self.net)
        self.ema: ModelEmaV3 | None = (
            ModelEmaV3(net, decay=recipe.ema, use_warmup=True) if recipe.ema else None
        )
        self._optimizers = [make_optimizer(recipe, block.parameters()) for block in net.blocks]
        for optimizer, rate in zip(self._optimizers, _rates(config, net), strict=True):
            for group in optimizer.param_groups:
                group["lr_scale"] = rate  # timm's schedules put it on every rate, the last ones included
        self._schedules = [make_schedule(recipe, optimizer, num_steps) for optimizer in self._optimizers]
        engine = AccelerateEngine(
            net,
            self._optimizers,
            accelerator,
            clip_norm=recipe.clip_norm,
            compile_mode=config.compile_mode if config.compile else "",
        )
        self._rule: Rule
        match config.chosen_rule:
            case "replay":
                self._rule = Replay(engine)
            case "gluing":
                if config.gluing.cache and accelerator.num_processes > 1:
                    raise ValueError(
                        "--gluing.cache: an image meets another process in each epoch, but each has its own "
                        "variables; use one process"
                    )
                self._rule = Gluing(engine, config.gluing, num_images=num_images)
            case _:
                self._rule = Greedy(engine)
        self._aligns = config.alignment
        self._latest: Part | None = None

    @property
    def final_network(self) -> DecoupledNet:
        """The network that is evaluated and saved: the average of the weights where the recipe keeps one."""
        network: DecoupledNet = self.net if self.ema is None else self.ema.module
        return network

    def step(self, batch: Batch, step: int) -> Mapping[str, Tensor]:
        """One update of the blocks on this process's rows of the batch."""
        for schedule in self._schedules:
            schedule.step_update(step)
        self.net.train()
        count = self._recipe.accumulate
        columns = (batch.images.to(self._dtype), batch.targets, batch.indices)
        parts = [Part(*rows) for rows in zip(*(column.chunk(count) for column in columns), strict=True)]
        with self._shared_bn:
            report = self._rule.step(parts)
        if self.ema is not None:
            self.ema.update(self.net, step=step)
        if self._aligns:
            self._latest = parts[0]
        hits = torch.zeros((), device=batch.images.device)
        for part, logits in zip(parts, report.logits, strict=True):
            labels = part.targets if part.targets.ndim == 1 else part.targets.argmax(1)
            hits += (logits.argmax(1) == labels).float().mean() / count
        return {**report.losses, "train_top1": hits}

    def rate(self, step: int) -> float:
        """The learning rate of a step, of the last block."""
        self._schedules[-1].step_update(step)
        return float(self._optimizers[-1].param_groups[0]["lr"])

    def evaluate(self) -> Mapping[str, float]:
        """Validation metrics; the score is the top-1 of the network that will be saved."""
        self._share_buffers()
        values: dict[str, float] = {}
        networks = {"": self.net} if self.ema is None else {"raw_": self.net, "": self.ema.module}
        for prefix, network in networks.items():
            found = evaluate(network, self._validation, self._accelerator)
            values |= {f"validation_{prefix}{name}": value for name, value in found.items()}
        if self._latest is not None:
            with self._shared_bn:
                cosines = gradient_alignment(self.net, self._latest.images, self._latest.targets)
            values |= {f"alignment/{layer}": cosine for layer, cosine in cosines.items()}
        return values | {"score": values["validation_top1"]}

    def keep_best(self, step: int, score: float) -> None:
        """Write the network as the best so far."""
        self._keep(self.final_network, step, score)

    def state_dict(self) -> dict[str, Any]:
        """All that the next step depends on."""
        self._share_buffers()
        scaler = self._accelerator.scaler
        return {
            "network": self.net.state_dict(),
            "optimizers": [optimizer.state_dict() for optimizer in self._optimizers],
            "rule": self._over_ranks(self._rule.state_dict(), self._gathered),
            "ema": self.ema.module.state_dict() if self.ema else {},
            "scaler": scaler.state_dict() if scaler else {},
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go back to a saved state."""
        self.net.load_state_dict(state["network"])
        for optimizer, saved in zip(self._optimizers, state["optimizers"], strict=True):
            optimizer.load_state_dict(saved)
        self._rule.load_state_dict(self._over_ranks(state["rule"], self._own_rows))
        if self.ema:
            self.ema.module.load_state_dict(state["ema"])
        if self._accelerator.scaler:
            self._accelerator.scaler.load_state_dict(state["scaler"])

    def _over_ranks(self, state: Any, change: Callable[[Tensor], Tensor]) -> Any:
        """A rule's state with every tensor changed; their rows are those of this process's batch."""
        if self._accelerator.num_processes == 1:
            return state
        if isinstance(state, Tensor):
            return change(state)
        if isinstance(state, Mapping):
            return {key: self._over_ranks(value, change) for key, value in state.items()}
        return [self._over_ranks(value, change) for value in state]

    def _gathered(self, rows: Tensor) -> Tensor:
        gathered: Tensor = self._accelerator.gather(rows.contiguous())
        if rows.ndim == 4 and rows.is_contiguous(memory_format=torch.channels_last):
            # Another layout in memory would be another rounding.
            gathered = gathered.contiguous(memory_format=torch.channels_last)
        return gathered

    def _own_rows(self, rows: Tensor) -> Tensor:
        own: Tensor = rows.chunk(self._accelerator.num_processes)[self._accelerator.process_index]
        return own

    def _share_buffers(self) -> None:
        """Make BatchNorm statistics those of the first process, where each kept its own."""
        if self._accelerator.num_processes > 1:
            for network in dict.fromkeys((self.net, self.final_network)):
                for buffer in network.buffers():
                    torch.distributed.broadcast(buffer, 0)


def _rates(config: RetrainConfig, net: DecoupledNet) -> tuple[float, ...]:
    count = len(net.blocks)
    if config.block_rates and len(config.block_rates) != count:
        raise ValueError(
            f"--block-rates: {len(config.block_rates)} factors for {count} blocks; give one for each"
        )
    return config.block_rates or (1.0,) * count
