"""This module forecasts how fast blocks on many devices train, and what limits them. It is free of torch.

Each block trains a batch as soon as its inputs have arrived and it has finished the batch before. Its outputs
leave after the forward pass of its layers. Sending and receiving go on beside computing, in both directions
at once. So in the steady state the slowest stage or link sets the pace, whatever the length of the queues.

The model leaves out reading images, the labels' bytes, sharing BatchNorm's statistics, evaluation,
checkpoints, several devices behind one link, and memory that is reserved but unused.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import combinations, pairwise

from local_learning.catalogue import HEADS
from local_learning.cuts.head_width import PAPER
from local_learning.rules.catalogue import RULES, usual_rule
from retrain.placing.placement import Placement
from tools.mistake import Mistake

BUCKET = 25 * 2**20
"""DistributedDataParallel shares this many bytes of gradients at a time."""


@dataclass(frozen=True, kw_only=True)
class Line:
    """A `Line` has a fixed part, and a part that grows with the number of rows."""

    fixed: float = 0.0
    per_row: float = 0.0

    def at(self, rows: float) -> float:
        """Return the value for a number of rows."""
        return self.fixed + self.per_row * rows

    @classmethod
    def through(cls, small: tuple[int, float], large: tuple[int, float]) -> "Line":
        """Return the line through two measurements, with neither part negative."""
        slope = min(max(0.0, (large[1] - small[1]) / (large[0] - small[0])), large[1] / large[0])
        return cls(fixed=max(0.0, large[1] - slope * large[0]), per_row=slope)


@dataclass(frozen=True, kw_only=True)
class BlockCost:
    """A `BlockCost` is the cost of one block on one device."""

    forward: Line
    """The layers' forward pass takes this many seconds; the outputs can be sent after it."""
    passes: Line
    """All forward and backward passes of a step, with head and loss, take this many seconds."""
    update: float
    """The optimiser's step takes this many seconds."""
    parameters: int
    """The parameters take this many bytes; gradients take as many."""
    optimizer: int
    """The optimiser's state takes this many bytes."""
    kept: Line
    """The forward pass keeps this many bytes for the backward pass, inputs included."""
    outputs: int
    """The next block takes this many bytes per image."""
    elements: int
    """The next block takes this many numbers per image."""


@dataclass(frozen=True, kw_only=True)
class Subject:
    """A `Subject` says what costs were measured on; costs of another subject cannot be used."""

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
    kernels: str = "torch"
    head_width: str | float = PAPER


@dataclass(frozen=True, kw_only=True)
class BlockCosts(Subject):
    """A `BlockCosts` holds the costs of a network's blocks, and of its layers under backpropagation."""

    device: str
    threads: int
    batch_sizes: tuple[int, int]
    """The costs were measured at these two batch sizes on each device."""
    image_bytes: int
    blocks: tuple[BlockCost, ...]
    whole: BlockCost


@dataclass(frozen=True, kw_only=True)
class Conditions:
    """A `Conditions` says how the blocks are trained, and on which devices and links."""

    batch_size: int
    accumulate: int = 1
    queue: int = 4
    transfer: str = "full"
    bandwidth: float = 10.0
    """Each device's link carries this many GB/s in each direction."""
    latency: float = 20.0
    """Each message takes this many microseconds."""
    speed: float = 1.0
    """Each device is this many times as fast as the measured one."""

    def link(self, size: float) -> float:
        """Return the seconds of a transfer; to several receivers, the latencies pass at the same time."""
        return size / (self.bandwidth * 1e9) + self.latency * 1e-6 if size else 0.0

    def all_reduce(self, size: float, copies: int) -> float:
        """Return the seconds that it takes to share so many bytes of gradients."""
        # The bytes of a ring with the latencies of a tree, because libraries can have both.
        rounds = 2 * math.ceil(math.log2(copies)) * math.ceil(size / BUCKET)
        return 2 * (copies - 1) / copies * size / (self.bandwidth * 1e9) + rounds * self.latency * 1e-6


@dataclass(frozen=True, kw_only=True)
class StageForecast:
    """A `StageForecast` holds the times and bytes of one stage's step on each of its devices."""

    blocks: range
    copies: int
    forward: float
    """The outputs can be sent after this many seconds."""
    compute: float
    """Forward and backward passes and updates take this many seconds."""
    exposed: float
    """Sharing gradients takes this many seconds that are not hidden behind the backward pass."""
    traffic: float
    """This many bytes of activations, error signals and gradients go in the busier direction of the link."""
    receiving: float
    """The device's link receives for this many seconds."""
    sending: float
    """The device's link sends for this many seconds."""
    memory: float
    """Each device needs this many bytes."""

    @property
    def busy(self) -> float:
        """Return the seconds in which the device computes or shares gradients."""
        return self.compute + self.exposed

    @property
    def seconds(self) -> float:
        """Return the shortest time between two steps."""
        return max(self.busy, self.receiving, self.sending)


@dataclass(frozen=True, kw_only=True)
class Forecast:
    """A `Forecast` is the steady state of a placement."""

    stages: tuple[StageForecast, ...]
    links: tuple[float, ...]
    """A batch takes these seconds on the way from each stage to the next."""
    pace: float
    """There are these seconds between two steps."""
    fill: float
    """The first batch reaches the last stage's loss after these seconds."""
    limit: str
    batch_size: int

    @property
    def images_per_second(self) -> float:
        """Return the speed of the training."""
        return self.batch_size / self.pace

    @property
    def idle(self) -> tuple[float, ...]:
        """Return each stage's share of time in which its devices wait."""
        return tuple(1 - stage.busy / self.pace for stage in self.stages)

    @property
    def mean_idle(self) -> float:
        """Return the share of time in which devices wait, over all devices."""
        used = sum(stage.busy * stage.copies for stage in self.stages)
        return 1 - used / (self.pace * sum(stage.copies for stage in self.stages))

    @property
    def memory(self) -> float:
        """Return the bytes on the device that needs most."""
        return max(stage.memory for stage in self.stages)

    @property
    def traffic(self) -> float:
        """Return the bytes per step over the busiest link."""
        return max(stage.traffic for stage in self.stages)


def forecast(costs: BlockCosts, placement: Placement, on: Conditions) -> Forecast:
    """Return the steady state of placed blocks; a rule without a model is refused."""
    check_modelled(costs.rule)
    assert placement.num_blocks == len(costs.blocks), "the costs are of another network"
    stages = [stage_forecast(costs, stage.blocks, stage.copies, on) for stage in placement.stages]
    # The side with fewer devices has more rows to send or receive over each of its links.
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
    """Return the forecast for the same layers under backpropagation, on devices that share the rows (DDP)."""
    whole = replace(costs, rule=usual_rule(cut=False), cuts=(), heads=(), groups=(1,), blocks=(costs.whole,))
    return forecast(whole, Placement.of([(1, devices)]), on)


def check_modelled(rule: str) -> None:
    """Refuse a rule whose pace this module cannot model."""
    row = RULES.get(rule)
    if row is None or not row.forecast:
        known = " and ".join(name for name in RULES if RULES[name].forecast and RULES[name].cuts)
        raise Mistake("plan", f"there is no model of how fast `rule` {rule} is; only of {known}")


def stage_forecast(costs: BlockCosts, blocks: range, copies: int, on: Conditions) -> StageForecast:
    """Forecast one stage, whatever the others are; what passes a link counts at both of its ends."""
    own, rule = [costs.blocks[index] for index in blocks], RULES[costs.rule]
    rows = on.batch_size / copies
    part = rows / on.accumulate
    gradients = sum(block.parameters for block in own)
    passes = on.accumulate * sum(block.passes.at(part) for block in own)
    exposed = 0.0
    for index, block in zip(blocks, own, strict=True):
        # Buckets are shared while earlier layers still go backward, in the last part of a batch. The last
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
    """Sum weights, gradients, the optimiser's state, one block's activations, and both queues."""
    own = [costs.blocks[index] for index in blocks]
    held: float = sum(2 * block.parameters + block.optimizer for block in own)
    held += max(block.kept.at(rows / on.accumulate) for block in own)
    # The images of a batch, or the inputs and outputs that may be under way.
    held += rows * (on.queue * _crossing(costs, blocks.start, on) if blocks.start else costs.image_bytes)
    held += rows * on.queue * _crossing(costs, blocks.stop, on)
    if RULES[costs.rule].forwards > 1:  # inputs of batches that are still to be trained on, and error signals
        for index in range(blocks.start, min(blocks.stop, len(costs.blocks) - 1)):
            inputs = costs.blocks[index - 1].outputs if index else costs.image_bytes
            held += rows * ((len(costs.blocks) - index) * inputs + costs.blocks[index].outputs)
    return held


def _crossing(costs: BlockCosts, cut: int, on: Conditions) -> int:
    """Return the bytes per image that are sent to block `cut`, counted from 0, if it is not the first."""
    if not 0 < cut < len(costs.blocks):
        return 0
    below = costs.blocks[cut - 1]
    # Images are sent along if a loss further up looks at them, which only the losses of heads do.
    rows = [row for row in map(HEADS.get, costs.heads[cut:]) if row]
    along = RULES[costs.rule].trains_heads and any(row.sees_images for row in rows)
    return along * costs.image_bytes + (2 * below.elements if on.transfer == "bf16" else below.outputs)


def _slowest(costs: BlockCosts, stages: Sequence[StageForecast], links: Sequence[float]) -> tuple[float, str]:
    """Return what sets the pace; among equals, the computing does."""
    limits = []  # seconds, and what takes them
    for stage in stages:
        what = "the gradient all-reduce" if stage.exposed > stage.compute else "the compute"
        limits.append((stage.busy, f"{what} of {_named(costs, stage)}"))
    for link, (one, other) in zip(links, pairwise(stages), strict=True):
        limits.append((link, f"the link from block {one.blocks.stop} to block {other.blocks.start + 1}"))
    for stage in stages:
        what = f"the links of the devices of {_named(costs, stage)}"
        limits.append((max(stage.receiving, stage.sending), what))
    if RULES[costs.rule].errors_come_down:
        # A block waits for the error signal of the batch that it has just passed on. So n stages make a
        # round trip in n steps, and each link between them is waited for once in each direction.
        for start, stop in combinations(range(len(stages) + 1), 2):
            way = sum(stage.busy for stage in stages[start:stop]) + 2 * sum(links[start : stop - 1])
            ends = f"block {stages[start].blocks.stop} and block {stages[stop - 1].blocks.start + 1}"
            limits.append((way / (stop - start), f"the way there and back between {ends}"))
    return max(limits, key=lambda limit: limit[0])


def _named(costs: BlockCosts, stage: StageForecast) -> str:
    ends = (0, *costs.cuts, costs.num_layers)
    first, last = stage.blocks.start, stage.blocks.stop - 1
    blocks = f"block {first + 1}" if first == last else f"blocks {first + 1} to {last + 1}"
    low, high = ends[first] + 1, ends[last + 1]
    layers = f"layers {low} to {high}" if low < high else f"layer {low}" if low == high else "the classifier"
    return f"{blocks} ({layers})"
