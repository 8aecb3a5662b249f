"""How the validation loss after T training steps depends on alpha and beta, exactly (Eq. 7 of SEDONA).

The adjoint method. With w all weights, G(w; alpha, beta) their mixed gradients and m the momentum, a step of
torch's SGD is m' = mu m + G(w) + lambda w, w' = w - eta m'. From v = dL_val/dw and q = 0 at the end, the
steps are gone through backwards:

    p = q - eta v,  v += lambda p + (dG/dw)^T p,  q <- mu p,  dalpha += (dG/dalpha)^T p,  and beta alike

Only the weights of each step are kept. What a step computed is computed again when its turn comes, so that
there is never more than one step's graph.
"""

import contextlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.func import functional_call
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.nn.modules.batchnorm import _BatchNorm

from search.relaxation import Gradients, RelaxedNet
from tools.batchnorm import frozen_statistics
from tools.second_order import FastSecondOrder

OBJECTIVES = ("validation", "training")
STATISTICS = ("running", "batch")

Batch = Sequence[Tensor]
"""Images and targets."""

Tensors = dict[str, Tensor]


@dataclass(frozen=True)
class Hypergradient:
    """The derivatives, and where the inner steps led."""

    alpha: Tensor
    beta: Tensor
    parameters: Tensors
    """Weights after all steps, by name."""
    momentum_buffers: Tensors
    """Momentum after all steps, by name."""
    loss: Tensor
    """That which was differentiated."""


def hypergradient(
    net: RelaxedNet,
    batches: Sequence[Batch],
    validation_batch: Batch,
    *,
    lr: float,
    momentum: float,
    weight_decay: float,
    momentum_buffers: Mapping[str, Tensor] | None = None,
    keep_graphs: int = 0,
    statistics: str = "running",
    objective: str = "validation",
) -> Hypergradient:
    """Derivatives by alpha and beta of the loss that `net` has after one SGD step on each of the batches.

    The loss is the classifier's on the validation batch, where BatchNorm uses its running statistics, as
    the steps left them and not differentiated, or the batch's own. Weight decay applies to all weights.
    `net` is left unchanged. The graphs of the last `keep_graphs` steps are kept instead of made again; the
    first costs no memory.

    With the objective "training", what the released code differentiates instead: the nested training loss
    of the last batch, in front of its step.
    """
    assert statistics in STATISTICS
    assert objective in OBJECTIVES
    if not batches:
        raise ValueError("batches: at least one inner step is needed")
    # The released code's loss stands in front of the last step, through which nothing goes back then.
    back = len(batches) - (objective == "training")
    path = _Path(net, batches, range(back - keep_graphs, back))
    weights = {name: weight.detach() for name, weight in net.weights().items()}
    moved = {name: torch.zeros_like(weight) for name, weight in weights.items()}
    if momentum_buffers is not None:
        moved |= {name: momentum_buffers[name].detach().clone() for name in weights}
    names = list(weights)
    before_last = weights
    with _modes_of(net), torch.enable_grad():
        for step in range(len(batches)):
            before_last = weights
            gradients = path.forward(step, weights)
            change = [gradients[name] for name in names]
            change = list(torch._foreach_add(change, list(weights.values()), alpha=weight_decay))
            torch._foreach_mul_(list(moved.values()), momentum)
            torch._foreach_add_(list(moved.values()), change)
            after = torch._foreach_sub(list(weights.values()), torch._foreach_mul(list(moved.values()), lr))
            weights = dict(zip(names, after, strict=True))
            del gradients, change
        if objective == "training":
            loss, v, to_alpha, to_beta = path.training_loss(before_last)
        else:
            loss, v = path.validation_loss(weights, validation_batch, statistics)
            to_alpha, to_beta = torch.zeros_like(net.alpha), torch.zeros_like(net.beta)
        q: Tensors = {}
        for step in reversed(range(back)):
            p = _combined(q, 1.0, v, -lr)
            q = {name: momentum * value for name, value in p.items()}
            found = path.backward(step, p, to_weights=step > 0)
            to_alpha = to_alpha + found.pop("alpha")
            to_beta = to_beta + found.pop("beta")
            v = _combined(_combined(v, 1.0, p, weight_decay), 1.0, found, 1.0)
    return Hypergradient(to_alpha, to_beta, weights, moved, loss)


class _Path:
    """The inner steps: each can be gone forward once, and then backward."""

    def __init__(self, net: RelaxedNet, batches: Sequence[Batch], kept: range) -> None:
        self._net, self._batches = net, [(batch[0], batch[1]) for batch in batches]
        self._kept = kept
        self._buffers = {name: buffer.clone() for name, buffer in net.named_buffers()}
        self._constants = {name: p.detach() for name, p in net.named_parameters() if not p.requires_grad}
        self._weights: list[Tensors] = []
        self._random: list[_RandomState] = []
        self._graphs: dict[int, tuple[Tensors, Tensors]] = {}

    def forward(self, step: int, weights: Tensors) -> Tensors:
        """The mixed gradients of a step at weights; running statistics move."""
        self._weights.append(weights)
        self._random.append(_RandomState(self._net.alpha.device))
        if step in self._kept:
            leaves, found = self._field(step, create_graph=True)
            self._graphs[step] = (leaves, found.of)
            return {name: value.detach() for name, value in found.of.items()}
        _, found = self._field(step, create_graph=False)
        return found.of

    def backward(self, step: int, p: Tensors, *, to_weights: bool) -> Tensors:
        """(dG/d.)^T p of a step, by alpha, beta and, if asked for, weights; all-zero ones left out."""
        if step in self._graphs:
            leaves, gradients = self._graphs.pop(step)
        else:
            with self._random[step].replayed(), frozen_statistics(self._net):
                leaves, found = self._field(step, create_graph=True)
            gradients = found.of
        # Where p is zero (all heads, at the last step) there is nothing to go through.
        outputs = [name for name in p if gradients[name].requires_grad]
        sources = [name for name in leaves if to_weights or name in ("alpha", "beta")]
        if not outputs:
            return {name: torch.zeros_like(leaves[name]) for name in ("alpha", "beta")}
        derivatives = torch.autograd.grad(
            [gradients[name] for name in outputs],
            [leaves[name] for name in sources],
            [p[name] for name in outputs],
            allow_unused=True,
        )
        by_name: dict[str, Tensor | None] = dict(zip(sources, derivatives, strict=True))
        return {
            name: torch.zeros_like(leaves[name]) if value is None else value
            for name, value in by_name.items()
            if value is not None or name in ("alpha", "beta")
        }

    def validation_loss(self, weights: Tensors, batch: Batch, statistics: str) -> tuple[Tensor, Tensors]:
        """The classifier's loss after all steps, and its derivatives by those weights it depends on."""
        net = self._net
        leaves = _leaves(weights)
        net.eval()
        if statistics == "batch":
            for module in net.modules():
                if isinstance(module, _BatchNorm):
                    module.train()
        # With running statistics images do not see each other, and a part at a time needs less memory.
        size = len(batch[0]) if statistics == "batch" else len(self._batches[0][0])
        tensors = {**leaves, **self._constants, **self._buffers}
        total, derivatives = torch.zeros_like(net.alpha[0, 0]), Tensors()
        with frozen_statistics(net):
            for images, targets in zip(*(torch.split(column, size) for column in batch[:2]), strict=True):
                loss = (
                    net.loss(functional_call(net, tensors, (images,)), targets) * len(images) / len(batch[0])
                )
                derivatives = _combined(derivatives, 1.0, _derivatives(loss, leaves), 1.0)
                total += loss.detach()
        net.train()
        return total, derivatives

    def training_loss(self, weights: Tensors) -> tuple[Tensor, Tensors, Tensor, Tensor]:
        """The nested loss of the last batch, and its derivatives by weights, alpha and beta."""
        leaves = self._all_leaves(weights)
        with self._random[-1].replayed(), frozen_statistics(self._net):
            tensors = {**leaves, **self._constants, **self._buffers}
            loss = functional_call(
                _Nested(self._net), {f"net.{k}": t for k, t in tensors.items()}, self._batches[-1]
            )
        found = _derivatives(loss, leaves)
        return loss.detach(), found, found.pop("alpha"), found.pop("beta")

    def _field(self, step: int, *, create_graph: bool) -> tuple[Tensors, Gradients]:
        leaves = self._all_leaves(self._weights[step])
        tensors = {**leaves, **self._constants, **self._buffers}
        # Fused attention has no second derivative.
        exact = (FastSecondOrder(), sdpa_kernel(SDPBackend.MATH)) if create_graph else ()
        with contextlib.ExitStack() as stack:
            for each in exact:
                stack.enter_context(each)
            found = functional_call(self._net, tensors, self._batches[step], {"create_graph": create_graph})
        return leaves, found

    def _all_leaves(self, weights: Tensors) -> Tensors:
        return _leaves({**weights, "alpha": self._net.alpha, "beta": self._net.beta})


class _Nested(nn.Module):
    """The nested loss as a module's call, which is what weights can be handed to."""

    def __init__(self, net: RelaxedNet) -> None:
        super().__init__()
        self.net = net

    def forward(self, images: Tensor, targets: Tensor) -> Tensor:
        return self.net.nested_loss(images, targets)


class _RandomState:
    """Where the generators stand, so that dropout can be repeated."""

    def __init__(self, device: torch.device) -> None:
        self._devices = [device] if device.type == "cuda" else []
        self._cpu = torch.get_rng_state()
        self._cuda = [torch.cuda.get_rng_state(each) for each in self._devices]

    @contextlib.contextmanager
    def replayed(self) -> Iterator[None]:
        """The generators as they stood, and afterwards as they stand now."""
        with torch.random.fork_rng(devices=self._devices):
            torch.set_rng_state(self._cpu)
            for device, state in zip(self._devices, self._cuda, strict=True):
                torch.cuda.set_rng_state(state, device)
            yield


@contextlib.contextmanager
def _modes_of(net: nn.Module) -> Iterator[None]:
    """Training mode, and afterwards what it was."""
    modes = [(module, module.training) for module in net.modules()]
    net.train()
    try:
        yield
    finally:
        for module, mode in modes:
            module.training = mode


def _leaves(tensors: Mapping[str, Tensor]) -> Tensors:
    return {name: tensor.detach().requires_grad_() for name, tensor in tensors.items()}


def _derivatives(loss: Tensor, leaves: Tensors) -> Tensors:
    found = torch.autograd.grad(loss, list(leaves.values()), allow_unused=True)
    return {name: value for name, value in zip(leaves, found, strict=True) if value is not None}


def _combined(one: Tensors, factor: float, other: Tensors, other_factor: float) -> Tensors:
    """A sum by names; what is missing is zero."""
    total = {name: factor * value for name, value in one.items()}
    for name, value in other.items():
        total[name] = (
            torch.add(total[name], value, alpha=other_factor) if name in total else other_factor * value
        )
    return total
