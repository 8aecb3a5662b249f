"""This module plans the trainings of a truth when its run begins, and from then on reads the plan."""

import itertools
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from local_learning.decoupling import save_decoupling
from retrain.config import RetrainConfig
from retrain.networks import choose_decoupling
from retrain.truth.config import TruthConfig
from supernet.network.documents import (
    find_space,
    listed_architecture,
    load_architecture,
    reduced_space,
    save_architecture,
    stem_of,
)
from supernet.network.network import Network
from supernet.sampling import LimitedSampler, sample, stream
from supernet.space import Architecture, Fidelity, Space
from tools.files.atomic import read_document, write_document
from tools.files.jsonl import read_lines
from tools.images.datasets import Data
from tools.mistake import Mistake, quoted
from tools.run.folder import Run

KIND, VERSION = "truth-plan", 1
ARCHITECTURES, DECOUPLINGS = "architectures", "decouplings"
"""These folders of a run hold a file for each network; a plan says which of them the run has."""

_FEW = 50_000
"""Up to this many architectures are listed; of more, each is drawn."""
PATIENCE = 10_000
"""After this many draws in a row without a new network, there is assumed to be no other."""


@dataclass(frozen=True)
class Trial:
    """A `Trial` is one training of one network."""

    number: int
    """The network's number counts from 1."""
    repeat: int
    """The repeat counts from 0, and is added to the seed."""
    label: str
    """The network is called this."""
    facts: Mapping[str, Any] = field(hash=False)
    """The network's lines in truth.jsonl hold these facts about it."""

    @property
    def name(self) -> str:
        """Return the name of the training's folder."""
        return f"{self.number:04d}-{self.repeat}"

    def __str__(self) -> str:
        return f"training {self.name} ({self.label})"


@dataclass(frozen=True)
class TruthPlan:
    """A `TruthPlan` holds the networks, and how often each is trained."""

    kind: str
    """The kind says in what the networks differ, and is the folder of their files."""
    about: str
    """This is the space, or the network that is cut."""
    networks: tuple[Mapping[str, Any], ...]
    repeats: int
    classifier_init: str
    """All architectures are trained from these first weights of their classifiers."""

    def __str__(self) -> str:
        noun = "decoupling" if self.kind == DECOUPLINGS else "network"
        count = len(self.networks)
        again = f", {self.repeats} times each" if self.repeats > 1 else ""
        noted = self.networks[0].get("fidelity")
        size = f", {Fidelity(**noted)}" if noted else ""
        return f"{count} {noun}{'' if count == 1 else 's'} of {self.about}{size}{again}"

    @property
    def trials(self) -> list[Trial]:
        """Return all trainings in order: every network once, then every network again."""
        return [
            Trial(number, repeat, self.label(facts), facts)
            for repeat in range(self.repeats)
            for number, facts in enumerate(self.networks, start=1)
        ]

    def label(self, facts: Mapping[str, Any]) -> str:
        """Return what a network is called."""
        if self.kind == DECOUPLINGS:
            return f"{self.about} {facts['name']}"
        return f"{self.about}/{Architecture(tuple(facts['choices']))}"


def folder_of(run: Run, trial: Trial) -> Run:
    """Return the run of one training."""
    return Run(run.path / "trainings" / trial.name)


def config_of(config: TruthConfig, run: Run, plan: TruthPlan, trial: Trial) -> RetrainConfig:
    """Return the options of one training, with the files in the run's folder."""
    file = run.path / plan.kind / f"{trial.number:04d}.json"
    if plan.kind == DECOUPLINGS:
        network = {"decoupling": str(file)}
    else:
        network = {"architecture": str(file), "stem": stem_of(file)}
    if config.architecture or plan.kind == ARCHITECTURES:
        network["classifier_init"] = plan.classifier_init
    return config.training(run=str(folder_of(run, trial).path), seed=config.seed + trial.repeat, **network)


def read_plan(run: Run) -> TruthPlan:
    """Read the plan of a run that has begun."""
    document = read_document(run.path / "plan.json", KIND, VERSION)
    return TruthPlan(
        document["kind"],
        document["about"],
        tuple(document["networks"]),
        int(document["repeats"]),
        document.get("classifier_init", "timm"),  # the only way before plans recorded it
    )


def write_plan(config: TruthConfig, run: Run, data: Data) -> None:
    """Choose the networks and write their files, and the plan itself last."""
    plan = _cuts(config, run, data) if config.decouplings else _networks(config, run, data)
    content = {"kind": plan.kind, "about": plan.about, "repeats": plan.repeats, "seed": config.seed}
    content |= {"classifier_init": plan.classifier_init}
    write_document(run.path / "plan.json", KIND, VERSION, content | {"networks": list(plan.networks)})


def _cuts(config: TruthConfig, run: Run, data: Data) -> TruthPlan:
    network = Network.chosen(config)
    chain, name = network.chain(data.num_classes, data.image_size, data.channels), network.name
    networks = []
    for number, request in enumerate(config.decouplings, start=1):
        training = config.training(decoupling=request)
        decoupling = choose_decoupling(training, network, chain, data, option="decouplings")
        file = _file(run, DECOUPLINGS, number)
        save_decoupling(file, decoupling, name, chain.num_layers, **network.stem_note)
        facts = {"network": name, "cuts": list(decoupling.cuts), "heads": list(decoupling.heads)}
        widths = {"groups": decoupling.groups, "head_width": decoupling.head_width}
        networks.append(facts | network.stem_note | widths | {"name": request})
    return TruthPlan(DECOUPLINGS, name, tuple(networks), config.repeats, config.classifier_init)


def _networks(config: TruthConfig, run: Run, data: Data) -> TruthPlan:
    images = {"num_classes": data.num_classes, "image_size": config.data.size, "in_chs": data.channels}
    space, architectures = None, []
    if config.space:
        try:
            space = find_space(config.space, **images)
        except ValueError as error:
            raise Mistake("space", quoted(error)) from None
    if config.draws:
        assert space
        architectures = draw_networks(
            space.full, config.networks, seed=config.seed, max_macs=int(config.max_macs)
        )
    for path in map(Path, config.architectures):
        space, more = _read(path, space, images)
        architectures += more
    assert space
    space = reduced_space(space, config.fidelity)
    first: dict[Architecture, Architecture] = {}
    for architecture in architectures:
        first.setdefault(space.canonical(architecture), architecture)
    architectures = list(first.values())
    for number, architecture in enumerate(architectures, start=1):
        save_architecture(_file(run, ARCHITECTURES, number), architecture, space, stem=config.stem)
    networks = tuple(_facts(space, architecture) for architecture in architectures)
    return TruthPlan(ARCHITECTURES, space.name, networks, config.repeats, config.classifier_init)


def _facts(space: Space, architecture: Architecture) -> dict[str, Any]:
    """Return what the plan says of a network; of a copy also its size, and what it costs at full size."""
    facts: dict[str, Any] = {"choices": list(architecture.choices)}
    if not space.fidelity:
        return facts
    costs = {"macs": space.full.macs(architecture), "params": space.full.params(architecture)}
    return facts | space.fidelity_note | costs


def _read(path: Path, space: Space | None, images: Mapping[str, int]) -> tuple[Space, list[Architecture]]:
    """Return the architectures of a file, which must be of the space, and their space."""
    try:
        if path.suffix != ".jsonl":
            other, architecture = load_architecture(path, **images)
            if space and other != space:
                raise ValueError(f"{path}: is of space {other.name}, others are of {space.name}")
            return other, [architecture]
        assert space
        architectures = list(_of_lines(path, space))
    except OSError as error:
        raise Mistake("architectures", f"cannot read {path}: {error.strerror}") from None
    except ValueError as error:
        raise Mistake("architectures", quoted(error)) from None
    if not architectures:
        raise Mistake("architectures", f"no line of {path} has choices")
    return space, architectures


def _of_lines(path: Path, space: Space) -> Iterator[Architecture]:
    for entry in read_lines(path):
        if entry.get("choices") is not None:
            yield listed_architecture(path, entry["choices"], space)


def draw_networks(space: Space, count: int, *, seed: int, max_macs: int = 0) -> list[Architecture]:
    """Draw `count` different networks from random strings of equal probability, without repeated networks.

    Raises:
        ValueError: The space has fewer networks.
    """
    networks = list(itertools.islice(_different(space, seed, max_macs), count))
    if len(networks) < count:
        within = f" of at most {max_macs:,} MACs" if max_macs else ""
        raise Mistake(
            "networks",
            f"space {space.name} has only {len(networks):,} different networks{within}, not {count:,}",
            "ask for fewer",
        )
    return networks


def _different(space: Space, seed: int, max_macs: int) -> Iterator[Architecture]:
    seen = set()
    without = 0
    for architecture in _strings(space, seed, max_macs):
        network = space.canonical(architecture)
        without += 1
        if network not in seen:
            seen.add(network)
            without = 0
            yield network
        elif without == PATIENCE:
            return


def _strings(space: Space, seed: int, max_macs: int) -> Iterable[Architecture]:
    """Return random strings: all of them in random order if they are few, and otherwise without end."""
    rng = stream(seed, "truth")
    if max_macs and not LimitedSampler(space).count(max_macs):
        least = space.fixed_cost.macs + sum(min(cost.macs for cost in row) for row in space.costs)
        raise Mistake(
            "max_macs",
            f"no network of {space.name} has at most {max_macs:,} MACs; the cheapest has {least:,}",
        )
    if space.size <= _FEW:
        every = [a for a in space.architectures() if not max_macs or space.macs(a) <= max_macs]
        rng.shuffle(every)
        return every
    if not max_macs:
        return (sample(space, rng) for _ in itertools.count())
    sampler = LimitedSampler(space)
    return (sampler.draw(rng, max_macs) for _ in itertools.count())


def _file(run: Run, kind: str, number: int) -> Path:
    path = run.path / kind / f"{number:04d}.json"
    path.parent.mkdir(exist_ok=True)
    return path


def unfinished(run: Run, trials: Sequence[Trial]) -> list[Trial]:
    """Return the trainings without results."""
    return [trial for trial in trials if not folder_of(run, trial).results_path.exists()]
