import json
import math
from pathlib import Path
from typing import Any

import pytest
import torch

from search.records import Relaxation, load_relaxation, save_relaxation

GOOD = {
    "format": "cleave/relaxation",
    "version": 1,
    "network": "vgg6a",
    "head_kinds": ["aux1", "mine"],
    "alpha": [[0.5, -0.5], [1, 0], [-1e-300, 1e-8]],
    "beta": [[0.25, 0], [0, 0.1], [2.0, -2.0]],
}


def test_files_give_back_what_was_saved(tmp_path: Path) -> None:
    torch.manual_seed(0)
    path = tmp_path / "relaxation.json"
    alpha, beta = torch.randn(7, 2, dtype=torch.float64), torch.randn(7, 3)
    facts = {"width": 0.25, "step": 2000, "data": {"name": "cifar10"}, "note": None}
    tensors: dict[str, Any] = {"alpha": alpha, "beta": beta}
    relaxation = Relaxation("resnet50", ("aux1", "aux2", "linear"), **tensors, facts=facts)
    save_relaxation(str(path), relaxation)
    found = load_relaxation(str(path))
    assert found == relaxation
    # Bit for bit.
    assert torch.equal(torch.tensor(found.alpha, dtype=torch.float64), alpha)
    assert torch.equal(torch.tensor(found.beta), beta)
    assert found.facts == facts
    first = path.read_bytes()
    save_relaxation(path, found)
    assert path.read_bytes() == first


def test_the_document_is_the_documented_one(tmp_path: Path) -> None:
    path = tmp_path / "relaxation.json"
    lists: dict[str, Any] = {key: GOOD[key] for key in ("alpha", "beta")}
    save_relaxation(path, Relaxation("vgg6a", ("aux1", "mine"), **lists, facts={"step": 7}))
    assert json.loads(path.read_text()) == {**GOOD, "step": 7}


def test_a_file_by_hand_needs_no_more_than_the_required_keys(tmp_path: Path) -> None:
    path = tmp_path / "mine.json"
    path.write_text(json.dumps(GOOD))
    assert load_relaxation(path) == Relaxation(
        network="vgg6a",
        head_kinds=("aux1", "mine"),
        alpha=((0.5, -0.5), (1.0, 0.0), (-1e-300, 1e-8)),
        beta=((0.25, 0.0), (0.0, 0.1), (2.0, -2.0)),
    )
    path.write_text(json.dumps({**GOOD, "width": 0.25}))
    assert load_relaxation(path).facts == {"width": 0.25}


MISSING = object()


@pytest.mark.parametrize(
    ("key", "value", "message"),
    [
        *(
            (key, MISSING, f"the key '{key}' is missing")
            for key in ("network", "head_kinds", "alpha", "beta")
        ),
        ("network", 50, "'network' must be a text, not 50"),
        ("head_kinds", "aux1", "head_kinds: 'aux1' is not a list"),
        ("head_kinds", [], "head_kinds: name at least one kind of head"),
        ("head_kinds", ["aux1", 2], "head_kinds: 2 is not the name of a head"),
        ("head_kinds", ["aux1"], "beta, layer 1: 2 values, not 1 (one per kind of head)"),
        ("alpha", None, "alpha: None is not a list"),
        ("alpha", {"1": [0, 0]}, "alpha: {'1': [0, 0]} is not a list"),
        ("alpha", [[0, 0], [0, 0]], "alpha has 2 rows and beta 3; both need one per layer but the last"),
        ("alpha", [[0, 0], [0, 0, 0], [0, 0]], "alpha, layer 2: 3 values, not 2 (local and backpropagated)"),
        ("alpha", [[0, 0], [0, "1"], [0, 0]], "alpha, layer 2: '1' is not a number"),
        ("alpha", [[0, 0], [0, True], [0, 0]], "alpha, layer 2: True is not a number"),
        ("beta", [[0, 0], [0, 0], [0, math.nan]], "beta, layer 3: nan is not finite"),
        ("beta", [[0, 0], [0, 0], [0, -math.inf]], "beta, layer 3: -inf is not finite"),
        ("beta", [[0, 0], 3, [0, 0]], "beta, layer 2: 3 is not a list"),
        ("version", 2, "version 2 of cleave/relaxation is not known here, only 1"),
        ("format", "cleave/decoupling", "expected a file of format 'cleave/relaxation'"),
    ],
)
def test_mistakes_in_a_file_name_it(key: str, value: Any, message: str, tmp_path: Path) -> None:
    path = tmp_path / "mine.json"
    document = {**GOOD, key: value}
    path.write_text(json.dumps({k: v for k, v in document.items() if v is not MISSING}))
    with pytest.raises(ValueError) as caught:  # noqa: PT011
        load_relaxation(path)
    assert str(caught.value).startswith(f"{path}: {message}")
    assert "\n" not in str(caught.value)


def test_what_cannot_be_read_or_should_not_be_written(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"cannot read .*none\.json"):
        load_relaxation(tmp_path / "none.json")
    with pytest.raises(ValueError, match="facts: 'alpha' is a key of the file itself"):
        Relaxation("vgg6a", ("aux1",), ((0.0, 0.0),), ((0.0,),), {"alpha": 1})
    with pytest.raises(ValueError, match="alpha, layer 1: nan is not finite"):
        Relaxation("vgg6a", ("aux1",), ((0.0, math.nan),), ((0.0,),))
