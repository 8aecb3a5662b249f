"""A layer's copy gets new weights, and is made to take what comes in, with as many channels as asked.

A copy is tried on features once. Each of its parts then takes the channels that reach it, and gives its own
number of channels times the width.
"""

import math
from collections.abc import Callable, Sequence
from typing import Any

import torch
from timm.layers.norm import LayerNorm2d, LayerNorm2dFp32, LayerNormExp2d, RmsNorm
from timm.layers.norm_act import LayerNormAct2d
from torch import Tensor, nn

from local_learning.features import probe


def narrowed(module: nn.Module, inputs: Tensor, width: float, *, outputs: int = 0) -> Tensor:
    """Let a module take these inputs, with its channels times `width`, and return what it gives.

    Weights that change their size keep their first rows and columns, scaled so that outputs keep their
    variance. A part that gives `outputs` channels goes on to do so.

    Raises:
        ValueError: if a part of the module cannot take what reaches it.
    """
    for part in module.modules():
        if width != 1 and not isinstance(part, _KNOWN):
            _narrow_vectors(part, width)
    done: set[nn.Module] = set()

    def take(part: Any, inputs: tuple[Tensor, ...]) -> None:
        if part not in done:
            done.add(part)
            if _is_attention(part):
                done.add(part.qkv)
                _narrow_attention(part, inputs[0].shape[-1])
            elif isinstance(part, _KNOWN):
                _TAKERS[next(kind for kind in _KNOWN if isinstance(part, kind))](part, inputs[0], given)

    def given(chs: int) -> int:
        return chs if chs == outputs else max(1, round(chs * width))

    hooks = [part.register_forward_pre_hook(take) for part in module.modules()]
    try:
        return probe([module], inputs)
    except (RuntimeError, TypeError, IndexError, AssertionError) as error:
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        raise ValueError(f"it cannot take features of shape {tuple(inputs.shape[1:])}: {reason}") from error
    finally:
        for hook in hooks:
            hook.remove()


@torch.no_grad()
def redraw(module: nn.Module) -> None:
    """Give a module new weights, drawn as large as those that it has; vectors stay as they are.

    Weights that are all zero stay so. Running statistics start anew. Draws come from torch's global
    generator on the CPU.
    """
    for part in module.modules():
        if isinstance(part, nn.modules.batchnorm._NormBase):
            part.reset_running_stats()
        for parameter in part.parameters(recurse=False):
            if parameter.ndim > 1:
                size = parameter.square().mean().sqrt()
                parameter.copy_(torch.randn(parameter.shape).to(parameter) * size)


def resized(tensor: Tensor, shape: Sequence[int], parts: int = 1) -> Tensor:
    """Return a weight in another shape: its first entries in each dimension, or these repeated.

    What is no vector is scaled so that outputs keep their variance. Where the rows are several parts, such
    as queries, keys and values, each keeps its own first rows.
    """
    if parts > 1 and tensor.shape[0] != shape[0]:
        own = (shape[0] // parts, *shape[1:])
        return torch.cat([resized(part, own) for part in tensor.detach().chunk(parts)])
    new = tensor.detach()
    for dim, (old, size) in enumerate(zip(tensor.shape, shape, strict=True)):
        if old != size:
            new = new.index_select(dim, torch.arange(size, device=new.device) % old)
    if new.shape != tensor.shape and new.ndim > 1:
        new = new * math.sqrt(tensor[0].numel() / new[0].numel())
    return new


def _resize(module: nn.Module, name: str, *shape: int, parts: int = 1) -> None:
    """Give a module's tensor another shape."""
    tensor = getattr(module, name)
    if tensor is not None and tuple(tensor.shape) != shape:
        new = resized(tensor, shape, parts)
        parameter = isinstance(tensor, nn.Parameter)
        setattr(module, name, nn.Parameter(new, tensor.requires_grad) if parameter else new)


def parts_of(name: str) -> int:
    """Return of how many parts the rows of a tensor are, by its name: timm's attentions keep three in one."""
    return 3 if "qkv" in name.split(".") else 1


Given = Callable[[int], int]


def _take_map(conv: nn.Conv2d, inputs: Tensor, given: Given) -> None:
    chs = inputs.shape[-3]
    if conv.groups == conv.in_channels and conv.groups > 1:  # each channel by itself
        groups, out_chs = chs, chs * (conv.out_channels // conv.in_channels)
    else:
        groups, out_chs = conv.groups, given(conv.out_channels)
    if chs % groups or out_chs % groups:
        raise ValueError(f"its {groups} groups of channels divide neither {chs} nor {out_chs} channels")
    _resize(conv, "weight", out_chs, chs // groups, *conv.kernel_size)
    _resize(conv, "bias", out_chs)
    conv.in_channels, conv.out_channels, conv.groups = chs, out_chs, groups


def _take_row(linear: nn.Linear, inputs: Tensor, given: Given) -> None:
    _resize_linear(linear, inputs.shape[-1], given(linear.out_features))


def _resize_linear(linear: nn.Linear, chs: int, out_chs: int, parts: int = 1) -> None:
    _resize(linear, "weight", out_chs, chs, parts=parts)
    _resize(linear, "bias", out_chs, parts=parts)
    linear.in_features, linear.out_features = chs, out_chs


def _take_batch(norm: nn.modules.batchnorm._NormBase, inputs: Tensor, given: Given) -> None:
    chs = inputs.shape[1]
    for name in ("weight", "bias", "running_mean", "running_var"):
        _resize(norm, name, chs)
    norm.num_features = chs


def _take_groups(norm: nn.GroupNorm, inputs: Tensor, given: Given) -> None:
    chs = inputs.shape[1]
    if chs % norm.num_groups:
        raise ValueError(f"the {norm.num_groups} groups of its GroupNorm do not divide {chs} channels")
    _resize(norm, "weight", chs)
    _resize(norm, "bias", chs)
    norm.num_channels = chs


def _take_layer(norm: nn.LayerNorm | nn.RMSNorm | RmsNorm, inputs: Tensor, given: Given) -> None:
    before = tuple(norm.normalized_shape)
    of_map = inputs.ndim == 4 and isinstance(norm, _OF_A_MAP)
    if tuple(inputs.shape[-len(before) :]) == before and not of_map:
        return
    if len(before) > 1:
        raise ValueError(f"its normalisation is over {before}, which is fixed")
    chs = inputs.shape[1 if of_map else -1]
    for name in ("weight", "bias"):
        if hasattr(norm, name):
            _resize(norm, name, chs)
    norm.normalized_shape = (chs,)


_TAKERS: dict[type[nn.Module], Callable[..., None]] = {
    nn.Conv2d: _take_map,
    nn.Linear: _take_row,
    nn.modules.batchnorm._NormBase: _take_batch,
    nn.GroupNorm: _take_groups,
    nn.LayerNorm: _take_layer,
    nn.RMSNorm: _take_layer,
    RmsNorm: _take_layer,
}
_KNOWN = tuple(_TAKERS)


_OF_A_MAP = (LayerNorm2d, LayerNorm2dFp32, LayerNormExp2d, LayerNormAct2d)
"""These normalise the channels of a map, which come before its rows and columns."""


def _narrow_vectors(part: nn.Module, width: float) -> None:
    """Shorten the vectors of a part that nothing else is known about, such as a scale for each channel."""
    for name, parameter in list(part.named_parameters(recurse=False)):
        if parameter.ndim == 1:
            _resize(part, name, max(1, round(len(parameter) * width)))


def _is_attention(part: nn.Module) -> bool:
    """Return whether a part is one of timm's attentions, which know the size of their heads."""
    return all(hasattr(part, name) for name in ("num_heads", "head_dim", "qkv"))


def _narrow_attention(part: Any, chs: int) -> None:
    """Give each head of an attention fewer channels; their number stays."""
    heads = part.num_heads
    if part.qkv.in_features == chs:
        return
    if chs % heads:
        raise ValueError(f"its {heads} attention heads do not divide {chs} channels")
    _resize_linear(part.qkv, chs, 3 * chs, parts_of("qkv"))
    part.head_dim, part.scale = chs // heads, (chs // heads) ** -0.5
    if hasattr(part, "attn_dim"):
        part.attn_dim = chs
