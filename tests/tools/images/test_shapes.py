import hashlib

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tools.images.shapes import CHUNK, MAX_CLASSES, class_factors, class_names, generate


def test_the_images_never_change() -> None:
    # Weights trained by an earlier version must meet the same data set.
    images, _ = generate(300, num_classes=10, image_size=32, seed=0, split="train")
    assert (
        hashlib.sha256(images.tobytes()).hexdigest()
        == "03fbc530251ceb97206d8470fe20d5c1172c908edccce6b70bb85cc0a8100758"
    )


def test_a_larger_set_begins_with_the_smaller() -> None:
    few, few_labels = generate(CHUNK + 3, num_classes=7, image_size=16, seed=1, split="train")
    many, many_labels = generate(2 * CHUNK + 5, num_classes=7, image_size=16, seed=1, split="train")
    assert few.shape == (CHUNK + 3, 16, 16, 3)
    assert few.dtype == np.uint8
    assert np.array_equal(few, many[: len(few)])
    assert np.array_equal(few_labels, many_labels[: len(few)])


def test_splits_seeds_and_images_differ() -> None:
    def images(seed: int, split: str) -> "np.ndarray[tuple[int, ...], np.dtype[np.uint8]]":
        return generate(40, num_classes=10, image_size=16, seed=seed, split=split)[0]

    train = images(0, "train")
    assert not np.array_equal(train, images(0, "test"))
    assert not np.array_equal(train, images(1, "train"))
    assert len(np.unique(train.reshape(40, -1), axis=0)) == 40


def test_classes_are_balanced() -> None:
    _, labels = generate(103, num_classes=10, image_size=8, seed=0, split="test")
    counts = np.bincount(labels)
    assert counts.max() - counts.min() == 1


@settings(deadline=None)
@given(st.integers(2, MAX_CLASSES))
def test_classes_are_different_combinations(num_classes: int) -> None:
    factors = class_factors(num_classes)
    assert len(np.unique(factors, axis=0)) == num_classes
    assert len(set(class_names(num_classes))) == num_classes


@pytest.mark.parametrize("num_classes", [10, 20, 50, 100])
def test_no_single_factor_is_enough(num_classes: int) -> None:
    for values in class_factors(num_classes).T:
        assert np.bincount(values)[values].min() >= 2


@pytest.mark.parametrize("num_classes", [1, MAX_CLASSES + 1])
def test_too_few_or_many_classes(num_classes: int) -> None:
    with pytest.raises(ValueError, match=r"data\.num_classes"):
        generate(10, num_classes=num_classes, image_size=8, seed=0, split="train")
