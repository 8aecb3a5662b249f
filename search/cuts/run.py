"""A config becomes decouplings: data, relaxed network, pretraining, search and findings, in one run."""

import contextlib
import math
import shutil
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path

from accelerate import Accelerator
from torch import nn

from search.cuts.config import OLDEST, DecouplingSearchConfig
from search.cuts.findings import FinishedSearch, cut_results, cut_summary, write_cut_findings
from search.cuts.memory import Snapshot, SnapshotMemory, snapshots_of
from search.cuts.networks import check_derivatives, make_relaxed, own_loaders, settled
from search.cuts.sedona import Episode, Inner, Pretraining, Search, episodes
from search.relaxation import RelaxedNet
from supernet.network.network import Network, differs_from
from tools.cost import count_params
from tools.images.batches import check_shared
from tools.images.datasets import Data, load_data
from tools.images.loaders import eval_batches, make_train_loader
from tools.mistake import Mistake
from tools.options.config import flag, flatten, idle_options, of_run
from tools.options.shared import FREE
from tools.run.checkpoint import load_checkpoint
from tools.run.folder import Run
from tools.run.launch import from_main, on_main, start_trackers
from tools.run.loop import Loop
from tools.run.plan import Plan
from tools.run.stage import Stage
from tools.seeding import derive

PRETRAINING, SNAPSHOTS = "pretraining", "snapshots"
_CURE = f"A lower {flag('recipe.lr')} or {flag('search.lr')} often cures this."


def search_decoupling(config: DecouplingSearchConfig) -> None:
    """Search as the config says, or continue, or report that the run is done."""
    with Stage(config, free=FREE) as stage:
        if not stage.finished:
            _search(stage.config, stage.run, stage.accelerator)
        stage.print_summary(cut_summary)


def _search(config: DecouplingSearchConfig, run: Run, accelerator: Accelerator) -> None:
    network = Network.of_run(config, run, accelerator)
    config = settled(config, network)
    ranks = accelerator.num_processes
    check_shared(config.recipe.batch_size, ranks)
    if config.recipe.batch_size < 2 * ranks:
        raise Mistake("recipe.batch_size", "BatchNorm needs two images or more on each process")
    data = load_data(config.data, config.seed)
    net = make_relaxed(config, network, data, accelerator)
    num_steps = config.recipe.num_steps(len(data.train) / config.recipe.batch_size)
    inner = Inner(net, config, num_steps)
    start_trackers(accelerator, config)
    if accelerator.is_main_process:
        print(
            *data.notes,
            _heading(config, network.name, data, net, num_steps, accelerator),
            sep="\n",
            flush=True,
        )
    if not run.has_begun:
        check_derivatives(network, net, data)
    evaluate_every = config.recipe.steps_between_evaluations(len(data.train) / config.recipe.batch_size)
    kept = config.search.kept(num_steps, evaluate_every)
    snapshots = _snapshots(config, network, run, accelerator, inner, data, num_steps, kept)
    if accelerator.is_main_process:
        print(_beginnings(config, inner, snapshots, math.ceil(num_steps / evaluate_every)), flush=True)

    searches = [
        _searched(repeat, config, run, accelerator, inner, data, snapshots, kept)
        for repeat in range(config.search.repeats)
    ]

    def finish() -> None:
        findings = write_cut_findings(run, config, network, net, data, [outcome for outcome, _ in searches])
        own = config.search.pretraining and not config.search.pretrained_run
        results = cut_results(
            findings,
            steps=config.search.steps * config.search.repeats,
            seconds=sum(seconds for _, seconds in searches),
            pretraining=num_steps if own else 0,
        )
        run.write_results(results)
        for outcome, _ in searches:
            shutil.rmtree(outcome.part.path / SNAPSHOTS, ignore_errors=True)  # nothing needs them any more

    on_main(accelerator, finish)


def _searched(
    repeat: int,
    config: DecouplingSearchConfig,
    run: Run,
    accelerator: Accelerator,
    inner: Inner,
    data: Data,
    snapshots: list[Snapshot],
    kept: int,
) -> tuple[FinishedSearch, float]:
    """Search from the snapshots, and return the outcome and its seconds.

    A repeat is a part of the run, with its own draws.
    """
    part = run.part(f"repeat-{repeat + 1}") if repeat else run
    if repeat:
        config = replace(config, seed=derive(config.seed, "repeat", repeat))
    options, ranks, rank = config.search, accelerator.num_processes, accelerator.process_index
    own = snapshots[rank::ranks] or [snapshots[rank % len(snapshots)]]
    size = max(1, kept // ranks) if options.memory == OLDEST else len(own)
    memory = SnapshotMemory(
        part.path / SNAPSHOTS,
        size,
        place=options.keep_snapshots_on,
        rank=rank,
        device=accelerator.device,
    )
    memory.take(own[:size])
    job = Search(inner, config, accelerator, memory)
    images = config.recipe.batch_size * (options.inner_steps + 1) + options.validation_batch
    plan = Plan(
        num_steps=options.steps,
        images_per_step=images * ranks,
        evaluate_every=options.evaluate_every,
        checkpoint_every=options.checkpoint_every,
        log_every=options.log_every,
        seed=config.seed,
        identity={"training images": len(data.train), "classes": list(data.class_names)},
        cure=_CURE,
    )
    train, validation = own_loaders(config, data, accelerator)

    def batches(start: int, stop: int) -> Iterator[Episode]:
        return episodes(train, validation, options.inner_steps, start, stop)

    with contextlib.closing(train), contextlib.closing(validation):
        end = Loop(job, plan, part, accelerator).run(batches)
    alpha, beta = inner.net.alpha.detach().clone(), inner.net.beta.detach().clone()
    return FinishedSearch(part, alpha, beta, job.updates), end.seconds


def _snapshots(
    config: DecouplingSearchConfig,
    network: Network,
    run: Run,
    accelerator: Accelerator,
    inner: Inner,
    data: Data,
    num_steps: int,
    kept: int,
) -> list[Snapshot]:
    """Return the snapshots that search starts from.

    They are those of pretraining, or the single one of the initial weights.
    """
    options = config.search
    if options.pretrained_run:
        theirs = _snapshots_of(Path(options.pretrained_run), config, network, num_steps)
        return theirs[-kept:] if options.compat else _best(theirs, kept)
    part = run.part(PRETRAINING)
    memory = SnapshotMemory(
        part.path / SNAPSHOTS, kept, place=options.keep_snapshots_on, device=accelerator.device
    )
    if options.pretraining:
        _pretrain(config, part, accelerator, inner, data, num_steps, memory)
    elif accelerator.is_main_process:
        memory.keep_latest(inner.state(), 0, 0.0)
        memory.state_dict()
    return from_main(accelerator, lambda: list(memory.snapshots))


def _pretrain(
    config: DecouplingSearchConfig,
    part: Run,
    accelerator: Accelerator,
    inner: Inner,
    data: Data,
    num_steps: int,
    memory: SnapshotMemory,
) -> None:
    recipe = config.recipe
    place = {
        "device": accelerator.device,
        "rank": accelerator.process_index,
        "world_size": accelerator.num_processes,
    }
    loader = make_train_loader(
        data.train, data, config.data, batch_size=recipe.batch_size, seed=config.seed, **place
    )
    validation = eval_batches(
        data.validation, data, config.data, batch_size=max(recipe.batch_size, 256), **place
    )
    job = Pretraining(inner, config, accelerator, memory, validation)
    plan = Plan(
        num_steps=num_steps,
        images_per_step=recipe.batch_size,
        evaluate_every=recipe.steps_between_evaluations(loader.steps_per_epoch),
        checkpoint_every=recipe.checkpoint_every,
        log_every=recipe.log_every,
        seed=config.seed,
        identity={"training images": len(data.train), "classes": list(data.class_names)},
        cure=_CURE,
    )
    with contextlib.closing(loader):
        Loop(job, plan, part, accelerator).run(loader.batches)


def _snapshots_of(
    run: Path, config: DecouplingSearchConfig, network: Network, num_steps: int
) -> list[Snapshot]:
    """Return the snapshots of another run's pretraining, which must be the one that would be made here."""
    option = "search.pretrained_run"
    checkpoint = load_checkpoint(run / PRETRAINING / "checkpoints")
    if checkpoint is None:
        raise Mistake(option, f"there is no pretraining in '{run}'")
    try:
        text = (run / "config.toml").read_text("utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise Mistake(option, f"cannot read the options of '{run}': {error}") from None
    old = of_run(DecouplingSearchConfig, text, source=str(run / "config.toml"))
    pretrained = Network.kept(old, run)  # the file that the user named may be gone
    theirs = flatten(settled(old, pretrained))
    mine = flatten(config)
    kept = {name for name in mine if not name.startswith("search.")} | {"search.compat"}
    kept -= FREE | {"recipe.log_every", "recipe.checkpoint_every", "plugins", "architecture"}
    kept -= idle_options(old).keys() & idle_options(config).keys()
    differing = [
        f"`{name}` ({theirs[name]!r} there)" for name in mine if name in kept and theirs[name] != mine[name]
    ]
    differing += filter(None, [differs_from(network, pretrained, old.architecture)])
    if differing:
        raise Mistake(option, f"'{run}' was pretrained with other options: {', '.join(differing)}")
    Run(run).check_plugins(config)
    step, state = checkpoint
    if step != num_steps:
        raise Mistake(option, f"the pretraining in '{run}' has come to step {step} of {num_steps}")
    return snapshots_of(state["job"]["memory"], run / PRETRAINING)


def _best(snapshots: list[Snapshot], count: int) -> list[Snapshot]:
    """Return the snapshots of highest score, in their order."""
    best = sorted(range(len(snapshots)), key=lambda index: (-snapshots[index].score, -index))[:count]
    return [snapshots[index] for index in sorted(best)]


def _beginnings(
    config: DecouplingSearchConfig, inner: Inner, snapshots: list[Snapshot], evaluated: int
) -> str:
    """Say in words what search starts from."""
    options = config.search
    count = "1 snapshot" if len(snapshots) == 1 else f"{len(snapshots)} snapshots"
    if not options.pretraining:
        return f"searching from {count}, the initial weights"
    steps, scores = [one.step for one in snapshots], [one.score for one in snapshots]
    rates = [options.inner_lr or inner.rate(step) for step in steps]
    which = "last" if options.compat else "best"
    words = (
        f"searching from {count}, the {which} of {evaluated} that were evaluated: "
        f"of steps {_from_to(steps, ',')}, validation top-1 {_from_to(scores, '.4f')}, "
        f"inner learning rates {_from_to(rates, '.3g')}"
    )
    if len(snapshots) == evaluated > 1:
        words += f"; none was left out, so early weights count like the best ({flag('search.snapshots')})"
    return words


def _from_to(values: Sequence[float], form: str) -> str:
    low, high = format(min(values), form), format(max(values), form)
    return low if low == high else f"{low} to {high}"


def _heading(
    config: DecouplingSearchConfig,
    network: str,
    data: Data,
    net: RelaxedNet,
    num_steps: int,
    accelerator: Accelerator,
) -> str:
    layers, kinds = len(net.layers), len(net.head_kinds)
    own = count_params(nn.ModuleList([net.layers, net.classifier]))
    heads = count_params(net.heads)
    count = sum(math.comb(layers - 1, k) * kinds**k for k in range(layers))
    options = config.search
    searches = f"{options.repeats} searches of " if options.repeats > 1 else ""
    start = (
        f"pretraining of {options.pretrained_run}"
        if options.pretrained_run
        else f"{num_steps:,} steps of pretraining"
        if options.pretraining
        else "no pretraining"
    )
    return (
        f"{network} ({layers} layers, {own:,} params; {kinds} heads on each of {layers - 1}, "
        f"{heads:,} params; {count:.3g} decouplings) on {config.data.name}: {len(data.train):,} training, "
        f"{len(data.validation):,} validation images\n"
        f"{start}, {searches}{options.steps:,} updates of alpha and beta through {options.inner_steps} "
        f"steps of {config.recipe.batch_size} on {accelerator.num_processes} x {accelerator.device.type}, "
        f"{config.precision}"
    )
