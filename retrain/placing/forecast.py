"""A model of how fast blocks on many devices train, what they need and what limits them. Free of torch.

Each block trains a batch as soon as its inputs are there and it is done with the batch before. Its outputs
leave after the forward pass of its layers; sending and receiving go on beside computing, in both directions
at once. So in the steady state the slowest stage or link sets the pace, whatever the length of the queues.

Not in the model: reading images, the labels' bytes, sharing BatchNorm's statistics, evaluation, checkpoints,
several devices behind one link, memory reserved but unused.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import combinations, pairwise

from local_learning.catalogue import HEADS
from local_learning.cuts.head_width import PAPER
from local_learning.rules.catalogue import RULES
from retrain.placing.placement import Placement
from tools.mistake import Mistake

BUCKET = 25 * 2**20
"""Bytes of gradients that DistributedDataParallel shares at a time."""


@dataclass(frozen=True, kw_only=True)
class Line:
    """What has a fixed part and one that grows with the rows."""

    fixed: float = 0.0
    per_row: float = 0.0

    def at(self, rows: float) -> float:
        return self.fixed + self.per_row * rows

    @classmethod
    def through(cls, small: tuple[int, float], large: tuple[int, float]) -> "Line":
        """From what was measured at two numbers of rows; neither part is negative."""
        slope = min(max(0.0, (large[1] - small[1]) / (large[0] - small[0])), large[1] / large[0])
        return cls(fixed=max(0.0, large[1] - slope * large[0]), per_row=slope)


@dataclass(frozen=True, kw_only=True)
class BlockCost:
    """Of one block on one device."""

    forward: Line
    """Seconds of the layers' forward pass, after which the outputs can be sent."""
    passes: Line
    """Seconds of all forward and backward passes of a step, with head and loss."""
    update: float
    """Seconds of the optimiser's step."""
    parameters: int
    """Bytes; gradients take as many."""
    optimizer: int
    """Bytes of its state."""
    kept: Line
    """Bytes that the forward pass keeps for the backward pass, inputs included."""
    outputs: int
    """Bytes per image that the next block takes."""
    elements: int
    """Numbers per image that the next block takes."""


@dataclass(frozen=True, kw_only=True)
class Subject:
    """Of what the costs are; a file of other costs is of no use."""

    network: str
    rule: str
    num_layers: int
    cuts: tuple[int, ...]
    heads: tuple[str, ...]
    groups: tuple[int, ...]
    image_shape: tuple[int, ...]
    num_classes: int
    optimizer: str
    precision: str
    head_width: str | float = PAPER


@dataclass(frozen=True, kw_only=True)
class BlockCosts(Subject):
    """Of all blocks of a network, and of the same layers under backpropagation."""

    device: str
    threads: int
    batch_sizes: tuple[int, int]
    """At which, as on the device, this was measured."""
    image_bytes: int
    blocks: tuple[BlockCost, ...]
    whole: BlockCost


@dataclass(frozen=True, kw_only=True)
class Conditions:
    """Under which the blocks are trained."""

    batch_size: int
    accumulate: int = 1
    queue: int = 4
    transfer: str = "full"
    bandwidth: float = 10.0
    """GB/s of each device's link, in each direction."""
    latency: float = 20.0
    """Microseconds of a message."""
    speed: float = 1.0
    """How many times as fast as the measured device one is."""

    def link(self, size: float) -> float:
        """Seconds of a transfer; those to several receivers wait for their latencies together."""
        return size / (self.bandwidth * 1e9) + self.latency * 1e-6 if size else 0.0

    def all_reduce(self, size: float, copies: int) -> float:
        """Seconds of sharing so many bytes of gradients."""
        # The bytes of a ring, but the latencies of a tree: libraries know how to have both.
        rounds = 2 * math.ceil(math.log2(copies)) * math.ceil(size / BUCKET)
        return 2 * (copies - 1) / copies * size / (self.bandwidth * 1e9) + rounds * self.latency * 1e-6


@dataclass(frozen=True, kw_only=True)
class StageForecast:
    """One stage: times and bytes of a step on each of its devices."""

    blocks: range
    copies: int
    forward: float
    """Seconds until the outputs can be sent."""
    compute: float
    """Seconds of forward and backward passes and updates."""
    exposed: float
    """Seconds of sharing gradients that are not hidden behind the backward pass."""
    traffic: float
    """Bytes of activations, error signals and gradients in the busier direction of the device's link."""
    receiving: float
    """Seconds for which the device's link does so."""
    sending: float
    memory: float

    @property
    def busy(self) -> float:
        return self.compute + self.exposed

    @property
    def seconds(self) -> float:
        """The shortest time between two steps."""
        return max(self.busy, self.receiving, self.sending)


@dataclass(frozen=True, kw_only=True)
class Forecast:
    """A placement's steady state."""

    stages: tuple[StageForecast, ...]
    links: tuple[float, ...]
    """Seconds of a batch on the way from each stage to the next."""
    pace: float
    """Seconds between two steps."""
    fill: float
    """Seconds until the first batch has reached the last stage's loss."""
    limit: str
    batch_size: int

    @property
    def images_per_second(self) -> float:
        return self.batch_size / self.pace

    @property
    def idle(self) -> tuple[float, ...]:
        """The share of its time for which each stage's devices wait."""
        return tuple(1 - stage.busy / self.pace for stage in self.stages)

    @property
    def mean_idle(self) -> float:
        """Over all devices."""
        used = sum(stage.busy * stage.copies for stage in self.stages)
        return 1 - used / (self.pace * sum(stage.copies for stage in self.stages))

    @property
    def memory(self) -> float:
        """Bytes on the device that needs most."""
        return max(stage.memory for stage in self.stages)

    @property
    def traffic(self) -> float:
        """Bytes per step over the busiest link."""
        return max(stage.traffic for stage in self.stages)


def forecast(costs: BlockCosts, placement: Placement, on: Conditions) -> Forecast:
    """The steady state of blocks that are placed so; a rule without a model is refused."""
    check_modelled(costs.rule)
    assert placement.num_blocks == len(costs.blocks), "the costs are of another network"
    stages = [stage_forecast(costs, stage.blocks, stage.copies, on) for stage in placement.stages]
    # The side with fewer devices has more rows to pass through each of its links.
    links = [
        on.link(on.batch_size / min(one.copies, other.copies) * _crossing(costs, other.blocks.start, on))
        for one, other in pairwise(stages)
    ]
    pace, limit = _slowest(costs, stages, links)
    return Forecast(
        stages=tuple(stages),
        links=tuple(links),
        pace=pace,
        fill=sum(stage.forward for stage in stages) + sum(links),
        limit=limit,
        batch_size=on.batch_size,
    )


def backprop(costs: BlockCosts, devices: int, on: Conditions) -> Forecast:
    """The same layers trained by backpropagation, on devices that share the rows (DDP)."""
    whole = replace(costs, rule="backprop", cuts=(), heads=(), groups=(1,), blocks=(costs.whole,))
    return forecast(whole, Placement.of([(1, devices)]), on)


def check_modelled(rule: str) -> None:
    """Refuse a rule whose pace is not known here."""
    row = RULES.get(rule)
    if row is None or not row.forecast:
        known = " and ".join(name for name in RULES if RULES[name].forecast and RULES[name].cuts)
        raise Mistake("plan", f"there is no model of how fast `rule` {rule} is; only of {known}")


def stage_forecast(costs: BlockCosts, blocks: range, copies: int, on: Conditions) -> StageForecast:
    """One stage, whatever the others are: what passes a link is counted at both of its ends."""
    own, rule = [costs.blocks[index] for index in blocks], RULES[costs.rule]
    rows = on.batch_size / copies
    part = rows / on.accumulate
    gradients = sum(block.parameters for block in own)
    passes = on.accumulate * sum(block.passes.at(part) for block in own)
    exposed = 0.0
    for index, block in zip(blocks, own, strict=True):
        # Buckets go round while earlier layers still go backward, in the last part of a batch; the last
        # bucket is full only when the backward pass is over.
        forwards = rule.forwards if index < len(costs.blocks) - 1 else 1
        backward = max(0.0, block.passes.at(part) - forwards * block.forward.at(part)) / on.speed
        whole = on.all_reduce(block.parameters, copies)
        exposed += max(whole - backward, on.all_reduce(min(block.parameters, BUCKET), copies))
    reduce = sum(on.all_reduce(block.parameters, copies) for block in own)
    # Error signals of the same sizes go the other way.
    below = rows * _crossing(costs, blocks.start, on)
    above = rows * _crossing(costs, blocks.stop, on)
    back_in, back_out = (above, below) if rule.errors_come_down else (0.0, 0.0)
    return StageForecast(
        blocks=blocks,
        copies=copies,
        forward=on.accumulate * sum(block.forward.at(part) for block in own) / on.speed,
        compute=(passes + sum(block.update for block in own)) / on.speed,
        exposed=exposed,
        traffic=max(below + back_in, above + back_out) + 2 * (copies - 1) / copies * gradients,
        receiving=on.link(below) + on.link(back_in) + reduce,
        sending=on.link(above) + on.link(back_out) + reduce,
        memory=_memory(costs, blocks, rows, on),
    )


def _memory(costs: BlockCosts, blocks: range, rows: float, on: Conditions) -> float:
    """Weights, gradients, the optimiser's state, the activations of one block at a time, and both queues."""
    own = [costs.blocks[index] for index in blocks]
    held: float = sum(2 * block.parameters + block.optimizer for block in own)
    held += max(block.kept.at(rows / on.accumulate) for block in own)
    # The images of a batch, or as many inputs and outputs as may be under way.
    held += rows * (on.queue * _crossing(costs, blocks.start, on) if blocks.start else costs.image_bytes)
    held += rows * on.queue * _crossing(costs, blocks.stop, on)
    if RULES[costs.rule].forwards > 1:  # inputs of batches that are still to be trained on, error signals
        for index in range(blocks.start, min(blocks.stop, len(costs.blocks) - 1)):
            inputs = costs.blocks[index - 1].outputs if index else costs.image_bytes
            held += rows * ((len(costs.blocks) - index) * inputs + costs.blocks[index].outputs)
    return held


def _crossing(costs: BlockCosts, cut: int, on: Conditions) -> int:
    """Bytes per image on the way to block `cut`, counted from 0, if that is not the first."""
    if not 0 < cut < len(costs.blocks):
        return 0
    below = costs.blocks[cut - 1]
    # Images go along where a loss further up looks at them, which only the losses of heads do.
    rows = [row for row in map(HEADS.get, costs.heads[cut:]) if row]
    along = RULES[costs.rule].trains_heads and any(row.sees_images for row in rows)
    return along * costs.image_bytes + (2 * below.elements if on.transfer == "bf16" else below.outputs)


def _slowest(costs: BlockCosts, stages: Sequence[StageForecast], links: Sequence[float]) -> tuple[float, str]:
    """What sets the pace; of equals the computing."""
    found = []  # seconds, and what takes them
    for stage in stages:
        what = "the gradient all-reduce" if stage.exposed > stage.compute else "the compute"
        found.append((stage.busy, f"{what} of {_named(costs, stage)}"))
    for link, (one, other) in zip(links, pairwise(stages), strict=True):
        found.append((link, f"the link from block {one.blocks.stop} to block {other.blocks.start + 1}"))
    for stage in stages:
        what = f"the links of the devices of {_named(costs, stage)}"
        found.append((max(stage.receiving, stage.sending), what))
    if RULES[costs.rule].errors_come_down:
        # A block waits for the error signal of the batch that it has just passed on: n stages go round in n
        # steps, and what lies between them is waited for once in each direction.
        for start, stop in combinations(range(len(stages) + 1), 2):
            way = sum(stage.busy for stage in stages[start:stop]) + 2 * sum(links[start : stop - 1])
            ends = f"block {stages[start].blocks.stop} and block {stages[stop - 1].blocks.start + 1}"
            found.append((way / (stop - start), f"the way there and back between {ends}"))
    return max(found, key=lambda each: each[0])


def _named(costs: BlockCosts, stage: StageForecast) -> str:
    ends = (0, *costs.cuts, costs.num_layers)
    first, last = stage.blocks.start, stage.blocks.stop - 1
    blocks = f"block {first + 1}" if first == last else f"blocks {first + 1} to {last + 1}"
    low, high = ends[first] + 1, ends[last + 1]
    layers = f"layers {low} to {high}" if low < high else f"layer {low}" if low == high else "the classifier"
    return f"{blocks} ({layers})"
