"""Both ways to count a stem are one network: the same numbers, other names and other places to cut."""

import random
from pathlib import Path

import pytest
import torch

from local_learning.blocks import decouple
from local_learning.decoupling import Decoupling, DecouplingFile, read_decoupling, save_decoupling
from supernet.layers import Conv, DepthwiseSeparable, MBConv, Skip
from supernet.presets import preset
from supernet.sampling import sample
from supernet.space import Architecture, Fixed, Layer, Space
from supernet.stem import recounted, renamed
from supernet.supernet import Supernet, build_architecture
from supernet.tail import Tail

SIZE = 16
LAYERS = (Layer((MBConv(3, 2), Conv(3), Skip()), 8, 1),) * 3
STEMS = [(), (Fixed(Conv(3), 8),), (Fixed(Conv(3), 8, 2), Fixed(DepthwiseSeparable(3), 8))]


def with_stem(stem: tuple[Fixed, ...]) -> Space:
    return Space(stem, LAYERS, Tail(conv_chs=12), image_size=SIZE, in_chs=3 if stem else 8)


def both(space: Space, choices: tuple[int, ...]) -> list[torch.nn.Module]:
    found: list[torch.nn.Module] = []
    for stem in ("fused", "unit"):
        torch.manual_seed(0)
        found.append(build_architecture(space, Architecture(choices), stem=stem))
    return found


@pytest.mark.parametrize("choices", [(0, 1, 0), (2, 2, 1), (2, 2, 2)])
@pytest.mark.parametrize("stem", STEMS, ids=len)
def test_both_counts_are_one_network_whose_tensors_have_two_names(
    stem: tuple[Fixed, ...], choices: tuple[int, ...]
) -> None:
    space = with_stem(stem)
    fused, unit = both(space, choices)
    images = torch.randn(4, space.in_chs, SIZE, SIZE)
    if stem or choices != (2, 2, 2):
        assert torch.equal(fused(images), unit(images))
    for one, other, how in ((fused, unit, "unit"), (unit, fused, "fused")):
        theirs = other.state_dict()
        found = renamed(one.state_dict(), len(stem), how)
        assert list(found) == list(theirs)
        assert all(torch.equal(found[name], theirs[name]) for name in found)
        again = renamed(theirs, len(stem), how)
        assert list(again) == list(theirs)


def test_the_first_layers_of_nas_bench_macro_may_be_skips() -> None:
    space = preset("nas_bench_macro", num_classes=10, image_size=SIZE)
    with torch.device("meta"):
        net = Supernet(space)
        for choices, layers in (((0, 1, 2, 0, 0, 2, 0, 1), 8), ((0,) * 8, 8)):
            skips = space.describe(Architecture(choices)).count("skip")
            assert net.extract(Architecture(choices)).num_layers == max(1, layers - skips)


@pytest.mark.parametrize("stem", STEMS[1:], ids=len)
def test_a_cut_of_one_count_is_the_same_cut_of_the_other(stem: tuple[Fixed, ...], tmp_path: Path) -> None:
    space, choices = with_stem(stem), (0, 1, 0)
    count, images = len(stem), torch.randn(4, 3, SIZE, SIZE)
    targets = torch.tensor([0, 1, 2, 3])
    fused, unit = both(space, choices)
    made = Decoupling((count + 1, count + 2), ("linear", "mlp_sr"))
    path = tmp_path / "decoupling.json"
    save_decoupling(path, made, "own/010", count + 3)  # as it was written when all counted the stem's layers
    read = read_decoupling(path)
    found = recounted(read, count, "fused")
    assert (found.decoupling.cuts, found.num_layers, found.stem) == ((1, 2), 3, "fused")
    assert recounted(found, count, "unit") == DecouplingFile(made, "own/010", count + 3, "unit")
    assert recounted(read, count, "unit") == read
    losses = []
    for chain, decoupling in ((fused, found.decoupling), (unit, made)):
        torch.manual_seed(1)
        net = decouple(chain, decoupling, 10, SIZE)  # type: ignore[arg-type]
        losses.append(torch.stack(net.losses(images, targets)))
    assert torch.equal(*losses)


def test_a_cut_in_the_stem_has_no_place_where_it_is_fused() -> None:
    for cuts in ((1,), (2,), (2, 4)):
        file = DecouplingFile(Decoupling(cuts, ("linear",) * len(cuts)), "own/010", 5)
        with pytest.raises(ValueError, match=rf"its cut after {cuts[0]} .* give stem unit too"):
            recounted(file, 2, "fused")


@pytest.mark.parametrize("network", ["", "resnet18", "timm/resnet18"])
def test_a_file_that_names_no_architecture_means_the_chain_as_it_is(network: str) -> None:
    file = DecouplingFile(Decoupling((1,), ("linear",)), network, None)
    assert recounted(file, 2, "fused") == recounted(file, 2, "unit") == file


def test_an_unknown_way_to_count_is_refused(tmp_path: Path) -> None:
    space = preset("tiny", num_classes=10, image_size=SIZE)
    with pytest.raises(ValueError, match="stem is 'apart'; it must be fused or unit"):
        build_architecture(space, sample(space, random.Random(0)), stem="apart")
    path = tmp_path / "decoupling.json"
    save_decoupling(path, Decoupling((1,), ("linear",)), stem="apart")
    with pytest.raises(ValueError, match=r"decoupling\.json: stem is 'apart'; it must be fused or unit"):
        read_decoupling(path)
