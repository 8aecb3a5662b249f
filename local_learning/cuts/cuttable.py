"""A network must meet some conditions to be trained in blocks; these checks name what it lacks."""

from collections.abc import Sequence

from torch import Tensor, nn

from local_learning.chain import Chain
from local_learning.features import probe


def check_form(chain: object, image_size: object) -> None:
    """Refuse anything that is no chain, and images that are not square."""
    if not isinstance(chain, Chain):
        raise ValueError(
            f"chain: this is a {type(chain).__name__}, not a Chain; Chain(modules[:n], modules[n:]) makes "
            "one of an nn.Sequential, where the modules from n on are the classifier"
        )
    if not isinstance(image_size, int):
        raise ValueError(
            f"image_size is {image_size!r}; it is one whole number, the side of the images, which are square"
        )


def check_apart(chain: Chain, blocks: Sequence[range]) -> None:
    """Refuse weights or statistics that two blocks would both train.

    A module that has neither may stand in several blocks.
    """
    parts = [(index, f"layer {index + 1}", layer) for index, layer in enumerate(chain.layers)]
    parts.append((chain.num_layers, "the classifier", chain.classifier))
    ends = [block.stop for block in blocks[:-1]]
    seen: dict[int, tuple[int, str]] = {}
    for index, part, module in parts:
        block = sum(index >= end for end in ends)
        for name, tensor in (*module.named_parameters(), *module.named_buffers()):
            before = seen.setdefault(id(tensor), (block, part))
            if before[0] != block:
                raise ValueError(
                    f"{before[1]} and {part} have '{name}' in common, and a cut is between them; a block's "
                    "weights are its own: give each a module of its own, or cut elsewhere"
                )


def through(layer: nn.Module, features: Tensor, number: int) -> Tensor:
    """Return what layer `number` gives in evaluation mode, to learn its shape."""
    outputs: object = probe([layer], features)
    if not isinstance(outputs, Tensor):
        raise ValueError(
            f"layer {number} gives a {type(outputs).__name__}; a layer takes one tensor and gives one: put "
            "it into one layer with what takes that"
        )
    return outputs
