"""This module decides how the processes of a run share a network: all of it each, or blocks of it."""

import contextlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from accelerate import Accelerator
from torch import Tensor

from local_learning.blocks import DecoupledNet
from local_learning.features import probe
from local_learning.groups import GroupedHeads
from local_learning.losses import sees_images
from local_learning.rules.catalogue import RuleRow
from local_learning.rules.engine import loss_name
from local_learning.slices import Exchange, Slice
from retrain.config import RetrainConfig
from retrain.pipeline.group_exchange import GroupExchange
from retrain.pipeline.neighbours import Neighbours
from retrain.pipeline.post import ProcessPost
from retrain.pipeline.role import Role, role_of, whole_role
from retrain.pipeline.transfers import Traffic
from retrain.placing.measuring import seconds_here, subject_of
from retrain.placing.placement import (
    PipelineStage,
    Placement,
    load_placement,
    place,
    place_groups,
    save_placement,
)
from tools.failures import RunFailed, known_cause
from tools.images.datasets import Data
from tools.mistake import Mistake, quoted
from tools.run.checkpoint import latest_step
from tools.run.folder import Run
from tools.run.launch import on_main
from tools.run.plan import Spread
from tools.run.signals import waiting_signals
from tools.run.watchdog import Watchdog


@dataclass(frozen=True)
class ProcessSetup:
    """A `ProcessSetup` is this process's part in a run."""

    role: Role
    neighbours: Neighbours | None = None
    """These connect it with the blocks below and above, where other processes have them."""
    spread: Spread | None = None
    watchdog: Watchdog | None = None
    """It watches these processes."""
    piece: Slice | None = None
    """This is what the process has of its first block, if it has only one neuron group of it."""
    words: str = ""
    """These words tell the user which process does what."""
    placement: Placement | None = None
    """It says which process has which blocks."""

    @property
    def pipes(self) -> int:
        """Return how many processes share the images of an evaluation."""
        return self.neighbours.pipes if self.neighbours else self.role.copies

    def post(self, dtype: torch.dtype) -> ProcessPost:
        """Return what carries weights down; all processes call this at the same time."""
        assert self.placement is not None
        return ProcessPost(self.placement, torch.distributed.get_rank(), dtype, self.waiting)

    def waiting(self) -> contextlib.AbstractContextManager[object]:
        """Return a context that is entered where this process may wait for others."""
        return self.watchdog.waiting() if self.watchdog else contextlib.nullcontext()

    @contextlib.contextmanager
    def watched(self) -> Iterator[None]:
        """Name a process that dies or hangs in this context, in which processes wait for each other."""
        if self.watchdog is None:
            yield
            return
        with waiting_signals(), self.watchdog:  # a launcher's SIGTERM must not end the process that reports
            try:
                yield
            except (RuntimeError, RunFailed) as error:
                # The loop may have said already that a process was lost, but not which one.
                broken = error.__cause__ if isinstance(error, RunFailed) else error
                if isinstance(broken, RuntimeError) and known_cause(broken, 2).startswith("lost"):
                    self.watchdog.explain(broken)
                raise


def whole_setup(net: DecoupledNet, accelerator: Accelerator) -> ProcessSetup:
    """Return the setup in which every process has all blocks, and its rows of each batch."""
    return ProcessSetup(whole_role(len(net.blocks), accelerator))


def block_setup(
    net: DecoupledNet,
    config: RetrainConfig,
    network: str,
    data: Data,
    run: Run,
    accelerator: Accelerator,
) -> ProcessSetup:
    """Put blocks on processes of their own, by the run's placement, which is made if there is none.

    `network` says in words which network it is.
    """
    path = run.path / "placement.json"
    on_main(accelerator, lambda: _settle_placement(path, net, config, network, data, run, accelerator))
    placement = load_placement(path)
    rank = accelerator.process_index
    role = role_of(placement, accelerator)
    assert role.control is not None
    watchdog = Watchdog(
        describe=lambda rank: _role(placement, rank),
        last_good=lambda: _last_good(run),
        patience=config.pipeline.patience,
        early=len(net.blocks) + 2,  # in replay a block's first backward pass is late, and may be compiled
    )
    neighbours = Neighbours(
        placement,
        rank,
        config.recipe.batch_size,
        parts=config.recipe.accumulate,
        queue=config.pipeline.queue,
        rounded=config.pipeline.transfer == "bf16",
        with_images=any(
            block.head is not None and sees_images(block.objective) for block in net.blocks[role.own.stop :]
        ),
        watchdog=watchdog,
        channels=_channels(net, role),
        described=config.gluing.cache,  # stored variables have another layout than new ones
    )
    measured = measuring_ranks(placement, config.rule_row)
    spread = Spread(
        measured={name: len(ranks) for name, ranks in measured.items()},
        here=frozenset(name for name, ranks in measured.items() if rank in ranks),
        saves=role.speaks,
        control=role.control,
        apart=len(placement.stages) * config.pipeline.queue,
        waiting=watchdog.waiting,
    )
    piece = None
    if role.groups > 1:
        piece = _slice(net, role.own.start, role.place, data, GroupExchange(role, neighbours.traffic))
    return ProcessSetup(role, neighbours, spread, watchdog, piece, _words(placement), placement)


def measuring_ranks(placement: Placement, rule: RuleRow) -> dict[str, range]:
    """Return the processes that have each value of a step."""
    ranks, count = {}, placement.num_blocks
    for stage in placement.stages:
        for index in stage.blocks:
            if rule.trains_heads:
                ranks[loss_name(index, count)] = stage.ranks_of(index)
            if rule.measures and index < count - 1:
                ranks[f"{rule.measures}/{index + 1}"] = stage.ranks
    ranks |= dict.fromkeys(("loss", "train_top1"), placement.stages[-1].ranks_of(count - 1))
    for kind in Traffic.KINDS:
        ranks |= {f"{kind}/{rank}": range(rank, rank + 1) for rank in range(placement.world_size)}
    return ranks


def _settle_placement(
    path: Path,
    net: DecoupledNet,
    config: RetrainConfig,
    network: str,
    data: Data,
    run: Run,
    accelerator: Accelerator,
) -> None:
    """Keep the run's placement if it is for this many processes, or make one."""
    count, num_blocks, recipe = accelerator.num_processes, len(net.blocks), config.recipe
    groups = [len(block.head.sizes) if isinstance(block.head, GroupedHeads) else 1 for block in net.blocks]
    if path.exists() and run.has_begun:
        kept = load_placement(path)
        if (kept.world_size, kept.num_blocks) == (count, num_blocks) and all(
            stage.groups in (1, groups[stage.blocks.start]) for stage in kept.stages
        ):
            return
    placement = place_groups(groups, count, top_is_bare=not net.blocks[-1].layers)
    if placement is not None:
        _insist_on_slices(net, groups, data, count)
        save_placement(path, placement)
        return
    times = [1.0] * num_blocks
    if count != num_blocks:
        subject = subject_of(config, network, net.chain().num_layers, net.decoupling, data)
        times = seconds_here(net, config, subject, accelerator)
    placement = place(times, count, batch_size=recipe.batch_size, accumulate=recipe.accumulate, apart=True)
    rows = recipe.batch_size // placement.stages[0].copies
    if (config.data.mixup or config.data.cutmix) and rows % 2:
        raise Mistake(
            "recipe.batch_size",
            f"mixup and cutmix pair images; {rows} in each process of the first block is an odd number",
        )
    save_placement(path, placement)


def _insist_on_slices(net: DecoupledNet, groups: Sequence[int], data: Data, count: int) -> None:
    """Refuse blocks whose neuron groups cannot be trained on processes of their own."""
    try:
        for index, number in enumerate(groups):
            for place in range(number if number > 1 else 0):
                _slice(net, index, place, data, _alone)
    except ValueError as error:
        raise Mistake(
            "`parallel` blocks",
            f"{count} processes, one for each neuron group: {quoted(error)}, or start {len(groups)} "
            "processes",
        ) from None


def _alone(own: Tensor, sizes: Sequence[int]) -> list[Tensor]:
    raise AssertionError("there is nobody to talk to yet")


def _slice(net: DecoupledNet, index: int, place: int, data: Data, exchange: Exchange) -> Slice:
    """Return one neuron group of a block, with the weights that it has in the network."""
    reference = next(net.parameters())
    features = reference.new_zeros(2, data.channels, data.image_size, data.image_size)
    below = [layer for block in net.blocks[:index] for layer in block.layers]
    return Slice(net.blocks[index], place, probe(below, features), exchange, first=len(below) + 1)


def _channels(net: DecoupledNet, role: Role) -> slice | None:
    """Return which channels of its block's map a process has, or None for all."""
    heads = net.blocks[role.own.start].head
    if role.groups == 1 or not isinstance(heads, GroupedHeads):
        return None
    start = sum(heads.sizes[: role.place])
    return slice(start, start + heads.sizes[role.place])


def _role(placement: Placement, rank: int) -> str:
    return f"{_part(placement.stages[placement.stage_of(rank)], rank)} of {placement.num_blocks}"


def _part(stage: PipelineStage, rank: int) -> str:
    """Return in words what a process has."""
    blocks = stage.blocks
    if stage.groups == 1:
        return _span("block", blocks.start + 1, blocks.stop)
    place = rank - stage.ranks.start
    group = f"group {place + 1} of block {blocks.start + 1}"
    if place or len(blocks) == 1:
        return group
    return f"{group} and {_span('block', blocks.start + 2, blocks.stop)}"


def _last_good(run: Run) -> str:
    step = latest_step(run.checkpoints)
    return f"the last checkpoint is step {step}" if step else "no checkpoint was due yet"


def _words(placement: Placement) -> str:
    parts = []
    for stage in placement.stages:
        if stage.groups > 1:
            parts += [f"{_part(stage, rank)} on process {rank}" for rank in stage.ranks]
            continue
        ranks = _span("process", stage.ranks.start, stage.ranks.stop - 1)
        parts.append(f"{_part(stage, stage.ranks.start)} on {ranks}")
    return "; ".join(parts)


def _span(noun: str, first: int, last: int) -> str:
    plural = noun + ("es" if noun.endswith("s") else "s")
    return f"{noun} {first}" if first == last else f"{plural} {first} to {last}"
