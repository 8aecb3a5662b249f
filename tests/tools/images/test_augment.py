import math

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor
from torchvision.transforms import functional as reference

from tools.images.augment import BatchAugment, Normalise, Policy, draw, mix
from tools.images.options import DataConfig

MEAN, STD = (0.49, 0.48, 0.45), (0.25, 0.24, 0.26)
IDENTITY = (0.0, 0.0, 0.0), (1 / 255, 1 / 255, 1 / 255)
SIZE, BATCH = 12, 64


@pytest.fixture
def images() -> Tensor:
    return torch.randint(0, 256, (20, SIZE, SIZE, 3), dtype=torch.uint8, generator=torch.Generator())


def one_by_one(images: Tensor, indices: Tensor, drawn: Tensor, policy: Policy) -> Tensor:
    """The bytes that torchvision's transforms make of each image, given the same draws."""
    done = []
    mode = "reflect" if policy.reflect else "constant"
    for column, index in enumerate(indices.tolist()):
        image = images[index].permute(2, 0, 1)
        top, left = ((drawn[row, column] * (2 * policy.pad + 1)).int().item() for row in (0, 1))
        if policy.pad:
            image = reference.pad(image, [policy.pad], padding_mode=mode)
        image = reference.crop(image, int(top), int(left), SIZE, SIZE)
        if policy.flip and drawn[2, column] >= 0.5:
            image = reference.hflip(image)
        if policy.rotate:
            angle = (2 * drawn[5, column].item() - 1) * policy.rotate
            image = reference.rotate(image, angle)
        done.append(image)
    return torch.stack(done)


@pytest.mark.parametrize(
    "policy",
    [
        Policy(),
        Policy(flip=True),
        Policy(pad=4, flip=True),
        Policy(pad=4, flip=True, reflect=True),
        Policy(pad=SIZE - 1, reflect=True),
        Policy(pad=SIZE + 3),
    ],
)
def test_whole_batches_equal_torchvision_one_by_one(images: Tensor, policy: Policy) -> None:
    indices, drawn = torch.arange(BATCH) % len(images), draw(0, 3, BATCH)
    expected = one_by_one(images, indices, drawn, policy)
    mean, std = IDENTITY
    exact = BatchAugment(images, policy, mean=mean, std=std)(indices, drawn)
    assert torch.equal(exact, expected.float())
    normalised = BatchAugment(images, policy, mean=MEAN, std=STD)(indices, drawn)
    torch.testing.assert_close(normalised, reference.normalize(expected / 255, list(MEAN), list(STD)))
    assert normalised.is_contiguous(memory_format=torch.channels_last)
    assert normalised.dtype == torch.float32


def test_rotation_equals_torchvisions(images: Tensor) -> None:
    policy = Policy(pad=2, flip=True, rotate=30)
    indices, drawn = torch.arange(BATCH) % len(images), draw(1, 0, BATCH)
    rotated = BatchAugment(images, policy, mean=MEAN, std=STD)(indices, drawn)
    expected = one_by_one(images, indices, drawn, policy)
    expected = reference.normalize(expected / 255, list(MEAN), list(STD))
    # The nearest pixel of a point half way between two is a matter of rounding.
    different = (rotated - expected).abs().amax(1) > 1e-5
    assert different.float().mean() < 0.002
    assert rotated.is_contiguous(memory_format=torch.channels_last)


def test_cutout_sets_one_square_to_the_mean(images: Tensor) -> None:
    indices, drawn = torch.arange(BATCH) % len(images), draw(0, 0, BATCH)
    whole = BatchAugment(images, Policy(), mean=MEAN, std=STD)(indices, drawn)
    holed = BatchAugment(images, Policy(cutout=4), mean=MEAN, std=STD)(indices, drawn)
    for column in range(BATCH):
        row, place = (int(drawn[3 + axis, column] * SIZE) for axis in (0, 1))
        expected = whole[column].clone()
        expected[:, max(0, row - 2) : row + 2, max(0, place - 2) : place + 2] = 0
        assert torch.equal(holed[column], expected)


def test_draws_reach_every_crop_and_differ_by_step() -> None:
    drawn = draw(0, 0, 4096)
    assert set((drawn[0] * 9).long().tolist()) == set(range(9))
    assert 0.45 < (drawn[2] < 0.5).double().mean() < 0.55
    assert torch.equal(drawn, draw(0, 0, 4096))
    assert not torch.equal(drawn, draw(0, 1, 4096))


def test_all_bytes_normalise_as_torchvision_does() -> None:
    values = torch.arange(256, dtype=torch.uint8).view(1, 16, 16, 1).expand(-1, -1, -1, 3)
    normalised = Normalise(16, mean=MEAN, std=STD, device=torch.device("cpu"))(values)
    expected = reference.normalize(values.permute(0, 3, 1, 2) / 255, list(MEAN), list(STD))
    torch.testing.assert_close(normalised, expected, rtol=1e-6, atol=1e-6)


def test_mixup_mixes_neighbours_and_targets_alike() -> None:
    images, labels = torch.rand(6, 3, 8, 8), torch.tensor([0, 1, 2, 3, 4, 0])
    mixed, targets = mix(images, labels, 5, DataConfig(mixup=1.0), seed=0, step=2)
    own = targets[0, 0]
    assert 0 < own < 1
    partners = torch.tensor([1, 0, 3, 2, 5, 4])
    torch.testing.assert_close(mixed, own * images + (1 - own) * images[partners])
    one_hot = F.one_hot(labels, 5).float()
    torch.testing.assert_close(targets, own * one_hot + (1 - own) * one_hot[partners])


def test_cutmix_targets_are_the_parts_of_the_area() -> None:
    labels = torch.tensor([0, 1])
    images = labels.view(2, 1, 1, 1).expand(2, 3, 16, 16).float()
    seen = set()
    for step in range(20):
        mixed, targets = mix(images, labels, 2, DataConfig(cutmix=1.0), seed=0, step=step)
        torch.testing.assert_close(mixed.mean((1, 2, 3)), targets[:, 1])
        torch.testing.assert_close(targets.sum(1), torch.ones(2))
        seen.add(round(targets[0, 0].item(), 3))
    assert len(seen) > 10


def test_with_both_each_batch_takes_one_of_mixup_and_cutmix() -> None:
    images, labels = torch.stack([torch.zeros(3, 8, 8), torch.ones(3, 8, 8)]), torch.tensor([0, 1])
    config = DataConfig(mixup=1.0, cutmix=1.0)
    cut = [
        bool(torch.isin(mix(images, labels, 2, config, seed=0, step=step)[0], torch.tensor([0.0, 1.0])).all())
        for step in range(40)
    ]
    assert 8 < sum(cut) < 32


def test_ranks_mix_as_one_process_would() -> None:
    images, labels = torch.rand(8, 3, 8, 8), torch.arange(8)
    for config in (DataConfig(mixup=0.4), DataConfig(cutmix=0.4)):
        whole, targets = mix(images, labels, 8, config, seed=1, step=1)
        parts = [
            mix(images[part], labels[part], 8, config, seed=1, step=1) for part in (slice(0, 4), slice(4, 8))
        ]
        assert torch.equal(whole, torch.cat([part[0] for part in parts]))
        assert torch.equal(targets, torch.cat([part[1] for part in parts]))


def test_policy_follows_the_options() -> None:
    assert Policy.of(DataConfig()) == Policy(pad=4, flip=True)
    assert Policy.of(DataConfig(augment="none", cutout=8)) == Policy(cutout=8)
    assert Policy.of(DataConfig(name="mnist", root="x", pad_mode="reflect")) == Policy(pad=4, reflect=True)
    assert math.isclose(Policy.of(DataConfig(rotate=15.0)).rotate, 15)
