"""The network that a script's user names, as a chain: by its name, or as an architecture of a space."""

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any, Protocol, TypeVar

from accelerate import Accelerator
from torch import Tensor

from local_learning.build import NetworkOptions, check_name, seeded_chain
from local_learning.chain import Chain
from local_learning.cuts.head_width import MAP, PAPER
from local_learning.decoupling import DecouplingFile, read_decoupling
from local_learning.networks.catalogue import NETWORKS
from local_learning.networks.traced import with_our_names
from supernet.network.documents import load_architecture, save_architecture, space_to, stem_of
from supernet.space import Architecture, Space
from supernet.stem import recounted, renamed
from supernet.supernet import build_architecture
from tools.run.folder import Run
from tools.run.launch import on_main
from tools.seeding import seed_globals

COPY = "architecture.json"
"""In a run."""


class ChosenNetwork(NetworkOptions, Protocol):
    """The options that name it."""

    @property
    def architecture(self) -> str: ...
    @property
    def classifier_init(self) -> str: ...


Chosen = TypeVar("Chosen", bound=ChosenNetwork)


def kept_in_run(options: Chosen, run: Run, accelerator: Accelerator) -> Chosen:
    """The options with the run's own copy of the architecture, which is read from then on.

    It is made when the run begins; what becomes of the user's file later does not matter. It also says how
    the stem is counted, which the options of a run of before do not.
    """
    if not options.architecture:
        return options
    copy = run.path / COPY

    def keep() -> None:
        if not run.has_begun:
            space, architecture = _load(options.architecture)
            save_architecture(copy, architecture, space, stem=options.stem)

    on_main(accelerator, keep)
    return replace(options, architecture=str(copy), stem=stem_of(copy))  # type: ignore[type-var]


def as_kept(options: Chosen, run: Path) -> Chosen:
    """The options of a run, with the stem counted as it is there."""
    if not options.architecture:
        return options
    return replace(options, stem=stem_of(run / COPY))  # type: ignore[type-var]


def described(options: ChosenNetwork) -> dict[str, Any]:
    """What the metadata of weights say of an architecture, and of how its stem is counted; else nothing."""
    if not options.architecture:
        return {}
    space, architecture = _load(options.architecture)
    facts = {"space": space_to(space), "choices": list(architecture.choices)}
    return {"architecture": facts | counted(options)}


def counted(options: ChosenNetwork) -> dict[str, str]:
    """What files say of how the stem of an architecture is counted; nothing of a network's."""
    return {"stem": options.stem} if options.architecture else {}


def differs_from(options: ChosenNetwork, run: Path, theirs: str) -> str:
    """The option by which a run made with --architecture `theirs` had another network, if it had."""
    if not options.architecture and not theirs:
        return ""
    mine = _load(options.architecture) if options.architecture else None
    if theirs and mine == _load(str(run / COPY)):
        return ""
    return f"--architecture ({theirs!r} there)"


def asked_for(options: ChosenNetwork) -> str:
    """The option that named the network, with its name."""
    return f"--{'architecture' if options.architecture else 'network'} {network_name(options)}"


def network_name(options: ChosenNetwork) -> str:
    """What the network is called: for an architecture <space>/<choices>. An unknown one is refused."""
    if not options.architecture:
        check_name(options.network)
        return options.network
    space, architecture = _load(options.architecture)
    return f"{space.name}/{architecture}"


def chosen_chain(options: ChosenNetwork, num_classes: int, image_size: int, in_chs: int) -> Chain:
    """The network with initial weights from the options' seed."""
    if not options.architecture:
        return seeded_chain(options, num_classes, image_size, in_chs)
    space, architecture = _load(options.architecture, num_classes, image_size, in_chs)
    if options.dropout:
        space = replace(space, tail=replace(space.tail, dropout=options.dropout))
    seed_globals(options.seed, "init")
    return build_architecture(space, architecture, stem=options.stem, classifier_init=options.classifier_init)


def usual_head_width(options: ChosenNetwork) -> str:
    """How wide its heads are if nothing is said: the papers' numbers are for the papers' networks."""
    return PAPER if not options.architecture and options.network in NETWORKS.ours else MAP


def cuts_of(options: ChosenNetwork, path: str) -> DecouplingFile:
    """A decoupling's file, its layers counted as the chain's are."""
    found = read_decoupling(path)
    return recounted(found, _stem_layers(options), options.stem) if options.architecture else found


def with_chain_names(
    options: ChosenNetwork, chain: Chain, tensors: Mapping[str, Tensor]
) -> dict[str, Tensor]:
    """Tensors of a weights file by the chain's names, where timm or another count of the stem has others."""
    if options.architecture:
        return renamed(tensors, _stem_layers(options), options.stem)
    return with_our_names(options.network, chain, tensors)


def _stem_layers(options: ChosenNetwork) -> int:
    space, _ = _load(options.architecture)
    return len(space.stem)


def _load(
    path: str, num_classes: int = 10, image_size: int = 1024, in_chs: int = 3
) -> tuple[Space, Architecture]:
    """What a file describes; what it is called does not depend on the images."""
    try:
        return load_architecture(Path(path), num_classes=num_classes, image_size=image_size, in_chs=in_chs)
    except ValueError as error:
        raise ValueError(f"--architecture: {error}") from error
