"""A copy of a space has fewer channels or smaller images, the same strings, and costs of the full size."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from supernet.layers import Conv, MBConv, Shuffle, Skip
from supernet.network.documents import (
    find_space,
    load_architecture,
    load_space,
    reduced_space,
    save_architecture,
    save_space,
    space_from,
    space_to,
)
from supernet.options import FidelityOptions
from supernet.presets import PRESETS, preset
from supernet.sampling import sample, sample_network, stream
from supernet.space import Architecture, Fidelity, Fixed, Layer, Space
from supernet.supernet import Supernet, build_architecture
from supernet.tail import Tail
from supernet.train.records import probes
from tests.supernet.test_space import staged_spaces
from tools.cost import count_macs, count_params
from tools.mistake import Mistake

BENCHMARKS = Path(__file__).parents[2] / "benchmarks"


@pytest.mark.parametrize("name", PRESETS)
@pytest.mark.parametrize("width", [0.5, 0.25])
def test_a_copy_has_the_same_strings_and_networks(name: str, width: float) -> None:
    full = preset(name, num_classes=10, image_size=32)
    copy = preset(name, num_classes=10, image_size=32, width=width)
    assert copy.full == full == full.full
    assert copy.fidelity == Fidelity(width, 32)
    assert full.fidelity is None
    assert [layer.ops for layer in copy.layers] == [layer.ops for layer in full.layers]
    assert (copy.runs, copy.num_networks) == (full.runs, full.num_networks)
    for draw in (sample, sample_network):
        one, other = draw(copy, stream(1, "a")), draw(full, stream(1, "a"))
        assert one == other
        assert copy.canonical(one) == full.canonical(other)


def test_a_quarter_of_nas_bench_macro_is_the_one_written_by_hand() -> None:
    images = {"num_classes": 10, "image_size": 32}
    by_hand = find_space(str(BENCHMARKS / "nas_bench_macro_quarter.toml"), **images)
    quarter = preset("nas_bench_macro", **images, width=0.25)
    assert (quarter.stem, quarter.layers, quarter.tail) == (by_hand.stem, by_hand.layers, by_hand.tail)
    assert quarter.costs == by_hand.costs


def eight_times(space: Space) -> Space:
    stem = tuple(replace(fixed, out_chs=8 * fixed.out_chs) for fixed in space.stem)
    return replace(
        space, stem=stem, layers=tuple(replace(layer, out_chs=8 * layer.out_chs) for layer in space.layers)
    )


@settings(deadline=None, max_examples=15)
@given(staged_spaces().map(eight_times), st.floats(0.3, 1), st.data())
def test_the_copy_is_built_and_its_own_costs_stay_its_own(
    space: Space, width: float, data: st.DataObject
) -> None:
    copy = space.reduced(width=width, image_size=data.draw(st.integers(2, space.image_size)))
    architecture = sample(copy, stream(0, "one"))
    chain = build_architecture(copy, architecture)
    assert copy.macs(architecture) == count_macs(chain, (3, copy.image_size, copy.image_size))
    assert copy.params(architecture) == count_params(chain)
    assert copy.full.macs(architecture) == space.macs(architecture)
    assert copy.full.params(architecture) == space.params(architecture)
    for mine, whole in zip(copy.layers, space.layers, strict=True):
        assert abs(mine.out_chs - width * whole.out_chs) <= 4
        assert mine.out_chs <= whole.out_chs
    assert space_from(space_to(copy)) == copy


def test_smaller_images_alone_leave_the_channels() -> None:
    full = preset("tiny", num_classes=10, image_size=32)
    copy = full.reduced(image_size=16)
    assert copy.layers == full.layers
    assert (copy.image_size, copy.full.image_size) == (16, 32)
    assert full.reduced() is full
    assert full.reduced(image_size=32) is full


@pytest.mark.parametrize(
    ("fidelity", "words"),
    [
        (Fidelity(0.5, 16), "a half-width copy at 16 px"),
        (Fidelity(0.25, 32), "a quarter-width copy at 32 px"),
        (Fidelity(1.0, 16), "a copy at 16 px"),
        (Fidelity(0.3, 16), "a copy at 0.3 of the width and 16 px"),
    ],
)
def test_a_copy_in_words(fidelity: Fidelity, words: str) -> None:
    assert str(fidelity) == words


@pytest.mark.parametrize(
    ("width", "says"),
    [(0.0, "width is 0"), (float("nan"), "width is nan"), (1.5, "at most 1"), (0.05, "leaves none of 8")],
)
def test_a_width_that_cannot_be_is_refused(width: float, says: str) -> None:
    with pytest.raises(ValueError, match=says):
        preset("tiny", num_classes=10, image_size=16, width=width)


def test_a_copy_is_not_copied_again_and_gets_no_new_shortcuts() -> None:
    copy = preset("tiny", num_classes=10, image_size=16, width=0.5)
    with pytest.raises(ValueError, match="space tiny is a half-width copy at 16 px already"):
        copy.reduced(width=0.5)
    near = Space((Fixed(Conv(3), 16),), (Layer((MBConv(3, 2),), 17),), Tail())
    with pytest.raises(ValueError, match="leaves layer 1 as many channels as come in"):
        near.reduced(width=0.25)


def test_what_cannot_be_built_at_a_width_is_about_the_option() -> None:
    layers = (Layer((Shuffle(3), Skip()), 4), Layer((Shuffle(3),), 6, 2))
    space = Space((Fixed(Conv(3), 4),), layers, Tail())
    with pytest.raises(Mistake) as caught:
        reduced_space(space, FidelityOptions(width=0.6))
    assert caught.value.option == "fidelity.width"
    assert "layer 2: shuffle needs" in str(caught.value)


@pytest.mark.parametrize("name", ["tiny", "mine"])
def test_documents_keep_a_copy(name: str, tmp_path: Path) -> None:
    layers = preset("tiny", num_classes=10, image_size=32).layers
    full = Space((Fixed(Conv(3), 8),), layers, Tail(conv_chs=32, hidden_chs=16), name=name, num_classes=7)
    copy = full.reduced(width=0.5, image_size=16)
    save_space(tmp_path / "space.json", copy)
    assert load_space(tmp_path / "space.json") == copy
    architecture = Architecture((1, 3, 0, 2))
    save_architecture(tmp_path / "a.json", architecture, copy)
    images = {"num_classes": 7, "image_size": 16}
    assert load_architecture(tmp_path / "a.json", **images) == (copy, architecture)
    # The images of a training say nothing about the full size.
    other, _ = load_architecture(tmp_path / "a.json", num_classes=9, image_size=24)
    assert (other.fidelity, other.full.image_size, other.full.num_classes) == (Fidelity(0.5, 24), 32, 9)
    # What is written of a full-size space is what it always was.
    assert not {"width", "full_image_size"} & space_to(full).keys()


@pytest.mark.parametrize(("width", "says"), [("'half'", "width is 'half'"), ("2", "it must be over 0")])
def test_a_width_in_a_file_that_cannot_be_is_refused(width: str, says: str, tmp_path: Path) -> None:
    path = tmp_path / "mine.toml"
    path.write_text(f"width = {width}\n[[stages]]\nops = ['conv_k3']\ndepth = 1\nout_chs = 8\n")
    with pytest.raises(ValueError, match=says):
        load_space(path)


def test_probes_are_the_same_at_every_size() -> None:
    full = preset("nas_bench_macro", num_classes=10, image_size=32)
    assert probes(full.reduced(width=0.25, image_size=8), 3, 0) == probes(full, 3, 0)


def test_a_copy_is_trained_and_extracted_like_any_space() -> None:
    copy = preset("tiny", num_classes=10, image_size=16, width=0.5)
    net = Supernet(copy).eval()
    images, architecture = torch.randn(2, 3, 16, 16), Architecture((0, 1, 2, 3))
    assert torch.equal(net.extract(architecture)(images), net(images, architecture))
