"""This module derives a named random stream for every purpose from one seed.

A stream is a pure function of (seed, purpose, indices such as the step). So any random choice of a run can be
made again without replaying what came before, whatever the number of ranks and wherever the run was
interrupted. Nothing here keeps state, so nothing here has to be saved.
"""

import hashlib
import random

import numpy as np
import torch


def derive(seed: int, purpose: str, *indices: int) -> int:
    """Return a 63-bit seed for one stream; streams of different names or indices are unrelated."""
    key = "/".join([str(seed), purpose, *map(str, indices)]).encode()
    return int.from_bytes(hashlib.blake2b(key, digest_size=8).digest(), "little") >> 1


def torch_stream(
    seed: int, purpose: str, *indices: int, device: torch.device | str = "cpu"
) -> torch.Generator:
    """Return a fresh torch generator for one stream."""
    return torch.Generator(device=device).manual_seed(derive(seed, purpose, *indices))


def numpy_stream(seed: int, purpose: str, *indices: int) -> np.random.Generator:
    """Return a fresh numpy generator for one stream."""
    return np.random.default_rng(derive(seed, purpose, *indices))


def seed_globals(seed: int, purpose: str, *indices: int) -> None:
    """Put the global generators (torch on all devices, numpy, random) at the start of one stream.

    This is for code that takes no generator: initialisers, dropout, other people's transforms.
    """
    value = derive(seed, purpose, *indices)
    if torch.accelerator.is_available():
        torch.manual_seed(value)
    else:
        # Otherwise torch would keep each seed for devices that never come, with the stack of its caller.
        torch.default_generator.manual_seed(value)
    np.random.seed(value % 2**32)  # noqa: NPY002 - the global numpy generator is what is being set
    random.seed(value)
