"""Memory and time of training in blocks against backpropagation, also with gradient checkpointing.

    python benchmarks/decoupled_memory.py
    python benchmarks/decoupled_memory.py --device cuda --batch-size 128 --width 1

With checkpointing, backpropagation keeps what enters each of several segments, and computes a segment again
when its gradients are due. `--segments` gives their numbers; they are cut where memory is balanced.
"saved" is the peak of the activations that autograd keeps during one step; "live" the peak of all tensors
that there are besides parameters, buffers and inputs, with gradients, temporary ones and what is computed
again. Time per step is taken with both sides in turn, step by step, and compared by medians. One JSON line
per case.
"""

import argparse
import copy
import json
import statistics
import time
from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.distributed._tools.mem_tracker import MemTracker
from torch.utils.checkpoint import checkpoint

from local_learning.blocks import DecoupledNet, decouple
from local_learning.build import build_chain
from local_learning.catalogue import HEADS
from local_learning.chain import Chain
from local_learning.cuts.profile import balanced, module_macs
from local_learning.decoupling import Decoupling
from local_learning.published import published
from local_learning.rules.engine import Engine, Part
from local_learning.rules.greedy import Greedy
from tools.cost import count_params, saved_activation_bytes
from tools.layout import use_channels_last


def main() -> None:
    options = parse()
    torch.manual_seed(0)
    torch.set_num_threads(options.threads)
    chain = build_chain(
        options.network, num_classes=10, image_size=options.image_size, width=options.width
    ).to(options.device)
    use_channels_last(chain)
    whole = decouple(copy.deepcopy(chain), Decoupling((), ()), 10, options.image_size)
    base = (memory(whole, options), live_memory(whole, options))
    say(case="backprop", saved_mib=base[0] / 2**20, live_mib=base[1] / 2**20, **size(whole))
    for by in options.balance:
        for num_blocks in options.blocks:
            for head in options.heads:
                compare(chain, whole, base, num_blocks, head, by, options)
    for num_segments in options.segments:
        cuts = balanced(
            chain, num_segments, "linear", 10, options.image_size, by="memory", batch_size=options.batch_size
        ).cuts
        segments = decouple(
            checkpointed(copy.deepcopy(chain), cuts), Decoupling((), ()), 10, options.image_size
        )
        say(case=f"backprop, {num_segments} segments", **against(segments, whole, base, options), cuts=cuts)
    if options.all_heads:
        for head in HEADS.ours:
            compare(chain, whole, base, 4, head, options.balance[0], options)


def compare(
    chain: Chain,
    whole: DecoupledNet,
    base: tuple[int, int],
    num_blocks: int,
    head: str,
    by: str,
    options: argparse.Namespace,
) -> None:
    """One decoupling against backpropagation."""
    if by == "published":
        decoupling, head = published(options.network, num_blocks), "SEDONA's heads"
    elif by == "uniform":
        decoupling = Decoupling.uniform(chain.num_layers, num_blocks, head)
    else:
        decoupling = balanced(
            chain, num_blocks, head, 10, options.image_size, by=by, batch_size=options.batch_size
        )
    net = decouple(copy.deepcopy(chain), decoupling, 10, options.image_size)
    say(
        case=f"{options.network} {options.width}x, {num_blocks} blocks by {by}, {head}",
        cuts=decoupling.cuts,
        **against(net, whole, base, options),
        busiest_macs=max(module_macs(net, (3, options.image_size, options.image_size))),
        **size(net),
    )


def against(
    net: DecoupledNet, whole: DecoupledNet, base: tuple[int, int], options: argparse.Namespace
) -> dict[str, float]:
    """Memory and time of a net, and how they compare with those of the whole network."""
    kept, live = memory(net, options), live_memory(net, options)
    ours, theirs = times([stepper(net, options), stepper(whole, options)], options)
    return {
        **{"saved_mib": kept / 2**20, "saved_ratio": kept / base[0]},
        **{"live_mib": live / 2**20, "live_ratio": live / base[1]},
        **{"ms": 1e3 * ours, "backprop_ms": 1e3 * theirs, "time_ratio": ours / theirs},
    }


class Segment(nn.Sequential):
    """Layers that are computed again when their gradients are due."""

    def forward(self, input: Tensor) -> Tensor:
        outputs: Tensor = checkpoint(super().forward, input, use_reentrant=False)
        return outputs


def checkpointed(chain: Chain, cuts: tuple[int, ...]) -> Chain:
    """Return the chain with its layers in segments; the last one is kept as it is."""
    ends = (*cuts, chain.num_layers)
    parts = [list(chain.layers[start:end]) for start, end in zip((0, *cuts), ends, strict=True)]
    return Chain([*(Segment(*part) for part in parts[:-1]), *parts[-1]], chain.classifier)


def stepper(net: DecoupledNet, options: argparse.Namespace) -> Callable[[], object]:
    """One training step on a batch of noise."""
    net.to(options.device).train()
    use_channels_last(net)
    optimizers = [torch.optim.SGD(block.parameters(), lr=1e-3, momentum=0.9) for block in net.blocks]
    rule = Greedy(Engine(net, optimizers))
    shape = (options.batch_size, 3, options.image_size, options.image_size)
    images = torch.randn(shape, device=options.device).contiguous(memory_format=torch.channels_last)
    targets = torch.randint(10, (options.batch_size,), device=options.device)
    part = Part(images, targets, torch.arange(options.batch_size))
    return lambda: rule.step([part])


def memory(net: DecoupledNet, options: argparse.Namespace) -> int:
    """Peak bytes of saved activations in one step."""
    step = stepper(net, options)
    step()  # momentum and gradients exist from here on
    return saved_activation_bytes(step)


def live_memory(net: DecoupledNet, options: argparse.Namespace) -> int:
    """Peak bytes of what comes and goes in one step."""
    step = stepper(net, options)
    step()
    tracker = MemTracker()
    tracker.track_external(net)
    with tracker:
        step()
    (peak,) = (
        found
        for device, found in tracker.get_tracker_snapshot("peak").items()
        if device.type == options.device
    )
    held = sum(bytes_ for kind, bytes_ in peak.items() if str(kind).endswith(("PARAM", "BUFFER", "OPT")))
    return int(peak["Total"] - held)


def times(steps: list[Callable[[], object]], options: argparse.Namespace) -> list[float]:
    """Median seconds of each kind of step, taken in turn."""
    taken: list[list[float]] = [[] for _ in steps]
    for round_ in range(options.rounds + 2):
        for step, seconds in zip(steps, taken, strict=True):
            synchronise(options)
            start = time.perf_counter()
            step()
            synchronise(options)
            if round_ > 1:
                seconds.append(time.perf_counter() - start)
    return [statistics.median(seconds) for seconds in taken]


def synchronise(options: argparse.Namespace) -> None:
    if options.device == "cuda":
        torch.cuda.synchronize()


def size(net: DecoupledNet) -> dict[str, int]:
    return {"params": count_params(net.chain()), "head_params": count_params(net) - count_params(net.chain())}


def say(**values: object) -> None:
    rounded = {k: round(v, 3) if isinstance(v, float) else v for k, v in values.items()}
    print(json.dumps(rounded), flush=True)


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--network", default="resnet50")
    parser.add_argument("--width", type=float, default=0.25)
    parser.add_argument("--image-size", type=int, default=32)
    parser.add_argument("--batch-size", type=int, default=128)
    parser.add_argument("--blocks", type=int, nargs="+", default=[4, 8])
    parser.add_argument("--heads", nargs="+", default=["aux1", "aux2", "aux3", "aux4"])
    parser.add_argument("--balance", nargs="+", default=["memory", "time", "macs", "uniform"])
    parser.add_argument("--segments", type=int, nargs="*", default=[], help="of gradient checkpointing")
    parser.add_argument("--all-heads", action="store_true", help="also every kind of head, at four blocks")
    parser.add_argument("--rounds", type=int, default=10)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--device", default="cpu")
    return parser.parse_args()


if __name__ == "__main__":
    main()
