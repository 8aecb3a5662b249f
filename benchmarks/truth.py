"""What trainings at once save: the factory with more and fewer workers, and repeats stacked by vmap.

    python -m benchmarks.truth --rounds 3
    python -m benchmarks.truth --rounds 3 --device cuda --jobs 1 2 4 8 --threads 0 --steps 200

Each case is the script itself in a process of its own, on the same networks, by turns. `steady` counts from
the first training's beginning to the last one's end, `whole` from the start of the script to its end. The
ratio is that of the images per second to those of the first case, one training at a time. Repeats of one
network are also trained as one, stacked by torch.func.vmap with SGD written out, and one after the other, on
the same batches.
"""

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import functional_call, grad, stack_module_state, vmap
from torch.nn import functional as F

from supernet.presets import preset
from supernet.sampling import sample, stream
from supernet.space import Space
from supernet.supernet import build_architecture
from tools.layout import use_channels_last

LR, MOMENTUM = 0.02, 0.9


def main() -> None:
    options = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    options.add_argument("--space", default="nas_bench_macro")
    options.add_argument("--image-size", type=int, default=32)
    options.add_argument("--networks", type=int, default=4)
    options.add_argument("--steps", type=int, default=40)
    options.add_argument("--batch-size", type=int, default=64)
    options.add_argument("--device", default="cpu")
    options.add_argument("--jobs", type=int, nargs="+", default=[1, 1, 2], help="one case for each")
    options.add_argument(
        "--threads", type=int, nargs="+", default=[1, 2, 1], help="of each of these, or of all"
    )
    options.add_argument("--repeats", type=int, nargs="*", default=[2, 4], help="to stack by vmap")
    options.add_argument("--vmap-threads", type=int, default=1)
    options.add_argument("--rounds", type=int, default=2)
    asked = options.parse_args()
    for line in factory(asked):
        report(line)
    for count in asked.repeats:
        report(stacked(asked, count))


def factory(asked: argparse.Namespace) -> Iterator[dict[str, Any]]:
    """All cases by turns; a line for each."""
    threads = asked.threads * len(asked.jobs) if len(asked.threads) == 1 else asked.threads
    cases = list(zip(asked.jobs, threads, strict=True))
    steady: dict[tuple[int, int], list[float]] = {case: [] for case in cases}
    whole: dict[tuple[int, int], list[float]] = {case: [] for case in cases}
    for _ in range(asked.rounds):
        for jobs, count in cases:
            seconds = timed(asked, jobs, count)
            steady[jobs, count].append(seconds[0])
            whole[jobs, count].append(seconds[1])
    images = asked.networks * asked.steps * asked.batch_size
    first = cases[0]
    for case in cases:
        middle = statistics.median(steady[case]), statistics.median(whole[case])
        yield {
            "case": f"{case[0]} at once, {case[1] or 'all'} threads each, {asked.device}",
            "networks": asked.networks,
            "steady_images_per_second": round(images / middle[0], 1),
            "whole_images_per_second": round(images / middle[1], 1),
            "steady_ratio": round(statistics.median(steady[first]) / middle[0], 3),
            "whole_ratio": round(statistics.median(whole[first]) / middle[1], 3),
            "steady_seconds": [round(each, 1) for each in steady[case]],
            "whole_seconds": [round(each, 1) for each in whole[case]],
        }


def timed(asked: argparse.Namespace, jobs: int, threads: int) -> tuple[float, float]:
    """Seconds of one run of the script: between its trainings' first and last moment, and all of them."""
    with tempfile.TemporaryDirectory() as folder:
        line = [sys.executable, "make_truth.py", "--space", asked.space, "--networks", str(asked.networks)]
        line += ["--data.image-size", str(asked.image_size), "--data.train-size", "2000"]
        line += ["--data.test-size", "100", "--data.validation", "0", "--recipe.lr", str(LR)]
        line += ["--recipe.steps", str(asked.steps), "--recipe.batch-size", str(asked.batch_size)]
        line += ["--device", asked.device, "--threads", str(threads), "--jobs", str(jobs)]
        start = time.perf_counter()
        subprocess.run([*line, "--run", folder + "/run"], check=True, stdout=subprocess.DEVNULL)
        whole = time.perf_counter() - start
        trainings = Path(folder, "run", "trainings")
        begun = min(path.stat().st_mtime for path in trainings.glob("*/config.toml"))
        ended = max(path.stat().st_mtime for path in trainings.glob("*/results.json"))
    return ended - begun, whole


def stacked(asked: argparse.Namespace, count: int) -> dict[str, Any]:
    """Repeats of one network as one against one after the other, by turns."""
    torch.set_num_threads(asked.vmap_threads)
    space = preset(asked.space, num_classes=10, image_size=asked.image_size)
    torch.manual_seed(0)
    images = torch.randn(count, asked.batch_size, 3, asked.image_size, asked.image_size, device=asked.device)
    targets = torch.randint(10, (count, asked.batch_size), device=asked.device)
    ways = {"stacked": together, "alone": one_by_one}
    seconds: dict[str, list[float]] = {name: [] for name in ways}
    losses = {}
    for round_ in range(asked.rounds + 1):  # the first is the warm-up
        for name, way in ways.items():
            step = way(networks(space, count, asked.device), images, targets)
            losses[name] = step()
            start = clock(asked.device)
            for _ in range(max(2, asked.steps // 8)):
                step()
            if round_:
                seconds[name].append((clock(asked.device) - start) / max(2, asked.steps // 8))
    middle = {name: statistics.median(found) for name, found in seconds.items()}
    torch.testing.assert_close(losses["stacked"], losses["alone"], rtol=1e-3, atol=1e-3)
    return {
        "case": f"{count} repeats stacked by vmap, {asked.vmap_threads} threads, {asked.device}",
        "stacked_images_per_second": round(count * asked.batch_size / middle["stacked"], 1),
        "alone_images_per_second": round(count * asked.batch_size / middle["alone"], 1),
        "ratio": round(middle["alone"] / middle["stacked"], 3),
    }


def networks(space: Space, count: int, device: str) -> list[nn.Module]:
    """So many of one architecture that differ in their initial weights."""
    architecture = sample(space, stream(0, "benchmark"))
    torch.manual_seed(0)
    made = [build_architecture(space, architecture).to(device).train() for _ in range(count)]
    for net in made:
        use_channels_last(net)
    return list(made)


def together(nets: list[nn.Module], images: Tensor, targets: Tensor) -> Callable[[], Tensor]:
    """A step of all as one."""
    parameters, buffers = stack_module_state(nets)
    moments = {name: torch.zeros_like(value) for name, value in parameters.items()}
    base = nets[0]

    def loss(own: dict[str, Tensor], state: dict[str, Tensor], x: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
        found = F.cross_entropy(functional_call(base, (own, state), (x,)), y)
        return found, found.detach()

    gradients = vmap(grad(loss, has_aux=True))

    def step() -> Tensor:
        found: dict[str, Tensor]
        losses: Tensor
        found, losses = gradients(parameters, buffers, images, targets)
        with torch.no_grad():
            for name, value in parameters.items():
                moments[name].mul_(MOMENTUM).add_(found[name])
                value.sub_(moments[name], alpha=LR)
        return losses

    return step


def one_by_one(nets: list[nn.Module], images: Tensor, targets: Tensor) -> Callable[[], Tensor]:
    """A step of each in turn."""
    images = [part.contiguous(memory_format=torch.channels_last) for part in images]  # type: ignore[assignment]
    optimizers = [torch.optim.SGD(net.parameters(), lr=LR, momentum=MOMENTUM, fused=True) for net in nets]

    def step() -> Tensor:
        losses = []
        for net, optimizer, x, y in zip(nets, optimizers, images, targets, strict=True):
            loss = F.cross_entropy(net(x), y)
            optimizer.zero_grad()
            loss.backward()  # type: ignore[no-untyped-call]
            optimizer.step()
            losses.append(loss.detach())
        return torch.stack(losses)

    return step


def clock(device: str) -> float:
    """Now, when the device has done its work."""
    if device == "cuda":
        torch.cuda.synchronize()
    return time.perf_counter()


def report(line: dict[str, Any]) -> None:
    print(json.dumps(line), flush=True)


if __name__ == "__main__":
    main()
