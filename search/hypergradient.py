"""The derivatives of the validation loss after T training steps by alpha and beta, exactly (Eq. 7 of SEDONA).

They are computed by the adjoint method. Let w be all weights, G(w; alpha, beta) their mixed gradients and
m the momentum. A step of torch's SGD is m' = mu m + G(w) + lambda w, w' = w - eta m'. At the end, v =
dL_val/dw and q = 0. From there the steps are gone through backwards:

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

_OBJECTIVES = ("validation", "training")
STATISTICS = ("running", "batch")

_Batch = Sequence[Tensor]
"""A batch: images and targets."""

Tensors = dict[str, Tensor]


@dataclass(frozen=True)
class Hypergradient:
    """A hypergradient holds the derivatives, and where the inner steps led."""

    alpha: Tensor
    """The derivatives by alpha."""
    beta: Tensor
    """The derivatives by beta."""
    parameters: Tensors
    """The weights after all steps, by name."""
    momentum_buffers: Tensors
    """The momentum after all steps, by name."""
    loss: Tensor
    """The loss that was differentiated."""


def hypergradient(
    net: RelaxedNet,
    batches: Sequence[_Batch],
    validation_batch: _Batch,
    *,
    lr: float,
    momentum: float,
    weight_decay: float,
    momentum_buffers: Mapping[str, Tensor] | None = None,
    keep_graphs: int = 0,
    statistics: str = "running",
    objective: str = "validation",
) -> Hypergradient:
    """Return the derivatives by alpha and beta of the loss that `net` has after its inner steps.

    There is one SGD step on each of the batches. The loss is the classifier's on the validation batch.
    `net` is left unchanged.

    Arguments:
        weight_decay: The weight decay, which applies to all weights.
        momentum_buffers: The momentum before the first step, by name; without them it is zero.
        keep_graphs: The graphs of this many last steps are kept instead of made again. One costs no
            memory.
        statistics: "running" uses BatchNorm's running statistics in the validation loss, as the steps left
            them and not differentiated. "batch" uses those of the validation batch.
        objective: "validation", or "training" for what the released code differentiates instead: the
            nested training loss of the last batch, in front of its step.
    """
    assert statistics in STATISTICS
    assert objective in _OBJECTIVES
    if not batches:
        raise ValueError("batches: at least one inner step is needed")
    # The released code's loss stands in front of the last step, which is then not differentiated.
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
            by_weight = path.backward(step, p, to_weights=step > 0)
            to_alpha = to_alpha + by_weight.pop("alpha")
            to_beta = to_beta + by_weight.pop("beta")
            v = _combined(_combined(v, 1.0, p, weight_decay), 1.0, by_weight, 1.0)
    return Hypergradient(to_alpha, to_beta, weights, moved, loss)


class _Path:
    """A path is the inner steps; each can be gone forward once, and then backward."""

    def __init__(self, net: RelaxedNet, batches: Sequence[_Batch], kept: range) -> None:
        self._net, self._batches = net, [(batch[0], batch[1]) for batch in batches]
        self._kept = kept
        self._buffers = {name: buffer.clone() for name, buffer in net.named_buffers()}
        self._constants = {name: p.detach() for name, p in net.named_parameters() if not p.requires_grad}
        self._weights: list[Tensors] = []
        self._random: list[_RandomState] = []
        self._graphs: dict[int, tuple[Tensors, Tensors]] = {}

    def forward(self, step: int, weights: Tensors) -> Tensors:
        """Return the mixed gradients of a step at given weights; running statistics move."""
        self._weights.append(weights)
        self._random.append(_RandomState(self._net.alpha.device))
        if step in self._kept:
            leaves, gradients = self._field(step, create_graph=True)
            self._graphs[step] = (leaves, gradients.of)
            return {name: value.detach() for name, value in gradients.of.items()}
        _, gradients = self._field(step, create_graph=False)
        return gradients.of

    def backward(self, step: int, p: Tensors, *, to_weights: bool) -> Tensors:
        """Return (dG/d.)^T p of a step, by alpha and beta, and with `to_weights` by weights.

        Those by weights that are zero are left out.
        """
        if step in self._graphs:
            leaves, gradients = self._graphs.pop(step)
        else:
            with self._random[step].replayed(), frozen_statistics(self._net):
                leaves, at_step = self._field(step, create_graph=True)
            gradients = at_step.of
        # Where p is zero (for all heads at the last step) there is nothing to differentiate.
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

    def validation_loss(self, weights: Tensors, batch: _Batch, statistics: str) -> tuple[Tensor, Tensors]:
        """Return the classifier's loss after all steps, and its derivatives by the weights it depends on."""
        net = self._net
        leaves = _leaves(weights)
        net.eval()
        if statistics == "batch":
            for module in net.modules():
                if isinstance(module, _BatchNorm):
                    module.train()
        # With running statistics images do not influence each other, and parts need less memory.
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
        """Return the nested loss of the last batch, and its derivatives by weights, alpha and beta."""
        leaves = self._all_leaves(weights)
        with self._random[-1].replayed(), frozen_statistics(self._net):
            tensors = {**leaves, **self._constants, **self._buffers}
            loss = functional_call(
                _Nested(self._net), {f"net.{k}": t for k, t in tensors.items()}, self._batches[-1]
            )
        derivatives = _derivatives(loss, leaves)
        return loss.detach(), derivatives, derivatives.pop("alpha"), derivatives.pop("beta")

    def _field(self, step: int, *, create_graph: bool) -> tuple[Tensors, Gradients]:
        leaves = self._all_leaves(self._weights[step])
        tensors = {**leaves, **self._constants, **self._buffers}
        # Fused attention has no second derivative.
        exact = (FastSecondOrder(), sdpa_kernel(SDPBackend.MATH)) if create_graph else ()
        with contextlib.ExitStack() as stack:
            for context in exact:
                stack.enter_context(context)
            gradients = functional_call(
                self._net, tensors, self._batches[step], {"create_graph": create_graph}
            )
        return leaves, gradients

    def _all_leaves(self, weights: Tensors) -> Tensors:
        return _leaves({**weights, "alpha": self._net.alpha, "beta": self._net.beta})


class _Nested(nn.Module):
    """This module's call is the nested loss, because weights can be handed to a module's call."""

    def __init__(self, net: RelaxedNet) -> None:
        super().__init__()
        self.net = net

    def forward(self, images: Tensor, targets: Tensor) -> Tensor:
        return self.net.nested_loss(images, targets)


class _RandomState:
    """This is the state of the random generators, so that dropout can be repeated."""

    def __init__(self, device: torch.device) -> None:
        self._devices = [device] if device.type == "cuda" else []
        self._cpu = torch.get_rng_state()
        self._cuda = [torch.cuda.get_rng_state(device) for device in self._devices]

    @contextlib.contextmanager
    def replayed(self) -> Iterator[None]:
        """Set the generators to this state, and afterwards back to what they are now."""
        with torch.random.fork_rng(devices=self._devices):
            torch.set_rng_state(self._cpu)
            for device, state in zip(self._devices, self._cuda, strict=True):
                torch.cuda.set_rng_state(state, device)
            yield


@contextlib.contextmanager
def _modes_of(net: nn.Module) -> Iterator[None]:
    """Set training mode, and afterwards the modes that were."""
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
    values = torch.autograd.grad(loss, list(leaves.values()), allow_unused=True)
    return {name: value for name, value in zip(leaves, values, strict=True) if value is not None}


def _combined(one: Tensors, factor: float, other: Tensors, other_factor: float) -> Tensors:
    """Return a sum by names; missing tensors count as zero."""
    total = {name: factor * value for name, value in one.items()}
    for name, value in other.items():
        total[name] = (
            torch.add(total[name], value, alpha=other_factor) if name in total else other_factor * value
        )
    return total
