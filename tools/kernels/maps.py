"""Which maps the kernels take, and how they are handed to C."""

import ctypes

import torch
from torch import Tensor

LAST = torch.channels_last
SMALLEST = {"norm": 1 << 18, "convolution": 1 << 16}
"""Maps with fewer numbers than this are left to torch, which starts its operations sooner."""
ROWS, IMAGES = 64, 8
"""The sizes of the parts, as in the kernels."""


def fits(kind: str, inputs: Tensor, *others: Tensor | None) -> bool:
    """Return whether the kernels can compute this: plain numbers that no mode of torch looks at."""
    return (
        not torch.compiler.is_compiling()
        and torch._C._functorch.peek_interpreter_stack() is None
        and inputs.device.type == "cpu"
        and inputs.ndim == 4
        and inputs.numel() >= SMALLEST[kind]
        and all(other is not None and other.dtype == torch.float32 for other in (inputs, *others))
        and inputs.is_contiguous(memory_format=LAST)
        and type(inputs) is Tensor
        and not torch.is_autocast_enabled("cpu")
        and not torch._C._len_torch_function_stack()
        and not torch._C._len_torch_dispatch_stack()
        and not torch._C._get_tracing_state()
    )


class Shape(ctypes.Structure):
    """This is the shape of a depthwise convolution, as in the kernels."""

    _fields_ = [
        *((name, ctypes.c_longlong) for name in ("images", "height", "width", "chs")),
        *((name, ctypes.c_longlong) for name in ("out_height", "out_width", "side", "stride", "padding")),
    ]


def at(tensor: Tensor) -> ctypes.c_void_p:
    """Return where a tensor's numbers are."""
    return ctypes.c_void_p(tensor.data_ptr())
