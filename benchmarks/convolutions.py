"""Which convolutions torch gets wrong on this CPU in channels last: a sweep against float64, contiguous.

    OMP_WAIT_POLICY=passive python -m benchmarks.convolutions --times
    python -m benchmarks.convolutions --parts random --isa default --cases 500

Each case is a process of its own, so that one that dies or hangs is one line: outputs, the gradients of
inputs, weights and bias, and second derivatives as a search takes them. Three parts: all 1x1 convolutions
with a stride, of a grid; cases drawn at random from all else; and every convolution that networks, spaces
and heads of the house run. One JSON line for each faulty case, with what `tools.layout.StridedPointwise`
makes of it, and one for each part. `--times` compares that module with torch's own where both are right.
"""

import argparse
import contextlib
import copy
import itertools
import json
import multiprocessing
import os
import random
import resource
import signal
import statistics
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from functools import partial
from multiprocessing.connection import Connection
from typing import Any

import torch
from torch import Tensor, nn

from local_learning.build import build_chain
from local_learning.catalogue import HEADS
from local_learning.heads import make_head
from supernet.presets import preset
from supernet.supernet import Supernet
from tools.layout import StridedPointwise, guard_convolutions
from tools.second_order import FastSecondOrder

Pair = tuple[int, int]
LAST = torch.channels_last
FORK = multiprocessing.get_context("fork")
TOLERANCE = {"float32": 1e-4, "bfloat16": 0.05}
"""Of the norm of the difference, in relation to that of what is right."""
NETWORKS = (
    *((name, 32, width) for name in ("resnet18", "resnet32", "vgg19") for width in (0.125, 0.25, 1.0)),
    *((name, 224, width) for name in ("resnet18", "resnet50") for width in (0.125, 0.25, 1.0)),
    ("resnet18", 64, 0.125),
)
TIMM = (("timm/resnet10t", 224), ("timm/regnety_002", 224))
SPACES = (("lwsl_table1", 224), ("cream", 224), ("nas_bench_macro", 32), ("tiny", 32))
MAPS = ((8, 32), (16, 16), (64, 8), (8, 56), (32, 28))
"""Channels and size of the maps on which heads are run."""


@dataclass(frozen=True, kw_only=True)
class Case:
    """One convolution, and how it is run."""

    kernel: Pair
    stride: Pair
    padding: Pair
    dilation: Pair
    groups: int
    in_chs: int
    out_chs: int
    size: Pair
    bias: bool = False
    batch: int = 4
    order: int = 1
    dtype: str = "float32"
    threads: int = 1
    isa: str = "default"

    @property
    def possible(self) -> bool:
        """Whether there is such a convolution."""
        sizes = zip(self.size, self.kernel, self.padding, self.dilation, strict=True)
        fits = all(size + 2 * pad > (kernel - 1) * step for size, kernel, pad, step in sizes)
        return fits and self.in_chs % self.groups == 0 and self.out_chs % self.groups == 0

    @property
    def guarded(self) -> bool:
        """Whether the guard takes it for one that may be faulty."""
        conv = self.make()
        guard_convolutions(conv)
        return isinstance(conv, StridedPointwise) and conv.at_risk(torch.empty(1, self.in_chs, *self.size))

    def make(self) -> nn.Conv2d:
        """torch's module."""
        return nn.Conv2d(
            self.in_chs,
            self.out_chs,
            self.kernel,
            self.stride,
            self.padding,
            self.dilation,
            self.groups,
            self.bias,
        )


def main() -> None:
    options = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    options.add_argument("--isa", nargs="+", default=["default", "AVX2"], help="of ONEDNN_MAX_CPU_ISA")
    options.add_argument("--threads", type=int, nargs="+", default=[1, 2])
    options.add_argument("--cases", type=int, default=1200, help="drawn at random")
    options.add_argument("--seed", type=int, default=0)
    options.add_argument("--core-seconds", type=float, default=200.0, help="after which a part ends")
    options.add_argument(
        "--patience", type=int, default=10, help="seconds of CPU until a case counts as hanging"
    )
    options.add_argument("--parts", nargs="*", default=["strided", "random", "networks"])
    options.add_argument("--times", action="store_true")
    asked = options.parse_args()
    torch.set_num_threads(1)  # a forked process cannot use the threads of its parent
    parts = {"strided": strided, "random": drawn, "networks": of_networks}
    for part in asked.parts:
        cases = list(parts[part](asked))
        random.Random(asked.seed).shuffle(cases)  # what there is no time for is missing everywhere alike
        sweep(part, cases, asked.patience, asked.core_seconds)
    if asked.times:
        for line in times():
            print(json.dumps(line), flush=True)


def sweep(part: str, cases: Sequence[Case], patience: int, core_seconds: float) -> None:
    """Run cases as long as there is time, and print what is faulty and a summary."""
    began, used_before = time.perf_counter(), core_seconds_used()
    outcomes: Counter[str] = Counter()
    missed = unmended = 0
    for case in cases:
        if core_seconds_used() - used_before > core_seconds:
            break
        found = alone(case, mended=False, patience=patience)
        outcomes[found["outcome"]] += 1
        guarded = case.guarded
        faulty = found["outcome"] != "right"
        if faulty or guarded:
            again = alone(case, mended=True, patience=patience)
            unmended += again["outcome"] != "right"
        if faulty:
            missed += not guarded
            print(json.dumps({"part": part, **asdict(case), **found, "guarded": again}), flush=True)
    line = {
        "part": part,
        "cases": outcomes.total(),
        "of": len(cases),
        "outcomes": dict(outcomes),
        "faulty, not guarded": missed,
        "faulty although guarded": unmended,
        "torch": torch.__version__,
        "cpu": torch.backends.cpu.get_cpu_capability(),
        "seconds": round(time.perf_counter() - began),
        "core_seconds": round(core_seconds_used() - used_before),
    }
    print(json.dumps(line), flush=True)


def core_seconds_used() -> float:
    """What all processes that ended have used."""
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


def strided(asked: argparse.Namespace) -> Iterator[Case]:
    """All 1x1 convolutions with a stride, of a grid."""
    grid = itertools.product(
        ((2, 2), (1, 2), (3, 3)),
        (3, 4, 8, 12, 15, 16, 17, 24),
        (8, 16, 32, 48, 56, 57, 64, 112),
        (1, 4),
        asked.threads,
        asked.isa,
    )
    for stride, in_chs, side, batch, threads, isa in grid:
        yield replace(
            POINT, stride=stride, in_chs=in_chs, size=(side, side), batch=batch, threads=threads, isa=isa
        )


POINT = Case(
    kernel=(1, 1),
    stride=(2, 2),
    padding=(0, 0),
    dilation=(1, 1),
    groups=1,
    in_chs=8,
    out_chs=16,
    size=(56, 56),
)


def drawn(asked: argparse.Namespace) -> Iterator[Case]:
    """Cases from everywhere: other kernels, groups, paddings, dilations, types, and second derivatives."""
    chance, sides, count = random.Random(asked.seed), (7, 8, 14, 16, 28, 32, 47, 48, 56), 0
    while count < asked.cases:
        kernel = chance.choice(((1, 1), (1, 1), (3, 3), (3, 3), (5, 5), (7, 7), (1, 3), (3, 1), (2, 2)))
        in_chs, side = chance.choice((1, 2, 3, 4, 8, 12, 16, 17, 24, 32)), chance.choice(sides)
        groups = chance.choice((1, 1, 1, 2, 4, in_chs))
        padded = chance.random() < 0.6
        isa = chance.choice(asked.isa)
        case = Case(
            kernel=kernel,
            stride=chance.choice(((1, 1), (2, 2), (2, 2), (1, 2), (3, 3))),
            padding=(kernel[0] // 2, kernel[1] // 2) if padded else chance.choice(((0, 0), (1, 1))),
            dilation=chance.choice(((1, 1), (1, 1), (1, 1), (2, 2))),
            groups=groups,
            in_chs=in_chs,
            out_chs=in_chs if groups == in_chs else chance.choice((1, 4, 8, 10, 16, 24, 32)),
            size=(side, chance.choice((side, side, side, *sides))),
            bias=chance.random() < 0.2,
            batch=chance.choice((1, 2, 5)),
            order=chance.choice((1, 2)),
            # Without AVX-512 bfloat16 is so slow that nobody uses it.
            dtype=chance.choice(("float32", "bfloat16")) if isa == "default" else "float32",
            threads=chance.choice(asked.threads),
            isa=isa,
        )
        if case.possible:
            count += 1
            yield case


def of_networks(asked: argparse.Namespace) -> Iterator[Case]:
    """The convolutions of our networks, spaces and heads, each once."""
    found = in_a_process(collect, 600)
    assert isinstance(found, list), found
    for case, isa in itertools.product(found, asked.isa):
        yield replace(case, isa=isa)


def collect() -> list[Case]:
    """What runs in a forward pass of each."""
    cases: dict[Case, None] = {}

    def note(module: nn.Module, inputs: tuple[Tensor, ...]) -> None:
        assert isinstance(module, nn.Conv2d)
        height, width = inputs[0].shape[-2:]
        conv: Any = module
        cases[
            Case(
                kernel=conv.kernel_size,
                stride=conv.stride,
                padding=conv.padding,
                dilation=conv.dilation,
                groups=conv.groups,
                in_chs=conv.in_channels,
                out_chs=conv.out_channels,
                size=(height, width),
                bias=conv.bias is not None,
            )
        ] = None

    def run(network: nn.Module, inputs: Tensor) -> Any:
        for module in network.modules():
            if isinstance(module, nn.Conv2d):
                module.register_forward_pre_hook(note)
        return network.eval()(inputs)

    with torch.no_grad():
        for name, size in TIMM:
            run(build_chain(name, num_classes=10, image_size=size), torch.zeros(1, 3, size, size))
    with torch.no_grad(), torch.device("meta"):  # shapes without numbers
        for name, size, width in NETWORKS:
            chain = build_chain(name, num_classes=10, image_size=size, width=width)
            run(chain, torch.zeros(1, 3, size, size))
        for name, size in SPACES:
            net = Supernet(preset(name, num_classes=10, image_size=size))
            features = run(nn.Sequential(*net.stem), torch.zeros(1, 3, size, size))
            for layer in net.layers:
                assert isinstance(layer, nn.ModuleList)
                features = [run(candidate, features) for candidate in layer][0]  # noqa: RUF015 # all must run
            run(net.tail, features)
        of_a_map = [kind for kind in HEADS.ours if HEADS[kind].takes_map]
        for (chs, size), kind in itertools.product(MAPS, of_a_map):
            run(make_head(kind, chs, size, 10, width=0.25), torch.zeros(2, chs, size, size))
    return list(cases)


def alone(case: Case, *, mended: bool, patience: int, processes: Any = FORK) -> dict[str, Any]:
    """The outcome of a case in a process of its own."""
    found = in_a_process(partial(errors, case, mended=mended), patience, processes)
    if not isinstance(found, dict):
        return {"outcome": found}
    right = all(error < TOLERANCE[case.dtype] for error in found.values())  # what is not a number is not
    wrong = {name: float(f"{error:.3g}") for name, error in found.items()}
    return {"outcome": "right"} if right else {"outcome": "wrong", "errors": wrong}


def in_a_process(work: Callable[[], Any], patience: int, processes: Any = FORK) -> Any:
    """What some work gives in a process of its own, or in words how that ended."""
    reader, writer = processes.Pipe(duplex=False)
    process = processes.Process(target=_tell, args=(work, writer, patience))
    process.start()
    writer.close()
    try:
        found = reader.recv() if reader.poll(60.0 * patience) else "hangs"
    except EOFError:
        found = "dies"
    process.join(30.0)  # what overwrote memory may still die at the end
    if process.is_alive():
        process.kill()
        process.join()
    elif process.exitcode == -signal.SIGXCPU:
        found = "hangs"
    elif process.exitcode:
        found = f"dies by signal {-process.exitcode}" if process.exitcode < 0 else "fails"
    return found


def _tell(work: Callable[[], Any], writer: Connection, patience: int) -> None:
    resource.setrlimit(resource.RLIMIT_CPU, (patience, resource.RLIM_INFINITY))
    os.dup2(os.open(os.devnull, os.O_WRONLY), 2)  # not the allocator's last words
    writer.send(work())


def errors(case: Case, *, mended: bool) -> dict[str, float]:
    """Relative errors of outputs and derivatives."""
    if case.isa != "default":
        os.environ["ONEDNN_MAX_CPU_ISA"] = case.isa
    torch.set_num_threads(case.threads)
    torch.manual_seed(0)
    conv = case.make()
    if mended:
        guard_convolutions(conv)
    images = torch.randn(case.batch, case.in_chs, *case.size)
    dtype = getattr(torch, case.dtype)
    conv, images = conv.to(dtype), images.to(dtype)
    exact, true = case.make().double(), images.double()
    exact.load_state_dict(conv.state_dict())
    for parameter in conv.parameters():
        if parameter.ndim == 4:
            parameter.data = parameter.data.clone(memory_format=LAST)
    found = derivatives(conv, images.contiguous(memory_format=LAST), case.order)
    right = derivatives(exact, true, case.order)
    return {
        name: float((value.double() - right[name]).norm() / right[name].norm().clamp_min(1e-12))
        for name, value in found.items()
    }


def derivatives(conv: nn.Conv2d, images: Tensor, order: int) -> dict[str, Tensor]:
    """Outputs, first derivatives along a random direction, and with `order` 2 those of these."""

    def along(like: Tensor, seed: int) -> Tensor:
        source = torch.Generator().manual_seed(seed)
        direction = torch.randn(like.shape, generator=source).bfloat16().to(like.dtype)  # alike in all types
        return direction.contiguous(memory_format=LAST) if like.dtype != torch.float64 else direction

    names, leaves = ["images", *dict(conv.named_parameters())], [images.requires_grad_(), *conv.parameters()]
    with FastSecondOrder() if order == 2 else contextlib.nullcontext():
        outputs = conv(images)
        gradient = along(outputs, 1).requires_grad_(order == 2)
        first = torch.autograd.grad(outputs, leaves, gradient, create_graph=order == 2)
        found = {"outputs": outputs, **{f"d {name}": each for name, each in zip(names, first, strict=True)}}
        if order == 2:
            two = [(each, along(each, 2 + index)) for index, each in enumerate(first[:2])]
            second = torch.autograd.grad(
                [each for each, _ in two], [*leaves[:2], gradient], [way for _, way in two]
            )
            names = [*names[:2], "gradient"]
            found |= {f"dd {name}": each for name, each in zip(names, second, strict=True)}
    return {name: each.detach() for name, each in found.items()}


def times(rounds: int = 60) -> Iterator[dict[str, Any]]:
    """Forward and backward of `StridedPointwise` and torch's convolution by turns, where both are right."""
    for batch, in_chs, out_chs, side in ((32, 8, 16, 8), (32, 8, 16, 16), (32, 8, 16, 32), (128, 8, 16, 32)):
        images = torch.randn(batch, in_chs, side, side).contiguous(memory_format=LAST).requires_grad_()
        plain = nn.Conv2d(in_chs, out_chs, 1, 2, bias=False)
        mended = copy.deepcopy(plain)
        guard_convolutions(mended)
        took: dict[str, list[float]] = {"torch": [], "guarded": []}
        for _ in range(rounds):
            for name, conv in (("torch", plain), ("guarded", mended)):
                began = time.perf_counter()
                outputs = conv(images)
                torch.autograd.grad(outputs, [images, conv.weight], torch.ones_like(outputs))
                took[name].append(time.perf_counter() - began)
        micros = {name: round(1e6 * statistics.median(each[5:])) for name, each in took.items()}
        least = {f"{name}, least": round(1e6 * min(each)) for name, each in took.items()}
        yield {"images": [batch, in_chs, side, side], "out_chs": out_chs, "microseconds": micros | least}


if __name__ == "__main__":
    main()
