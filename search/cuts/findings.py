"""A search leaves relaxation.json, decouplings for every number of blocks, figures and words."""

import copy
import json
import math
import random
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import torch
from scipy.special import stdtrit
from torch import Tensor

from local_learning.chain import Chain
from local_learning.cuts.head_width import parse_head_width
from local_learning.cuts.profile import measure_costs
from local_learning.decoupling import Decoupling, save_decoupling
from search.cuts.config import DecouplingSearchConfig
from search.discretisation import (
    PartCosts,
    SearchSpread,
    confidence,
    discretise,
    discretise_within,
    imbalance,
    random_cuts,
    random_heads,
    shares,
)
from search.evidence import Updates, effects, replays
from search.records import Relaxation, Values, checked, save_relaxation
from search.relaxation import RelaxedNet
from supernet.network.network import Network
from tools.files.atomic import write_bytes
from tools.images.datasets import Data
from tools.run.folder import Run
from tools.run.meters import read_metrics
from tools.seeding import derive, torch_stream


@dataclass(frozen=True)
class FinishedSearch:
    """This is the end of one search, and the updates that led to it."""

    part: Run
    """The run, or the part of it, that has the search's metrics and other files."""

    alpha: Tensor
    """The alpha at the end."""

    beta: Tensor
    """The beta at the end."""

    updates: Updates
    """The updates of the search."""


def write_cut_findings(
    run: Run,
    config: DecouplingSearchConfig,
    network: Network,
    net: RelaxedNet,
    data: Data,
    outcomes: Sequence[FinishedSearch],
) -> dict[str, Any]:
    """Write all files, and return decouplings, effects and words for results.json."""
    kinds = net.head_kinds
    mean_alpha = torch.stack([outcome.alpha for outcome in outcomes]).mean(0)
    mean_beta = torch.stack([outcome.beta for outcome in outcomes]).mean(0)
    alpha, beta = checked(mean_alpha, mean_beta, kinds)
    num_layers, name = len(net.layers), network.name
    facts = {
        "width": config.width,
        "data": config.data.name,
        "steps": config.search.steps,
        "repeats": config.search.repeats,
        "head_width": config.head_width,
    } | network.stem_note
    save_relaxation(run.path / "relaxation.json", Relaxation(name, kinds, alpha, beta, facts))
    costs = _costs(net, config, data)
    chosen: dict[int, Decoupling] = {}
    within: dict[int, Decoupling] = {}
    width = parse_head_width(config.head_width)
    for blocks in range(2, num_layers + 1):
        chosen[blocks] = replace(discretise(alpha, beta, kinds, blocks), head_width=width)
        even = discretise_within(alpha, beta, kinds, blocks, costs, config.search.slack)
        within[blocks] = replace(even, head_width=width)
        for suffix, decoupling in (("", chosen[blocks]), ("-balanced", within[blocks])):
            path = run.path / f"decoupling-{blocks}{suffix}.json"
            save_decoupling(path, decoupling, name, num_layers, **network.stem_note)
    shown = [blocks for blocks in config.search.show if blocks in chosen]
    _write_controls(run.path / "controls", config, network, alpha, beta, kinds, shown, num_layers)

    for outcome in outcomes:
        lines_ = "".join(
            json.dumps(line) + "\n" for line in outcome.updates.lines(kinds, config.search.steps)
        )
        write_bytes(outcome.part.path / "hypergradients.jsonl", lines_.encode())
    spread = _spread(config, outcomes)
    history = _history(run, num_layers, kinds)
    beyond = [str(blocks) for blocks in config.search.show if blocks not in chosen]
    lines = [f"no cuts into {', '.join(beyond)} blocks: there are {num_layers} layers"] if beyond else []
    for blocks in shown:
        lines.append(f"{blocks} blocks: {_in_words(chosen[blocks], kinds, costs)}")
        lines += [f"  {line}" for line in confidence(alpha, beta, kinds, blocks, spread)]
        same = within[blocks] == chosen[blocks]
        balanced = "the same" if same else _in_words(within[blocks], kinds, costs)
        lines.append(f"  balanced to {config.search.slack:g}: {balanced}")
        if len(outcomes) == 1:
            lines.append(f"  {_settled(history, kinds, blocks)}")
    by_layer = _effects(config, outcomes, spread, kinds)
    words = [*lines, *_effects_in_words(by_layer, per_rate=config.search.per_rate)]
    write_bytes(run.path / "findings.txt", ("\n".join(words) + "\n").encode())
    errors = [row["share_error"] for row in by_layer]
    _draw(
        run.path,
        config,
        network,
        alpha,
        beta,
        kinds,
        {k: chosen[k] for k in shown},
        history,
        num_layers,
        errors,
    )
    return {
        "effects": by_layer,
        "decouplings": {str(blocks): asdict(decoupling) for blocks, decoupling in chosen.items()},
        "balanced": {str(blocks): asdict(decoupling) for blocks, decoupling in within.items()},
        "words": lines,
    }


def _spread(config: DecouplingSearchConfig, outcomes: Sequence[FinishedSearch]) -> SearchSpread | None:
    """Return how far apart searches end.

    The searches are those that were made or, for a single one, replays of its updates.
    """
    if len(outcomes) > 1:
        ends = [(outcome.alpha, outcome.beta) for outcome in outcomes]
        errors = float(stdtrit(len(outcomes) - 1, 0.975))
        return SearchSpread(ends, errors=errors, of_mean=True, source="searches from this pretraining")
    updates = outcomes[0].updates
    if not 2 <= config.search.steps == len(updates.effects):
        return None  # a search that an older version began has not kept its first updates
    replayed = replays(updates, config.search, generator=torch_stream(config.seed, "replays"))
    return SearchSpread(
        list(zip(replayed.alpha, replayed.beta, strict=True)), source="searches by updates drawn from its own"
    )


def _effects(
    config: DecouplingSearchConfig,
    outcomes: Sequence[FinishedSearch],
    spread: SearchSpread | None,
    kinds: Sequence[str],
) -> list[dict[str, Any]]:
    """Return, by layer, the share and its effect on the validation loss, each with its standard error."""
    updates = Updates.joined([outcome.updates for outcome in outcomes])
    if spread is None:
        return []
    by_share = effects(updates, generator=torch_stream(config.seed, "effects"))
    ends = [torch.as_tensor(alpha).double().softmax(1)[:, 0] for alpha, _ in spread.ends]
    signals = torch.stack([outcome.alpha.double().cpu().softmax(1)[:, 0] for outcome in outcomes]).mean(0)
    errors = [spread.error(column) for column in torch.stack(ends).T.tolist()]
    layers = zip(signals.tolist(), errors, by_share.mean.tolist(), by_share.error.tolist(), strict=True)
    return [
        {
            "layer": layer,
            "share": share,
            "share_error": error,
            "effect": mean[0],
            "effect_error": of_mean[0],
            "heads": dict(zip(kinds, mean[1:], strict=True)),
            "heads_error": dict(zip(kinds, of_mean[1:], strict=True)),
        }
        for layer, (share, error, mean, of_mean) in enumerate(layers, 1)
    ]


def _effects_in_words(by_layer: Sequence[dict[str, Any]], *, per_rate: bool) -> list[str]:
    """Return a line for each layer, under a heading that says what the numbers are."""
    heading = (
        "by layer: the local signal's share, and what a larger share does to the validation loss (its slope"
        f"{', divided by the inner learning rate' * per_rate}; below zero is better), each with its standard "
        "error; then the same slopes of the heads"
    )
    lines = [
        f"  {row['layer']}: {row['share']:.3f} +- {row['share_error']:.2g}, {_plus(row['effect'])} +- "
        f"{row['effect_error']:.2g}; "
        + ", ".join(
            f"{kind} {_plus(value)} +- {row['heads_error'][kind]:.2g}" for kind, value in row["heads"].items()
        )
        for row in by_layer
    ]
    return [heading, *lines] if lines else []


def _plus(value: float) -> str:
    return f"{value:+.2g}"


def cut_results(findings: dict[str, Any], *, steps: int, seconds: float, pretraining: int) -> dict[str, Any]:
    """Return the content of results.json."""
    seconds = round(seconds, 1)
    return {"steps": steps, "pretraining_steps": pretraining, "search_seconds": seconds, **findings}


def cut_summary(run: Run, results: dict[str, Any]) -> str:
    """Return the results in words, for the end of a run."""
    return "\n".join(
        [
            f"{results['steps']:,} updates of alpha and beta in {results['search_seconds']:,.0f} s",
            *results["words"],
            f"decouplings {run.path}/decoupling-K.json, and balanced -K-balanced.json; "
            f"figures {run.path}/preferences.svg, structure-K.svg; metrics {run.metrics_path}",
        ]
    )


def _costs(net: RelaxedNet, config: DecouplingSearchConfig, data: Data) -> PartCosts:
    """Measure the seconds of layers and heads."""
    layers = copy.deepcopy(net.layers)
    chain = Chain(list(layers), copy.deepcopy(net.classifier), width=config.width)
    by_kind = [
        measure_costs(
            chain,
            kind,
            data.num_classes,
            data.image_size,
            by="time",
            image_chs=data.channels,
            head_width=parse_head_width(config.head_width),
            kernels=config.kernels,
        )
        for kind in net.head_kinds
    ]
    heads = zip(*(costs.heads[:-1] for costs in by_kind), strict=True)
    return PartCosts(by_kind[0].layers, tuple(heads), by_kind[0].classifier)


def _write_controls(
    folder: Path,
    config: DecouplingSearchConfig,
    network: Network,
    alpha: Values,
    beta: Values,
    kinds: tuple[str, ...],
    shown: Sequence[int],
    num_layers: int,
) -> None:
    """Write the controls of Table 4: random cuts with learned heads, and learned cuts with random heads."""
    if config.search.controls:
        folder.mkdir(exist_ok=True)
    for blocks in shown:
        for index in range(config.search.controls):
            chance = random.Random(derive(config.seed, "controls", blocks, index))
            for what, draw in (("cuts", random_cuts), ("heads", random_heads)):
                decoupling = draw(alpha, beta, kinds, blocks, chance)
                decoupling = replace(decoupling, head_width=parse_head_width(config.head_width))
                path = folder / f"random-{what}-{blocks}-{index + 1}.json"
                save_decoupling(path, decoupling, network.name, num_layers, **network.stem_note)


def _history(run: Run, num_layers: int, kinds: Sequence[str]) -> list[tuple[int, Values, Values]]:
    """Return (step, alpha, beta) of every record, up to a constant in each row."""
    history: list[tuple[int, Values, Values]] = []
    for line in read_metrics(run.metrics_path):
        if "signal/1" in line:
            signals = [line[f"signal/{layer}"] for layer in range(1, num_layers)]
            alpha: Values = tuple((_log(signal), _log(1 - signal)) for signal in signals)
            beta = tuple(
                tuple(_log(line[f"heads/{layer}/{kind}"]) for kind in kinds) for layer in range(1, num_layers)
            )
            history.append((line["step"], alpha, beta))
    return history


def _settled(history: Sequence[tuple[int, Values, Values]], kinds: Sequence[str], blocks: int) -> str:
    """Say since when the cuts have been what they are."""
    course = [(step, discretise(alpha, beta, kinds, blocks)) for step, alpha, beta in history]
    if not course:
        return "there is no record of how these cuts developed"
    last, since = course[-1][1], course[-1][0]
    for step, decoupling in reversed(course):
        if decoupling.cuts != last.cuts:
            break
        since = step
    return f"these cuts have not changed since update {since} of {course[-1][0]}"


def _draw(
    folder: Path,
    config: DecouplingSearchConfig,
    network: Network,
    alpha: Values,
    beta: Values,
    kinds: Sequence[str],
    chosen: dict[int, Decoupling],
    history: Sequence[tuple[int, Values, Values]],
    num_layers: int,
    errors: Sequence[float],
) -> None:
    from search.cuts.figures import preference_figure, structure_figure  # matplotlib waits until here

    signals = [shares(row)[0] for row in alpha]
    preference_figure(
        folder / "preferences.svg",
        signals,
        chosen,
        title=f"{network.name} at {config.width:g}x on {config.data.name}",
        errors=errors,
        history=[(step, [shares(row)[0] for row in values]) for step, values, _ in history],
        mixture=[shares(row) for row in beta],
        head_kinds=kinds,
    )
    for blocks, decoupling in chosen.items():
        structure_figure(
            folder / f"structure-{blocks}.svg",
            num_layers,
            decoupling,
            network=network.name,
            signals=signals,
        )


def _in_words(decoupling: Decoupling, kinds: Sequence[str], costs: PartCosts) -> str:
    pairs = zip(decoupling.cuts, decoupling.heads, strict=True)
    where = ", ".join(f"{cut} ({head})" for cut, head in pairs)
    return (
        f"cut after {where}; the longest block takes {imbalance(decoupling, kinds, costs):.2f} times the mean"
    )


def _log(share: float) -> float:
    return math.log(max(share, 1e-300))
