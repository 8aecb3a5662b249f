"""What the options of a search of cuts refuse."""

import pytest

from local_learning.catalogue import HEADS, HeadRow
from search.cuts import config
from tools.mistake import Mistake
from tools.options.catalogue import Catalogue


def test_a_head_of_ones_own_can_say_that_it_is_not_for_a_search(monkeypatch: pytest.MonkeyPatch) -> None:
    heads = Catalogue("head", HeadRow, [HEADS["aux1"], HEADS["predsim"]])
    heads.register("mine")(print)
    heads.register("pair", searchable=False)(print)
    monkeypatch.setattr(config, "HEADS", heads)
    assert config.DecouplingSearchConfig(heads=("aux1", "mine")).heads == ("aux1", "mine")
    with pytest.raises(Mistake, match=r"^heads: 'pair' says of itself that it cannot be searched"):
        config.DecouplingSearchConfig(heads=("aux1", "pair"))
    with pytest.raises(Mistake, match=r"^heads: unknown value 'predsim'; known: aux1, mine"):
        config.DecouplingSearchConfig(heads=("predsim",))
