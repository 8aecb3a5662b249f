import json
import random
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from supernet.layers import (
    Conv,
    DepthwiseSeparable,
    FusedMBConv,
    MBConv,
    Op,
    Projection,
    Shuffle,
    Skip,
    Style,
)
from supernet.network.documents import (
    find_space,
    load_architecture,
    load_space,
    save_architecture,
    save_space,
    space_from,
    space_to,
)
from supernet.presets import PRESETS, preset
from supernet.sampling import sample
from supernet.space import Architecture, Fixed, Layer, Space
from supernet.tail import Tail

OWN = """
name = "mine"
num_classes = 7
image_size = 40

[style]
act = "silu"
se_from = "expanded"
se_act = "relu"
se_gate = "hard_sigmoid"
se_divisor = 8

[[stem]]
op = "conv_k3_hard_swish"
out_chs = 8
stride = 2

[[stem]]
op = "ds_k5_se0.25"
out_chs = 8

[[stages]]
ops = ["mbconv_k3_e4", "mbconv_k5_e2.5_se0.25", "fused_k3_e2", "skip"]
depth = 2
out_chs = 16
stride = 2

[[stages]]
ops = ["shuffle_k5", "shufflex", "skip", "ds_gelu"]
first = ["proj", "shuffle_k3", "conv_k1"]
depth = 3
out_chs = 24
stride = 2

[tail]
conv_chs = 32
hidden_chs = 16
dropout = 0.25
"""


def own_space() -> Space:
    """What OWN says."""
    first: tuple[Op, ...] = (MBConv(3, 4), MBConv(5, 2.5, 0.25), FusedMBConv(3, 2))
    second: tuple[Op, ...] = (
        Shuffle(5),
        Shuffle(3, xception=True),
        Skip(),
        DepthwiseSeparable(3, act="gelu"),
    )
    return Space(
        (Fixed(Conv(3, "hard_swish"), 8, 2), Fixed(DepthwiseSeparable(5, 0.25), 8)),
        (
            Layer(first, 16, 2),
            Layer((*first, Skip()), 16),
            Layer((Projection(), Shuffle(3), Conv(1)), 24, 2),
            Layer(second, 24),
            Layer(second, 24),
        ),
        Tail(conv_chs=32, hidden_chs=16, dropout=0.25),
        name="mine",
        style=Style(act="silu", se_from="expanded", se_act="relu", se_gate="hard_sigmoid", se_divisor=8),
        num_classes=7,
        image_size=40,
    )


def written(path: Path, text: str) -> Path:
    path.write_text(text, encoding="utf-8")
    return path


def refused(call: Any, *parts: str) -> None:
    """It is refused in one line that has all of these parts."""
    with pytest.raises(ValueError) as caught:  # noqa: PT011 - the parts are looked for below
        call()
    message = str(caught.value)
    assert "\n" not in message
    for part in parts:
        assert part in message


# ---- spaces --------------------------------------------------------------------------------------------


def test_a_space_written_by_hand(tmp_path: Path) -> None:
    path = written(tmp_path / "own.toml", OWN)
    assert load_space(path) == own_space()
    # Asked for other images, it is the same space for those.
    for_images = find_space(str(path), num_classes=3, image_size=64, in_chs=1)
    assert for_images == replace(own_space(), num_classes=3, image_size=64, in_chs=1)


def test_what_a_file_leaves_out_is_as_usual(tmp_path: Path) -> None:
    path = written(tmp_path / "short.toml", '[[layers]]\nops = ["conv", "skip"]\nout_chs = 3\n')
    layer = Layer((Conv(3), Skip()), 3)
    assert load_space(path) == Space((), (layer,), Tail(), name="short")
    assert load_space(path).num_classes == 10


@pytest.mark.parametrize("name", [*PRESETS, "own"])
def test_a_space_and_its_document(name: str, tmp_path: Path) -> None:
    space = own_space() if name == "own" else preset(name, num_classes=12, image_size=48, in_chs=1)
    assert space_from(json.loads(json.dumps(space_to(space)))) == space
    path = tmp_path / "space.json"
    save_space(path, space)
    assert load_space(path) == space
    document = json.loads(path.read_text())
    assert (document["format"], document["version"]) == ("cleave/space", 1)
    assert find_space(str(path), num_classes=12, image_size=space.image_size, in_chs=space.in_chs) == replace(
        space, num_classes=12
    )


@pytest.mark.parametrize("name", PRESETS)
def test_a_preset_is_found_by_its_name(name: str) -> None:
    expected = preset(name, num_classes=5, image_size=48, in_chs=2)
    assert find_space(name, num_classes=5, image_size=48, in_chs=2) == expected


def test_a_presets_name_is_no_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    written(tmp_path / "tiny", OWN)
    assert find_space("tiny", num_classes=10, image_size=32) == preset("tiny", num_classes=10, image_size=32)


# ---- mistakes in spaces --------------------------------------------------------------------------------

MISTAKES = [
    ("depth = 2\n", "depht = 2\n", ["stages 1", "unknown key 'depht'", "did you mean 'depth'"]),
    ("[tail]\n", "[tial]\n", ["unknown key 'tial'", "did you mean 'tail'"]),
    ("dropout = 0.25", "droput = 0.25", ["tail", "unknown key 'droput'", "dropout"]),
    ("se_divisor = 8", "se_div = 8", ["style", "unknown key 'se_div'", "se_divisor"]),
    ('op = "ds_k5_se0.25"\n', 'ops = "ds_k5_se0.25"\n', ["stem 2", "unknown key 'ops'"]),
    ("fused_k3_e2", "fussed_k3_e2", ["stages 1", "ops", "'fussed_k3_e2' is unknown", "'fused'"]),
    ("conv_k3_hard_swish", "conv_k3_swoosh", ["stem 1", "op", "conv_k3_swoosh", "hard_swish"]),
    ('"proj", ', '"prj", ', ["stages 2", "first", "'prj' is unknown", "did you mean 'proj'"]),
    ("shuffle_k5", "shuffle_k6", ["stages 2", "ops", "shuffle_k6", "odd"]),
    ("out_chs = 24\n", "", ["stages 2", "out_chs is missing"]),
    ("depth = 3\n", "", ["stages 2", "depth is missing"]),
    ("depth = 3\n", "depth = 0\n", ["stages 2", "depth is 0", "whole number from 1"]),
    ("depth = 3\n", "depth = 2.5\n", ["stages 2", "depth is 2.5"]),
    ("depth = 3\n", "depth = true\n", ["stages 2", "depth is True"]),
    ('op = "ds_k5_se0.25"\n', "", ["stem 2", "op", "None"]),
    ('op = "ds_k5_se0.25"\n', "op = 5\n", ["stem 2", "op", "5"]),
    ('"proj", "shuffle_k3", "conv_k1"', '"proj", 3', ["stages 2", "first", "3"]),
    ('["proj", "shuffle_k3", "conv_k1"]', '"proj"', ["stages 2", "first must be a list of operations"]),
    ('"proj", "shuffle_k3"', '"proj", "skip"', ["space mine", "layer 3", "skip cannot", "proj"]),
    ('"ds_k5_se0.25"\nout_chs = 8', '"skip"\nout_chs = 12', ["space mine", "stem 2", "skip cannot"]),
    ("24\nstride = 2", "16\nstride = 2", ["space mine", "layer 3", "shuffle needs"]),
    ("24\nstride = 2", "24\nstride = 3", ["space mine", "layer 3", "stride 3", "1 or 2"]),
    ('"proj", "shuffle_k3", "conv_k1"', '"conv_k3", "conv"', ["space mine", "layer 3", "twice"]),
    ("dropout = 0.25", "dropout = 1.5", ["tail.dropout", "1.5"]),
    ("dropout = 0.25", 'dropout = "much"', ["tail", "dropout must be of type float", "'much'"]),
    ("conv_chs = 32", "conv_chs = true", ["tail", "conv_chs must be of type int", "True"]),
    ('act = "silu"', 'act = "sillu"', ["style.act", "'sillu'", "did you mean 'silu'"]),
    ('act = "silu"', "act = 3", ["style", "act must be of type str"]),
    ("[tail]\n", '[[layers]]\nops = ["conv"]\nout_chs = 3\n[tail]\n', ["[[stages]]", "[[layers]]"]),
    ('name = "mine"', 'name = "mine"\nlayers = 3', ["[[stages]]", "[[layers]]"]),
    ("num_classes = 7", "num_classes = -7", ["num_classes is -7"]),
    ('name = "mine"', 'version = 2\nformat = "cleave/space"', ["version 2"]),
    ('name = "mine"', 'format = "cleave/decoupling"', ["'cleave/space'", "'cleave/decoupling'"]),
    ('name = "mine"', "name = mine", ["not TOML"]),
]


@pytest.mark.parametrize(("right", "wrong", "parts"), MISTAKES)
def test_a_mistake_in_a_space_is_one_line_that_says_where(
    right: str, wrong: str, parts: list[str], tmp_path: Path
) -> None:
    assert OWN.count(right) == 1
    path = written(tmp_path / "own.toml", OWN.replace(right, wrong))
    refused(lambda: load_space(path), str(path), *parts)
    if "num_classes" not in wrong:  # which the caller gives
        refused(lambda: find_space(str(path), num_classes=10, image_size=32), str(path), *parts)


@pytest.mark.parametrize(
    ("content", "parts"),
    [
        ({}, ["give either [[stages]] or [[layers]]"]),
        ({"layers": []}, ["no layers to search"]),
        ({"stages": []}, ["no layers to search"]),
        ({"layers": {"ops": ["conv"]}}, ["layers must be a list of tables"]),
        ({"stages": [3]}, ["stages must be a list of tables"]),
        ({"layers": [{"out_chs": 3}]}, ["layers 1", "ops must be a list"]),
        (
            {"layers": [{"ops": ["conv"], "out_chs": 3}, {"ops": ["conv"]}]},
            ["layers 2", "out_chs is missing"],
        ),
        ({"layers": [{"ops": ["conv"], "out_chs": 3, "depth": 2}]}, ["layers 1", "unknown key 'depth'"]),
        ({"layers": [{"ops": ["skip"], "out_chs": 3}]}, ["layer 1", "no candidate but skip"]),
        ({"layers": [{"ops": ["conv"], "out_chs": 3}], "tail": 3}, ["tail must be a table"]),
    ],
)
def test_a_mistake_in_a_spaces_document(content: dict[str, Any], parts: list[str], tmp_path: Path) -> None:
    document = {"format": "cleave/space", "version": 1, **content}
    path = written(tmp_path / "space.json", json.dumps(document))
    refused(lambda: load_space(path), str(path), *parts)


def test_documents_of_other_formats_and_versions_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "space.json"
    save_space(path, own_space())
    document = json.loads(path.read_text())
    written(path, json.dumps(document | {"version": 2}))
    refused(lambda: load_space(path), str(path), "version 2", "cleave/space")
    written(path, json.dumps(document | {"format": "cleave/architecture"}))
    refused(lambda: load_space(path), str(path), "'cleave/architecture'", "'cleave/space'")
    written(path, "[1]")
    refused(lambda: load_space(path), str(path), "'cleave/space'")
    written(path, "{")
    refused(lambda: load_space(path), str(path), "not JSON")
    path.unlink()
    refused(lambda: load_space(path), str(path), "cannot read")
    refused(lambda: load_space(tmp_path / "no.toml"), "cannot read", "no.toml")


@pytest.mark.parametrize(
    ("name", "hint"),
    [("lwsl_fitt", "did you mean 'lwsl_fit'"), ("space.txt", ".toml or .json"), ("", "known")],
)
def test_an_unknown_space_is_refused_with_a_hint(name: str, hint: str) -> None:
    refused(lambda: find_space(name, num_classes=10, image_size=32), f"space '{name}' is unknown", hint)


# ---- architectures -------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", PRESETS)
def test_an_architecture_of_a_preset_names_it(name: str, tmp_path: Path) -> None:
    path, space = tmp_path / "architecture.json", preset(name, num_classes=5, image_size=48)
    architecture = sample(space, random.Random(0))
    save_architecture(path, architecture, space, score=0.5)
    assert json.loads(path.read_text()) == {
        "format": "cleave/architecture",
        "version": 1,
        "space": name,
        "choices": list(architecture.choices),
        "score": 0.5,
    }
    assert load_architecture(path, num_classes=5, image_size=48) == (space, architecture)
    other = preset(name, num_classes=3, image_size=64, in_chs=1)
    assert load_architecture(path, num_classes=3, image_size=64, in_chs=1) == (other, architecture)


@pytest.mark.parametrize("name", ["mine", "tiny"])
def test_an_architecture_of_an_own_space_brings_it_along(name: str, tmp_path: Path) -> None:
    # Even if it has a preset's name.
    path, space = tmp_path / "architecture.json", replace(own_space(), name=name)
    architecture = sample(space, random.Random(0))
    save_architecture(path, architecture, space)
    assert load_architecture(path, num_classes=7, image_size=40) == (space, architecture)
    found, _ = load_architecture(path, num_classes=3, image_size=64, in_chs=1)
    assert found == replace(space, num_classes=3, image_size=64, in_chs=1)


def test_an_architecture_written_by_hand_may_name_a_spaces_file(tmp_path: Path) -> None:
    space = written(tmp_path / "own.toml", OWN)
    document = {
        "format": "cleave/architecture",
        "version": 1,
        "space": str(space),
        "choices": [0, 3, 1, 2, 2],
    }
    path = written(tmp_path / "architecture.json", json.dumps(document))
    assert load_architecture(path, num_classes=7, image_size=40) == (
        own_space(),
        Architecture((0, 3, 1, 2, 2)),
    )


@pytest.mark.parametrize(
    ("wrong", "parts"),
    [
        ({"choices": [0] * 7}, ["7 choices", "nas_bench_macro has 8 searchable layers"]),
        ({"choices": []}, ["0 choices"]),
        ({"choices": [0, 1, 2, 3, 0, 0, 0, 0]}, ["layer 4 of space nas_bench_macro", "0 to 2, not 3"]),
        ({"choices": [0, 0, 0, 0, 0, 0, 0, -1]}, ["layer 8", "not -1"]),
        ({"choices": [0, 1.0, 0, 0, 0, 0, 0, 0]}, ["choices must be a list of whole numbers"]),
        ({"choices": [True] * 8}, ["choices must be a list of whole numbers"]),
        ({"choices": "00000000"}, ["choices must be a list of whole numbers", "'00000000'"]),
        ({"choices": None}, ["choices must be a list of whole numbers"]),
        (
            {"space": "nas_bench_makro"},
            ["space 'nas_bench_makro' is unknown", "did you mean 'nas_bench_macro'"],
        ),
        ({"space": None}, ["space must be", "None"]),
        ({"space": 3}, ["space must be", "3"]),
        ({"space": {"layers": [{"ops": ["convv"], "out_chs": 3}]}}, ["layers 1: ops", "'convv' is unknown"]),
        ({"space": "absent.toml"}, ["cannot read absent.toml"]),
        ({"version": 2}, ["version 2", "cleave/architecture"]),
        ({"version": None}, ["version None"]),
        ({"format": "cleave/space"}, ["'cleave/space'", "'cleave/architecture'"]),
    ],
)
def test_a_mistake_in_an_architectures_document(
    wrong: dict[str, Any], parts: list[str], tmp_path: Path
) -> None:
    right = {"format": "cleave/architecture", "version": 1, "space": "nas_bench_macro", "choices": [0] * 8}
    path = written(tmp_path / "architecture.json", json.dumps(right))
    load_architecture(path, num_classes=10, image_size=32)
    written(path, json.dumps(right | wrong))
    refused(lambda: load_architecture(path, num_classes=10, image_size=32), str(path), *parts)


def test_a_wrong_architecture_is_not_written(tmp_path: Path) -> None:
    path = tmp_path / "architecture.json"
    refused(lambda: save_architecture(path, Architecture((0,) * 5), preset_of_eight()), "5 choices")
    assert not path.exists()


def preset_of_eight() -> Space:
    return preset("nas_bench_macro", num_classes=10, image_size=32)
