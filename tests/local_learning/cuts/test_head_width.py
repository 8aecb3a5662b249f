"""Heads are as wide as the papers have them, or as fits their map; and a decoupling says which."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from local_learning.blocks import decouple
from local_learning.build import build_chain
from local_learning.cuts.head_width import parse_head_width, scale_of
from local_learning.decoupling import Decoupling, load_decoupling, save_decoupling
from local_learning.heads import make_head

RATE, MOMENTUM = 0.1, 0.9
"""The usual ones."""


def hidden(kind: str, asked: str | float, in_chs: int, classes: int, width: float = 1.0) -> int:
    """The channels that go into a head's last layer."""
    head: Any = make_head(kind, in_chs, 8, classes, width=scale_of(asked, kind, in_chs, classes, width))
    last = head.predict.fc if kind == "predsim" else head.fc
    return int(last.in_features)


def largest_rate(kind: str, asked: str | float, in_chs: int, classes: int) -> float:
    """At which SGD with momentum still learns a head's last layer on independent maps, to begin with.

    By the curvature of cross-entropy at equal logits: (I / n - 1 / n^2) times the mean of f f' of its inputs.
    """
    torch.manual_seed(0)
    head: Any = make_head(kind, in_chs, 8, classes, width=scale_of(asked, kind, in_chs, classes, 1.0))
    seen: list[torch.Tensor] = []
    head.fc.register_forward_hook(lambda module, inputs, output: seen.append(inputs[0]))
    head(torch.randn(256, in_chs, 8, 8).relu())
    features = seen[0].detach().double()
    curvature = torch.linalg.eigvalsh(features.T @ features / len(features))[-1] / classes
    return float(2 * (1 + MOMENTUM) / curvature)


@pytest.mark.parametrize("in_chs", [16, 64, 512])
@pytest.mark.parametrize("classes", [2, 10, 1000])
def test_a_head_that_fits_learns_at_the_usual_rate(in_chs: int, classes: int) -> None:
    assert largest_rate("aux2", "map", in_chs, classes) > 4 * RATE


def test_the_papers_width_has_its_number_of_classes() -> None:
    assert largest_rate("aux2", 1.0, 32, 10) < 1.5 * RATE  # 2048, which the paper has from 200 classes on
    assert largest_rate("aux2", 0.25, 32, 10) > 4 * RATE  # 512, which it has for 10
    assert largest_rate("aux2", 1.0, 32, 200) > 4 * RATE


@pytest.mark.parametrize(
    ("kind", "asked", "in_chs", "classes", "channels"),
    [
        ("aux2", "map", 32, 10, 256),
        ("aux2", "map", 64, 10, 512),
        ("aux2", "map", 512, 10, 512),
        ("aux2", "map", 64, 1000, 512),
        ("aux2", "map", 512, 1000, 2048),
        ("aux2", "paper", 64, 10, 2048),
        ("aux2", 0.25, 64, 10, 512),
        ("predsim", "map", 32, 10, 32 * 2 * 2),
        ("predsim", "paper", 32, 10, 32 * 8 * 8),
        ("conv1c2f", "map", 8, 10, 64),
        ("conv1c2f", "map", 64, 10, 128),
        ("conv1c2f", "paper", 8, 10, 128),
        ("linear", "map", 24, 10, 24),
    ],
)
def test_hidden_channels(kind: str, asked: str | float, in_chs: int, classes: int, channels: int) -> None:
    assert hidden(kind, asked, in_chs, classes) == channels


def test_without_a_word_heads_take_the_chains_width() -> None:
    chain = build_chain("resnet18", num_classes=10, image_size=16, width=0.125)
    for decoupling, channels in (
        (Decoupling((4,), ("aux1",)), 256),
        (Decoupling((4,), ("aux1",), head_width="map"), 128),
        (Decoupling((4,), ("aux1",), head_width=0.25), 512),
    ):
        head = decouple(chain, decoupling, 10, 16).blocks[0].head
        assert head is not None
        last = head.get_submodule("fc")
        assert isinstance(last, nn.Linear)
        assert last.in_features == channels


@pytest.mark.parametrize("head_width", ["paper", "map", 0.25])
def test_a_file_says_how_wide_its_heads_are(head_width: str | float, tmp_path: Path) -> None:
    made = Decoupling((1,), ("aux1",), head_width=head_width)
    path = tmp_path / "decoupling.json"
    save_decoupling(path, made)
    document = json.loads(path.read_text())
    assert document.get("head_width", "paper") == head_width
    assert load_decoupling(path) == made
    document.pop("head_width", None)
    path.write_text(json.dumps(document))  # as before it was an option
    assert load_decoupling(path).head_width == "paper"


@pytest.mark.parametrize("value", ["wide", "", 0, -1, "nan", float("inf"), True, None, [1]])
def test_what_is_no_width_is_refused(value: Any) -> None:
    with pytest.raises(ValueError, match=r"unknown value .*; it must be paper, map, or a number above 0"):
        parse_head_width(value)
    with pytest.raises(ValueError, match="head_width: "):
        Decoupling((1,), ("aux1",), head_width=value)
