"""The outputs of a layer's heads are mixed, with equal parts of the Aux heads run as one.

Four heads on a layer are some thirty small convolutions, each with its BatchNorm, and most of their time
goes into getting started. Heads of the same construction differ only in their weights. So their
convolutions are the groups of one convolution, and their BatchNorms are one over all channels. For each
channel nothing changes.
"""

from collections.abc import Sequence
from typing import Any

import torch
from timm.models._efficientnet_blocks import InvertedResidual
from torch import Tensor, nn
from torch.nn import functional as F

from local_learning.networks.expansion import Expansion
from local_learning.networks.relu_mean import relu_mean


def mixed_logits(heads: Sequence[nn.Module], inputs: Sequence[Tensor], mixture: Tensor) -> Tensor:
    """Return the heads' logits, weighted by `mixture` (Eq. 3); each head has inputs of its own."""
    joined = [index for index, head in enumerate(heads) if _is_aux(head)]
    if len(joined) < 2:
        joined = []
    parts = [mixture[m] * head(inputs[m]) for m, head in enumerate(heads) if m not in joined]
    if joined:  # all of these take the same map
        parts.append(_aux_logits([heads[m] for m in joined], inputs[joined[0]], mixture[joined]))
    return torch.stack(parts).sum(0) if len(parts) > 1 else parts[0]


def _is_aux(head: nn.Module) -> bool:
    return isinstance(head, nn.Sequential) and isinstance(getattr(head, "expand", None), Expansion)


def _aux_logits(heads: Sequence[nn.Module], features: Tensor, mixture: Tensor) -> Tensor:
    # The deepest head comes first, so that the heads that go on always have the first channels.
    parts = [list(head.children()) for head in heads]
    order = sorted(range(len(heads)), key=lambda m: -len(parts[m]))
    lanes = [parts[m] for m in order]
    means: list[Tensor] = []
    for stage in range(len(lanes[0]) - 1):
        going = [lane for lane in lanes if len(lane) > stage + 2]
        chs = features.shape[1] // len(lanes)
        if len(going) < len(lanes):
            ending: Sequence[Any] = [lane[stage] for lane in lanes[len(going) :]]
            means.append(_expanded(ending, features[:, chs * len(going) :]))
        if going:
            inputs = features[:, : chs * len(going)] if stage else features
            features = _stage([lane[stage] for lane in going], inputs, shared=stage == 0)
        lanes = going
    fcs: Sequence[Any] = [parts[m][-1] for m in order]
    weights = mixture[order]
    weight = torch.stack([fc.weight for fc in fcs]) * weights[:, None, None]
    bias = torch.stack([fc.bias for fc in fcs]) * weights[:, None]
    return torch.cat(means[::-1], 1) @ weight.transpose(1, 2).flatten(0, 1) + bias.sum(0)


def _stage(modules: Sequence[Any], x: Tensor, *, shared: bool) -> Tensor:
    """Run the same stage of several heads; with `shared` all take the same map."""
    if isinstance(modules[0], InvertedResidual):
        y = _norm([m.bn1 for m in modules], _conv([m.conv_pw for m in modules], x, shared=shared))
        y = _norm([m.bn2 for m in modules], _conv([m.conv_dw for m in modules], F.relu(y)))
        y = _norm([m.bn3 for m in modules], _conv([m.conv_pwl for m in modules], F.relu(y)))
        return x + y if modules[0].has_skip else y
    return F.relu(_norm([m.bn for m in modules], _conv([m.conv for m in modules], x, shared=shared)))


def _conv(convs: Sequence[nn.Conv2d], x: Tensor, *, shared: bool = False) -> Tensor:
    first = convs[0]
    weight = torch.cat([conv.weight for conv in convs])
    groups = first.groups if shared else first.groups * len(convs)
    return F.conv2d(x, weight, None, first.stride, first.padding, first.dilation, groups)


def _norm(norms: Sequence[nn.BatchNorm2d], x: Tensor) -> Tensor:
    first = norms[0]
    weight, bias = torch.cat([bn.weight for bn in norms]), torch.cat([bn.bias for bn in norms])
    momentum = first.momentum or 0.0
    if first.training and not first.track_running_stats:
        return F.batch_norm(x, None, None, weight, bias, True, momentum, first.eps)
    own = [_statistics(bn) for bn in norms]
    mean, var = (torch.cat(values) for values in zip(*own, strict=True))
    y = F.batch_norm(x, mean, var, weight, bias, first.training, momentum, first.eps)
    if first.training:
        moved = zip(own, mean.chunk(len(norms)), var.chunk(len(norms)), strict=True)
        for (own_mean, own_var), new_mean, new_var in moved:
            own_mean.copy_(new_mean)
            own_var.copy_(new_var)
        for bn in norms:
            assert bn.num_batches_tracked is not None
            bn.num_batches_tracked.add_(1)
    return y


def _statistics(bn: nn.BatchNorm2d) -> tuple[Tensor, Tensor]:
    assert bn.running_mean is not None
    assert bn.running_var is not None
    return bn.running_mean, bn.running_var


def _expanded(expansions: Sequence[Expansion], x: Tensor) -> Tensor:
    parts = x.chunk(len(expansions), 1)
    if expansions[0].folds(parts[0]):
        return torch.cat([end(part) for end, part in zip(expansions, parts, strict=True)], 1)
    return relu_mean(_norm([end.bn for end in expansions], _conv([end.conv for end in expansions], x)))
