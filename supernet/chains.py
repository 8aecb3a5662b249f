"""The network that a script's user names, as a chain: by its name, or as an architecture of a space."""

from dataclasses import replace
from pathlib import Path
from typing import Protocol

from local_learning.build import NetworkOptions, check_name, seeded_chain
from local_learning.chain import Chain
from supernet.documents import load_architecture
from supernet.supernet import build_architecture
from tools.seeding import seed_globals


class ChosenNetwork(NetworkOptions, Protocol):
    """The options that name it."""

    @property
    def architecture(self) -> str: ...


def network_name(options: ChosenNetwork) -> str:
    """What the network is called: for an architecture <space>/<choices>. An unknown one is refused."""
    if not options.architecture:
        check_name(options.network)
        return options.network
    try:
        # What it is called does not depend on the images.
        space, architecture = load_architecture(Path(options.architecture), num_classes=10, image_size=1024)
    except ValueError as error:
        raise ValueError(f"--architecture: {error}") from error
    return f"{space.name}/{architecture}"


def chosen_chain(options: ChosenNetwork, num_classes: int, image_size: int, in_chs: int) -> Chain:
    """The network with initial weights from the options' seed."""
    if not options.architecture:
        return seeded_chain(options, num_classes, image_size, in_chs)
    try:
        space, architecture = load_architecture(
            Path(options.architecture), num_classes=num_classes, image_size=image_size, in_chs=in_chs
        )
    except ValueError as error:
        raise ValueError(f"--architecture: {error}") from error
    if options.dropout:
        space = replace(space, tail=replace(space.tail, dropout=options.dropout))
    seed_globals(options.seed, "init")
    return build_architecture(space, architecture)
