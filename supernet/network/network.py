"""A run is about one network, which is settled when the run starts and read from its file once."""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Protocol, TypeVar, cast

from accelerate import Accelerator
from torch import Tensor

from local_learning.build import NetworkOptions, check_name, seeded_chain
from local_learning.chain import Chain
from local_learning.cuts.head_width import MAP, PAPER
from local_learning.decoupling import DecouplingFile, read_decoupling
from local_learning.networks.catalogue import NETWORKS
from local_learning.networks.traced import with_our_names
from supernet.network.documents import (
    ArchitectureFile,
    checked_stem,
    read_architecture,
    save_architecture,
    space_to,
)
from supernet.space import Architecture, Space
from supernet.stem import recounted, renamed
from supernet.supernet import build_architecture
from tools.mistake import Mistake, quoted
from tools.run.folder import Run
from tools.run.launch import on_main
from tools.seeding import seed_globals

COPY = "architecture.json"
"""The name of a run's own copy of its architecture."""


class ChosenNetwork(NetworkOptions, Protocol):
    """These are the options that name a network."""

    @property
    def architecture(self) -> str: ...
    @property
    def classifier_init(self) -> str: ...


Chosen = TypeVar("Chosen", bound=ChosenNetwork)


@dataclass(frozen=True)
class Network:
    """A network is known by its name, or as an architecture of a space."""

    options: ChosenNetwork
    """The network's width, dropout, first weights and the like."""
    file: ArchitectureFile | None = None
    """The file of the architecture, unless the network has a name."""

    @classmethod
    def chosen(cls, options: ChosenNetwork, *, stem_of_file: bool = False) -> "Network":
        """Return the network that the options name, and refuse a name or a file that does not exist.

        With `stem_of_file` the stem is counted as the file of an architecture says.
        """
        if not options.architecture:
            check_name(options.network)
            return cls(options)
        try:
            file = read_architecture(Path(options.architecture))
            if stem_of_file:
                options = replace(options, stem=checked_stem(file))  # type: ignore[type-var]
            network = cls(options, file)
            network.space_for()  # this checks the choices
        except ValueError as error:
            raise Mistake("architecture", quoted(error)) from error
        return network

    @classmethod
    def of_run(cls, options: ChosenNetwork, run: Run, accelerator: Accelerator) -> "Network":
        """Return the network of a run, from the run's own copy of its architecture.

        The copy is made when the run begins. Later changes of the user's file do not matter. The copy also
        says how the stem is counted, which the options of older runs do not.
        """
        if not options.architecture:
            return cls.chosen(options)
        copy = run.path / COPY

        def keep() -> None:
            if not run.has_begun:
                space, architecture = cls.chosen(options).space_for()
                save_architecture(copy, architecture, space, stem=options.stem)

        on_main(accelerator, keep)
        return cls.kept(options, run.path)

    @classmethod
    def kept(cls, options: ChosenNetwork, run: Path) -> "Network":
        """Return the network of a run that has begun, from the run's own copy of its architecture."""
        if not options.architecture:
            return cls.chosen(options)
        return cls.chosen(replace(options, architecture=str(run / COPY)), stem_of_file=True)  # type: ignore[type-var]

    @property
    def name(self) -> str:
        """The network's name; that of an architecture is <space>/<choices>, whatever the images."""
        return self.options.network if self.file is None else self.file.name

    @property
    def words(self) -> str:
        """The network's name, and its width where that is not the usual one."""
        width = self.options.width if self.file is None else self.file.width
        return self.name if width == 1 else f"{self.name}, width {width:g}"

    @property
    def asked_for(self) -> str:
        """The option that named the network, with the name, as a message about a mistake begins."""
        return f"`{'network' if self.file is None else 'architecture'}` {self.name}"

    def space_for(
        self, num_classes: int = 10, image_size: int = 1024, in_chs: int = 3
    ) -> tuple[Space, Architecture]:
        """Return the space and the architecture, for these images."""
        assert self.file is not None
        return self.file.space_for(num_classes=num_classes, image_size=image_size, in_chs=in_chs)

    def chain(self, num_classes: int, image_size: int, in_chs: int) -> Chain:
        """Build the network, with initial weights from the options' seed."""
        options = self.options
        if self.file is None:
            return seeded_chain(options, num_classes, image_size, in_chs)
        space, architecture = self.space_for(num_classes, image_size, in_chs)
        if options.dropout:
            space = replace(space, tail=replace(space.tail, dropout=options.dropout))
        seed_globals(options.seed, "init")
        return build_architecture(
            space, architecture, stem=options.stem, classifier_init=options.classifier_init
        )

    @property
    def usual_head_width(self) -> str:
        """How wide the network's heads are unless options say otherwise.

        The papers' numbers are for the papers' networks.
        """
        return PAPER if self.file is None and self.options.network in NETWORKS.ours else MAP

    def cuts_of(self, path: str) -> DecouplingFile:
        """Read a decoupling's file, with its layers counted as the chain's are."""
        read = read_decoupling(path)
        return read if self.file is None else recounted(read, self._stem_layers, self.options.stem)

    def with_chain_names(self, chain: Chain, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Return the tensors of a weights file by the chain's names.

        timm has other names, and so does a chain whose stem is counted the other way.
        """
        if self.file is None:
            return with_our_names(self.options.network, chain, tensors)
        return renamed(tensors, self._stem_layers, self.options.stem)

    @property
    def stem_note(self) -> dict[str, str]:
        """What files say about how an architecture's stem is counted; it is empty for a network by name."""
        return {} if self.file is None else {"stem": self.options.stem}

    @property
    def notes(self) -> dict[str, Any]:
        """What the metadata of weights say about an architecture; it is empty for a network by name."""
        if self.file is None:
            return {}
        space, architecture = self.space_for()
        facts = {"space": space_to(space), "choices": list(architecture.choices)}
        return {"architecture": facts | self.stem_note}

    @property
    def _stem_layers(self) -> int:
        return len(self.space_for()[0].stem)


def kept_in_run(options: Chosen, run: Run, accelerator: Accelerator) -> Chosen:
    """Return the options of a run's network, with the run's own copy of its architecture."""
    return cast(Chosen, Network.of_run(options, run, accelerator).options)


def differs_from(network: Network, theirs: Network, named: str) -> str:
    """Return the option by which a run had another network, or nothing if it had the same.

    `named` is the file of the architecture with which that run was made.
    """
    if network.file is None and theirs.file is None:
        return ""
    if network.file is not None and theirs.file is not None and network.space_for() == theirs.space_for():
        return ""
    return f"`architecture` ({named!r} there)"
