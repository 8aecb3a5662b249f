"""Small networks in double precision, and batches for them."""

import copy
import functools
from collections.abc import Sequence

import torch
from torch import Tensor

from local_learning.blocks import DecoupledNet, decouple
from local_learning.build import build_chain
from local_learning.catalogue import HEADS
from local_learning.chain import Chain
from local_learning.decoupling import Decoupling
from local_learning.options import LocalLosses
from local_learning.rules.engine import Engine, Part

SIZE, CLASSES = 16, 5
OF_A_MAP = [kind for kind in HEADS.ours if HEADS[kind].takes_map]
"""The heads that need no network."""


def small_chain(name: str = "resnet18", width: float = 0.125, seed: int = 0) -> Chain:
    """A chain of a few layers that is quick in double precision."""
    chain, state = _built(name, width, seed)
    torch.set_rng_state(state)
    return copy.deepcopy(chain)


@functools.cache
def _built(name: str, width: float, seed: int) -> tuple[Chain, Tensor]:
    """The chain, and what torch's generator is at after it: taking a model of timm apart takes a while."""
    torch.manual_seed(seed)
    size = 64 if name.startswith("timm/") else 32 if name == "vgg19" else SIZE
    scaled = {} if name.startswith("timm/") else {"width": width}
    chain = build_chain(name, num_classes=CLASSES, image_size=size, **scaled).double()  # type: ignore[arg-type]
    return chain, torch.get_rng_state()


def small_net(
    decoupling: Decoupling,
    name: str = "resnet18",
    *,
    width: float = 0.125,
    options: LocalLosses | None = None,
) -> DecoupledNet:
    """A small chain in blocks, in training mode."""
    chain = small_chain(name, width)
    size = 64 if name.startswith("timm/") else 32 if name == "vgg19" else SIZE
    return decouple(chain, decoupling, CLASSES, size, options=options).train()


def batch(step: int = 0, rows: int = 6, size: int = SIZE) -> Part:
    """The batch of a step: noise, with labels."""
    source = torch.Generator().manual_seed(1000 + step)
    images = torch.randn(rows, 3, size, size, dtype=torch.float64, generator=source)
    targets = torch.randint(CLASSES, (rows,), generator=source)
    return Part(images, targets, torch.arange(rows))


def engine_of(net: DecoupledNet, lr: float = 0.05, kind: type[Engine] = Engine) -> Engine:
    """Plain SGD with momentum for every block."""
    optimizers = [torch.optim.SGD(block.parameters(), lr=lr, momentum=0.9) for block in net.blocks]
    return kind(net, optimizers)


def gradients_by_backprop(net: DecoupledNet, part: Part) -> list[list[Tensor]]:
    """Each block's gradients when the whole is trained by the classifier's loss; the net is left alone."""
    whole = copy.deepcopy(net)
    whole.drop_heads()
    loss = whole.joined().losses(part.images, part.targets)[0]
    blocks = [[p for p in block.parameters() if p.requires_grad] for block in whole.blocks]
    flat = torch.autograd.grad(loss, [parameter for block in blocks for parameter in block])
    found, start = [], 0
    for block in blocks:
        found.append(list(flat[start : start + len(block)]))
        start += len(block)
    return found


def equal_to(one: Sequence[Tensor], other: Sequence[Tensor], tolerance: float = 0.0) -> bool:
    """Whether two lists of tensors are equal, or close in relation to the size of each tensor.

    Tensors that are next to nothing, such as a bias in front of BatchNorm, may differ by a little more.
    """
    largest = max(float(b.detach().abs().max()) for b in other)
    return len(one) == len(other) and all(
        float((a - b).detach().abs().max()) <= tolerance * max(float(b.detach().abs().max()), 1e-3 * largest)
        for a, b in zip(one, other, strict=True)
    )
