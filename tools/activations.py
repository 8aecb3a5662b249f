"""This module watches activations at the operators that run, so it needs no rule per module or function."""

from collections.abc import Callable
from typing import Any

from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

OPERATORS = frozenset(
    "relu relu6 hardtanh leaky_relu _prelu_kernel elu celu silu gelu hardswish mish".split()  # noqa: SIM905
)
"""These operators of torch are activations; a trailing underscore, of one that works in place, is left out.

All give a positive number for a positive input alone. Sigmoids and other gates are not among them.
"""


class Activations(TorchDispatchMode):  # type: ignore[no-untyped-call] # torch leaves its hook untyped
    """Inside this context, `watch` is called with all that an activation gives, right after it ran.

    What later operators write in place, such as the next activation, does not reach it before.
    """

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
