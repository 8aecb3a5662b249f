"""The model of a pipeline against one that is played through, event by event; and what must hold anyway."""

import itertools
import math
import random
from collections.abc import Sequence
from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from retrain.placing.forecast import (
    BUCKET,
    BlockCost,
    BlockCosts,
    Conditions,
    Line,
    backprop,
    forecast,
    stage_forecast,
)
from retrain.placing.measuring import placed
from retrain.placing.placement import Placement

FREE = Conditions(batch_size=8, latency=0, bandwidth=1e30)


def block(
    seconds: float, forward: float = 0.0, *, parameters: int = 0, outputs: int = 4, per_row: float = 0.0
) -> BlockCost:
    return BlockCost(
        forward=Line(fixed=forward),
        passes=Line(fixed=seconds, per_row=per_row),
        update=0.0,
        parameters=parameters,
        optimizer=parameters,
        kept=Line(fixed=3.0, per_row=10.0),
        outputs=outputs,
        elements=outputs // 4,
    )


def costs_of(blocks: Sequence[BlockCost], rule: str = "greedy", whole: BlockCost | None = None) -> BlockCosts:
    return BlockCosts(
        network="net",
        rule=rule,
        num_layers=2 * len(blocks),
        cuts=tuple(range(2, 2 * len(blocks), 2)),
        heads=("aux1",) * (len(blocks) - 1),
        groups=(1,) * len(blocks),
        image_shape=(3, 4, 4),
        num_classes=5,
        optimizer="sgd",
        precision="fp32",
        device="CPU",
        threads=1,
        batch_sizes=(2, 4),
        image_bytes=192,
        blocks=tuple(blocks),
        whole=whole or block(1.0),
    )


def one_each(count: int) -> Placement:
    return Placement.of([(1, 1)] * count)


# ---- played through ------------------------------------------------------------------------------------


def played_greedy(
    steps: Sequence[float], forwards: Sequence[float], links: Sequence[float], queue: int, count: int = 600
) -> float:
    """Seconds between two steps of the last stage, when those before have settled."""
    stages = range(len(steps))
    start = [[0.0] * count for _ in stages]
    link_free = [0.0] * len(steps)
    free = [0.0] * len(steps)
    for t in range(count):
        arrival = 0.0
        for k in stages:
            start[k][t] = max(arrival, free[k])
            done = start[k][t] + steps[k]
            if k == stages[-1]:
                free[k] = done
                continue
            room = start[k + 1][t - queue] if t >= queue else 0.0
            put = max(start[k][t] + forwards[k], room)
            sent = max(put, link_free[k])
            link_free[k] = arrival = sent + links[k]
            free[k] = max(done, put)
    return (start[-1][-1] - start[-1][count // 2]) / (count - 1 - count // 2)


def played_replay(
    steps: Sequence[float], forwards: Sequence[float], links: Sequence[float], count: int = 1201
) -> float:
    """The same for Features Replay: a batch is played upwards; errors come down a step later."""
    stages = range(len(steps))
    free, up_free, down_free = ([0.0] * len(steps) for _ in range(3))
    errors = [0.0] * len(steps)
    ends = []
    for _ in range(count):
        arrival, played = 0.0, []
        for k in stages:
            played.append(max(arrival, free[k]) + forwards[k])
            if k < stages[-1]:
                up_free[k] = arrival = max(played[k], up_free[k]) + links[k]
        coming = list(errors)
        for k in stages:
            free[k] = max(played[k], errors[k]) + steps[k] - forwards[k]
            if k:
                down_free[k] = coming[k - 1] = max(free[k], down_free[k]) + links[k - 1]
        errors = coming
        ends.append(free[-1])
    return (ends[-1] - ends[-601]) / 600  # a multiple of all rounds of up to six stages


@settings(max_examples=60, deadline=None)
@given(
    seed=st.integers(0, 10_000),
    stages=st.integers(1, 6),
    queue=st.integers(1, 4),
    slow_links=st.booleans(),
    copies=st.sampled_from([1, 2]),
)
def test_the_slowest_sets_the_pace(seed: int, stages: int, queue: int, slow_links: bool, copies: int) -> None:
    chance = random.Random(seed)
    steps = [chance.uniform(0.5, 1.5) for _ in range(stages)]
    forwards = [chance.uniform(0, 1) * seconds for seconds in steps]
    sizes = [chance.randint(1, 1000) for _ in range(stages)]
    on = replace(FREE, queue=queue)
    if slow_links:
        on = replace(on, bandwidth=4 * 1000 / copies / 1e9, latency=1e5)
    blocks = [block(s, f, outputs=size) for s, f, size in zip(steps, forwards, sizes, strict=True)]
    found = forecast(costs_of(blocks), Placement.of([(1, copies)] * stages), on)
    links = [8 / copies * size / (on.bandwidth * 1e9) + on.latency * 1e-6 for size in sizes[:-1]]
    assert found.pace == pytest.approx(played_greedy(steps, forwards, links, queue), rel=1e-9)
    assert found.pace == pytest.approx(max([*steps, *links]), rel=1e-12)
    assert found.links == pytest.approx(links)
    assert found.images_per_second == 8 / found.pace
    assert found.fill == pytest.approx(sum(forwards) + sum(links))


@settings(max_examples=60, deadline=None)
@given(seed=st.integers(0, 10_000), stages=st.integers(1, 5), slow_links=st.booleans())
def test_replay_waits_for_error_signals(seed: int, stages: int, slow_links: bool) -> None:
    chance = random.Random(seed)
    steps = [chance.uniform(0.5, 1.5) for _ in range(stages)]
    forwards = [chance.uniform(0, 0.5) * seconds for seconds in steps]
    sizes = [chance.randint(1, 1000) for _ in range(stages)]
    on = replace(FREE, bandwidth=8e-6, latency=1e4) if slow_links else FREE
    blocks = [block(s, f, outputs=size) for s, f, size in zip(steps, forwards, sizes, strict=True)]
    found = forecast(costs_of(blocks, "replay"), one_each(stages), on)
    links = [8 * size / (on.bandwidth * 1e9) + on.latency * 1e-6 for size in sizes[:-1]]
    # Activations and error signals of a middle stage share its link, which the play leaves out.
    shared = max([a + b for a, b in itertools.pairwise(links)], default=0.0)
    assert found.pace == pytest.approx(max(played_replay(steps, forwards, links), shared), rel=1e-9)


# ---- what must hold ------------------------------------------------------------------------------------


def any_costs(chance: random.Random, count: int, rule: str = "greedy") -> BlockCosts:
    blocks = [
        BlockCost(
            forward=Line(per_row=chance.uniform(0, 1e-3)),
            passes=Line(fixed=chance.uniform(0, 1e-2), per_row=chance.uniform(1e-3, 1e-2)),
            update=chance.uniform(0, 1e-3),
            parameters=chance.randint(0, 2 * BUCKET),
            optimizer=chance.randint(0, 10**7),
            kept=Line(per_row=chance.uniform(1e5, 1e7)),
            outputs=4 * chance.randint(1, 10**6),
            elements=10**5,
        )
        for _ in range(count)
    ]
    return costs_of(blocks, rule, blocks[0])


@settings(max_examples=80, deadline=None)
@given(
    seed=st.integers(0, 10_000),
    rule=st.sampled_from(["greedy", "replay"]),
    factor=st.floats(1, 100),
    devices=st.integers(1, 9),
    apart=st.booleans(),
)
def test_better_machines_are_never_slower(
    seed: int, rule: str, factor: float, devices: int, apart: bool
) -> None:
    costs = any_costs(random.Random(seed), 4, rule)
    on = Conditions(batch_size=24, bandwidth=0.5, latency=300.0)
    placement = placed(costs, devices, on, apart=apart)
    found = forecast(costs, placement, on)
    for better in (
        replace(on, bandwidth=on.bandwidth * factor),
        replace(on, latency=on.latency / factor),
        replace(on, speed=factor),
        replace(on, transfer="bf16") if factor > 2 and min(b.outputs for b in costs.blocks) > 2e5 else on,
    ):
        assert forecast(costs, placement, better).pace <= found.pace * (1 + 1e-12)
    assert all(-1e-12 <= idle < 1 for idle in found.idle)
    assert min(found.idle) - 1e-12 <= found.mean_idle <= max(found.idle) + 1e-12
    busiest = max(found.stages, key=lambda stage: stage.busy)
    if found.limit.startswith(("the compute", "the gradient")):
        assert min(found.idle) == pytest.approx(0, abs=1e-12)
        assert found.pace == busiest.busy


@settings(max_examples=40, deadline=None)
@given(seed=st.integers(0, 10_000), devices=st.integers(1, 6))
def test_the_placement_is_the_fastest_of_the_model(seed: int, devices: int) -> None:
    costs = any_costs(random.Random(seed), 3)
    on = Conditions(batch_size=12, bandwidth=0.3, latency=100.0)
    possible = [
        Placement.of(list(zip(groups, copies, strict=True)))
        for count in (1, 2, 3)
        for groups in itertools.product(range(1, 4), repeat=count)
        for copies in itertools.product((1, 2, 3, 4, 6), repeat=count)
        if sum(groups) == 3 and sum(copies) == devices
    ]
    if not possible:
        return
    paces = [forecast(costs, placement, on).pace for placement in possible]
    assert forecast(costs, placed(costs, devices, on), on).pace == pytest.approx(min(paces), rel=1e-12)


def test_one_block_on_one_device_is_one_device() -> None:
    on = Conditions(batch_size=6)
    costs = any_costs(random.Random(1), 1)
    alone = forecast(costs, one_each(1), on)
    assert alone == replace(backprop(costs, 1, on), limit=alone.limit)
    assert alone.pace == pytest.approx(costs.whole.passes.at(6) + costs.whole.update)
    assert alone.idle == (0.0,)
    assert alone.traffic == 0


# ---- by hand -------------------------------------------------------------------------------------------


def test_data_parallelism_by_hand() -> None:
    """Three buckets of which the last is in the open, and the others behind a long backward pass."""
    whole = replace(block(0.4, 0.1, parameters=5 * BUCKET // 2, per_row=0.1), update=0.05)
    costs = costs_of([block(1.0)], whole=whole)
    on = Conditions(batch_size=8, bandwidth=10.0, latency=1000.0, speed=2.0)
    found = backprop(costs, 4, on)
    a_bucket = 2 * 3 / 4 * BUCKET / 1e10 + 4 * 1e-3
    assert found.stages[0].compute == pytest.approx((0.4 + 2 * 0.1 + 0.05) / 2)
    assert found.stages[0].exposed == pytest.approx(a_bucket)
    assert found.pace == pytest.approx(0.325 + a_bucket)
    assert found.traffic == pytest.approx(1.5 * whole.parameters)
    assert found.limit == "the compute of block 1 (layers 1 to 2)"
    # On slow links what the backward pass cannot hide is more than a bucket.
    slow = backprop(costs, 4, replace(on, bandwidth=0.1, latency=0.0))
    shared = 1.5 * whole.parameters / 1e8
    assert slow.stages[0].exposed == pytest.approx(shared - (0.6 - 0.1) / 2)
    assert slow.limit == "the gradient all-reduce of block 1 (layers 1 to 2)"


def test_what_limits_is_named() -> None:
    costs = costs_of([block(1.0, outputs=100), block(2.0, outputs=10), block(1.0)])
    assert forecast(costs, one_each(3), FREE).limit == "the compute of block 2 (layers 3 to 4)"
    together = Placement.of([(2, 1), (1, 1)])
    assert forecast(costs, together, FREE).limit == "the compute of blocks 1 to 2 (layers 1 to 4)"
    slow = replace(FREE, bandwidth=8 * 100 / 5 / 1e9)
    assert forecast(costs, one_each(3), slow).limit == "the link from block 1 to block 2"
    replayed = forecast(
        replace(costs, rule="replay"), one_each(3), replace(slow, bandwidth=8 * 100 / 0.9 / 1e9)
    )
    assert replayed.limit == "the way there and back between block 1 and block 2"
    gradients = costs_of([block(1.0, 0.2, parameters=10**9), block(1.0)])
    shared = forecast(gradients, Placement.of([(1, 2), (1, 1)]), replace(FREE, bandwidth=0.2))
    assert shared.limit == "the gradient all-reduce of block 1 (layers 1 to 2)"
    alone = replace(costs, cuts=(2, 6))  # the classifier in a block of its own
    assert (
        "block 3 (the classifier)"
        in forecast(replace(alone, blocks=(*costs.blocks[:2], block(9.0))), one_each(3), FREE).limit
    )


def test_bytes_and_memory_by_hand() -> None:
    blocks = [block(1.0, parameters=1000 * (k + 1), outputs=40 * (k + 1)) for k in range(3)]
    on = Conditions(batch_size=8, queue=3, accumulate=2)
    found = forecast(costs_of(blocks), Placement.of([(1, 2), (1, 2), (1, 2)]), on)
    kept = 3 + 10 * 4 / 2
    # Weights, gradients and state are 3000, 6000 and 9000 bytes; there are four rows on each device.
    assert [stage.memory for stage in found.stages] == [
        3000 + kept + 4 * 192 + 3 * 4 * 40,
        6000 + kept + 3 * 4 * 40 + 3 * 4 * 80,
        9000 + kept + 3 * 4 * 80,
    ]
    assert found.memory == 9000 + kept + 3 * 4 * 80
    assert [stage.traffic for stage in found.stages] == [1000 + 4 * 40, 2000 + 4 * 80, 3000 + 4 * 80]
    half = forecast(costs_of(blocks), one_each(3), replace(on, transfer="bf16"))
    assert [stage.traffic for stage in half.stages] == [8 * 20, 8 * 40, 8 * 40]
    together = forecast(costs_of(blocks), Placement.of([(3, 1)]), on)
    assert together.memory == 18000 + 3 + 10 * 8 / 2 + 8 * 192
    assert together.traffic == 0

    pictures = replace(costs_of(blocks), heads=("aux1", "infopro"))
    seen = forecast(pictures, one_each(3), on)  # by block 2, but not by block 3
    assert [stage.traffic for stage in seen.stages] == [8 * (40 + 192), 8 * (40 + 192), 8 * 80]

    replayed = forecast(costs_of(blocks, "replay"), one_each(3), replace(on, accumulate=1))
    kept = 3 + 10 * 8
    # Block 1 keeps three batches of images, block 2 two of its inputs, and each one error signal.
    assert [stage.memory for stage in replayed.stages] == [
        3000 + kept + 8 * 192 + 3 * 8 * 40 + 8 * (3 * 192 + 40),
        6000 + kept + 3 * 8 * 40 + 3 * 8 * 80 + 8 * (2 * 40 + 80),
        9000 + kept + 3 * 8 * 80,
    ]
    assert [stage.traffic for stage in replayed.stages] == [8 * 40, 8 * 120, 8 * 80]


def test_a_batch_in_parts_repeats_what_is_fixed() -> None:
    costs = costs_of([replace(block(0.5, 0.25, per_row=0.1), update=2.0)])
    whole, parts = (
        stage_forecast(costs, range(1), 1, Conditions(batch_size=8, accumulate=count)) for count in (1, 4)
    )
    assert whole.compute == pytest.approx(0.5 + 0.8 + 2)
    assert parts.compute == pytest.approx(4 * 0.5 + 0.8 + 2)
    assert parts.forward == pytest.approx(4 * 0.25)
    assert parts.memory < whole.memory


@pytest.mark.parametrize(
    ("small", "large", "fixed", "per_row"),
    [(3.0, 6.0, 1.5, 0.75), (4.0, 3.0, 3.0, 0.0), (1.0, 6.0, 0.0, 1.0), (1.0, 3.0, 0.0, 0.5)],
)
def test_a_line_has_no_negative_part(small: float, large: float, fixed: float, per_row: float) -> None:
    line = Line.through((2, small), (6, large))
    assert (line.fixed, line.per_row) == pytest.approx((fixed, per_row))
    assert math.isclose(line.at(6), large)


def test_gluing_is_refused() -> None:
    with pytest.raises(ValueError, match="plan: there is no model of how fast rule gluing is"):
        forecast(costs_of([block(1.0)] * 2, "gluing"), one_each(2), FREE)
