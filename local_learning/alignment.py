"""This module measures how far local gradients point where backpropagation's do (SEDONA, Fig. 8)."""

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from local_learning.blocks import DecoupledNet
from tools.batchnorm import frozen_statistics


def gradient_alignment(net: DecoupledNet, images: Tensor, targets: Tensor) -> dict[int, float]:
    """Return, by layer number from 1, the cosine between the layer's local gradient and backpropagation's.

    As in the paper, the gradients are those of a layer's 3x3 kernels. A layer that has no such kernel is
    compared by all its weights. Layers of the last block are left out, because their two gradients are the
    same. So are layers of blocks without a head, because they have no local loss. The net is left as it
    is. Over several processes the gradients are averaged first.
    """
    layers = [layer for block in net.blocks for layer in block.layers]
    local_blocks = [block for block in net.blocks[:-1] if block.head is not None]
    wanted = {
        number: weights
        for number, layer in enumerate(layers, start=1)
        if any(layer is local for block in local_blocks for local in block.layers)
        and (weights := _weights(layer))
    }
    flat = [weight for weights in wanted.values() for weight in weights]
    if not flat:
        return {}
    with torch.enable_grad(), frozen_statistics(net), torch.random.fork_rng():
        seed = int(torch.randint(2**31, ()))
        torch.manual_seed(seed)
        local = torch.autograd.grad(torch.stack(net.losses(images, targets)[:-1]).sum(), flat)
        torch.manual_seed(seed)  # the same dropout
        whole = net.joined()
        through = torch.autograd.grad(whole.blocks[0].loss(images, targets, images)[0], flat)
    cosines, start = {}, 0
    for number, weights in wanted.items():
        stop = start + len(weights)
        one, other = (
            _averaged(torch.cat([g.flatten() for g in grads[start:stop]])) for grads in (local, through)
        )
        cosines[number] = float(F.cosine_similarity(one, other, dim=0))
        start = stop
    return cosines


def _weights(layer: nn.Module) -> list[Tensor]:
    convs = [module for module in layer.modules() if isinstance(module, nn.Conv2d)]
    spatial: list[Tensor] = [conv.weight for conv in convs if conv.kernel_size == (3, 3)]
    weights = spatial or [parameter for parameter in layer.parameters() if parameter.ndim > 1]
    return [weight for weight in weights if weight.requires_grad]


def _averaged(gradient: Tensor) -> Tensor:
    if torch.distributed.is_available() and torch.distributed.is_initialized():
        torch.distributed.all_reduce(gradient)
    return gradient
