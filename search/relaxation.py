"""SEDONA's continuous relaxation puts every head on every layer, and mixes error signals at each of them.

Layers and heads are counted from 0 here: layer l has the heads l and the rows l of alpha and beta. The
last layer has the classifier instead. theta are the weights of layers and classifier, phi those of heads.
"""

from collections.abc import Iterable, Sequence
from typing import NamedTuple

import torch
from torch import Tensor, nn

from local_learning.catalogue import HEADS
from local_learning.chain import Chain
from local_learning.cuts.cuttable import check_form, through
from local_learning.cuts.head_width import PAPER
from local_learning.features import as_map, probe
from local_learning.heads import HeadsOf, layout_for
from local_learning.later.request import kinds_at
from local_learning.losses import cross_entropy
from search.cuts.config import searchable_heads
from search.discretisation import discretise
from search.mixture import mixed_logits
from tools.mistake import Mistake

__all__ = ["Gradients", "RelaxedNet", "discretise"]


class Gradients(NamedTuple):
    """These are the directions of Eq. 5 and 6 on one batch."""

    of: dict[str, Tensor]
    """The gradients by the weight's name."""

    losses: list[Tensor]
    """The losses of the mixed heads by layer, and last that of the classifier, without graph."""


class RelaxedNet(nn.Module):
    """A relaxed net is a chain with all candidate heads on all layers but the last, and alpha and beta.

    The layers are the chain's own, not copies. alpha and beta weigh signals and heads, and start at zero:
    all are alike. `logit_scaling` does to the mixed heads what SEDONA's released code does. Their input is
    divided by s = 1 / (softmax(alpha)_1 + 1e-5), and their output is multiplied by s.
    """

    def __init__(
        self,
        chain: Chain,
        head_kinds: Sequence[str],
        num_classes: int,
        image_size: int,
        *,
        image_chs: int = 3,
        label_smoothing: float = 0.1,
        smoothing: str = "all",
        logit_scaling: bool = False,
        head_width: str | float = PAPER,
    ) -> None:
        super().__init__()
        check_form(chain, image_size)
        check_kinds(head_kinds)
        if chain.num_layers < 2:
            raise ValueError("a network of one layer cannot be cut")
        if len(set(chain.layers)) < chain.num_layers:
            raise ValueError("one module stands for several layers; each needs weights of its own")
        self.head_kinds = tuple(head_kinds)
        self.label_smoothing, self.smoothing = label_smoothing, smoothing
        self.logit_scaling = logit_scaling
        self.layers, self.classifier = chain.layers, chain.classifier
        reference = next(chain.parameters())
        features = torch.zeros(2, image_chs, image_size, image_size).to(reference)
        self._layouts: list[list[str]] = []
        heads_of = HeadsOf(chain, num_classes, (image_chs, image_size, image_size), head_width=head_width)
        self.heads = nn.ModuleList()
        for number, layer in enumerate(list(chain.layers)[:-1], start=1):
            features = through(layer, features, number)
            kinds = kinds_at(head_kinds, number, chain.num_layers)
            made = [heads_of.after(number, kind, features.shape) for kind in kinds]
            layouts = [layout_for(kind, features.shape) for kind in kinds]
            for kind, head, layout in zip(kinds, made, layouts, strict=True):
                if HEADS.is_own(kind):
                    _check_logits(kind, head, as_map(features, layout) if layout else features, num_classes)
            self._layouts.append(layouts)
            self.heads.append(nn.ModuleList(made))
        count = chain.num_layers - 1
        self.alpha = nn.Parameter(torch.zeros(count, 2).to(reference))
        self.beta = nn.Parameter(torch.zeros(count, len(head_kinds)).to(reference))

    def weights(self) -> dict[str, nn.Parameter]:
        """Return all that is trained besides alpha and beta, by name."""
        return {
            name: parameter
            for name, parameter in self.named_parameters()
            if parameter.requires_grad and name not in ("alpha", "beta")
        }

    def forward(
        self, images: Tensor, targets: Tensor | None = None, *, create_graph: bool = False
    ) -> Tensor | Gradients:
        """Return the classifier's logits or, with targets, the mixed gradients of all weights.

        With `create_graph` the gradients can be differentiated in turn, by weights, alpha and beta.
        """
        if targets is not None:
            return self.mixed_gradients(images, targets, create_graph=create_graph)
        features = images
        for layer in self.layers:
            features = layer(features)
        logits: Tensor = self.classifier(features)
        return logits

    def mixed_gradients(self, images: Tensor, targets: Tensor, *, create_graph: bool = False) -> Gradients:
        """Return gradients by Eq. 4-6, layer by layer; local and backpropagated parts stay apart.

        The graph of a layer's heads is gone before the next layer runs, unless `create_graph` keeps it.
        """
        signals, mixture = self.alpha.softmax(1), self.beta.softmax(1)
        if not create_graph:
            signals, mixture = signals.detach(), mixture.detach()
        gradients: dict[str, Tensor] = {}
        losses: list[Tensor] = []
        stages: list[tuple[Tensor, Tensor]] = []
        locals_: list[Tensor] = []
        features = images
        for index, layer in enumerate(self.layers):
            inputs = features
            outputs = layer(inputs)
            stages.append((inputs, outputs))
            # First derivatives need one graph per layer only, which is gone after its use.
            own_graph = not create_graph or not outputs.requires_grad
            features = outputs.detach().requires_grad_() if own_graph else outputs
            if index < len(self.heads):
                loss = self._local_loss(index, features, targets, signals[index, 0], mixture[index])
                head, prefix = self.heads[index], f"heads.{index}"
            else:
                loss, head, prefix = (
                    self.loss(self.classifier(features), targets),
                    self.classifier,
                    "classifier",
                )
            local, own = _gradients(loss, features, head, prefix, None, create_graph)
            locals_.append(local)
            losses.append(loss.detach())
            gradients |= own
        signal = locals_[-1]
        for index in range(len(self.layers) - 1, -1, -1):
            inputs, outputs = stages.pop()
            layer, prefix = self.layers[index], f"layers.{index}"
            backpropagated, own = _gradients(
                outputs, inputs if index else None, layer, prefix, signal, create_graph
            )
            gradients |= own
            if index:
                above = signals[index - 1]
                signal = above[0] * locals_[index - 1] + above[1] * backpropagated  # Eq. 4
        return Gradients(gradients, losses)

    def nested_loss(self, images: Tensor, targets: Tensor) -> Tensor:
        """Return the loss that the released code minimises; its gradient is the mixed one but for factors.

        With P_l the product of softmax(alpha)_2 below layer l, it is the sum of softmax(alpha)_1 P_l L_l,
        and P_L L_L.
        """
        signals, mixture = self.alpha.softmax(1), self.beta.softmax(1)
        features, product = images, signals.new_ones(())
        total = signals.new_zeros(())
        for index, layer in enumerate(self.layers):
            features = layer(features)
            if index < len(self.heads):
                loss = self._local_loss(index, features, targets, signals[index, 0], mixture[index])
                total = total + signals[index, 0] * product * loss
                product = product * signals[index, 1]
        return total + product * self.loss(self.classifier(features), targets)

    def _local_loss(
        self, index: int, features: Tensor, targets: Tensor, signal: Tensor, mixture: Tensor
    ) -> Tensor:
        """Return the cross-entropy of a layer's mixed heads (Eq. 1 and 3)."""
        scale = 1 / (signal + 1e-5) if self.logit_scaling else None
        if scale is not None:
            features = features / scale
        inputs = [as_map(features, layout) if layout else features for layout in self._layouts[index]]
        heads: Iterable[nn.Module] = self.heads[index]  # type: ignore[assignment]  # whose items have no type
        logits = mixed_logits(list(heads), inputs, mixture)
        return self.loss(logits if scale is None else scale * logits, targets)

    def loss(self, logits: Tensor, targets: Tensor) -> Tensor:
        """Return the cross-entropy of logits."""
        return cross_entropy(logits, targets, smoothing=self.label_smoothing, over=self.smoothing)


def check_kinds(head_kinds: Sequence[str]) -> None:
    """Refuse heads that cannot be mixed."""
    if not head_kinds:
        raise ValueError("head_kinds: name at least one kind of head")
    for kind in head_kinds:
        row = HEADS.get(kind)
        if row is None or not row.searchable:
            raise Mistake("head_kinds", f"'{kind}' cannot be searched{HEADS.hint(kind, searchable_heads())}")
    if len(set(head_kinds)) < len(head_kinds):
        raise ValueError("head_kinds: a kind is there twice")


def _check_logits(kind: str, head: nn.Module, features: Tensor, num_classes: int) -> None:
    """Refuse a head of the user's own that gives anything but logits."""
    outputs: object = probe([head], features)
    if not isinstance(outputs, Tensor) or outputs.shape != (len(features), num_classes):
        raise ValueError(f"head '{kind}' cannot be searched: it must give logits and nothing else")


def _gradients(
    outputs: Tensor,
    inputs: Tensor | None,
    module: nn.Module,
    prefix: str,
    signal: Tensor | None,
    create_graph: bool,
) -> tuple[Tensor, dict[str, Tensor]]:
    """Return the gradients by inputs and by a module's parameters.

    They are those of a loss, or of outputs that a signal weighs.
    """
    named = [(name, parameter) for name, parameter in module.named_parameters() if parameter.requires_grad]
    sources = [parameter for _, parameter in named] + ([] if inputs is None else [inputs])
    if not sources:
        return outputs.new_zeros(()), {}
    gradients = torch.autograd.grad(
        outputs, sources, signal, create_graph=create_graph, allow_unused=True, materialize_grads=True
    )
    by_name = {f"{prefix}.{name}": gradient for (name, _), gradient in zip(named, gradients, strict=False)}
    return gradients[-1], by_name
