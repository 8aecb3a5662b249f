"""What is kept of each image, against plain dictionaries."""

import random

import pytest
import torch
from torch import Tensor

from local_learning.options import GluingOptions
from local_learning.rules.gluing_cache import GluingCache


def rows(*values: float) -> Tensor:
    return torch.tensor(values, dtype=torch.float64)[:, None].repeat(1, 3)


@pytest.mark.parametrize(("h_every", "refresh"), [(1, 0), (3, 0), (1, 2), (2, 3), (2, 1)])
def test_what_an_image_wants_depends_on_its_own_visits(h_every: int, refresh: int) -> None:
    cache, chance = (
        GluingCache(GluingOptions(cache=True, h_every=h_every, refresh=refresh), 7),
        random.Random(0),
    )
    visits = dict.fromkeys(range(7), 0)
    for _ in range(20):
        images = chance.choices(range(7), k=4)
        fresh, due = cache.wanted(torch.tensor(images))
        anew = [visits[each] == 0 or (refresh > 0 and visits[each] % refresh == 0) for each in images]
        assert fresh.tolist() == anew
        assert due.tolist() == [
            a or visits[each] % h_every == 0 for a, each in zip(anew, images, strict=True)
        ]
        cache.seen(torch.tensor(images))
        for each in images:  # one that is there twice was seen twice
            visits[each] += 1


def test_of_an_image_that_is_there_twice_the_later_is_kept() -> None:
    cache = GluingCache(GluingOptions(cache=True), 5)
    cache.store(torch.tensor([4, 1, 4, 1, 4]), {1: rows(0, 1, 2, 3, 4), 2: rows(5, 6, 7, 8, 9)})
    found = cache.recall(torch.tensor([1, 4, 1]), torch.device("cpu"))
    assert found.keys() == {1, 2}
    assert torch.equal(found[1], rows(3, 4, 3))
    assert torch.equal(found[2], rows(8, 9, 8))


def test_a_state_of_before_has_a_list_of_all_variables() -> None:
    cache = GluingCache(GluingOptions(cache=True), 2)
    cache.load_state_dict({"cache": [rows(1, 2), rows(3, 4)], "visits": torch.tensor([1, 0])}, range(2, 3))
    state = cache.state_dict()
    assert state["cache"].keys() == {2}
    assert torch.equal(state["cache"][2], rows(3, 4))
    assert state["visits"].tolist() == [1, 0]
