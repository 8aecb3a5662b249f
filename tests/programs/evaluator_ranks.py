"""One rank of two: its scores are those of one process, whoever of the two has how much to do."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field

import torch
import torch.distributed
from torch import Tensor, nn

from search.evaluator import SubnetEvaluator
from search.trie import shared_out
from supernet.calibrate import calibrate
from supernet.presets import preset
from supernet.sampling import sample, stream
from supernet.space import Architecture, Space
from supernet.supernet import Supernet

Batch = tuple[Tensor, Tensor]


@dataclass
class Counted:
    """Batches that count how often one was asked for the first, and how many were taken."""

    batches: Sequence[Batch]
    passes: int = field(default=0, init=False)
    taken: int = field(default=0, init=False)

    def __iter__(self) -> Iterator[Batch]:
        self.passes += 1
        for batch in self.batches:
            self.taken += 1
            yield batch


def varied_net(space: Space, dtype: torch.dtype = torch.float32) -> Supernet:
    """Random weights for which networks do not all say the same: BatchNorm's and the classifier's, too."""
    torch.manual_seed(0)
    net = Supernet(space)
    with torch.no_grad():
        for module in net.modules():
            if isinstance(module, nn.BatchNorm2d):
                module.weight.uniform_(0.5, 1.5)
                module.bias.normal_(0, 0.3)
        classifier = net.tail.get_submodule("fc")
        assert isinstance(classifier, nn.Linear)
        classifier.weight.normal_(0, 1)
        # What all features have in common would make one class the answer to everything.
        classifier.weight -= classifier.weight.mean(1, keepdim=True)
    return net.to(dtype)


def images_of(space: Space, *sizes: int, seed: int = 1, dtype: torch.dtype = torch.float32) -> list[Tensor]:
    """Noise on a ground that differs from image to image."""
    source = torch.Generator().manual_seed(seed)
    side = space.image_size
    return [
        (
            2 * torch.randn(size, 3, 1, 1, generator=source)
            + torch.randn(size, 3, side, side, generator=source)
        ).to(dtype)
        for size in sizes
    ]


def drawn(space: Space, count: int) -> list[Architecture]:
    rng = stream(5, "architectures of a test")
    return [sample(space, rng) for _ in range(count)]


def one_by_one(
    net: Supernet,
    architecture: Architecture,
    calibration: Sequence[Batch],
    images: Sequence[Tensor],
    autocast: Callable[[], AbstractContextManager[None]] = nullcontext,
) -> list[Tensor]:
    """What the architecture alone says of each batch, extracted and calibrated."""
    chain = net.extract(architecture)
    with autocast():
        if calibration:
            calibrate(chain, calibration)
        chain.eval()
        with torch.no_grad():
            return [chain(batch) for batch in images]


def labelled(
    net: Supernet, calibration: Sequence[Batch], images: Sequence[Tensor], judges: Sequence[Architecture]
) -> list[Batch]:
    """Images with what one network or another takes them for: scores then lie apart."""
    said = [one_by_one(net, judge, calibration, images) for judge in judges]
    batches = []
    for index, batch in enumerate(images):
        votes = torch.stack([logits[index].argmax(1) for logits in said])
        rows = torch.arange(len(batch))
        batches.append((batch, votes[rows % len(judges), rows]))
    return batches


def unlabelled(images: Sequence[Tensor]) -> list[Batch]:
    return [(batch, torch.zeros(len(batch), dtype=torch.long)) for batch in images]


def main() -> None:
    torch.set_num_threads(1)
    space = preset("tiny", num_classes=10, image_size=16)
    net = varied_net(space).train()
    calibration = unlabelled(images_of(space, 8, 5))
    population = drawn(space, 20)
    validation = labelled(net, calibration, images_of(space, 16, 7, seed=2), population[:3])
    groups = {
        "many": population,
        "many, some of them twice": [*population[:7], *reversed(population[3:9])],
        "one": population[:1],
        "as many as ranks": population[:2],
        "which agree but at the end": [Architecture((0, 3, 1, last)) for last in range(4)],
        "none": [],
    }
    alone = {name: SubnetEvaluator(net, calibration, validation)(group) for name, group in groups.items()}
    assert len(set(alone["many"])) > 5, "scores that are all the same show nothing"
    before = {name: value.clone() for name, value in net.state_dict().items()}

    torch.distributed.init_process_group("gloo")
    rank, world = torch.distributed.get_rank(), torch.distributed.get_world_size()
    assert world == 2
    for name, group in groups.items():
        statistics, images = Counted(calibration), Counted(validation)
        evaluator = SubnetEvaluator(net, statistics, images)
        assert evaluator(group) == alone[name], name
        assert evaluator.scores == dict(zip(group, alone[name], strict=True))
        busy = bool(shared_out(list(dict.fromkeys(group)), space, world)[rank])
        assert (statistics.taken, images.taken) == (2 * busy, 2 * busy), f"{name}: each batch once"
        assert evaluator(group[::-1]) == alone[name][::-1]
        assert (statistics.taken, images.taken) == (2 * busy, 2 * busy), f"{name}: all was known"

    evaluator = SubnetEvaluator(net, calibration, validation)
    evaluator.scores |= {population[0]: 7.0}
    assert evaluator(population[:9]) == [7.0, *alone["many"][1:9]]
    assert evaluator(population) == [7.0, *alone["many"][1:]]
    assert all(torch.equal(before[name], value) for name, value in net.state_dict().items())
    for name in ("tiny", "nas_bench_macro"):
        compare_with_naive(name, rank)
    print("equal", flush=True)


def compare_with_naive(name: str, rank: int) -> None:
    """Scores by both ranks against each network alone; each rank looks at every other one."""
    space = preset(name, num_classes=10, image_size=16)
    net = varied_net(space)
    calibration = unlabelled(images_of(space, 6, 6))
    population = drawn(space, 10)
    images = images_of(space, 12, seed=2)
    validation = labelled(net, calibration, images, population[:3])
    scores = SubnetEvaluator(net, calibration, validation)(population)
    assert len(set(scores)) > 4
    for architecture, score in list(zip(population, scores, strict=True))[rank::2]:
        logits = one_by_one(net, architecture, calibration, images)
        hits = sum((said.argmax(1) == batch[1]).sum() for said, batch in zip(logits, validation, strict=True))
        assert score == int(hits) / 12, f"{name} {architecture}"


if __name__ == "__main__":
    main()  # what main held is gone before the process group is: the other order can hang
    torch.distributed.destroy_process_group()
