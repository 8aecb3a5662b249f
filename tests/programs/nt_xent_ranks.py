"""One rank of two: NT-Xent, and supernets trained by views and by labels, against one process alone."""

import warnings
from collections.abc import Iterable

import torch
import torch.distributed
from accelerate import Accelerator
from torch import Tensor, nn

from supernet.engine import AccelerateSupernetEngine, SupernetEngine
from supernet.layers import Conv, Skip
from supernet.objectives import InfoNCE, nt_xent
from supernet.options import STRATEGIES, ContrastOptions
from supernet.space import Fixed, Layer, Space
from supernet.strategies import TailTraining, make_strategy
from supernet.strategy import Strategy
from supernet.supernet import Supernet
from supernet.tail import Tail
from tools.batchnorm import SharedBatchNorm
from tools.images.views import Views

RANKS, IMAGES, SIZE = 2, 4, 16  # images of each rank
OPS = (Conv(3), Conv(5))  # each BatchNorm is a wait for the other rank
SPACE = Space(
    (Fixed(Conv(3), 4),),
    (Layer(OPS, 6, 2), Layer((*OPS, Skip()), 6)),
    Tail(conv_chs=8),
    num_classes=3,
    image_size=SIZE,
)


def sgd(parameters: Iterable[nn.Parameter]) -> torch.optim.Optimizer:
    return torch.optim.SGD(parameters, lr=0.1, momentum=0.9)


def batch(step: int) -> tuple[Tensor, Tensor]:
    source = torch.Generator().manual_seed(step)
    images = torch.randn(RANKS * IMAGES, 3, SIZE, SIZE, dtype=torch.float64, generator=source)
    return images, torch.randint(3, (RANKS * IMAGES,), generator=source)


def train(name: str, engine: SupernetEngine, views: bool, rank: int = 0, ranks: int = 1) -> Strategy:
    """A step on a rank's rows; scripts that train for more are compared as well."""
    torch.manual_seed(0)
    net = Supernet(SPACE).double().train()
    augment = Views(mean=(0.5,) * 3, std=(0.25,) * 3, seed=1)
    contrast = InfoNCE(ContrastOptions(projection=5), augment, rank=rank, world_size=ranks)
    strategy: Strategy
    if name == "tail":
        labels = make_strategy("spos", net, optimizer=sgd, seed=1).objective
        strategy = TailTraining(net, optimizer=sgd, seed=1, objective=labels, engine=engine, part="fc")
    else:
        objective = contrast if views else None
        strategy = make_strategy(name, net, optimizer=sgd, seed=1, objective=objective, engine=engine)
    mine = slice(rank * len(batch(0)[0]) // ranks, (rank + 1) * len(batch(0)[0]) // ranks)
    images, targets = batch(1)
    strategy.step(images[mine], targets[mine], 1)
    return strategy


def state_of(strategy: Strategy) -> dict[str, Tensor]:
    return {**strategy.net.state_dict(), **strategy.decoders.state_dict(prefix="decoders.")}


def whole_loss() -> tuple[Tensor, Tensor, Tensor]:
    """Projections of the first and then the second views of all images, their loss, and its gradient."""
    projections = torch.randn(2, RANKS * IMAGES, 5, dtype=torch.float64, generator=torch.Generator())
    leaf = projections.clone().requires_grad_()
    loss = nt_xent(leaf.flatten(0, 1), 0.3)
    torch.autograd.backward(loss)
    assert leaf.grad is not None
    return projections, loss.detach(), leaf.grad


def check_loss(rank: int, projections: Tensor, loss: Tensor, gradient: Tensor) -> None:
    mine = slice(rank * IMAGES, (rank + 1) * IMAGES)
    leaf = projections[:, mine].clone().requires_grad_()
    own = nt_xent(leaf.flatten(0, 1), 0.3)
    torch.autograd.backward(own)
    assert leaf.grad is not None
    mean = own.detach().clone()
    torch.distributed.all_reduce(mean)
    torch.testing.assert_close(mean / RANKS, loss, rtol=1e-12, atol=0)
    assert abs(own.item() - loss.item()) > 1e-6
    # Of the mean over the ranks, which the engine takes, each contributes its part.
    torch.testing.assert_close(leaf.grad / RANKS, gradient[:, mine], rtol=1e-10, atol=1e-14)


def main() -> None:
    cases = [(name, views) for name in STRATEGIES for views in (False, True)] + [("tail", False)]
    alone = {case: state_of(train(case[0], SupernetEngine(), case[1])) for case in cases}
    wanted = whole_loss()
    accelerator = Accelerator(cpu=True)
    rank = accelerator.process_index
    assert accelerator.num_processes == RANKS
    check_loss(rank, *wanted)
    for name, views in cases:
        with SharedBatchNorm():
            shared = state_of(train(name, AccelerateSupernetEngine(accelerator), views, rank, RANKS))
        assert shared.keys() == alone[name, views].keys()
        for key, values in alone[name, views].items():
            torch.testing.assert_close(shared[key], values, rtol=1e-9, atol=1e-11, msg=f"{name}: {key}")
    print("equal")
    torch.distributed.destroy_process_group()


if __name__ == "__main__":
    warnings.simplefilter("error")
    main()
