import gc

import pytest
import torch

from tests.forked import warm_up


@pytest.fixture(autouse=True)
def _one_thread() -> None:
    """Begin each test with one thread, whatever the last one set: others would wait for busy cores."""
    torch.set_num_threads(1)


def pytest_collection_finish() -> None:
    """Leave what was imported out of later searches for garbage: there is much of it, and it stays.

    The server of forks is itself a fork of this process as it is now.
    """
    torch.set_num_threads(1)
    gc.collect()
    gc.freeze()
    warm_up()
