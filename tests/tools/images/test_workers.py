"""What worker processes are given, for every data set and every way of starting processes."""

import multiprocessing
import pickle
from collections.abc import Iterator
from multiprocessing.reduction import ForkingPickler
from pathlib import Path
from typing import Any

import pytest
import torch

from retrain.truth.config import TruthConfig
from tests.forked import FORKS
from tests.tools.imitations import imitation
from tools.images.batches import Batch
from tools.images.datasets import Data
from tools.images.loaders import eval_batches, make_train_loader
from tools.images.options import KNOWN_SETS, DataConfig
from tools.images.streaming import StreamedEvaluation, StreamLoader

VARIED: dict[str, Any] = {
    **{"auto_augment": "rand-m9-mstd0.5", "color_jitter": 0.4, "erase": 0.5, "rotate": 9.0, "cutout": 4},
    "loader": "stream",
}
"""All that only workers do."""


def train_batches(config: DataConfig, data: Data) -> StreamLoader:
    loader = make_train_loader(data.train, data, config, batch_size=8, seed=3, device="cpu")
    assert isinstance(loader, StreamLoader)
    return loader


def same(one: Any, other: Any) -> bool:
    return all(torch.equal(mine, theirs) for mine, theirs in zip(one, other, strict=True))


@pytest.mark.parametrize("name", KNOWN_SETS)
@pytest.mark.parametrize("options", [{"loader": "stream"}, VARIED], ids=["plain", "varied"])
def test_what_workers_are_given_can_be_pickled(tmp_path: Path, name: str, options: dict[str, Any]) -> None:
    config, data = imitation(name, tmp_path, **options)
    dataset = train_batches(config, data)._dataset
    there = pickle.loads(ForkingPickler.dumps(dataset))
    assert same(there[2], dataset[2])
    evaluated = eval_batches(data.test, data, config, batch_size=4, device="cpu")
    if isinstance(evaluated, StreamedEvaluation):
        there = pickle.loads(ForkingPickler.dumps(evaluated._dataset))
        assert same(there[0], evaluated._dataset[0])


@pytest.mark.parametrize("name", KNOWN_SETS)
def test_options_of_a_truth_reach_its_workers(name: str) -> None:
    config = TruthConfig(space="tiny", data=DataConfig(name=name, root="" if name == "shapes" else "x"))
    assert pickle.loads(ForkingPickler.dumps((config, {"A": "b"}))) == (config, {"A": "b"})


@pytest.fixture(params=["fork", "forkserver", pytest.param("spawn", marks=pytest.mark.slow)])
def _start_method(request: pytest.FixtureRequest) -> Iterator[None]:
    """The way in which this process starts others, as far as they do not say it themselves."""
    assert FORKS  # whose server has imported torch already
    before = multiprocessing.get_start_method(allow_none=True)
    multiprocessing.set_start_method(request.param, force=True)
    yield
    multiprocessing.set_start_method(before, force=True)


@pytest.mark.usefixtures("_start_method")
@pytest.mark.parametrize("workers", [0, 1])
def test_batches_are_the_same_however_workers_are_started(tmp_path: Path, workers: int) -> None:
    config, data = imitation("folder", tmp_path, workers=workers)
    alone = train_batches(DataConfig(name="folder", root=str(tmp_path), image_size=16, workers=0), data)
    found: list[Batch] = list(train_batches(config, data).batches(2, 5))
    assert all(same(*pair) for pair in zip(found, alone.batches(2, 5), strict=True))
    # Workers of an evaluation are started alike; as new Pythons they would only cost time.
    if multiprocessing.get_start_method() == "spawn" and workers:
        return
    seen = list(eval_batches(data.test, data, config, batch_size=2, device="cpu"))
    assert torch.cat([batch.indices for batch in seen]).tolist() == list(range(len(data.test)))
    assert not multiprocessing.active_children()
