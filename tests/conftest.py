import gc

import torch

torch.set_num_threads(1)


def pytest_collection_finish() -> None:
    """Leave what was imported out of later searches for garbage: there is much of it, and it stays."""
    gc.collect()
    gc.freeze()
