"""A chain is cut into blocks; each has layers, a head and a loss, and is trained apart from all others."""

from collections.abc import Callable, Iterable, Sequence
from functools import partial
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from local_learning.chain import Chain
from local_learning.cuts.cuttable import check_apart, check_form, through
from local_learning.decoupling import Decoupling
from local_learning.features import as_map
from local_learning.groups import GroupedHeads, group_layers
from local_learning.heads import HeadsOf, layout_for
from local_learning.losses import BlockLoss, CrossEntropy, Grouped, LossPlace, logits_of, loss_at
from local_learning.options import LocalLosses
from tools.layout import guard_convolutions


class Outcome(NamedTuple):
    """An outcome is what one block makes of a batch."""

    loss: Tensor
    """The block's loss, as a mean over the batch."""
    outputs: Tensor
    """The next block takes these outputs as its inputs; detach them first."""
    logits: tuple[Tensor, ...]
    """The head's logits, one tensor per neuron group."""


class Block(nn.Module):
    """A block is the layers between two cuts, with their head and loss.

    The last block's head is the chain's classifier. A block may have no head. It then has no loss either,
    and a rule must bring its error from elsewhere. `layout` says how the features are laid out that a
    local head reads. `movement` is the weight of what the layers change in the features (TRGL).
    """

    def __init__(
        self,
        layers: Iterable[nn.Module],
        head: nn.Module | None,
        objective: BlockLoss | None = None,
        *,
        layout: str = "",
        movement: float = 0.0,
    ) -> None:
        super().__init__()
        self.layers = nn.Sequential(*layers)
        self.movement = movement
        self.head = head
        self.objective: BlockLoss = CrossEntropy() if objective is None else objective
        self.layout = layout
        guard_convolutions(self)

    def forward(
        self,
        inputs: Tensor,
        targets: Tensor | None = None,
        images: Tensor | None = None,
        joined: bool = False,
    ) -> Outcome | Tensor:
        """Run the layers, the head and the loss; `images` are what a decoder has to reconstruct.

        Without targets only the layers run. Rules that train by an error signal instead of a loss need no
        more. With `joined` the loss reaches the head alone.
        """
        moved, features = self._moved(inputs) if self.movement else (None, self.layers(inputs))
        if targets is None or images is None:
            return features
        outputs = self.read(features.detach() if joined else features)
        loss = self.objective(outputs, targets, images)
        if moved is not None and not joined:
            loss = loss + self.movement * moved
        return Outcome(loss, features, _logits(outputs))

    def _moved(self, inputs: Tensor) -> tuple[Tensor, Tensor]:
        """Return how far the layers that keep the shape move features, and what all layers give."""
        moved, features = inputs.new_zeros((), dtype=torch.float32), inputs
        for layer in self.layers:
            outputs = layer(features)
            if outputs.shape == features.shape:
                moved = moved + (outputs - features).float().square().mean()
            features = outputs
        return moved, features

    def loss(self, inputs: Tensor, targets: Tensor, images: Tensor) -> tuple[Tensor, Tensor]:
        """Return the loss and the block's outputs.

        The inputs are the images, or the outputs of the block below.
        """
        outcome = self(inputs, targets, images)
        return outcome.loss, outcome.outputs

    def read(self, features: Tensor) -> Any:
        """Return what the head makes of the layers' outputs."""
        assert self.head is not None, "this block has no head"
        return self.head(as_map(features, self.layout) if self.layout else features)

    def logits(self, features: Tensor) -> tuple[Tensor, ...]:
        """Return the head's logits for the layers' outputs, one tensor per neuron group."""
        return _logits(self.read(features))

    def judge(self, inputs: Tensor) -> tuple[Tensor, tuple[Tensor, ...]]:
        """Return the block's outputs and the logits of each neuron group.

        A block without a head has no logits.
        """
        features = self.layers(inputs)
        return features, () if self.head is None else self.logits(features)


class DecoupledNet(nn.Module):
    """A decoupled net is a chain that is cut into blocks; its output is that of the last block."""

    blocks: Sequence[Block]

    def __init__(self, blocks: Iterable[Block], decoupling: Decoupling, *, width: float = 1.0) -> None:
        super().__init__()
        self.blocks = nn.ModuleList(blocks)  # type: ignore[assignment]  # whose items have no type
        self.decoupling = decoupling
        self.width = width

    def forward(self, images: Tensor) -> Tensor:
        features = images
        for block in self.blocks:
            features = block.layers(features)
        return self.blocks[-1].logits(features)[0]

    def losses(self, images: Tensor, targets: Tensor) -> list[Tensor]:
        """Return every block's own loss; the gradient of one loss reaches no other block."""
        losses, inputs = [], images
        for block in self.blocks:
            loss, outputs = block.loss(inputs, targets, images)
            losses.append(loss)
            inputs = outputs.detach()
        return losses

    def all_logits(self, images: Tensor) -> list[tuple[Tensor, ...]]:
        """Return the logits of every head that there is, from the first block to the classifier."""
        by_head, features = [], images
        for block in self.blocks:
            features, logits = block.judge(features)
            if logits:
                by_head.append(logits)
        return by_head

    def drop_heads(self) -> None:
        """Remove all heads but the classifier, for rules that do not train them."""
        for block in self.blocks[:-1]:
            block.head = None

    def keep_only(self, own: range, first: Block | None = None) -> None:
        """Keep the blocks of one range and put empty blocks in the place of the others.

        `first`, where it is given, takes the place of the first block that is kept.
        """
        for index in range(len(self.blocks)):
            if index not in own:
                self.blocks[index] = Block((), None)  # type: ignore[index]  # it is a ModuleList
        if first is not None:
            self.blocks[own.start] = first  # type: ignore[index]

    def joined(self) -> "DecoupledNet":
        """Return the same layers as a net of one block, which is trained by backpropagation."""
        layers = [layer for block in self.blocks for layer in block.layers]
        last = self.blocks[-1]
        whole = Block(layers, last.head, last.objective, layout=last.layout)
        return DecoupledNet([whole], Decoupling((), ()), width=self.width)

    def chain(self) -> Chain:
        """Return the layers and the classifier as a chain that shares the weights."""
        classifier = self.blocks[-1].head
        assert classifier is not None
        return Chain((layer for block in self.blocks for layer in block.layers), classifier, width=self.width)

    def with_names(self) -> Chain:
        """Return a chain that shares the weights and names them as files do.

        The names are those of the chain, and heads.<block> for the heads.
        """
        view = self.chain()
        local = enumerate(self.blocks[:-1], start=1)
        heads = {str(k): block.head for k, block in local if block.head is not None}
        if heads:
            view.heads = nn.ModuleDict(heads)
        return view


def file_names(net: DecoupledNet) -> dict[str, str]:
    """Return the names that the net's tensors have in files, by their names in the net."""
    named = net.with_names().state_dict(keep_vars=True)
    in_files = {id(tensor): name for name, tensor in named.items()}
    return {name: in_files[id(tensor)] for name, tensor in net.state_dict(keep_vars=True).items()}


def decouple(
    chain: Chain,
    decoupling: Decoupling,
    num_classes: int,
    image_size: int,
    *,
    image_chs: int = 3,
    options: LocalLosses | None = None,
    last_loss: CrossEntropy | None = None,
    mean: Sequence[float] = (0.0,),
    std: Sequence[float] = (1.0,),
    make: Callable[..., nn.Module] | None = None,
) -> DecoupledNet:
    """Cut a chain into blocks; layers without neuron groups are the chain's own, not copies.

    New heads start from torch's global random generator.

    Arguments:
        options: The options of the local losses.
        last_loss: The cross-entropy of the classifier, and of all heads that have no loss of their own.
        mean: The means by which the images were normalised. InfoPro's decoder needs them.
        std: The standard deviations by which the images were normalised, likewise.
        make: A function that makes a head in place of `local_learning.heads.make_head`, called alike.

    Raises:
        ValueError: if the decoupling does not fit the chain, or the chain cannot be cut there.
    """
    check_form(chain, image_size)
    options = LocalLosses() if options is None else options
    loss = CrossEntropy() if last_loss is None else last_loss
    ranges, groups = decoupling.blocks(chain.num_layers), decoupling.groups_of(chain.num_layers)
    check_apart(chain, ranges)
    reference = next(chain.parameters())
    shape = (image_chs, image_size, image_size)
    features = torch.zeros(2, *shape, device=reference.device, dtype=reference.dtype)
    heads_of = HeadsOf(
        *(chain, num_classes, shape),
        head_width=decoupling.head_width,
        last_layer=options.last_layer,
        make=make,
    )
    blocks = []
    for k, (layers, kind) in enumerate(zip(ranges[:-1], decoupling.heads, strict=True)):
        own: Sequence[nn.Module] = [chain.layers[index] for index in layers]
        sizes: list[int] = []
        if groups[k] > 1:
            own, sizes = group_layers(
                own, features, groups[k], first=layers.start + 1, uneven=decoupling.uneven
            )
        for number, layer in enumerate(own, start=layers.start + 1):
            features = through(layer, features, number)
        seen = tuple(features.shape)
        layout = layout_for(kind, seen)
        head = partial(heads_of.after, layers.stop, kind, seen)
        place = LossPlace(
            options=options,
            index=k,
            count=len(decoupling.cuts),
            num_classes=num_classes,
            plain=loss,
            mean=tuple(mean),
            std=tuple(std),
        )
        objective = loss_at(kind, place)
        if groups[k] > 1:
            shared = options.shared_heads
            each = (head() if shared else head(in_chs=size) for size in sizes)
            heads = GroupedHeads(each, sizes, shared=shared)
            objective = Grouped(objective, options.diversity, options.diversity_gradient == "stopped")
            blocks.append(Block(own, heads, objective, layout=layout))
        else:
            blocks.append(Block(own, head(), objective, layout=layout, movement=options.movement))
    blocks.append(Block((chain.layers[index] for index in ranges[-1]), chain.classifier, loss))
    return DecoupledNet(blocks, decoupling, width=chain.width)


def _logits(outputs: object) -> tuple[Tensor, ...]:
    if isinstance(outputs, Tensor) or hasattr(outputs, "logits"):
        return (logits_of(outputs),)
    assert isinstance(outputs, list | tuple)
    return tuple(logits_of(part) for part in outputs)
