"""What a search leaves behind: relaxation.json, decouplings for every number of blocks, figures and words."""

import copy
import math
import random
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from local_learning.chain import Chain
from local_learning.decoupling import Decoupling, save_decoupling
from local_learning.profile import measure_costs
from search.config import DecouplingSearchConfig
from search.discretisation import (
    BlockCosts,
    confidence,
    discretise,
    discretise_within,
    imbalance,
    random_cuts,
    random_heads,
    shares,
)
from search.figures import preference_figure, structure_figure
from search.records import Relaxation, Values, checked, save_relaxation
from search.relaxation import RelaxedNet
from supernet.chains import network_name
from tools.datasets import Data
from tools.files import write_bytes
from tools.meters import read_metrics
from tools.runs import Run
from tools.seeding import derive

LATE = 0.25
"""The part of a search, at its end, whose fluctuation is taken for noise."""


def write_findings(run: Run, config: DecouplingSearchConfig, net: RelaxedNet, data: Data) -> dict[str, Any]:
    """Write all files; returns decouplings and words for results.json."""
    kinds = net.head_kinds
    alpha, beta = checked(net.alpha, net.beta, kinds)
    num_layers, name = len(net.layers), network_name(config)
    facts = {"width": config.width, "data": config.data.name, "steps": config.search.steps}
    save_relaxation(run.path / "relaxation.json", Relaxation(name, kinds, alpha, beta, facts))
    costs = _costs(net, config, data)
    chosen: dict[int, Decoupling] = {}
    within: dict[int, Decoupling] = {}
    for blocks in range(2, num_layers + 1):
        chosen[blocks] = discretise(alpha, beta, kinds, blocks)
        within[blocks] = discretise_within(alpha, beta, kinds, blocks, costs, config.search.slack)
        for suffix, decoupling in (("", chosen[blocks]), ("-balanced", within[blocks])):
            path = run.path / f"decoupling-{blocks}{suffix}.json"
            save_decoupling(path, decoupling, name, num_layers)
    shown = [blocks for blocks in config.search.show if blocks in chosen]
    _write_controls(run.path / "controls", config, alpha, beta, kinds, shown, num_layers)

    history = _history(run, num_layers, kinds)
    late = [(alpha_, beta_) for step, alpha_, beta_ in history if step > (1 - LATE) * config.search.steps]
    beyond = [str(blocks) for blocks in config.search.show if blocks not in chosen]
    lines = [f"nothing on {', '.join(beyond)} blocks: there are {num_layers} layers"] if beyond else []
    for blocks in shown:
        lines.append(f"{blocks} blocks: {_told(chosen[blocks], kinds, costs)}")
        lines += [f"  {line}" for line in confidence(alpha, beta, kinds, blocks, late)]
        same = within[blocks] == chosen[blocks]
        balanced = "the same" if same else _told(within[blocks], kinds, costs)
        lines.append(f"  balanced to {config.search.slack:g}: {balanced}")
        lines.append(f"  {_settled(history, kinds, blocks)}")
    write_bytes(run.path / "findings.txt", ("\n".join(lines) + "\n").encode())
    _draw(run.path, config, alpha, beta, kinds, {k: chosen[k] for k in shown}, history, num_layers)
    return {
        "decouplings": {str(blocks): asdict(decoupling) for blocks, decoupling in chosen.items()},
        "balanced": {str(blocks): asdict(decoupling) for blocks, decoupling in within.items()},
        "words": lines,
    }


def results_of(found: dict[str, Any], *, steps: int, seconds: float, pretraining: int) -> dict[str, Any]:
    """The content of results.json."""
    return {"steps": steps, "pretraining_steps": pretraining, "search_seconds": round(seconds, 1), **found}


def summary(run: Run, results: dict[str, Any]) -> str:
    """What is said at the end."""
    return "\n".join(
        [
            f"{results['steps']:,} updates of alpha and beta in {results['search_seconds']:,.0f} s",
            *results["words"],
            f"decouplings {run.path}/decoupling-K.json, and balanced -K-balanced.json; "
            f"figures {run.path}/preferences.svg, structure-K.svg; metrics {run.metrics_path}",
        ]
    )


def _costs(net: RelaxedNet, config: DecouplingSearchConfig, data: Data) -> BlockCosts:
    """Seconds of layers and heads, measured here."""
    layers = copy.deepcopy(net.layers)
    chain = Chain(list(layers), copy.deepcopy(net.classifier), width=config.width)
    by_kind = [
        measure_costs(chain, kind, data.num_classes, data.image_size, by="time", image_chs=data.channels)
        for kind in net.head_kinds
    ]
    heads = zip(*(costs.heads[:-1] for costs in by_kind), strict=True)
    return BlockCosts(by_kind[0].layers, tuple(heads), by_kind[0].classifier)


def _write_controls(
    folder: Path,
    config: DecouplingSearchConfig,
    alpha: Values,
    beta: Values,
    kinds: tuple[str, ...],
    shown: Sequence[int],
    num_layers: int,
) -> None:
    """Table 4: random cuts with the learned heads, and the learned cuts with random heads."""
    if config.search.controls:
        folder.mkdir(exist_ok=True)
    for blocks in shown:
        for index in range(config.search.controls):
            chance = random.Random(derive(config.seed, "controls", blocks, index))
            for what, draw in (("cuts", random_cuts), ("heads", random_heads)):
                decoupling = draw(alpha, beta, kinds, blocks, chance)
                path = folder / f"random-{what}-{blocks}-{index + 1}.json"
                save_decoupling(path, decoupling, network_name(config), num_layers)


def _history(run: Run, num_layers: int, kinds: Sequence[str]) -> list[tuple[int, Values, Values]]:
    """(step, alpha, beta) of every record, up to a constant in each row."""
    found: list[tuple[int, Values, Values]] = []
    for line in read_metrics(run.metrics_path):
        if "signal/1" in line:
            signals = [line[f"signal/{layer}"] for layer in range(1, num_layers)]
            alpha: Values = tuple((_log(signal), _log(1 - signal)) for signal in signals)
            beta = tuple(
                tuple(_log(line[f"heads/{layer}/{kind}"]) for kind in kinds) for layer in range(1, num_layers)
            )
            found.append((line["step"], alpha, beta))
    return found


def _settled(history: Sequence[tuple[int, Values, Values]], kinds: Sequence[str], blocks: int) -> str:
    """Since when the cuts have been what they are."""
    found = [(step, discretise(alpha, beta, kinds, blocks)) for step, alpha, beta in history]
    if not found:
        return "no record of how these came about"
    last, since = found[-1][1], found[-1][0]
    for step, decoupling in reversed(found):
        if decoupling.cuts != last.cuts:
            break
        since = step
    return f"these cuts stand since update {since} of {found[-1][0]}"


def _draw(
    folder: Path,
    config: DecouplingSearchConfig,
    alpha: Values,
    beta: Values,
    kinds: Sequence[str],
    chosen: dict[int, Decoupling],
    history: Sequence[tuple[int, Values, Values]],
    num_layers: int,
) -> None:
    signals = [shares(row)[0] for row in alpha]
    preference_figure(
        folder / "preferences.svg",
        signals,
        chosen,
        title=f"{network_name(config)} at {config.width:g}x on {config.data.name}",
        history=[(step, [shares(row)[0] for row in each]) for step, each, _ in history],
        mixture=[shares(row) for row in beta],
        head_kinds=kinds,
    )
    for blocks, decoupling in chosen.items():
        structure_figure(
            folder / f"structure-{blocks}.svg",
            num_layers,
            decoupling,
            network=network_name(config),
            signals=signals,
        )


def _told(decoupling: Decoupling, kinds: Sequence[str], costs: BlockCosts) -> str:
    pairs = zip(decoupling.cuts, decoupling.heads, strict=True)
    where = ", ".join(f"{cut} ({head})" for cut, head in pairs)
    return (
        f"cut after {where}; the longest block takes {imbalance(decoupling, kinds, costs):.2f} times the mean"
    )


def _log(share: float) -> float:
    return math.log(max(share, 1e-300))
