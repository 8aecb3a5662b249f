"""Scores in files and in words."""

import numpy as np
import pytest

from search.architectures.evaluations import said_of_noise, score_error


def test_a_score_is_as_uncertain_as_draws_of_its_images_make_it() -> None:
    rng = np.random.default_rng(0)
    for share, images in ((0.3, 16), (0.5, 500), (0.9, 2000)):
        drawn = rng.binomial(images, share, size=20_000) / images
        assert score_error(share, images) == pytest.approx(drawn.std(), rel=0.03)
    assert said_of_noise(0.5, 16) == "uncertain by 12.5 points, over 16 validation images"
    assert score_error(1.0, 16) == score_error(0.0, 16) > 0.04  # all right of 16 are not all right of all
