"""Every script, with files and folders that are not what its options take: one line that helps.

What is there instead is nothing, a folder, a file of nothing, of another kind, cut short, of another format
or a later version, or of the right kind with something wrong inside. Nothing of a run is left but what a
corrected command begins anew with.
"""

import json
import math
import os
import re
import sys
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
import torch
from PIL import Image

from supernet.network.storage import save_supernet
from supernet.presets import preset
from supernet.supernet import Supernet
from supernet.train.config import SupernetConfig
from tests.forked import run
from tests.forking import be_program
from tools.images.options import DataConfig
from tools.options.config import to_toml

pytestmark = pytest.mark.filterwarnings("ignore:`torch.jit.script` is deprecated:DeprecationWarning")

DATA = "--data.image-size 16 --data.train-size 200 --data.test-size 40"
HERE = "--device cpu --threads 1"
TRAIN = f"{DATA} {HERE} --recipe.steps 2 --recipe.batch-size 16"
PLAN = f"--plan --decoupling uniform:2:linear --network vgg6a --width 0.1 {DATA} {HERE}"
NET = f"--network vgg6a --width 0.1 {TRAIN}"
SCORE = f"--supernet good {HERE} --generations 0 --population 2 --breeding.parents 1"

LEFT = {".lock", "config.toml", "scoring.json", "metrics.jsonl", "decoupling.json", "plan.json", "0001.json"}
"""What a refused start may leave in the run's folder: the next one writes it anew, or adds to nothing."""

# ---- what is wrong with a file, whatever it should be --------------------------------------------------

SAYS = {
    "gone": r"no such file|there is no|is no run|no finished run",
    "folder": r"is a directory|is a folder|there is no file|holds neither",
    "empty": r"is not JSON|expecting value|cannot read|give either|two architectures|\[\[chapters\]\]",
    "picture": r"decode|not a text file|cannot read|two architectures|syntaxerror|valueerror",
    "torn": r"is not JSON|unterminated|not valid TOML|is not TOML|cannot read|two architectures|must have",
    "deep": r"recursion|two architectures|cannot read",
    "foreign": r"expected a file of format 'cleave/",
    "future": r"version 2 of cleave/",
}
DOCUMENTS = {
    "retrain_model.py --architecture": ("architecture", TRAIN),
    "retrain_model.py --decoupling": ("decoupling", NET),
    "retrain_model.py --cluster.profile": ("block-costs", PLAN),
    "make_truth.py --architectures": ("architecture", TRAIN),
    "make_truth.py --decouplings": ("decoupling", NET),
    "train_supernet.py --space": ("space", TRAIN),
    "search_architecture.py --costs": ("measured-costs", SCORE),
}
OTHERS = {
    "retrain_model.py --config": (".toml", "picture torn deep", ""),
    "retrain_model.py --plugins": (".py", "gone folder picture", ""),
    "demo.py --chapters": (".toml", "gone folder empty picture torn deep", ""),
    "train_supernet.py --space": (".toml", "gone folder empty picture torn deep", TRAIN),
    "make_truth.py --architectures": (".jsonl", "gone folder", f"--space tiny {TRAIN}"),
    "rank_report.py --truth": (
        ".json",
        "gone folder empty picture torn deep",
        "--space tiny --scores table.csv",
    ),
    "rank_report.py --scores": (
        ".jsonl",
        "gone folder empty picture torn deep",
        "--space tiny --truth table.csv",
    ),
    "rank_report.py --losses": (".csv", "gone folder empty picture torn", "--space tiny --truth table.csv"),
}
WEIGHTS = {
    "retrain_model.py --weights": NET,
    "search_decoupling.py --weights": NET,
    "train_supernet.py --weights": f"--space tiny {TRAIN}",
    "search_architecture.py --supernet": HERE,
    "rank_report.py --supernet": f"--truth table.csv {HERE}",
    "export_model.py --weights": "",
    "predict_images.py --weights": "--images table.csv",
}
FOLDERS = {
    "retrain_model.py --data.root": f"--data.name folder {NET}",
    "train_supernet.py --data.root": f"--data.name imagenet {TRAIN}",
    "make_truth.py --data.root": f"--data.name cifar10 --space tiny {TRAIN}",
    "search_decoupling.py --data.root": f"--data.name mnist {NET}",
    "search_decoupling.py --search.pretrained-run": NET,
    "search_architecture.py --compare": SCORE,
    "rank_report.py --search": "",
    "rank_report.py --cuts": "",
    "rank_report.py --trained": "",
    "export_model.py --run-of": "",
    "predict_images.py --run-of": "--images table.csv",
    "predict_images.py --export": "--images table.csv",
}

# ---- what is wrong inside of one of the right kind -----------------------------------------------------


def _document(kind: str, **content: Any) -> dict[str, Any]:
    return {"format": f"cleave/{kind}", "version": 1, **content}


FED: dict[str, Any] = {
    "input": {"resize": 37, "crop": 32, "mean": [0.5] * 3, "std": [0.5] * 3},
    "classes": ["a", "b"],
}
LAYER = {"ops": ["mbconv_k3_e4", "skip"], "out_chs": 8, "stride": 1}
BEST = {"architecture": "0000", "choices": [0, 0, 0, 0], "score": 0.5, "macs": 1, "params": 1}
GOOD: dict[str, dict[str, Any]] = {
    "architecture": _document("architecture", space="tiny", choices=[0, 0, 0, 0]),
    "decoupling": _document("decoupling", network="vgg6a", cuts=[2], heads=["linear"]),
    "space": _document("space", layers=[LAYER]),
    "measured-costs": _document(
        "measured-costs",
        **{"space": "tiny", "device": "CPU", "threads": 1, "batch_size": 1, "date": "2026-01-01"},
        **{"fixed_seconds": 0.1, "fixed_bytes": 1, "seconds": [[0.1] * 3] * 4, "saved_bytes": [[1] * 3] * 4},
    ),
    "relaxation": _document(
        "relaxation", network="vgg6a", head_kinds=["linear"], alpha=[[0.0, 0.0]], beta=[[0.0]]
    ),
    "front": _document("results", front=[], space="tiny", method="random", best=[BEST], evaluations=1),
    "decouplings": _document("results", decouplings={"2": {"cuts": [1], "heads": ["linear"]}}),
    "test": _document(
        "results", test={"last": {"top1": 0.5}}, macs=1, params=1, steps=1, training_seconds=1.0
    ),
}
INSIDE: dict[tuple[str, str], list[tuple[dict[str, Any], str]]] = {
    ("architecture", "retrain_model.py --architecture"): [
        ({"choices": "0000"}, "choices must be a list of whole numbers"),
        ({"choices": [0.0] * 4}, "choices must be a list of whole numbers"),
        ({"choices": [0]}, "4"),
        ({"choices": [-1] * 4}, "-1"),
        ({"choices": [10**30] * 4}, "layer 1"),
        ({"space": None}, "space must be a name or a description"),
        ({"space": "tinny"}, "did you mean 'tiny'"),
        ({"space": {"layers": [{**LAYER, "out_chs": -4}]}}, "out_chs is -4"),
    ],
    ("architecture", "make_truth.py --architectures"): [({"choices": [[0]] * 4}, "choices must be a list")],
    ("decoupling", "retrain_model.py --decoupling"): [
        ({"cuts": [4, 2], "heads": ["linear"] * 2}, "cuts: "),
        ({"cuts": [-1]}, "there is no layer -1"),
        ({"cuts": [2.5]}, "cuts"),
        ({"cuts": "2"}, "'cuts' must be a list"),
        ({"cuts": [99]}, "there is no layer 99"),
        ({"heads": ["linnear"]}, "linnear"),
        ({"heads": []}, "1 head"),
        ({"heads": [3]}, "3"),
        ({"groups": 0}, "groups"),
        ({"num_layers": 99}, "it is for vgg6a of 99 layers"),
        ({"cutz": []}, "did you mean 'cuts'"),
    ],
    ("decoupling", "make_truth.py --decouplings"): [({"heads": ["linnear"]}, "linnear")],
    ("space", "train_supernet.py --space"): [
        ({"layers": []}, "no layers"),
        ({"layers": "x"}, "layers must be a list of tables"),
        ({"layers": [{**LAYER, "ops": ["mbconvv"]}]}, "did you mean 'mbconv'"),
        ({"layers": [{**LAYER, "ops": [1]}]}, "an operation is a text"),
        ({"tail": 3}, "tail must be a table"),
        ({"tail": {"dropout": 7.0}}, "tail.dropout: 7 is out of range"),
        ({"style": {"activation": 3}}, "unknown key 'activation'"),
        ({"stem": 3}, "stem must be a list of tables"),
    ],
    ("measured-costs", "search_architecture.py --costs"): [
        ({"seconds": "x"}, "seconds must be a list of lists"),
        ({"seconds": [1, 2]}, "seconds must be a list of lists"),
        ({"seconds": [[0.1] * 3]}, "is of space tiny"),
        ({"seconds": [[-0.1] * 3] * 4}, "a time is less than 0"),
        ({"fixed_seconds": math.nan}, "it must be a finite number"),
        ({"space": "cream"}, "is of space cream"),
        ({"batch_size": "x"}, "batch_size must be of type int"),
    ],
}
RUNS: dict[str, list[tuple[dict[str, Any], str]]] = {
    "rank_report.py --search": [
        ({"results.json": b""}, "is not JSON"),
        ({"results.json": {**GOOD["front"], "version": 2}}, "version 2 of cleave/results"),
        ({"results.json": _document("results")}, "is not a run of search_architecture.py"),
        ({"results.json": GOOD["front"]}, "evaluations.jsonl': No such file"),
        ({"results.json": GOOD["front"], "evaluations.jsonl": b"\xaf"}, "it has no scores"),
        ({"results.json": {**GOOD["front"], "best": 3}}, "is not whole"),
        ({"results.json": {**GOOD["front"], "best": [{}]}}, "'choices' is missing"),
        (
            {"results.json": GOOD["front"], "evaluations.jsonl": {"score": "x", "macs": "y"}},
            "is not whole, or was changed",
        ),
    ],
    "rank_report.py --cuts": [
        ({"results.json": _document("results")}, "is not a run of search_decoupling.py"),
        ({"results.json": GOOD["decouplings"]}, "relaxation.json: No such file"),
        *(
            ({"results.json": GOOD["decouplings"], "relaxation.json": GOOD["relaxation"] | change}, said)
            for change, said in (
                ({"alpha": [[math.nan, 0.0]]}, "nan is not finite"),
                ({"alpha": [[0.0, 0.0, 0.0]]}, "3 values, not 2"),
                ({"alpha": [[0.0, 0.0]] * 2}, "alpha has 2 rows and beta 1"),
                ({"alpha": "x"}, "is not a list"),
                ({"head_kinds": [3]}, "3 is not the name of a head"),
                ({"network": 3}, "'network' must be a text"),
                ({"version": 2}, "version 2 of cleave/relaxation"),
            )
        ),
        *(
            ({"results.json": GOOD["decouplings"] | change, "relaxation.json": GOOD["relaxation"]}, said)
            for change, said in (
                ({"decouplings": 3}, "is not whole"),
                ({"decouplings": {"2": {"cuts": [1]}}}, "'heads' is missing"),
                ({"words": 3}, "is not whole"),
            )
        ),
        *(
            (
                {
                    "results.json": GOOD["decouplings"],
                    "relaxation.json": GOOD["relaxation"],
                    "preferences.svg": svg,
                },
                "is not whole",
            )
            for svg in (b"\xaf", b"hello")
        ),
    ],
    "rank_report.py --trained": [
        ({"results.json": GOOD["test"]}, "config.toml': No such file"),
        ({"results.json": GOOD["test"], "config.toml": b"\xaf"}, "is not whole"),
        ({"results.json": GOOD["test"], "config.toml": b""}, "metrics.jsonl': No such file"),
        (
            {"results.json": {**GOOD["test"], "test": {}}, "config.toml": b"", "metrics.jsonl": b""},
            "'last' is missing",
        ),
        (
            {
                "results.json": {**GOOD["test"], "test": {"last": {"top1": "x"}}},
                "config.toml": b"",
                "metrics.jsonl": b"",
            },
            "is not whole",
        ),
        ({"truth.jsonl": b"\xaf"}, "its truth.jsonl has no trainings"),
        ({"truth.jsonl": {"cuts": [1]}}, "'network' is missing"),
        (
            {"truth.jsonl": {"cuts": [1], "heads": ["linear"], "network": "mlp", "accuracy": "x"}},
            "is not whole",
        ),
        ({"truth.jsonl": {"choices": [1], "accuracy": 1}}, "is a truth of architectures"),
    ],
    "search_architecture.py --compare": [
        ({"evaluations.jsonl": b""}, "there are no scores"),
        ({"evaluations.jsonl": {"choices": "x", "score": 1}}, "choices must be a list"),
        ({"evaluations.jsonl": {"choices": [0] * 4, "score": "x"}}, "a line must have choices and a score"),
        ({"evaluations.jsonl": {"choices": [0] * 4, "score": math.nan}}, "choices and a score"),
        ({"evaluations.jsonl": {"choices": [0] * 4, "score": 1}}, "scoring.json: No such file"),
        (
            {"evaluations.jsonl": {"choices": [0] * 4, "score": 1}, "scoring.json": _document("scoring")},
            "are of another supernet",
        ),
    ],
    "export_model.py --run-of": [
        ({"config.toml": b""}, "has not finished"),
        ({"config.toml": b"", "results.json": b"{"}, "is not JSON"),
        ({"config.toml": b"", "results.json": _document("results")}, "there is no file"),
        (
            {"config.toml": b"", "results.json": _document("results"), "best.safetensors": b"\xaf"},
            "is not the weights of a run",
        ),
    ],
    "predict_images.py --export": [
        ({"export.json": b"{"}, "is not JSON"),
        ({"export.json": {**_document("export"), "version": 2}}, "version 2 of cleave/export"),
        ({"export.json": _document("export")}, "is not whole: 'formats'"),
        ({"export.json": _document("export", formats=3)}, "is not whole"),
        ({"export.json": _document("export", formats={"state": {}})}, "there is no file"),
        ({"export.json": _document("export", formats={"onnx": {}})}, "does not say how images are prepared"),
        *(
            ({"export.json": _document("export", formats={name: {}}, **FED), "network.onnx": b"\xaf"}, said)
            for name, said in (
                ("onnx", "cannot read"),
                ("timm", "cannot read"),
                ("torch_export", "could run"),
            )
        ),
        (
            {
                "export.json": _document(
                    "export", formats={"onnx": {}}, **FED | {"input": FED["input"] | {"resize": "x"}}
                )
            },
            "is not whole: 'x' is no number",
        ),
    ],
    "demo.py --run": [
        ({"chapters.json": b"\xaf"}, "is not JSON"),
        ({"chapters.json": _document("chapters")}, "does not say which commands are done"),
        ({"chapters.json": _document("chapters", commands=3)}, "does not say which commands are done"),
    ],
    "retrain_model.py --run": [
        ({"mine.txt": b"x"}, "holds files but no run"),
        ({"config.toml": b"\xaf", "results.json": _document("results")}, "not valid TOML"),
    ],
}
REST = {option: rest for option, rest in FOLDERS.items()} | {"retrain_model.py --run": NET}
TEXTS = [
    ("demo.py --chapters", "a.toml", "chapters = 3", "must have [[chapters]]"),
    ("demo.py --chapters", "b.toml", "[[chapters]]\ntitle = 3\ncommands = []", "has a title"),
    ("demo.py --chapters", "c.toml", '[[chapters]]\ntitle = "x"\ncommands = ["demmo.py"]', "mean 'demo.py'"),
    (
        "demo.py --chapters",
        "d.toml",
        '[[chapters]]\ntitle = "x"\ncommands = ["demo.py {run.x}"]',
        "has braces that are none of {run}",
    ),
    (
        "demo.py --chapters",
        "e.toml",
        'end = "{gone}"\n[[chapters]]\ntitle = "x"\ncommands = ["demo.py"]',
        "has braces that are none of {run}",
    ),
    (
        "demo.py --chapters",
        "f.toml",
        'end = "{"\n[[chapters]]\ntitle = "x"\ncommands = ["demo.py"]',
        "has braces that are none of {run}",
    ),
    ("retrain_model.py --plugins", "a.py", "import torch.nothing", "line 1: ModuleNotFoundError"),
    ("retrain_model.py --plugins", "b.py", "raise ValueError('two\\nlines')", "line 1: ValueError: two"),
    ("retrain_model.py --plugins", "c.py", "import sys\nsys.exit(3)", "line 2: SystemExit"),
    ("rank_report.py --truth", "a.json", '{"0000": NaN, "0001": 1}', "it must be a finite number"),
    ("rank_report.py --truth", "b.json", '{"0000": 1}', "two architectures or more"),
    ("rank_report.py --truth", "c.json", '{"x": 1, "y": 2}', "x"),
    ("rank_report.py --truth", "d.csv", "choices,acc\n0000,x\n0001,1\n", "it must be a finite number"),
    ("rank_report.py --truth", "e.csv", "choices,acc\n" + "0" * 200_000 + ",1\n", "field limit"),
    ("rank_report.py --truth", "f.txt", "0000 1", "a .json, .jsonl or .csv file"),
    ("make_truth.py --architectures", "a.jsonl", '{"choices": "0000"}', "choices must be a list"),
]


class Case:
    """A script with one option that names something wrong."""

    def __init__(self, option: str, path: str, rest: str, says: str) -> None:
        self.script, self.option = option.split()
        self.path, self.rest, self.says = path, rest, says

    def __str__(self) -> str:
        return f"{self.script} {self.option} {self.path}"


def cases() -> Iterator[Case]:
    for option, (kind, rest) in DOCUMENTS.items():
        for what in SAYS:
            if (option, what) != ("retrain_model.py --cluster.profile", "gone"):  # it is written then
                name = f"{what}-{kind}.json" if what == "future" else f"{what}.json"
                yield Case(option, name, rest, SAYS[what])
    for option, (suffix, kinds, rest) in OTHERS.items():
        for what in kinds.split():
            yield Case(option, what + suffix, rest, SAYS[what])
    for option, rest in WEIGHTS.items():
        for name, said in NO_WEIGHTS.items():
            yield Case(option, name, rest, said)
    for name, said in NO_SUPERNET.items():
        for option in ("search_architecture.py --supernet", "rank_report.py --supernet"):
            yield Case(option, name, WEIGHTS[option], said)
    for option, rest in FOLDERS.items():
        for name in ("gone", "empty.json", "folder"):
            yield Case(option, name, rest, "")
    for (kind, option), wrong in INSIDE.items():
        for number, (_, said) in enumerate(wrong):
            yield Case(
                option, f"{kind}-{option.split('.')[0]}-{number}.json", DOCUMENTS[option][1], re.escape(said)
            )
    for option, runs in RUNS.items():
        for number, (_, said) in enumerate(runs):
            yield Case(
                option, f"{option.replace(' --', '-')}-{number}", REST.get(option, ""), re.escape(said)
            )
    for option, name, _, said in TEXTS:
        yield Case(option, f"texts/{name}", OTHERS[option][2], re.escape(said))
    yield Case("retrain_model.py --run", "empty.json", NET, "is a file; a run is a folder")
    yield Case("train_supernet.py --run", "empty.json/run", TRAIN, "cannot write in folder")
    yield Case(
        "export_model.py --out", "empty.json", "--weights good/weights.safetensors", "is there already"
    )


NO_WEIGHTS = {
    "gone.safetensors": "there is no file",
    "empty.safetensors": "cannot read|not the weights|not those of a supernet",
    "picture.safetensors": "cannot read|not the weights|not those of a supernet",
    "torn.safetensors": "cannot read|not the weights|not those of a supernet",
    "future.safetensors": "version 9 of cleave/weights|not the weights|not those of a supernet",
    "other.safetensors": "does not fit|not those of a supernet|not the weights",
    "junk.pt": "cannot read|not the weights|not those of a supernet",
    "number.pt": "something other than named tensors|not the weights|not those of a supernet",
}
NO_SUPERNET = {
    "space-number.safetensors": "not those of a supernet",
    "space-nothing.safetensors": "give either",
    "config-number.safetensors": "not those of a supernet",
    "config-wrong.safetensors": "'space' must be of type str",
    "lacking.safetensors": "does not fit the network: it lacks",
    "nan.safetensors": "is not a finite number",
    "folder": "there is no file",
}


@pytest.fixture(scope="module")
def house(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with all of that, and a supernet to go with it."""
    folder = tmp_path_factory.mktemp("files")
    for suffix in (".json", ".jsonl", ".toml", ".py", ".csv"):
        (folder / f"folder{suffix}").mkdir()
        (folder / f"empty{suffix}").write_bytes(b"")
        Image.new("RGB", (8, 8)).save(folder / f"picture{suffix}", "PNG")
        (folder / f"torn{suffix}").write_text('{"format": "cleave/x", "ver')
        (folder / f"deep{suffix}").write_text("a = " * (suffix == ".toml") + "[" * 100_000)
    (folder / "folder").mkdir()
    _write(folder / "foreign.json", _document("other"))
    for kind, _ in DOCUMENTS.values():
        _write(folder / f"future-{kind}.json", {"format": f"cleave/{kind}", "version": 2})
    for (kind, option), wrong in INSIDE.items():
        for number, (change, _) in enumerate(wrong):
            _write(folder / f"{kind}-{option.split('.')[0]}-{number}.json", GOOD[kind] | change)
    for option, runs in RUNS.items():
        for number, (files, _) in enumerate(runs):
            place = folder / f"{option.replace(' --', '-')}-{number}"
            place.mkdir()
            for name, content in files.items():
                _write(place / name, content)
    (folder / "texts").mkdir()
    for _, name, text, _ in TEXTS:
        (folder / "texts" / name).write_text(text)
    (folder / "table.csv").write_text("choices,acc\n0000,1\n0001,2\n0100,3\n")
    _write_weights(folder)
    return folder


def _write(path: Path, content: Mapping[str, Any] | bytes) -> None:
    path.write_bytes(content if isinstance(content, bytes) else json.dumps(content).encode())


def _write_weights(folder: Path) -> None:
    net = Supernet(preset("tiny", num_classes=10, image_size=16))
    data = DataConfig(image_size=16, train_size=200, test_size=40)
    notes = {"config": to_toml(SupernetConfig(space="tiny", data=data))}
    (folder / "good").mkdir()
    good = folder / "good" / "weights.safetensors"
    save_supernet(good, net, notes)
    Image.new("RGB", (8, 8)).save(folder / "picture.safetensors", "PNG")
    (folder / "empty.safetensors").write_bytes(b"")
    (folder / "torn.safetensors").write_bytes(good.read_bytes()[: good.stat().st_size // 2])
    (folder / "junk.pt").write_bytes(b"\xaf" * 100)
    torch.save(3, folder / "number.pt")
    with safetensors.safe_open(good, "pt") as file:
        said = file.metadata()
    few, all_ = {"x": torch.zeros(2)}, net.state_dict()
    nan = {name: tensor * math.nan if tensor.is_floating_point() else tensor for name, tensor in all_.items()}
    for name, tensors, notes in (
        ("other", few, {}),
        ("future", few, {"format": "cleave/weights", "version": "9"}),
        ("lacking", few, said),
        ("nan", nan, said),
        ("space-number", all_, said | {"space": "3"}),
        ("space-nothing", all_, said | {"space": "{}"}),
        ("config-number", all_, said | {"config": "3"}),
        ("config-wrong", all_, said | {"config": '"space = 3"'}),
    ):
        safetensors.torch.save_file(tensors, folder / f"{name}.safetensors", notes)


Ended = tuple[int | str | None, str]
Here = Callable[..., Ended]


@pytest.fixture
def here(monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]) -> Here:
    """Runs a script in this process; returns its code and what it has written as errors."""

    def ended(*words: str) -> Ended:
        monkeypatch.setattr(sys, "argv", [])
        with pytest.raises(SystemExit) as end:
            be_program(words)
        return end.value.code, capfd.readouterr().err

    return ended


def refused(case: Case, house: Path, tmp_path: Path, here: Here) -> str:
    """The line that the script ends with."""
    path = house / case.path
    rest = [str(house / word) if word in ("good", "table.csv") else word for word in case.rest.split()]
    rest = [word.replace("good/", f"{house}/good/") for word in rest]
    if case.option != "--run" and case.script not in ("export_model.py", "predict_images.py"):
        rest += ["--run", str(tmp_path / "run")]
    if case.script == "export_model.py" and case.option != "--out":
        rest += ["--out", str(tmp_path / "run")]
    code, said = here(case.script, case.option, str(path), *rest)
    assert code == 2, said
    assert said.count("\n") == 1, said
    assert said.startswith(f"{case.script}: ")
    assert len(said) < 500 + len(str(path)), said
    left = {each.name for each in tmp_path.glob("run/**/*") if each.is_file()}
    assert left <= LEFT
    return said


@pytest.mark.parametrize("case", list(cases()), ids=str)
def test_what_is_not_right_is_one_line(case: Case, house: Path, tmp_path: Path, here: Here) -> None:
    said = refused(case, house, tmp_path, here)
    assert case.option in said or case.path in said
    assert re.search(case.says, said, flags=re.IGNORECASE), said


@pytest.mark.skipif(os.geteuid() == 0, reason="root reads everything")
@pytest.mark.parametrize("option", [*DOCUMENTS, *OTHERS, *WEIGHTS])
def test_what_cannot_be_read_is_one_line(option: str, house: Path, tmp_path: Path, here: Here) -> None:
    suffix, rest = ".json", ""
    if option in DOCUMENTS:
        rest = DOCUMENTS[option][1]
    elif option in OTHERS:
        suffix, rest = OTHERS[option][0], OTHERS[option][2]
    else:
        suffix, rest = ".safetensors", WEIGHTS[option]
    file = house / f"closed{suffix}"
    file.touch()
    file.chmod(0)
    assert file.name in refused(Case(option, file.name, rest, ""), house, tmp_path, here)


def test_a_mistake_is_mended_in_place(house: Path, tmp_path: Path, here: Here) -> None:
    case = Case("search_architecture.py --compare", "gone", SCORE, "")
    refused(case, house, tmp_path, here)
    where = ["--supernet", str(house / "good"), "--run", str(tmp_path / "run")]
    done = run(case.script, *SCORE.replace("--supernet good ", "").split(), *where)
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "run" / "best.json").exists()
