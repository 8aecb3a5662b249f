"""This module counts a network's parameters, multiply-accumulates and units, and what autograd keeps.

One MAC is one multiply-accumulate of a convolution, a linear layer, a matrix product or attention.
Normalisation, activations, pooling and everything else count zero, as in the papers' tables (which say
FLOPs). Counting looks at the operators that really run, so it needs no rule per module. An unknown operator
is an error, because a cost that is silently too low would let a search pick the wrong network.
"""

import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.graph import saved_tensors_hooks
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import flop_registry

from tools.activations import Activations


def count_params(module: nn.Module) -> int:
    """Return the number of parameter elements; a parameter that is used in two places counts once."""
    return sum(parameter.numel() for parameter in module.parameters())


def count_macs(module: nn.Module, input_shape: Sequence[int]) -> int:
    """Return the multiply-accumulates of one forward pass in evaluation mode.

    The module is left as it was: its modes, BatchNorm statistics and random state do not change.

    Arguments:
        module: The module whose operators are counted.
        input_shape: The shape of one example without the batch, such as (3, 32, 32). Four numbers are a
            complete shape with the batch.

    Raises:
        ValueError: The module runs an operator of unknown cost.
    """
    counter = _MacCounter()
    _run_once(module, input_shape, counter)
    return counter.macs


def count_units(module: nn.Module, input_shape: Sequence[int]) -> int:
    """Return how many numbers the activations of a module, such as ReLU, give in one forward pass.

    Gates, such as a sigmoid, are no activations. Module and shape are as for `count_macs`.
    """
    given: list[int] = []
    _run_once(module, input_shape, Activations(lambda outputs: given.append(outputs.numel())))
    return sum(given)


def saved_activation_bytes(fn: Callable[[], object], *, leaves: bool = False) -> int:
    """Return the bytes that autograd keeps for the backward passes inside `fn`, at their peak.

    Each storage is counted once and in full, however many operators save it or views of it, because a view
    keeps its whole storage alive. It counts from the moment it is saved until the graph releases it. So
    blocks that run forward and backward one after the other cost as much as the largest, not the sum. Batch
    inputs and BatchNorm's buffers are counted, because the graph holds them as well. Parameters and other
    leaves are not. What `torch.utils.checkpoint` recomputes is not seen.

    Arguments:
        fn: The function that runs forward and backward passes.
        leaves: Whether to count other leaves that require gradients, such as the input of a block that is
            trained alone.
    """
    ledger = _Ledger(leaves)
    with saved_tensors_hooks(ledger.save, _Saved.unpack):
        fn()
    return ledger.peak


def _run_once(module: nn.Module, input_shape: Sequence[int], counter: TorchDispatchMode) -> None:
    """Run a module in evaluation mode on zeros, with a counter that sees the module's own work only."""
    shape = tuple(input_shape) if len(input_shape) == 4 else (1, *input_shape)
    reference = next((t for t in _tensors(module) if t.is_floating_point()), torch.empty(0))
    with (
        torch.inference_mode(False),  # it gives convolutions names that the counters do not know
        torch.random.fork_rng(_random_devices(reference.device)),
        _evaluation(module),
        _no_fused_encoder(),
    ):
        images = torch.zeros(shape, device=reference.device, dtype=reference.dtype)
        with torch.no_grad(), counter:
            module(images)


# ---- multiply-accumulates ------------------------------------------------------------------------------


def _sdpa_macs(query: Tensor, key: Tensor, value: Tensor, *_: object, **__: object) -> int:
    """Count the scores and their product with the values; causal masks are computed, and counted, in full."""
    per_score = query.shape[-1] + value.shape[-1]
    return math.prod(query.shape[:-1]) * key.shape[-2] * per_score


def _linear_macs(inputs: Tensor, weight: Tensor, *_: object, **__: object) -> int:
    return inputs.numel() // max(inputs.shape[-1], 1) * weight.numel()


# Products that torch's own table of formulas leaves out. Every other formula is torch's, at 2 FLOPs a MAC.
_MORE_FORMULAS: dict[str, Callable[..., int]] = {
    "_scaled_dot_product_flash_attention_for_cpu": _sdpa_macs,
    "_scaled_dot_product_fused_attention_overrideable": _sdpa_macs,
    "linear": _linear_macs,
    "mv": lambda matrix, vector: matrix.numel(),
    "addmv": lambda bias, matrix, vector, **_: matrix.numel(),
    "dot": lambda left, right: left.numel(),
    "vdot": lambda left, right: left.numel(),
    "addbmm": lambda bias, left, right, **_: left.numel() * right.shape[-1],
    "_addmm_activation": lambda bias, left, right, **_: left.numel() * right.shape[-1],
}

# Operators without a multiply-accumulate in the papers' sense, beyond those that torch tags as pointwise
# and the views. In-place forms (a trailing underscore) are the same operators.
_FREE_BY_KIND = {
    "make, copy and move numbers": """
    empty empty_like empty_strided new_empty new_empty_strided zeros zeros_like new_zeros ones ones_like
    new_ones full full_like new_full arange linspace eye scalar_tensor rand rand_like randn randn_like
    bernoulli uniform normal clone copy _to_copy lift_fresh lift_fresh_copy fill resize set contiguous
    cat stack repeat constant_pad_nd reflection_pad1d reflection_pad2d replication_pad1d replication_pad2d
    roll flip tril triu im2col col2im pixel_shuffle pixel_unshuffle channel_shuffle as_strided _unsafe_view
    _reshape_alias _reshape_copy _local_scalar_dense native_dropout dropout
    """,
    "look numbers up": """
    index index_put _index_put_impl index_select index_add index_fill gather scatter scatter_add
    masked_select masked_fill masked_scatter embedding nonzero take where _unique2 sort topk argsort argmax
    argmin bincount searchsorted
    """,
    "reduce": """
    sum mean amax amin aminmax max min prod any all std std_mean var var_mean norm linalg_vector_norm
    logsumexp cumsum cumprod count_nonzero median
    """,
    "normalise and activate": """
    native_batch_norm _native_batch_norm_legit _native_batch_norm_legit_no_training _batch_norm_with_update
    _batch_norm_no_update cudnn_batch_norm miopen_batch_norm batch_norm native_layer_norm _fused_rms_norm
    native_group_norm _weight_norm_interface _softmax _safe_softmax _log_softmax hardswish hardsigmoid
    hardtanh leaky_relu elu gelu silu mish softplus glu _prelu_kernel prelu relu6 rrelu_with_noise
    log_sigmoid_forward celu threshold
    """,
    "pool and resize": """
    max_pool2d_with_indices max_pool3d_with_indices avg_pool1d avg_pool2d avg_pool3d _adaptive_avg_pool2d
    _adaptive_avg_pool3d adaptive_max_pool2d adaptive_max_pool3d upsample_nearest1d upsample_nearest2d
    upsample_linear1d upsample_bilinear2d upsample_bicubic2d _upsample_nearest_exact2d
    _upsample_bilinear2d_aa _upsample_bicubic2d_aa grid_sampler_2d
    """,
}
_FREE = frozenset(name for names in _FREE_BY_KIND.values() for name in names.split())


class _MacCounter(TorchDispatchMode):  # type: ignore[no-untyped-call] # torch leaves its hook untyped
    """Adds up the multiply-accumulates of the operators that run while it is on."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.macs = 0

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        result = func(*args, **kwargs)
        self.macs += _macs(func, args, kwargs, result)
        return result


def _macs(func: Any, args: tuple[Any, ...], kwargs: dict[str, Any], result: Any) -> int:
    if (formula := flop_registry.get(func.overloadpacket)) is not None:
        return int(formula(*args, **kwargs, out_val=result)) // 2
    if func.namespace == "aten":
        name = func.overloadpacket.__name__.rstrip("_")
        if name in _MORE_FORMULAS:
            return _MORE_FORMULAS[name](*args, **kwargs)
        if torch.Tag.pointwise in func.tags or func.is_view or name in _FREE:
            return 0
    elif func.namespace == "prim" or func.namespace == "prims":
        return 0  # queries such as the device of a tensor
    raise ValueError(f"cannot count the multiply-accumulates of {func}: no formula is known for it")


@contextmanager
def _evaluation(module: nn.Module) -> Iterator[None]:
    """Put a module in evaluation mode for a while; afterwards every submodule has its old mode again."""
    modes = [(submodule, submodule.training) for submodule in module.modules()]
    module.eval()
    try:
        yield
    finally:
        # Two steps: a module may do more than set a flag in `train`, and its children may differ from it.
        module.train(modes[0][1])
        for submodule, training in modes:
            submodule.training = training


@contextmanager
def _no_fused_encoder() -> Iterator[None]:
    """Keep torch's attention and encoder layers from turning into one operator that hides its products."""
    enabled = torch.backends.mha.get_fastpath_enabled()
    torch.backends.mha.set_fastpath_enabled(False)
    try:
        yield
    finally:
        torch.backends.mha.set_fastpath_enabled(enabled)


def _tensors(module: nn.Module) -> Iterable[Tensor]:
    yield from module.parameters()
    yield from module.buffers()


def _random_devices(device: torch.device) -> list[torch.device]:
    return [device] if device.type == "cuda" else []


# ---- saved activations ---------------------------------------------------------------------------------


class _Ledger:
    """A record of the storages that autograd holds, with the number of saved tensors in each."""

    def __init__(self, leaves: bool) -> None:
        self._leaves = leaves
        self.peak = 0
        self._held = 0
        self._uses: dict[int, int] = {}

    def save(self, tensor: Tensor) -> "_Saved":
        return _Saved(tensor, None if _is_parameter(tensor, self._leaves) else self)

    def take(self, storage: torch.UntypedStorage) -> None:
        key = storage._cdata
        self._uses[key] = self._uses.get(key, 0) + 1
        if self._uses[key] == 1:
            self._held += storage.nbytes()
            self.peak = max(self.peak, self._held)

    def give_back(self, storage: torch.UntypedStorage) -> None:
        key = storage._cdata
        self._uses[key] -= 1
        if self._uses[key] == 0:
            del self._uses[key]
            self._held -= storage.nbytes()


class _Saved:
    """A saved tensor that lives exactly as long as autograd holds it, so that its end marks the release."""

    def __init__(self, tensor: Tensor, ledger: _Ledger | None) -> None:
        # Without detach, an operator's own output would keep that operator, and so this object, alive.
        self._tensor = tensor.detach()
        self._ledger = ledger
        if ledger is not None:
            ledger.take(tensor.untyped_storage())

    def unpack(self) -> Tensor:
        return self._tensor

    def __del__(self) -> None:
        if self._ledger is not None:
            self._ledger.give_back(self._tensor.untyped_storage())


def _is_parameter(tensor: Tensor, leaves: bool) -> bool:
    """Return whether a tensor is a parameter or a view of one, such as a linear layer's transposed weight.

    Any leaf that requires a gradient counts as a parameter, unless `leaves` says that leaves are something
    else.
    """
    owner = tensor if tensor._base is None else tensor._base
    return isinstance(owner, nn.Parameter) or (owner.is_leaf and owner.requires_grad and not leaves)
