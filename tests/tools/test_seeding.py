import random

import numpy as np
import torch
from hypothesis import given
from hypothesis import strategies as st

from tools.seeding import derive, numpy_stream, seed_globals, torch_stream


def test_the_value_of_a_stream_never_changes() -> None:
    # Runs made by an earlier version must continue with the same choices.
    assert derive(0, "order", 3) == 5486038029339273987


@given(st.integers(0, 2**31), st.integers(0, 2**31), st.text(max_size=8), st.integers(0, 9))
def test_streams_differ_by_seed_purpose_and_index(seed: int, other: int, purpose: str, index: int) -> None:
    assert derive(seed, purpose, index) == derive(seed, purpose, index)
    assert derive(seed, purpose, index) != derive(seed, purpose, index + 1)
    assert derive(seed, purpose, index) != derive(seed, purpose + "x", index)
    assert (derive(seed, purpose) == derive(other, purpose)) == (seed == other)


def test_generators_follow_the_stream() -> None:
    assert torch.equal(
        torch.rand(4, generator=torch_stream(1, "a", 2)), torch.rand(4, generator=torch_stream(1, "a", 2))
    )
    assert numpy_stream(1, "a").random() == numpy_stream(1, "a").random() != numpy_stream(1, "b").random()


def test_global_generators_are_all_set() -> None:
    seed_globals(0, "step", 5)
    first = (torch.rand(1).item(), np.random.rand(), random.random())  # noqa: NPY002
    seed_globals(0, "step", 5)
    assert first == (torch.rand(1).item(), np.random.rand(), random.random())  # noqa: NPY002
