"""Time and memory of a hypergradient, against the package `higher` used as SEDONA uses it.

    pip install higher
    python -m benchmarks.hypergradient
    python -m benchmarks.hypergradient --device cuda --batch-size 128

The other side unrolls: one graph through all steps, in which the gradients are those of the nested loss
divided by the products of softmax(alpha). Both see the same weights, batches and heads (four on every
layer), take turns, and are compared by medians; their results are compared too. "live" is the peak of all
tensors that come and go; "saved" that of what autograd keeps. With --profile, where our time goes, by
operator. One JSON line per case.
"""

import argparse
import gc
import json
import statistics
import time
import warnings
import weakref
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import functional_call
from torch.nn import functional as F
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from local_learning.build import build_chain
from search.hypergradient import hypergradient
from search.relaxation import RelaxedNet
from tools.cost import saved_activation_bytes
from tools.layout import use_channels_last

HEADS = ("aux1", "aux2", "aux3", "aux4")
RATES: dict[str, Any] = {"lr": 0.01, "momentum": 0.9, "weight_decay": 1e-3}

Result = tuple[Tensor, Tensor]


def main() -> None:
    options = parse()
    torch.set_num_threads(options.threads)
    for network in options.networks:
        for steps in options.steps:
            case = Case(network, steps, options)
            if options.profile:
                case.profile()
            compare(case, options)


class Case:
    """A network with batches, and both ways to its hypergradient."""

    def __init__(self, network: str, steps: int, options: argparse.Namespace) -> None:
        torch.manual_seed(0)
        self.name = f"{network} {options.width:g}x, T={steps}, batch {options.batch_size}"
        self.options = options
        chain = build_chain(network, num_classes=10, image_size=options.image_size, width=options.width)
        self.net = RelaxedNet(chain, HEADS, 10, options.image_size).to(options.device)
        self.net.to(torch.float64 if options.double else torch.float32)
        use_channels_last(self.net)
        self.batches = [self._batch(options.batch_size) for _ in range(steps)]
        self.validation = self._batch(options.validation_batch)

    def ours(self) -> Result:
        found = hypergradient(
            self.net, self.batches, self.validation, **RATES, keep_graphs=self.options.keep_graphs
        )
        return found.alpha, found.beta

    def higher(self) -> Result:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            import higher
        nested = Nested(self.net).train()
        weights = [weight for _, weight in self.net.weights().items()]
        optimizer = torch.optim.SGD(weights, **RATES)
        with higher.innerloop_ctx(nested, optimizer, copy_initial_weights=True) as (fast, inner):
            names = [name.removeprefix("net.") for name, _ in nested.named_parameters()]
            leaves = dict(zip(names, fast.parameters(time=0), strict=True))
            factors = self._factors(names, leaves["alpha"])

            def divided(gradients: list[Tensor]) -> list[Tensor]:
                return [g / factor for g, factor in zip(gradients, factors, strict=True)]

            for images, targets in self.batches:
                inner.step(fast(images, targets), grad_callback=divided)
            moved = dict(zip(names, fast.fast_params, strict=True))
            buffers = {name.removeprefix("net."): buffer for name, buffer in fast.named_buffers()}
            self.net.eval()
            logits = functional_call(self.net, {**moved, **buffers}, (self.validation[0],))
            self.net.train()
            loss = F.cross_entropy(logits, self.validation[1], label_smoothing=0.1)
            alpha, beta = torch.autograd.grad(loss, [leaves["alpha"], leaves["beta"]])
        return alpha, beta

    def profile(self) -> None:
        """Print our operators by the time that they take themselves."""
        self.ours()
        with torch.profiler.profile() as found:
            self.ours()
        print(found.key_averages().table(sort_by="self_cpu_time_total", row_limit=15))

    def _batch(self, count: int) -> tuple[Tensor, Tensor]:
        size = self.options.image_size
        dtype = next(self.net.parameters()).dtype
        images = torch.randn(count, 3, size, size, dtype=dtype).contiguous(memory_format=torch.channels_last)
        targets = torch.randint(10, (count,))
        return images.to(self.options.device), targets.to(self.options.device)

    def _factors(self, names: list[str], alpha: Tensor) -> list[Tensor]:
        """By which the nested loss's gradient of a weight is too large."""
        signals = alpha.softmax(1)
        products = [torch.ones_like(signals[0, 0])]
        for row in signals:
            products.append(products[-1] * row[1])
        found: list[Tensor] = []
        for name in names:
            match name.split("."):
                case ["layers", index, *_]:
                    found.append(products[int(index)])
                case ["heads", index, *_]:
                    found.append(signals[int(index), 0] * products[int(index)])
                case ["classifier", *_]:
                    found.append(products[-1])
                case _:  # alpha and beta, which the step leaves alone
                    found.append(products[0])
        return found


class Nested(nn.Module):
    """The nested loss as a module's call, heads run one by one by their own modules."""

    def __init__(self, net: RelaxedNet) -> None:
        super().__init__()
        self.net = net

    def forward(self, images: Tensor, targets: Tensor) -> Tensor:
        net = self.net
        signals, mixture = net.alpha.softmax(1), net.beta.softmax(1)
        features, product = images, signals.new_ones(())
        total = signals.new_zeros(())
        for index, layer in enumerate(net.layers):
            features = layer(features)
            if index < len(net.heads):
                heads: Any = net.heads[index]
                logits = torch.stack([head(features) for head in heads], dim=-1) @ mixture[index]
                total = total + signals[index, 0] * product * net.loss(logits, targets)
                product = product * signals[index, 1]
        return total + product * net.loss(net.classifier(features), targets)


def compare(case: Case, options: argparse.Namespace) -> None:
    """Both ways in turn."""
    ways: dict[str, Callable[[], Result]] = {"ours": case.ours}
    if not options.alone:
        ways["higher"] = case.higher
    memory = {name: (saved_activation_bytes(way), live(way)) for name, way in ways.items()}
    taken: dict[str, list[float]] = {name: [] for name in ways}
    results: dict[str, Result] = {}
    for _ in range(options.rounds):
        for name, way in ways.items():
            gc.collect()
            synchronise(options)
            start = time.perf_counter()
            results[name] = way()
            synchronise(options)
            taken[name].append(time.perf_counter() - start)
    seconds = {name: statistics.median(values) for name, values in taken.items()}
    line: dict[str, object] = {"case": case.name}
    for name in ways:
        line |= {f"{name}_s": seconds[name], f"{name}_saved_mib": memory[name][0] / 2**20}
        line |= {f"{name}_live_mib": memory[name][1] / 2**20}
    if "higher" in ways:
        line["time_ratio"] = seconds["ours"] / seconds["higher"]
        line["saved_ratio"], line["live_ratio"] = (
            own / other for own, other in zip(memory["ours"], memory["higher"], strict=True)
        )
        for index, name in enumerate(("alpha", "beta")):
            own, other = results["ours"][index], results["higher"][index]
            line[f"{name}_difference"] = float((own - other).norm() / other.norm())
    print(
        json.dumps({k: float(f"{v:.4g}") if isinstance(v, float) else v for k, v in line.items()}), flush=True
    )


def live(way: Callable[[], Result]) -> int:
    """Peak bytes of what comes and goes."""
    gc.collect()
    tracker = Live()
    with tracker:
        way()
    return tracker.peak


class Live(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Counts the storages that operators make, from then until they are gone."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.peak, self._now = 0, 0
        self._known: dict[int, weakref.ref[torch.UntypedStorage]] = {}

    def __torch_dispatch__(
        self, func: Callable[..., Any], types: object, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        inputs = {each.untyped_storage()._cdata for each in tensors_in((args, kwargs))}
        outputs = func(*args, **(kwargs or {}))
        for each in tensors_in(outputs):
            storage = each.untyped_storage()
            if storage._cdata not in inputs and storage._cdata not in self._known:
                self._take(storage)
        return outputs

    def _take(self, storage: torch.UntypedStorage) -> None:
        key, size = storage._cdata, storage.nbytes()

        def gone(_: object) -> None:
            self._now -= size
            self._known.pop(key, None)

        self._known[key] = weakref.ref(storage, gone)
        self._now += size
        self.peak = max(self.peak, self._now)


def tensors_in(values: object) -> list[Tensor]:
    return [each for each in tree_leaves(values) if isinstance(each, Tensor)]


def synchronise(options: argparse.Namespace) -> None:
    if options.device == "cuda":
        torch.cuda.synchronize()


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--networks", nargs="+", default=["vgg19", "resnet50"])
    parser.add_argument("--width", type=float, default=0.25)
    parser.add_argument("--image-size", type=int, default=32)
    parser.add_argument("--batch-size", type=int, default=32)
    parser.add_argument("--validation-batch", type=int, default=32)
    parser.add_argument("--steps", type=int, nargs="+", default=[5])
    parser.add_argument("--keep-graphs", type=int, default=1)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--double", action="store_true", help="float64, in which results can be compared")
    parser.add_argument("--alone", action="store_true", help="leave the other side out")
    parser.add_argument("--profile", action="store_true")
    parser.add_argument("--device", default="cpu")
    return parser.parse_args()


if __name__ == "__main__":
    main()
