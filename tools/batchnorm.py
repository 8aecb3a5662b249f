"""This module computes BatchNorm over a whole batch of which several processes each hold a part.

torch's SyncBatchNorm does this on GPUs only. Here `F.batch_norm` itself is intercepted. So it works on any
device and for every layer that ends in that function, and the network's modules are not replaced.
"""

import contextlib
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch
import torch.distributed
from torch import Tensor, nn
from torch.nn import functional as F
from torch.overrides import TorchFunctionMode


class SharedBatchNorm(TorchFunctionMode):
    """Inside this context, BatchNorm in training mode takes its statistics over the parts of all processes.

    With a group, it takes them over the parts of the group's processes.
    """

    active = 0
    """This many contexts are open; layers that compute statistics without the functional look at it."""

    def __init__(self, group: torch.distributed.ProcessGroup | None = None) -> None:
        super().__init__()
        self._group = group

    def __enter__(self) -> "SharedBatchNorm":
        SharedBatchNorm.active += 1
        super().__enter__()  # type: ignore[no-untyped-call]
        return self

    def __exit__(self, *reason: Any) -> None:
        SharedBatchNorm.active -= 1
        super().__exit__(*reason)  # type: ignore[no-untyped-call]

    def __torch_function__(
        self,
        func: Callable[..., Any],
        types: Sequence[type],
        args: tuple[Any, ...] = (),
        kwargs: dict[str, Any] | None = None,
    ) -> Any:
        if func is F.batch_norm:
            return _batch_norm(self._group, *args, **(kwargs or {}))
        return func(*args, **(kwargs or {}))


def statistics_are_shared() -> bool:
    """Return whether a `SharedBatchNorm` context is open."""
    return SharedBatchNorm.active > 0


def _batch_norm(
    group: torch.distributed.ProcessGroup | None,
    input: Tensor,
    running_mean: Tensor | None,
    running_var: Tensor | None,
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    training: bool = False,
    momentum: float = 0.1,
    eps: float = 1e-5,
) -> Tensor:
    if not training:
        return F.batch_norm(input, running_mean, running_var, weight, bias, False, momentum, eps)
    mean, variance = _statistics(input.detach(), group)
    if running_mean is not None and running_var is not None:
        count = input.numel() // input.shape[1] * torch.distributed.get_world_size(group)
        running_mean.lerp_(mean.to(running_mean.dtype), momentum)
        running_var.lerp_((variance * (count / max(1, count - 1))).to(running_var.dtype), momentum)
    normalised: Tensor = _Normalise.apply(input, mean, variance, weight, bias, eps, group)  # type: ignore[no-untyped-call]
    return normalised


def _statistics(input: Tensor, group: torch.distributed.ProcessGroup | None) -> tuple[Tensor, Tensor]:
    """Mean and biased variance per channel over all ranks, each of which holds an equal part."""
    wide = input.to(torch.promote_types(input.dtype, torch.float32))  # half precision is too coarse
    variance, mean = torch.var_mean(wide, _all_but_channels(input), correction=0)
    parts = [
        torch.empty(2, *mean.shape, dtype=torch.float64, device=mean.device)
        for _ in range(torch.distributed.get_world_size(group))
    ]
    torch.distributed.all_gather(parts, torch.stack([mean, variance]).double(), group=group)
    means, variances = torch.stack(parts, dim=1)
    total = means.mean(0)
    return total.to(mean.dtype), (variances.mean(0) + (means - total).square().mean(0)).to(mean.dtype)


def _all_but_channels(input: Tensor) -> list[int]:
    return [0, *range(2, input.ndim)]


class _Normalise(torch.autograd.Function):
    """Normalisation by given statistics, with the gradient that also flows through the statistics."""

    @staticmethod
    def forward(
        ctx: Any,
        input: Tensor,
        mean: Tensor,
        variance: Tensor,
        weight: Tensor | None,
        bias: Tensor | None,
        eps: float,
        group: torch.distributed.ProcessGroup | None,
    ) -> Tensor:
        ctx.save_for_backward(input, mean, variance, weight)
        ctx.eps, ctx.group = eps, group
        return F.batch_norm(input, mean, variance, weight, bias, False, 0.0, eps)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        (gradient,) = gradients
        input, mean, variance, weight = ctx.saved_tensors
        dims, shape = _all_but_channels(input), [1, -1, *[1] * (input.ndim - 2)]
        inverse = torch.rsqrt(variance + ctx.eps)
        centred = (input - mean.view(shape)) * inverse.view(shape)
        own = torch.stack([gradient.sum(dims), (gradient * centred).sum(dims)])
        total = own.clone()
        torch.distributed.all_reduce(total, group=ctx.group)
        count = input.numel() // input.shape[1] * torch.distributed.get_world_size(ctx.group)
        level, slope = total / count
        scale = inverse if weight is None else inverse * weight
        inner = gradient - level.view(shape) - centred * slope.view(shape)
        to_weight, to_bias = (None, None) if weight is None else (own[1], own[0])
        return (inner * scale.view(shape)).to(input.dtype), None, None, to_weight, to_bias, None, None


@contextlib.contextmanager
def frozen_statistics(module: nn.Module) -> Iterator[None]:
    """Inside this context, BatchNorm normalises by the batch but leaves its running statistics unchanged."""
    # In training mode the flag decides this and nothing else, in torch's layers and in timm's.
    tracking = [layer for layer in module.modules() if getattr(layer, "track_running_stats", False)]
    for layer in tracking:
        layer.track_running_stats = False  # type: ignore[assignment]
    try:
        yield
    finally:
        for layer in tracking:
            layer.track_running_stats = True  # type: ignore[assignment]
