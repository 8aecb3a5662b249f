"""This module prints the plan: how devices would share the blocks, how fast that is, and what limits it."""

import os
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from accelerate import Accelerator

from local_learning.cuts.requests import parse_request
from local_learning.decoupling import Decoupling
from retrain.config import RetrainConfig
from retrain.networks import choose_decoupling, head_width_of, make_net
from retrain.placing.block_costs import check_subject, load_block_costs, save_block_costs
from retrain.placing.forecast import BlockCosts, Conditions, Forecast, backprop, check_modelled, forecast
from retrain.placing.measuring import conditions_of, measure_here, placed, subject_of
from retrain.placing.placement import Placement, usable
from supernet.network.network import Network
from tools.images.datasets import Data, load_data
from tools.images.images import ArrayImages
from tools.mistake import Mistake
from tools.options.config import flag
from tools.run.launch import launch
from tools.run.stage import usual_kernels

GIB = 2**30

TRIED = 64
"""This many batch sizes are tried to find one that all devices can share."""


def plan(config: RetrainConfig) -> None:
    """Measure the blocks, or read earlier measurements, and print the plan."""
    check_modelled(config.chosen_rule)
    if not config.rule_row.cuts:
        raise Mistake("plan", "shares blocks that are trained apart", "leave out `rule` backprop")
    if int(os.environ.get("WORLD_SIZE", "1")) > 1:
        raise Mistake("plan", "one process does it all", "start it without a launcher")
    accelerator = launch(
        device=config.device,
        precision=config.precision,
        threads=config.threads,
        trackers=(),
        folder=Path(config.run),
    )
    if config.kernels == "auto":
        config = replace(config, kernels=usual_kernels(config, accelerator))
    costs = _costs(config, accelerator)
    cluster = config.cluster
    print("\n".join(report(costs, conditions_of(config), cluster.devices, cluster.memory)), flush=True)


@dataclass(frozen=True)
class PlanRow:
    """A `PlanRow` is the plan for one number of devices."""

    devices: int
    kind: str
    """The kind is "fastest" of all placements, or the fastest of those with blocks "apart"."""
    placement: Placement
    estimate: Forecast
    rows_shared: Forecast
    """This is backpropagation on as many of the devices as can share the rows."""
    notes: list[str]


def report(costs: BlockCosts, on: Conditions, devices: tuple[int, ...], memory: float) -> list[str]:
    """Return the plan in lines; `memory` is in GiB of one device, or 0 if unknown."""
    one = backprop(costs, 1, on)
    rows = [row for count in devices for row in _rows(costs, on, count)]
    parts = f" in {on.accumulate} parts" if on.accumulate > 1 else ""
    where = costs.device + (f" ({_counted(costs.threads, 'thread')})" if costs.threads else "")
    lines = [
        f"{costs.network} in {len(costs.blocks)} blocks by {costs.rule}, batches of {on.batch_size}{parts}, "
        f"queues of {on.queue}",
        "These figures are a model's. Nothing was run on several devices: each block was timed alone on "
        f"{where}, at batches of {costs.batch_sizes[0]} and {costs.batch_sizes[1]}, in {costs.precision}.",
        f"Devices are taken to be {on.speed:g} times as fast, links to carry {on.bandwidth:g} GB/s in each "
        f"direction, a message to take {on.latency:g} us; reading images and sharing BatchNorm's "
        "statistics are left out.",
        f"backpropagation on one device: {one.images_per_second:,.1f} images/s, {_gib(one.memory)} GiB"
        + _fits(one, memory),
        "",
    ]
    titles = ["devices", "placement", "images/s", "x one", "DDP images/s", "x DDP", "GiB", "DDP GiB"]
    table = [[*titles, "MB/step", "idle", "limited by"]]
    for row in rows:
        estimate, ddp = row.estimate, row.rows_shared
        table.append(
            [
                f"{row.devices}",
                row.kind,
                f"{estimate.images_per_second:,.1f}",
                f"{one.pace / estimate.pace:.2f}",
                f"{ddp.images_per_second:,.1f}",
                f"{ddp.pace / estimate.pace:.2f}",
                _gib(estimate.memory) + _fits(estimate, memory, "*"),
                _gib(ddp.memory) + _fits(ddp, memory, "*"),
                f"{estimate.traffic / 1e6:.3g}",
                f"{estimate.mean_idle:.0%}",
                estimate.limit,
            ]
        )
    lines += _aligned(table)
    if memory:
        lines.append(f"* does not fit into {memory:g} GiB")
    lines += ["", "blocks x devices of each stage, in order:"]
    for row in rows:
        lines.append(f"  {_counted(row.devices, 'device')}, {row.kind}: {_shape(row.placement)}")
    lines += dict.fromkeys(note for row in rows for note in row.notes)
    return [*lines, "", *_stages(rows[-1])]


def _rows(costs: BlockCosts, on: Conditions, devices: int) -> list[PlanRow]:
    """Return the best placement, and the best one with every block apart if that is another one."""
    rows: list[PlanRow] = []
    shared = usable(1, devices, batch_size=on.batch_size, accumulate=on.accumulate)
    assert shared, "the recipe's parts divide its batch"
    ddp = [f"{devices} devices, DDP: {shared[-1]} are used"] if shared[-1] < devices else []
    for apart in (False, True):
        # What cannot be used stays idle, as it would have to.
        most = _usable(costs, on, devices, on.batch_size, apart)[-1]
        placement = placed(costs, most, on, apart=apart)
        if any(row.placement == placement for row in rows):
            continue
        kind, note = "apart" if apart else "fastest", ""
        if most < devices:
            cure = _cure(costs, on, devices, apart)
            who = f"{_counted(devices, 'device')}, {kind}"
            note = f"{who}: {most} are used; all cannot share batches of {on.batch_size} evenly{cure}"
        notes = [note, *ddp] if note else ddp
        estimate, other = forecast(costs, placement, on), backprop(costs, shared[-1], on)
        rows.append(PlanRow(devices, kind, placement, estimate, other, notes))
    return rows


def _cure(costs: BlockCosts, on: Conditions, devices: int, apart: bool) -> str:
    """Return a batch size that all devices can share, if one can be found that is not much larger."""
    first = (on.batch_size // on.accumulate + 1) * on.accumulate
    for size in range(first, first + TRIED * on.accumulate, on.accumulate):
        if devices in _usable(costs, on, devices, size, apart):
            return f", but those of {flag('recipe.batch_size')} {size}"
    return ""


def _usable(costs: BlockCosts, on: Conditions, most: int, batch_size: int, apart: bool) -> list[int]:
    return usable(len(costs.blocks), most, batch_size=batch_size, accumulate=on.accumulate, apart=apart)


# ---- what is known of the network ----------------------------------------------------------------------


def _costs(config: RetrainConfig, accelerator: Accelerator) -> BlockCosts:
    """Return the costs from the file of `cluster.profile`, or measure them here."""
    path = Path(config.cluster.profile) if config.cluster.profile else None
    read = load_block_costs(path) if path and path.exists() else None
    data = _data(config)
    network = Network.chosen(config)
    chain = network.chain(data.num_classes, data.image_size, data.channels)
    measured = _measured_cuts(config, network, read)
    decoupling = measured or choose_decoupling(config, network, chain, data, accelerator)
    subject = subject_of(config, network.words, chain.num_layers, decoupling, data)
    if read is not None:
        assert path is not None
        check_subject(path, read, subject)
        return read
    if path and not path.parent.is_dir():
        raise Mistake("cluster.profile", f"there is no folder {path.parent} to write {path.name} to")
    net = make_net(config, network, chain, decoupling, data)
    costs = measure_here(net, config, subject, accelerator)
    if path:
        save_block_costs(path, costs)
    return costs


def _data(config: RetrainConfig) -> Data:
    """Return the data set without its images, if its shape is known without them."""
    known = config.data.known
    if config.data.name == "folder":
        return load_data(config.data, config.seed)
    size, shape = config.data.size, (0, 1, 1, len(known.mean))
    none = ArrayImages(torch.zeros(shape, dtype=torch.uint8), torch.zeros(0, dtype=torch.long))
    names = tuple(map(str, range(config.data.num_classes or known.num_classes)))
    return Data(none, none, none, len(names), size, len(known.mean), known.mean, known.std, names)


def _measured_cuts(config: RetrainConfig, network: Network, read: BlockCosts | None) -> Decoupling | None:
    """Return the cuts of a file of costs, because cuts balanced by time differ a little each time."""
    request = parse_request(config.decoupling)
    if read is None or request.kind != "balanced" or config.balance != "time" or config.groups > 1:
        return None
    if read.network != network.words or read.heads != (request.head,) * (request.num_blocks - 1):
        return None
    if read.head_width != head_width_of(config, network):
        return None
    return Decoupling(read.cuts, read.heads, head_width=read.head_width)


# ---- text ----------------------------------------------------------------------------------------------


def _stages(row: PlanRow) -> list[str]:
    """Return a table of one placement's stages."""
    estimate = row.estimate
    table = [["stage", "blocks", "devices", "compute ms", "all-reduce ms", "MB/step", "GiB", "idle"]]
    for number, (stage, idle) in enumerate(zip(estimate.stages, estimate.idle, strict=True), start=1):
        times = [f"{1e3 * stage.compute:.3g}", f"{1e3 * stage.exposed:.3g}"]
        sizes = [f"{stage.traffic / 1e6:.3g}", _gib(stage.memory)]
        table.append([f"{number}", _blocks(stage.blocks), f"{stage.copies}", *times, *sizes, f"{idle:.0%}"])
    return [
        f"The stages of {_counted(row.devices, 'device')}, {row.kind}: a step each "
        f"{1e3 * estimate.pace:.3g} ms, the first after {1e3 * estimate.fill:.3g} ms in which they fill",
        *_aligned(table),
        "all-reduce: what the backward pass does not hide; MB/step: the busier direction of a device's link",
    ]


def _counted(number: int, noun: str) -> str:
    return f"{number} {noun}{'s' if number > 1 else ''}"


def _blocks(blocks: range) -> str:
    return f"{blocks.start + 1}" + (f" to {blocks.stop}" if len(blocks) > 1 else "")


def _shape(placement: Placement) -> str:
    return "  ".join(f"{len(stage.blocks)}x{stage.copies}" for stage in placement.stages)


def _gib(size: float) -> str:
    return f"{size / GIB:.3g}"


def _fits(estimate: Forecast, memory: float, mark: str = "") -> str:
    if not memory or estimate.memory <= memory * GIB:
        return ""
    return mark or f", which do not fit into {memory:g}"


def _aligned(table: list[list[str]]) -> list[str]:
    """Return columns of one width each, numbers to the right, the last column unchanged."""
    widths = [max(map(len, column)) for column in zip(*table, strict=True)]
    rows = [[cell.rjust(width) for cell, width in zip(line, widths, strict=True)] for line in table]
    return ["  ".join([*row[:-1], line[-1]]) for row, line in zip(rows, table, strict=True)]
