"""This module watches activations at the operators that run, so it needs no rule per module or function."""

from collections.abc import Callable
from typing import Any

from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

OPERATORS = frozenset(
    {
        *("relu", "relu6", "hardtanh", "leaky_relu", "_prelu_kernel", "elu", "celu"),
        *("silu", "gelu", "hardswish", "mish"),
    }
)
"""These operators of torch are activations, also in place; gates, such as sigmoids, are not among them.

With torch's defaults, each gives a positive number exactly where its input is positive.
"""


class Activations(TorchDispatchMode):  # type: ignore[no-untyped-call] # torch leaves its hook untyped
    """Inside this context, `watch` is called with what each activation gives, before it is overwritten."""

    def __init__(self, watch: Callable[[Tensor], None]) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self._watch = watch

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        result = func(*args, **(kwargs or {}))
        if func.namespace == "aten" and func.overloadpacket.__name__.rstrip("_") in OPERATORS:
            self._watch(result)
        return result
