"""One mistake as two readers meet it: whoever calls the library reads arguments, a script's user options."""

import sys
from collections.abc import Callable
from functools import partial

import pytest
import torch

from local_learning.blocks import decouple
from local_learning.build import build_chain
from local_learning.decoupling import Decoupling
from local_learning.heads import make_head
from local_learning.options import GluingOptions
from supernet.presets import preset
from supernet.strategies import make_strategy
from supernet.supernet import Supernet
from tests.scripts import config_of
from tools.options.command import main

OWN = "plugins FILE.py brings one of your own"


def unknown_strategy() -> None:
    net = Supernet(preset("tiny", num_classes=10, image_size=16))
    make_strategy("gredy", net, optimizer=partial(torch.optim.SGD, lr=0.1), seed=0)


def gluing_without_a_cache() -> None:
    GluingOptions(h_every=2)


def unknown_head_in_a_decoupling() -> None:
    chain = build_chain("vgg6a", num_classes=10, image_size=32, width=0.125)
    decouple(chain, Decoupling((2,), ("auxx2",)), 10, 32)


def unknown_head() -> None:
    make_head("auxx2", 8, 4, 10)


CASES: list[tuple[Callable[[], None], str, str, str]] = [
    (
        unknown_strategy,
        f"strategy: unknown value 'gredy'; did you mean 'greedy'? {OWN}",
        "train_supernet.py --strategy gredy",
        f"--strategy: unknown value 'gredy'; did you mean 'greedy'? --{OWN}",
    ),
    (
        gluing_without_a_cache,
        "gluing.h_every: needs gluing.cache; nothing is stored without",
        "retrain_model.py --rule gluing --decoupling uniform:2:linear --gluing.h-every 2",
        "--gluing.h-every: needs --gluing.cache; nothing is stored without",
    ),
    *(
        (
            call,
            f"head 'auxx2' is unknown; did you mean 'aux2'? {OWN}",
            "retrain_model.py --decoupling uniform:2:auxx2",
            f"--decoupling: head 'auxx2' is unknown; did you mean 'aux2'? --{OWN}",
        )
        for call in (unknown_head, unknown_head_in_a_decoupling)
    ),
]


@pytest.mark.parametrize(("call", "in_arguments", "line", "in_options"), CASES)
def test_each_reader_knows_the_words(
    call: Callable[[], None],
    in_arguments: str,
    line: str,
    in_options: str,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    with pytest.raises(ValueError, match=r".") as caught:
        call()
    assert str(caught.value) == in_arguments
    script, *arguments = line.split()
    monkeypatch.setattr(sys, "argv", [script, *arguments])
    with pytest.raises(SystemExit) as ended:
        main(config_of(script), lambda config: None, "")
    assert ended.value.code == 2
    assert capsys.readouterr().err == f"{script}: {in_options}\n"
