"""One rank of two: batch norm over its half of a batch, compared with one process on the whole."""

import copy

import torch
import torch.distributed
from timm.layers.norm_act import BatchNormAct2d
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from tools.batchnorm import SharedBatchNorm


def main() -> None:
    torch.distributed.init_process_group("gloo")
    rank, ranks = torch.distributed.get_rank(), torch.distributed.get_world_size()
    assert ranks == 2
    torch.manual_seed(0)
    whole = nn.Sequential(
        nn.Conv2d(3, 4, 3), BatchNormAct2d(4), nn.Flatten(), nn.Linear(64, 5), nn.BatchNorm1d(5, affine=False)
    ).double()
    part = DistributedDataParallel(copy.deepcopy(whole), broadcast_buffers=False)
    images = torch.randn(8, 3, 6, 6, dtype=torch.float64) + 3
    weights = torch.randn(8, 5, dtype=torch.float64)
    (whole(images) * weights).mean().backward()
    mine = slice(rank * 4, rank * 4 + 4)
    with SharedBatchNorm():
        (part(images[mine]) * weights[mine]).mean().backward()
    for (name, alone), shared in zip(whole.named_parameters(), part.module.parameters(), strict=True):
        assert alone.grad is not None
        assert shared.grad is not None
        torch.testing.assert_close(shared.grad, alone.grad, rtol=1e-9, atol=1e-12, msg=name)
    for own, kept in zip(whole.buffers(), part.module.buffers(), strict=True):
        torch.testing.assert_close(kept, own, rtol=1e-12, atol=1e-12)
    whole.eval()
    part.module.eval()
    with SharedBatchNorm():
        torch.testing.assert_close(part.module(images), whole(images))
    nn.Module.train(part)
    low = copy.deepcopy(part.module).float()
    with SharedBatchNorm(), torch.autocast("cpu", torch.bfloat16):
        low(images[mine].float()).sum().backward()
    assert all(buffer.dtype != torch.bfloat16 for buffer in low.buffers())
    print(f"rank {rank} agrees", flush=True)


if __name__ == "__main__":
    main()  # what main held is gone before the process group is: the other order can hang
    torch.distributed.destroy_process_group()
