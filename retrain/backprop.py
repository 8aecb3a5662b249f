"""One network trained end to end by backpropagation: the job that the loop works on."""

import contextlib
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import torch
from accelerate import Accelerator
from timm.layers.norm_act import convert_sync_batchnorm
from timm.utils.model_ema import ModelEmaV3
from torch import Tensor, nn

from local_learning.chain import Chain
from retrain.config import RetrainConfig
from retrain.evaluation import evaluate
from tools.batchnorm import SharedBatchNorm
from tools.loaders import Batch
from tools.optim import make_optimizer, make_schedule


class Backprop:
    """A training job: one network, one loss, one optimiser."""

    def __init__(
        self,
        chain: Chain,
        config: RetrainConfig,
        accelerator: Accelerator,
        *,
        num_steps: int,
        validation: Iterable[Batch],
        keep: Callable[[nn.Module, int, float], None],
    ) -> None:
        recipe = config.recipe
        self._recipe, self._accelerator = recipe, accelerator
        self._validation, self._keep = validation, keep
        self._shared_bn: contextlib.AbstractContextManager[Any] = contextlib.nullcontext()
        if accelerator.num_processes > 1 and config.sync_batchnorm:
            if accelerator.device.type == "cpu":
                self._shared_bn = SharedBatchNorm()
            else:
                chain = convert_sync_batchnorm(chain)  # type: ignore[no-untyped-call]
        self._dtype = torch.float64 if config.precision == "fp64" else torch.float32
        self.chain = chain.to(accelerator.device, self._dtype)
        use_channels_last(self.chain)
        self.ema: ModelEmaV3 | None = (
            ModelEmaV3(chain, decay=recipe.ema, use_warmup=True) if recipe.ema else None
        )
        self._optimizer = make_optimizer(recipe, chain.parameters())
        self._schedule = make_schedule(recipe, self._optimizer, num_steps)
        self._network, self._prepared = accelerator.prepare(chain, self._optimizer)
        if config.compile:
            self._network = torch.compile(self._network, mode=config.compile_mode)
        self._criterion = nn.CrossEntropyLoss(label_smoothing=recipe.label_smoothing)

    @property
    def final_network(self) -> nn.Module:
        """The network that is evaluated and saved: the average of the weights where the recipe keeps one."""
        network: nn.Module = self.chain if self.ema is None else self.ema.module
        return network

    def step(self, batch: Batch, step: int) -> Mapping[str, Tensor]:
        """One optimiser step on this process's rows of the batch."""
        self._schedule.step_update(step)
        self.chain.train()
        parts = self._recipe.accumulate
        loss, hits = torch.zeros((), device=batch.images.device), torch.zeros((), device=batch.images.device)
        for part, (images, targets) in enumerate(
            zip(batch.images.to(self._dtype).chunk(parts), batch.targets.chunk(parts), strict=True)
        ):
            waits = part < parts - 1
            with (
                self._accelerator.no_sync(self._network) if waits else contextlib.nullcontext(),
                self._shared_bn,
            ):
                logits = self._network(images)
                part_loss = self._criterion(logits, targets) / parts
                self._accelerator.backward(part_loss)
            loss += part_loss.detach()
            labels = targets if targets.ndim == 1 else targets.argmax(1)
            hits += (logits.detach().argmax(1) == labels).float().mean() / parts
        if self._recipe.clip_norm:
            self._accelerator.clip_grad_norm_(self.chain.parameters(), self._recipe.clip_norm)
        self._prepared.step()
        self._prepared.zero_grad()
        if self.ema is not None:
            self.ema.update(self.chain, step=step)
        return {"loss": loss, "train_top1": hits}

    def rate(self, step: int) -> float:
        """The learning rate of a step."""
        self._schedule.step_update(step)
        return float(self._optimizer.param_groups[0]["lr"])

    def evaluate(self) -> Mapping[str, float]:
        """Validation metrics; the score is the top-1 of the network that will be saved."""
        self._share_buffers()
        values: dict[str, float] = {}
        networks = {"": self.chain} if self.ema is None else {"raw_": self.chain, "": self.ema.module}
        for prefix, network in networks.items():
            found = evaluate(network, self._validation, self._accelerator)
            values |= {f"validation_{prefix}{name}": value for name, value in found.items()}
        return values | {"score": values["validation_top1"]}

    def keep_best(self, step: int, score: float) -> None:
        """Write the network as the best so far."""
        self._keep(self.final_network, step, score)

    def state_dict(self) -> dict[str, Any]:
        """All that the next step depends on."""
        self._share_buffers()
        scaler = self._accelerator.scaler
        return {
            "network": self.chain.state_dict(),
            "optimizer": self._optimizer.state_dict(),
            "ema": self.ema.module.state_dict() if self.ema else {},
            "scaler": scaler.state_dict() if scaler else {},
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go back to a saved state."""
        self.chain.load_state_dict(state["network"])
        self._optimizer.load_state_dict(state["optimizer"])
        if self.ema:
            self.ema.module.load_state_dict(state["ema"])
        if self._accelerator.scaler:
            self._accelerator.scaler.load_state_dict(state["scaler"])

    def _share_buffers(self) -> None:
        """Make BatchNorm statistics those of the first process, where each kept its own."""
        if self._accelerator.num_processes > 1:
            for network in dict.fromkeys((self.chain, self.final_network)):
                for buffer in network.buffers():
                    torch.distributed.broadcast(buffer, 0)


def use_channels_last(network: nn.Module) -> None:
    """Lay out convolution weights as their gradients will be; on CPU the faster way by a third.

    `network.to(memory_format=...)` would leave 1x1 kernels as they are, to the displeasure of DDP.
    """
    for parameter in network.parameters():
        if parameter.ndim == 4:
            parameter.data = parameter.data.clone(memory_format=torch.channels_last)
