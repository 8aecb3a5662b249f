import functools
import itertools
import weakref
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass, replace
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from search.evaluator import SubnetEvaluator
from search.trie import Work, work
from supernet.layers import MBConv, Op, Place, Skip, Style
from supernet.presets import preset
from supernet.space import Architecture, Fixed, Space
from supernet.supernet import Supernet
from supernet.tail import Tail
from tests.forked import run
from tests.programs.evaluator_ranks import (
    Batch,
    Counted,
    drawn,
    images_of,
    labelled,
    one_by_one,
    unlabelled,
    varied_net,
)
from tests.supernet.nets import skipping_space, small_space

Autocast = Callable[[], AbstractContextManager[None]]
Said = dict[Architecture, list[Tensor]]


class Case:
    """A net in double precision, batches that count, and an evaluator that takes them."""

    def __init__(self, space: Space | None = None, **options: Any) -> None:
        self.space = space or skipping_space()
        self.net = varied_net(self.space, torch.float64).train()
        self.statistics = unlabelled(images_of(self.space, 6, 4, dtype=torch.float64))
        self.images = images_of(self.space, 9, 2, 5, seed=2, dtype=torch.float64)
        self.population = list(dict.fromkeys(drawn(self.space, 8)))
        self.validation = list(zip(self.images, labels_of(self.space), strict=True))
        self.counted = Counted(self.statistics), Counted(self.validation)
        self.evaluator = SubnetEvaluator(self.net, *self.counted, **options)

    @property
    def taken(self) -> tuple[int, int]:
        return self.counted[0].taken, self.counted[1].taken


@functools.cache
def labels_of(space: Space) -> list[Tensor]:
    """What two networks of a case take its images for."""
    net = varied_net(space, torch.float64).train()
    statistics = unlabelled(images_of(space, 6, 4, dtype=torch.float64))
    images = images_of(space, 9, 2, 5, seed=2, dtype=torch.float64)
    judges = list(dict.fromkeys(drawn(space, 8)))[:2]
    return [targets for _, targets in labelled(net, statistics, images, judges)]


def scored(said: Sequence[Tensor], validation: Sequence[Batch]) -> float:
    """The share of what is said that is right."""
    right = sum(
        int(row.argmax()) == int(target)
        for logits, (_, targets) in zip(said, validation, strict=True)
        for row, target in zip(logits, targets, strict=True)
    )
    return right / sum(len(targets) for _, targets in validation)


@contextmanager
def listening(net: Supernet) -> Iterator[Said]:
    """All that the tail says meanwhile, by the way that was taken to it."""
    said: Said = {}
    way = [-1] * len(net.space.layers)
    hooks = []

    def at(layer: int, choice: int) -> Callable[..., None]:
        def note(*_: object) -> None:
            way[layer] = choice

        return note

    def at_the_end(module: nn.Module, given: object, logits: Tensor) -> None:
        said.setdefault(Architecture(tuple(way)), []).append(logits.clone())

    for layer, of_layer in enumerate(net.space.layers):
        for choice in range(len(of_layer)):
            hooks.append(net.candidate(layer, choice).register_forward_hook(at(layer, choice)))
    hooks.append(net.tail.register_forward_hook(at_the_end))
    try:
        yield said
    finally:
        for hook in hooks:
            hook.remove()


def heard(
    evaluator: SubnetEvaluator, net: Supernet, asked: Sequence[Architecture]
) -> tuple[Said, list[float]]:
    with listening(net) as said:
        scores = evaluator(asked)
    return said, scores


def assert_as_one_by_one(
    net: Supernet,
    calibration: Sequence[Batch],
    validation: Sequence[Batch],
    asked: Sequence[Architecture],
    autocast: Autocast = nullcontext,
) -> Said:
    """Logits bit for bit, and scores; nor are they the same for different networks. What was said."""
    evaluator = SubnetEvaluator(net, calibration, validation, autocast=autocast)
    said, scores = heard(evaluator, net, asked)
    assert said.keys() == set(asked)
    for architecture, score in zip(asked, scores, strict=True):
        expected = one_by_one(net, architecture, calibration, [images for images, _ in validation], autocast)
        assert len(said[architecture]) == len(calibration) + len(validation), "each batch once"
        for found, logits in zip(said[architecture][len(calibration) :], expected, strict=True):
            assert found.dtype == logits.dtype
            assert torch.equal(found, logits), architecture
        assert score == scored(expected, validation)
    assert_all_different(said)
    return said


def assert_all_different(said: Said) -> None:
    for one, other in itertools.combinations(said.values(), 2):
        assert not torch.equal(one[-1], other[-1])


def state(net: Supernet) -> list[object]:
    """All that could change, with torch's counts of writes."""
    values = [*net.parameters(), *net.buffers()]
    return [
        [(id(each), each._version, each.data_ptr(), each.requires_grad) for each in values],
        [each.detach().clone().numpy().tobytes() for each in values],
        [None if each.grad is None else (id(each.grad), each.grad._version) for each in net.parameters()],
        [(id(each), each.training, getattr(each, "momentum", 0)) for each in net.modules()],
        torch.get_rng_state().numpy().tobytes(),
    ]


# ---- the numbers ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "size", "count"),
    [("tiny", 16, 24), ("tiny", 32, 10), pytest.param("nas_bench_macro", 16, 10, marks=pytest.mark.slow)],
)
def test_many_networks_score_what_they_score_alone(name: str, size: int, count: int) -> None:
    space = preset(name, num_classes=10, image_size=size)
    net = varied_net(space)
    calibration = unlabelled(images_of(space, 6, 4))
    asked = drawn(space, count)
    validation = labelled(net, calibration, images_of(space, 11, 4, seed=2), asked[:4])
    said = assert_as_one_by_one(net, calibration, validation, list(dict.fromkeys(asked)))
    scores = SubnetEvaluator(net, calibration, validation)(asked)
    expected = [scored(said[each][len(calibration) :], validation) for each in asked]
    assert scores == expected
    assert len(set(scores)) > 4, "scores that are all the same show nothing"
    assert all(isinstance(score, float) for score in scores)


def test_where_a_network_skips_makes_a_difference() -> None:
    case = Case()
    (skip,) = set(range(4)) - set(case.space.layers[1].weighted)
    ways = [[0, 1, skip], [0, skip, 1], [0, skip, skip], [0, 1, 1]]
    asked = [Architecture((*way, *end)) for way in ways for end in [(2, skip), (2, 0)]]
    assert case.space.canonical(asked[0]) == case.space.canonical(asked[2])
    assert_as_one_by_one(case.net, case.statistics, case.validation, asked)


def test_all_networks_of_a_small_space() -> None:
    case = Case(small_space())
    everything = list(case.space.architectures())
    assert len(everything) == 36
    assert_as_one_by_one(case.net, case.statistics, case.validation, everything)


def test_modes_of_the_supernet_do_not_matter() -> None:
    def in_mode(choose: Callable[[Supernet], object]) -> Said:
        case = Case()
        choose(case.net)
        return assert_as_one_by_one(case.net, case.statistics, case.validation, case.population[:5])

    def mixed(net: Supernet) -> None:
        for index, module in enumerate(net.modules()):
            module.training = index % 3 == 0

    expected = in_mode(Supernet.train)
    for other in (in_mode(Supernet.eval), in_mode(mixed)):
        assert all(
            torch.equal(*pair) for key in expected for pair in zip(expected[key], other[key], strict=True)
        )


def test_dropout_does_nothing() -> None:
    case, still = (
        Case(replace(skipping_space(), tail=Tail(conv_chs=8, dropout=dropout))) for dropout in (0.5, 0.0)
    )
    random_state = torch.get_rng_state()
    said = assert_as_one_by_one(case.net, case.statistics, case.validation, case.population)
    assert torch.equal(torch.get_rng_state(), random_state)
    expected, _ = heard(still.evaluator, still.net, still.population)
    assert torch.equal(said[case.population[0]][-1], expected[case.population[0]][-1])


def test_channels_last() -> None:
    case = Case(preset("tiny", num_classes=5, image_size=16))
    case.net.float().to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    calibration, validation = (
        [(images.float().to(memory_format=torch.channels_last), targets) for images, targets in batches]
        for batches in (case.statistics, case.validation)
    )
    assert validation[0][0].is_contiguous(memory_format=torch.channels_last)
    assert_as_one_by_one(case.net, calibration, validation, case.population)


def test_autocast() -> None:
    case = Case(preset("tiny", num_classes=5, image_size=16))
    case.net.float()
    calibration, validation = (
        [(images.float(), targets) for images, targets in batches]
        for batches in (case.statistics, case.validation)
    )

    def autocast() -> torch.autocast:
        return torch.autocast("cpu", torch.bfloat16)

    said = assert_as_one_by_one(case.net, calibration, validation, case.population, autocast)
    assert {logits.dtype for every in said.values() for logits in every} == {torch.bfloat16}


def test_images_of_another_type_than_the_net() -> None:
    case = Case()
    rough = [(images.float(), targets, "more") for images, targets in case.validation]
    calibration = [(images.float(), None) for images, _ in case.statistics]
    found = SubnetEvaluator(case.net, calibration, rough)(case.population)
    wide = [(images.double(), targets) for images, targets, _ in rough]
    widened = [(images.double(), torch.zeros(0)) for images, _ in calibration]
    assert found == SubnetEvaluator(case.net, widened, wide)(case.population)
    assert found == [
        scored(one_by_one(case.net, each, widened, [images for images, _ in wide]), wide)
        for each in case.population
    ]


def test_without_calibration_batches_the_statistics_are_the_supernets() -> None:
    case = Case()
    for architecture in case.population[:6]:
        case.net(case.images[0] * 2 + 1, architecture)
    own = assert_as_one_by_one(case.net, [], case.validation, case.population)
    new, _ = heard(case.evaluator, case.net, case.population)
    assert not any(torch.equal(own[each][-1], new[each][-1]) for each in case.population)
    once = {
        each: case.net.eval()(case.images[-1], each).detach() for each in case.population
    }  # without extraction, too
    assert all(torch.equal(own[each][-1], once[each]) for each in case.population)


def forgetting(net: Supernet, architecture: Architecture, batches: Sequence[Batch], momentum: float) -> Any:
    """The architecture alone with moving averages that began where new layers' do."""
    chain = net.extract(architecture).eval()
    for module in chain.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.running_mean = torch.zeros(module.num_features, dtype=torch.float64)
            module.running_var = torch.ones(module.num_features, dtype=torch.float64)
            module.momentum = momentum
            module.training = True
    for images, _ in batches:
        chain(images)
    return chain.eval()


@pytest.mark.parametrize("momentum", [0.1, 0.7])
def test_averages_that_forget(momentum: float) -> None:
    case = Case(momentum=momentum)
    said, scores = heard(case.evaluator, case.net, case.population)
    means, _ = heard(SubnetEvaluator(case.net, case.statistics, case.validation), case.net, case.population)
    for architecture, score in zip(case.population, scores, strict=True):
        alone = forgetting(case.net, architecture, case.statistics, momentum)
        expected = [alone(images).detach() for images in case.images]
        assert score == scored(expected, case.validation)
        for found, logits in zip(said[architecture][2:], expected, strict=True):
            assert torch.equal(found, logits)
        assert not torch.equal(said[architecture][-1], means[architecture][-1])


def test_in_inference_mode_the_numbers_are_the_same() -> None:
    case, same = Case(), Case()
    work(case.population, case.space)  # finding costs in inference mode is another thing
    with torch.inference_mode():
        found = case.evaluator(case.population)
        assert one_by_one(case.net, case.population[0], case.statistics, case.images)
    assert found == same.evaluator(same.population)


def test_batches_made_in_inference_mode() -> None:
    case, same = Case(), Case()
    with torch.inference_mode():
        calibration, validation = (
            [(images.clone(), targets) for images, targets in batches]
            for batches in (case.statistics, case.validation)
        )
    found = SubnetEvaluator(case.net, calibration, validation)(case.population)
    assert found == same.evaluator(same.population)


# ---- what is asked for, and what is known --------------------------------------------------------------


def test_each_batch_is_taken_once_for_all_and_the_order_is_kept() -> None:
    case = Case()
    asked = [*case.population, case.population[2], *case.population[:2]]
    scores = case.evaluator(each for each in asked)
    assert case.taken == (2, 3)
    assert (case.counted[0].passes, case.counted[1].passes) == (1, 1)
    known = dict(zip(asked, scores, strict=True))
    assert scores == [known[each] for each in asked]
    assert len(set(scores)) > 2
    assert case.evaluator.scores == known
    assert case.evaluator.work == work(case.population, case.space)
    assert case.evaluator(reversed(asked)) == scores[::-1]
    assert case.taken == (2, 3), "all was known"
    assert case.evaluator.work == Work(0, 0, 0, 0)


def test_only_what_is_new_is_run() -> None:
    case = Case()
    some, rest = case.population[:4], case.population[4:]
    first = case.evaluator(some)
    said, scores = heard(case.evaluator, case.net, case.population)
    assert said.keys() == set(rest)
    assert scores[:4] == first
    assert case.evaluator.work == work(rest, case.space)
    assert case.taken == (4, 6)
    assert scores == Case().evaluator(case.population)


def test_scores_of_another_evaluator_can_be_added() -> None:
    case = Case()
    case.evaluator.scores |= {each: 5.0 + index for index, each in enumerate(case.population[:3])}
    assert case.evaluator(case.population[2::-1]) == [7.0, 6.0, 5.0]
    assert case.taken == (0, 0)
    said, scores = heard(case.evaluator, case.net, case.population[:5])
    assert said.keys() == set(case.population[3:5])
    assert scores[:3] == [5.0, 6.0, 7.0]


def test_nothing_asked_for() -> None:
    case = Case()
    assert case.evaluator([]) == []
    assert case.taken == (0, 0)
    assert case.evaluator.work == Work(0, 0, 0, 0)
    assert case.evaluator.scores == {}


def test_what_is_no_architecture_of_the_space_is_refused_before_anything_runs() -> None:
    case = Case()
    for wrong, words in [((0, 0, 0, 0), "4 choices"), ((0, 9, 0, 0, 0), "layer 2"), ((0, -1, 0, 0, 0), "-1")]:
        with pytest.raises(ValueError, match=words):
            case.evaluator([*case.population, Architecture(wrong)])
    assert case.taken == (0, 0)
    assert case.evaluator.scores == {}


def test_on_batch_is_called_after_each_batch() -> None:
    case = Case()
    seen = []
    evaluator = SubnetEvaluator(case.net, *case.counted, on_batch=lambda: seen.append(case.taken))
    evaluator(case.population)
    assert seen == [(1, 0), (2, 0), (2, 1), (2, 2), (2, 3)]
    evaluator(case.population)
    assert len(seen) == 5


def test_without_validation_images_it_is_refused() -> None:
    case = Case()
    evaluator = SubnetEvaluator(case.net, case.statistics, [])
    with pytest.raises(ValueError, match="no images"):
        evaluator(case.population)
    assert evaluator.scores == {}


@pytest.mark.parametrize("which", ["calibration", "validation", "both"])
def test_batches_that_come_once_are_kept(which: str) -> None:
    """Or else later networks would be scored with the supernet's statistics, or on nothing."""
    case = Case()
    statistics: Iterable[Batch] = iter(case.statistics) if which != "validation" else case.statistics
    images: Iterable[Batch] = iter(case.validation) if which != "calibration" else case.validation
    evaluator = SubnetEvaluator(case.net, statistics, images)
    first, rest = evaluator(case.population[:2]), evaluator(case.population[2:])
    assert [*first, *rest] == case.evaluator(case.population)


# ---- what stays as it was ------------------------------------------------------------------------------


class Broken:
    """Batches that fail behind the first, the first time."""

    def __init__(self, batches: Sequence[Batch]) -> None:
        self.batches, self.fails = batches, True

    def __iter__(self) -> Iterator[Batch]:
        for index, batch in enumerate(self.batches):
            if index == 1 and self.fails:
                self.fails = False
                raise OSError("the disk is gone")
            yield batch


def used_net(case: Case) -> Supernet:
    """With gradients of some weights, some of them frozen, statistics, and modes of all sorts."""
    net = case.net
    net(case.images[0], case.population[0]).sum().backward()
    for index, parameter in enumerate(net.parameters()):
        parameter.requires_grad = index % 4 > 0
    for index, module in enumerate(net.modules()):
        module.training = index % 3 > 0
        if isinstance(module, nn.BatchNorm2d):
            module.momentum = None if index % 5 == 0 else index / 1000
    return net


@pytest.mark.parametrize("momentum", [None, 0.3])
@pytest.mark.parametrize("calibrates", [True, False])
def test_the_supernet_is_left_alone(momentum: float | None, calibrates: bool) -> None:
    case = Case()
    net = used_net(case)
    before = state(net)
    calibration = case.statistics if calibrates else []
    evaluator = SubnetEvaluator(net, calibration, case.validation, momentum=momentum)
    for asked in (case.population[:5], case.population, case.population, []):
        evaluator(asked)
        assert state(net) == before
    copies = [batch.clone() for batch, _ in [*case.statistics, *case.validation]]
    given = Case()
    assert all(
        torch.equal(*pair)
        for pair in zip(copies, [batch for batch, _ in [*given.statistics, *given.validation]], strict=True)
    )
    assert torch.is_grad_enabled()


@pytest.mark.parametrize("where", ["calibration", "validation"])
def test_the_supernet_is_left_alone_by_a_failure_too(where: str) -> None:
    case = Case()
    net = used_net(case)
    batches: dict[str, Any] = {"calibration": case.statistics, "validation": case.validation}
    batches[where] = Broken(batches[where])
    before = state(net)
    evaluator = SubnetEvaluator(net, batches["calibration"], batches["validation"])
    with pytest.raises(OSError, match="the disk is gone"):
        evaluator(case.population)
    assert state(net) == before
    assert evaluator.scores == {}
    # Nor does the next call know of it.
    assert evaluator(case.population) == case.evaluator(case.population)
    assert state(net) == before


def test_a_batch_that_does_not_fit_leaves_the_supernet_alone() -> None:
    case = Case()
    net = used_net(case)
    before = state(net)
    misfits = [*case.validation, (torch.zeros(2, 7, 8, 8), torch.zeros(2))]
    with pytest.raises(RuntimeError):
        SubnetEvaluator(net, case.statistics, misfits)(case.population)
    assert state(net) == before


def test_later_weights_are_seen_by_later_calls() -> None:
    case = Case()
    case.evaluator(case.population[:3])
    with torch.no_grad():
        for parameter in case.net.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.3)
    fresh = SubnetEvaluator(case.net, case.statistics, case.validation)
    expected, _ = heard(fresh, case.net, case.population[3:])
    found, _ = heard(case.evaluator, case.net, case.population[3:])
    assert all(torch.equal(found[each][-1], expected[each][-1]) for each in case.population[3:])


# ---- how much is done, and how much is held ------------------------------------------------------------


@pytest.mark.parametrize("name", ["tiny", "nas_bench_macro"])
def test_work_is_what_is_done(name: str) -> None:
    space = preset(name, num_classes=10, image_size=16)
    net = varied_net(space)
    batches = unlabelled(images_of(space, 2, 1))
    asked = list(dict.fromkeys(drawn(space, 12)))
    runs = []

    def note(*_: object) -> None:
        runs.append(1)

    for layer, of_layer in enumerate(space.layers):
        for choice in of_layer.weighted:
            net.candidate(layer, choice).register_forward_hook(note)
    expected = work(asked, space)  # which builds modules for their costs
    evaluator = SubnetEvaluator(net, batches[:1], batches)
    with FlopCounterMode(display=False) as counter:
        evaluator(asked)
    assert evaluator.work == expected
    assert len(runs) == 3 * evaluator.work.layers
    assert counter.get_total_flops() == 2 * 5 * evaluator.work.macs
    assert evaluator.work.layers < evaluator.work.layers_alone


def test_one_ways_activations_are_held_at_once() -> None:
    case = Case()
    held: list[weakref.ref[Tensor]] = []
    peaks, outputs = [0], []

    def note(module: nn.Module, given: object, output: Tensor) -> None:
        held.append(weakref.ref(output))
        alive = {id(each) for ref in held if (each := ref()) is not None}
        peaks.append(len(alive))
        outputs.append(1)

    for module in [case.net.stem[-1], case.net.tail, *itertools.chain(*case.net.layers)]:
        module.register_forward_hook(note)
    everything = [each for each in case.space.architectures() if each.choices[0] < 2][::3]
    case.evaluator(everything)
    depth = len(case.space.layers)
    assert len(outputs) > 100 * depth
    assert max(peaks) == depth + 2, "the stem's, the layers', the tail's"
    assert not [ref for ref in held if ref() is not None]


def test_weights_are_held_once() -> None:
    """Copies have statistics of their own, and nothing else."""
    case = Case()
    foreign, statistics = list[nn.Parameter](), set[int]()
    own = set(case.net.parameters())
    theirs = {buffer.data_ptr() for buffer in case.net.buffers()}

    def note(module: nn.Module, *_: object) -> None:
        foreign.extend(set(module.parameters()) - own)
        statistics.update(buffer.data_ptr() for buffer in module.buffers())

    for module in [*case.net.stem, case.net.tail, *itertools.chain(*case.net.layers)]:
        module.register_forward_hook(note)
    case.evaluator(case.population)
    assert not foreign
    assert statistics
    assert not statistics & theirs


# ---- operations that write into what others need -------------------------------------------------------


@dataclass(frozen=True)
class Rectified:
    """A convolution behind an activation that writes over what it is given, or over a part of it."""

    part: bool = False

    def build(self, place: Place, style: Style) -> nn.Module:
        first = Half() if self.part else nn.ReLU(inplace=True)
        conv = nn.Conv2d(place.in_chs, place.out_chs, 3, stride=place.stride, padding=1)
        return nn.Sequential(first, conv, nn.BatchNorm2d(place.out_chs))

    def __str__(self) -> str:
        return "rectified_half" if self.part else "rectified"


class Half(nn.Module):
    def forward(self, features: Tensor) -> Tensor:
        features.chunk(2, dim=1)[0].relu_()
        return features


@dataclass(frozen=True)
class Gate:
    """What an operation of one's own may do: give back what it was given."""

    def build(self, place: Place, style: Style) -> nn.Module:
        return Same(place.in_chs) if place.keeps_shape else MBConv(3, 2).build(place, style)

    def __str__(self) -> str:
        return "gate"


class Same(nn.Module):
    def __init__(self, chs: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(chs))

    def forward(self, features: Tensor) -> Tensor:
        return features


@pytest.mark.parametrize("part", [False, True])
@pytest.mark.parametrize("calibrates", [True, False])
@pytest.mark.parametrize(
    ("ways", "layer"),
    [
        ([(0, 1, 2, 1, 2), (0, 0, 2, 0, 2)], 2),
        ([(0, 2, 1, 1, 2), (0, 2, 0, 0, 2)], 3),  # behind a skip, it is the skip's input
        ([(0, 2, 2, 0, 1)], 5),
    ],
)
def test_an_operation_that_writes_into_its_input_is_refused(
    ways: list[tuple[int, ...]], layer: int, calibrates: bool, part: bool
) -> None:
    ops: tuple[Op, ...] = (MBConv(3, 2), Rectified(part), Skip())
    case = Case(replace(skipping_space(ops), name="rectified"))
    before = state(case.net)
    calibration = case.statistics if calibrates else []
    evaluator = SubnetEvaluator(case.net, calibration, case.validation)
    with pytest.raises(ValueError, match=f"layer {layer}: {ops[1]} writes into its input"):
        evaluator([Architecture(way) for way in ways])
    assert state(case.net) == before
    assert evaluator.scores == {}


def test_a_stem_that_writes_into_its_input_is_refused() -> None:
    """The batches are somebody else's."""
    space = skipping_space()
    case = Case(space)
    writing = Supernet(replace(space, stem=(Fixed(Rectified(), 4),))).double()
    with pytest.raises(ValueError, match="the stem writes into its input"):
        SubnetEvaluator(writing, case.statistics, case.validation)(case.population)


def test_handing_the_input_on_is_no_writing() -> None:
    case = Case(skipping_space((MBConv(3, 2), Gate(), Skip())))
    everything = [each for each in case.space.architectures() if each.choices[0] == 0]
    said, scores = heard(case.evaluator, case.net, everything)
    for architecture, score in zip(everything, scores, strict=True):
        expected = one_by_one(case.net, architecture, case.statistics, case.images)
        assert all(map(torch.equal, said[architecture][2:], expected))
        assert score == scored(expected, case.validation)
    # Different architectures, but the same numbers.
    first, second = (said[Architecture((0, 0, way, 0, 0))] for way in (1, 2))
    assert all(map(torch.equal, first, second))


# ---- several processes ---------------------------------------------------------------------------------


@pytest.mark.slow
def test_two_ranks_find_the_scores_of_one() -> None:
    done = run("tests/programs/evaluator_ranks.py", ranks=2)
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("equal") == 2, done.stderr
