import math
import re
import subprocess
import sys
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import matplotlib
import pytest
from PIL import Image

from local_learning.decoupling import Decoupling
from local_learning.published import published
from search.cuts.figures import preference_figure, structure_figure

KINDS = ("aux1", "aux2", "aux3", "aux4")
LONG = "a network of $x_1 & <y> and a name that does not end " * 8
NETWORKS = {16: "resnet50", 50: "resnet152"}


def signals(num_layers: int, step: int = 100) -> list[float]:
    return [0.5 + 0.45 * math.sin(layer) * step / 100 for layer in range(1, num_layers)]


def mixture(num_layers: int) -> list[list[float]]:
    rows = [[2 + math.cos(3 * layer + 2 * head) for head in range(4)] for layer in range(1, num_layers)]
    return [[share / sum(row) for share in row] for row in rows]


def decouplings(num_layers: int) -> dict[int, Decoupling]:
    if num_layers == 2:
        return {2: Decoupling((1,), ("aux1",))}
    return {blocks: published(NETWORKS[num_layers], blocks) for blocks in (2, 4, 8)}


def full(num_layers: int) -> dict[str, Any]:
    history = [(step, signals(num_layers, step)) for step in (0, 50, 100)]
    errors = [0.1] * (num_layers - 1)
    return {"history": history, "errors": errors, "mixture": mixture(num_layers), "head_kinds": KINDS}


def ids(path: Path) -> list[str]:
    return [element.attrib["id"] for element in ElementTree.parse(path).iter() if "id" in element.attrib]


def texts(path: Path) -> list[str]:
    root = ElementTree.parse(path).getroot()
    return ["".join(element.itertext()) for element in root.iter("{http://www.w3.org/2000/svg}text")]


def numbers(path: Path, pattern: str) -> list[int]:
    """The numbers that the ids matching a pattern have, in order; no id is there twice."""
    found = [int(match[1]) for each in ids(path) if (match := re.fullmatch(pattern, each))]
    assert len(found) == len(set(found))
    return sorted(found)


@pytest.mark.parametrize("num_layers", [2, 16, 50])
def test_preferences_show_every_layer_every_cut_and_the_largest_shares(
    num_layers: int, tmp_path: Path
) -> None:
    path, layers = tmp_path / "preferences.svg", list(range(1, num_layers))
    chosen = decouplings(num_layers)
    preference_figure(
        path, signals(num_layers), chosen, title=NETWORKS.get(num_layers, LONG), **full(num_layers)
    )
    assert numbers(path, r"signal-(\d+)") == numbers(path, r"course-(\d+)") == layers
    assert numbers(path, r"error-(\d+)") == layers
    for blocks, decoupling in chosen.items():
        assert numbers(path, rf"blocks-{blocks}-cut-(\d+)") == list(decoupling.cuts)
        assert f"K = {blocks}" in texts(path)
    for head, kind in enumerate(KINDS):
        best = [layer for layer, row in enumerate(mixture(num_layers), 1) if row[head] == max(row)]
        assert numbers(path, rf"winner-(\d+)-{kind}") == best


@pytest.mark.parametrize("num_layers", [2, 16, 50])
@pytest.mark.parametrize("with_signals", [False, True])
def test_a_structure_shows_layers_cuts_and_heads_as_high_as_they_are_deep(
    num_layers: int, with_signals: bool, tmp_path: Path
) -> None:
    path, decoupling = tmp_path / "structure.svg", list(decouplings(num_layers).values())[-1]
    told = signals(num_layers) if with_signals else ()
    structure_figure(path, num_layers, decoupling, network=NETWORKS.get(num_layers, LONG), signals=told)
    assert numbers(path, r"layer-(\d+)") == list(range(1, num_layers + 1))
    assert numbers(path, r"cut-(\d+)") == list(decoupling.cuts)
    for cut, head in zip(decoupling.cuts, decoupling.heads, strict=True):
        assert len(numbers(path, rf"head-{cut}-(\d+)")) == int(head[-1])
    names = [text for text in texts(path) if text in KINDS]
    assert sorted(names) == sorted(decoupling.heads)
    assert {f"block {block}" for block in range(1, decoupling.num_blocks + 1)} <= set(texts(path))
    assert texts(path).count("classifier") == 1


def test_a_network_may_have_no_cuts_a_cut_everywhere_or_one_after_its_last_layer(tmp_path: Path) -> None:
    path = tmp_path / "figure.svg"
    structure_figure(path, 16, Decoupling((), ()))
    assert numbers(path, r"cut-(\d+)") == []
    assert "16 layers in 1 block" in texts(path)
    structure_figure(path, 20, Decoupling.uniform(20, 20, "infopro_contrast"), signals=signals(20))
    assert numbers(path, r"cut-(\d+)") == list(range(1, 20))
    closed = Decoupling.uniform(3, 3, "conv1c2f", groups=2)
    structure_figure(path, 3, closed)
    assert numbers(path, r"cut-(\d+)") == [1, 2, 3]
    assert " ".join(texts(path)).startswith("3 layers in 4 blocks, of 2 2 2 1 groups")
    preference_figure(path, signals(3), {4: closed})
    assert numbers(path, r"blocks-4-cut-(\d+)") == [1, 2, 3]
    preference_figure(path, signals(16), {1: Decoupling((), ())})
    preference_figure(path, signals(16), {}, history=[(0, signals(16))])
    assert numbers(path, r"signal-(\d+)") == list(range(1, 16))


@pytest.mark.parametrize(("num_layers", "every"), [(60, 1), (50, 3), (16, 200), (2, 1)])
def test_nothing_of_a_structure_is_outside_of_the_picture(
    num_layers: int, every: int, tmp_path: Path
) -> None:
    path, cuts = tmp_path / "structure.png", range(every, num_layers, every)
    decoupling = Decoupling(tuple(cuts), ("infopro_contrast",) * len(cuts))
    structure_figure(path, num_layers, decoupling, network=LONG, signals=signals(num_layers))
    with Image.open(path) as opened:
        image = opened.convert("RGB")
    width, height = image.size
    for edge in (
        (0, 0, width, 4),
        (0, height - 4, width, height),
        (0, 0, 4, height),
        (width - 4, 0, width, height),
    ):
        assert image.crop(edge).getextrema() == ((255, 255),) * 3


@pytest.mark.parametrize("suffix", ["svg", "png"])
def test_the_same_data_make_the_same_file_whatever_the_user_set(suffix: str, tmp_path: Path) -> None:
    def draw(folder: str) -> list[bytes]:
        (tmp_path / folder).mkdir()
        paths = [tmp_path / folder / f"{name}.{suffix}" for name in ("preferences", "structure")]
        preference_figure(paths[0], signals(2), decouplings(2), title=LONG, **full(2))
        structure_figure(paths[1], 2, decouplings(2)[2], signals=signals(2))
        assert sorted((tmp_path / folder).iterdir()) == paths
        return [path.read_bytes() for path in paths]

    before = dict(matplotlib.rcParams)
    first = draw("first")
    assert dict(matplotlib.rcParams) == before
    with matplotlib.rc_context({"font.size": 20, "lines.linewidth": 9, "axes.facecolor": "black"}):
        assert draw("second") == first


def test_text_is_text_in_a_vector_and_a_title_is_no_formula(tmp_path: Path) -> None:
    path = tmp_path / "structure.SVG"
    structure_figure(path, 16, decouplings(16)[4], network="$a_1$ & <b>")
    assert "$a_1$ & <b>: 16 layers in 4 blocks" in texts(path)
    assert b"<dc:date>" not in path.read_bytes()


def test_another_suffix_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"figure\.jpg: a figure is \.svg or \.png"):
        structure_figure(tmp_path / "figure.jpg", 2, decouplings(2)[2])
    assert not list(tmp_path.iterdir())


def test_figures_are_drawn_without_torch_and_without_pyplot() -> None:
    code = (
        "import search.cuts.figures, sys\n"
        "sys.exit(bool({'torch', 'matplotlib.pyplot'}.intersection(sys.modules)))"
    )
    subprocess.run([sys.executable, "-c", code], check=True, cwd=Path(__file__).parents[3])
