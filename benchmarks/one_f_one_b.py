"""The worker of `benchmarks.blocks` for torch's own pipeline, 1F1B, and for the link between two processes.

    accelerate launch --multi_gpu --num_processes 2 --module benchmarks.one_f_one_b --cuts 7 --microbatches 4
    accelerate launch --multi_gpu --num_processes 2 --module benchmarks.one_f_one_b --ping 8388608

Each process has one stage of the network. The first reads images as retrain_model.py does, the last their
labels, of the same batches. The first process prints one JSON line.
"""

import argparse
import json
import statistics
import time
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.distributed.pipelining import PipelineStage, Schedule1F1B

from local_learning.build import build_chain
from local_learning.chain import Chain
from tools.images.datasets import load_data
from tools.images.loaders import make_train_loader
from tools.images.options import DataConfig
from tools.layout import use_channels_last
from tools.optim import make_optimizer
from tools.options.recipes import Recipe
from tools.run.launch import launch

SEED = 0
PINGS = 20


class StageNet(nn.Module):
    """Some of a chain's layers in a row.

    Between stages a map goes with its channels last in shape, as they are in memory: only tensors that are
    contiguous can be sent, and nothing is copied for it.
    """

    def __init__(self, chain: Chain, layers: range) -> None:
        super().__init__()
        self.layers = nn.ModuleList(chain.layers[index] for index in layers)
        self.is_first, self.is_last = layers.start == 0, layers.stop == chain.num_layers
        if self.is_last:
            self.layers.append(chain.classifier)

    def forward(self, features: Tensor) -> Tensor:
        if features.ndim == 4 and not self.is_first:
            features = features.permute(0, 3, 1, 2)
        for layer in self.layers:
            features = layer(features)
        if features.ndim == 4 and not self.is_last:
            features = features.permute(0, 2, 3, 1)
        return features.contiguous()


def main() -> None:
    options = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    options.add_argument("--network", default="resnet50")
    options.add_argument("--width", type=float, default=0.25)
    options.add_argument("--image-size", type=int, default=32)
    options.add_argument("--batch-size", type=int, default=128)
    options.add_argument("--train-size", type=int, default=2000)
    options.add_argument("--lr", type=float, default=0.02)
    options.add_argument("--steps", type=int, default=60)
    options.add_argument("--warm-up", type=int, default=10, help="of these steps, not timed")
    options.add_argument(
        "--cuts", type=int, nargs="+", default=[], help="the last layers of all stages but one"
    )
    options.add_argument("--microbatches", type=int, default=4)
    options.add_argument("--ping", type=int, default=0, help="measure the link with so many bytes instead")
    options.add_argument("--device", default="cpu")
    options.add_argument("--threads", type=int, default=1)
    asked = options.parse_args()
    accelerator = launch(
        device=asked.device, precision="fp32", threads=asked.threads, trackers=(), folder=Path(".")
    )
    found = ping(asked.ping, accelerator.device) if asked.ping else train(asked, accelerator.device)
    if accelerator.is_main_process:
        print(json.dumps(found), flush=True)
    accelerator.end_training()


def train(asked: argparse.Namespace, device: torch.device) -> dict[str, float]:
    """Images per second of steps that wait for all of their microbatches, as 1F1B's do."""
    rank, count = torch.distributed.get_rank(), torch.distributed.get_world_size()
    first, last = rank == 0, rank == count - 1
    # Images are varied where they are read; the process with the last layers has use for labels only.
    config = DataConfig(
        image_size=asked.image_size,
        train_size=asked.train_size,
        test_size=100,
        validation=0,
        augment="standard" if first else "none",
    )
    data = load_data(config, SEED)
    loader = make_train_loader(
        data.train, data, config, batch_size=asked.batch_size, seed=SEED, device=device
    )
    torch.manual_seed(SEED)
    chain = build_chain(
        asked.network, num_classes=data.num_classes, image_size=asked.image_size, width=asked.width
    )
    ends = (0, *asked.cuts, chain.num_layers)
    net = StageNet(chain, range(ends[rank], ends[rank + 1])).to(device).train()
    use_channels_last(net)
    optimizer = make_optimizer(Recipe(lr=asked.lr), net.parameters())

    def loss(logits: Tensor, targets: Tensor) -> Tensor:
        whole: Tensor = F.cross_entropy(logits, targets, label_smoothing=0.1)
        return whole / int(asked.microbatches)

    schedule = Schedule1F1B(
        PipelineStage(net, rank, count, device), asked.microbatches, loss_fn=loss, scale_grads=False
    )
    losses: list[Tensor] = []
    begin = 0.0
    for step in range(asked.steps):
        if step == asked.warm_up:
            begin = clock(device)
        losses = []
        images = (loader.batch(step).images,) if first else ()
        target = loader.batch(step).targets if last else None
        schedule.step(*images, target=target, losses=losses if last else None, return_outputs=False)
        optimizer.step()
        optimizer.zero_grad()
    seconds = slowest(clock(device) - begin, device)
    final = slowest(sum(part.item() for part in losses) if last else 0.0, device)
    return {"images_per_second": (asked.steps - asked.warm_up) * asked.batch_size / seconds, "loss": final}


def ping(size: int, device: torch.device) -> dict[str, float]:
    """GB/s and microseconds of a message between the first two processes."""
    small, large = (one_way(count, device) for count in (1, max(2, size // 4)))
    return {"bandwidth": size / max(large - small, large / 2, 1e-9) / 1e9, "latency": small * 1e6}


def one_way(count: int, device: torch.device) -> float:
    """Seconds of a message of so many numbers: half of the way there and back."""
    rank, times = torch.distributed.get_rank(), []
    message = torch.zeros(count, device=device)
    torch.distributed.barrier()
    for _ in range(PINGS if rank < 2 else 0):
        begin = clock(device)
        for sender in (0, 1):
            send = torch.distributed.isend if rank == sender else torch.distributed.irecv
            operation = torch.distributed.P2POp(send, message, 1 - rank)
            for work in torch.distributed.batch_isend_irecv([operation]):
                work.wait()
        times.append((clock(device) - begin) / 2)
    torch.distributed.barrier()
    return statistics.median(times[PINGS // 4 :] or [0.0])


def slowest(value: float, device: torch.device) -> float:
    """The largest of all processes' values."""
    held = torch.tensor([value], dtype=torch.float64, device=device)
    torch.distributed.all_reduce(held, torch.distributed.ReduceOp.MAX)
    return held.item()


def clock(device: torch.device) -> float:
    """Now, when the device has done its work."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter()


if __name__ == "__main__":
    main()
