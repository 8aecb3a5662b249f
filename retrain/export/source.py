"""This module rebuilds a network from its weights file alone, with the notes that training left in it."""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from local_learning.blocks import DecoupledNet, decouple
from local_learning.build import build_chain
from local_learning.chain import Chain
from local_learning.decoupling import Decoupling
from local_learning.features import as_map
from local_learning.groups import GroupedHeads
from local_learning.losses import logits_of
from retrain.config import RetrainConfig
from supernet.network.documents import space_from
from supernet.space import Architecture, Space
from supernet.stem import UNIT, renamed
from supernet.supernet import build_architecture
from tools.mistake import Mistake, quoted
from tools.options.config import of_run
from tools.run.weights import load_weights, read_notes, read_weights


@dataclass(frozen=True)
class Restored:
    """A `Restored` is a trained network with what its weights file says about it."""

    net: DecoupledNet
    """The network is in evaluation mode, on the CPU, with as many heads as the file has."""
    config: RetrainConfig
    """These are the options of its training; files that they name may be gone."""
    notes: Mapping[str, Any]
    """These are the metadata of the file."""
    space: Space | None
    """The space of an architecture is given, and None for any other network."""
    architecture: Architecture | None

    @property
    def name(self) -> str:
        """Return the network's name."""
        return str(self.notes["network"])

    @property
    def classes(self) -> tuple[str, ...]:
        """Return the names of the classes, in the order of the logits."""
        return tuple(self.notes["classes"])

    @property
    def image_shape(self) -> tuple[int, int, int]:
        """Return channels, height and width of the images that the network takes."""
        size = self.config.data.size
        return len(self.config.data.known.mean), size, size

    @property
    def outputs(self) -> list[str]:
        """Return the names of each exit's logits, those of the classifier last."""
        return [*_exit_names(self.net), "logits"]

    def trunk(self) -> Chain:
        """Return the network without heads, sharing the weights."""
        return self.net.chain().eval()

    def with_exits(self) -> "EarlyExits":
        """Return the network with its heads, sharing the weights."""
        return EarlyExits(self.net).eval()


class EarlyExits(nn.Module):
    """An `EarlyExits` is a network that returns the logits of all its heads, the classifier's last.

    Where a block has neuron groups, each group has its own logits, one group after the other. Parameters are
    named as in files of weights: layers, classifier, and heads by the number of their block.
    """

    def __init__(self, net: DecoupledNet) -> None:
        super().__init__()
        view = net.with_names()
        self.layers, self.classifier = view.layers, view.classifier
        local = [
            (str(k), cut, block)
            for k, (cut, block) in enumerate(zip(net.decoupling.cuts, net.blocks[:-1], strict=True), start=1)
        ]
        self.heads = nn.ModuleDict({k: block.head for k, _, block in local if block.head is not None})
        self.places = {cut: (k, block.layout) for k, cut, block in local if block.head is not None}

    def forward(self, images: Tensor) -> tuple[Tensor, ...]:
        """Return the logits of every head and of the classifier."""
        logits: list[Tensor] = []
        features = images
        for number, layer in enumerate(self.layers, start=1):
            features = layer(features)
            if number in self.places:
                key, layout = self.places[number]
                head = self.heads[key]
                outputs = head(as_map(features, layout) if layout else features)
                logits += map(logits_of, outputs) if isinstance(head, GroupedHeads) else [logits_of(outputs)]
        return (*logits, self.classifier(features))


def restore(path: Path, *, label: str = "weights") -> Restored:
    """Return the network of a weights file that retrain_model.py or export_model.py wrote.

    Raises:
        ValueError: The file cannot be read as such; the message is one line that names it.
    """
    notes = read_notes(path, label=label)
    if not {"network", "classes", "config"} <= notes.keys() or not isinstance(notes["config"], str):
        raise Mistake(label, f"'{path}' is not the weights of a run of retrain_model.py")
    config = of_run(RetrainConfig, notes["config"], source=f"the options in {path}", checked=False)
    tensors = read_weights(path, label=label)
    try:
        net, space, architecture = _rebuild(config, notes)
    except ValueError as error:
        raise Mistake(label, f"the network of '{path}' cannot be built: {quoted(error)}") from None
    except (KeyError, TypeError) as error:
        raise Mistake(label, f"the notes in '{path}' are not whole: {error}") from None
    if not any(name.startswith("heads.") for name in tensors):
        net.drop_heads()
    if space:
        tensors = renamed(tensors, len(space.stem), _stem(notes))
    load_weights(net.with_names(), tensors, source=path, label=label)
    return Restored(net.eval(), config, notes, space, architecture)


def _rebuild(
    config: RetrainConfig, notes: Mapping[str, Any]
) -> tuple[DecoupledNet, Space | None, Architecture | None]:
    """Return the network in blocks, with its initial weights."""
    known, size, num_classes = config.data.known, config.data.size, len(notes["classes"])
    in_chs = len(known.mean)
    space = architecture = None
    if "architecture" in notes:
        images = {"num_classes": num_classes, "image_size": size, "in_chs": in_chs}
        space = space_from(notes["architecture"]["space"] | images)
        if config.dropout:
            space = replace(space, tail=replace(space.tail, dropout=config.dropout))
        architecture = Architecture(tuple(notes["architecture"]["choices"]))
        chain = build_architecture(space, architecture, stem=_stem(notes))
    else:
        # Without `pretrained`, because the weights that training began with do not matter any more.
        chain = build_chain(
            config.network,
            num_classes=num_classes,
            image_size=size,
            in_chs=in_chs,
            width=config.width,
            dropout=config.dropout,
            drop_path=config.drop_path,
            init=config.init,
            stem=config.stem,
        )
    net = decouple(
        chain,
        _decoupling(notes),
        num_classes,
        size,
        image_chs=in_chs,
        options=config.local,
        mean=known.mean,
        std=known.std,
    )
    return net, space, architecture


def _stem(notes: Mapping[str, Any]) -> str:
    """Return how an architecture's layers are counted; in older weights, the stem counts."""
    return str(notes["architecture"].get("stem", UNIT))


def _decoupling(notes: Mapping[str, Any]) -> Decoupling:
    notes_of_cuts = dict(notes.get("decoupling") or {"cuts": (), "heads": ()})
    groups = notes_of_cuts.get("groups", 1)
    return Decoupling(**notes_of_cuts | {"groups": groups if isinstance(groups, int) else tuple(groups)})


def _exit_names(net: DecoupledNet) -> list[str]:
    names = []
    for k, block in enumerate(net.blocks[:-1], start=1):
        if isinstance(block.head, GroupedHeads):
            names += [f"block_{k}_group_{g}" for g in range(1, len(block.head.heads) + 1)]
        elif block.head is not None:
            names.append(f"block_{k}")
    return names
