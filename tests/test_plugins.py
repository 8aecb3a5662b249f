"""Parts of one's own in the real scripts, where they are equal to ours: the same numbers to the last bit."""

import json
import os
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.forked import run, run_up_to
from tests.script import SMALL, weights
from tests.supernet.train.test_run import FEW
from tools.run.meters import read_metrics

PARTS = str(Path(__file__).with_name("plugin_parts.py"))
OWN = ["--plugins", PARTS]
SHORT = [
    *SMALL,
    *("--recipe.steps", "6", "--recipe.evaluate-every", "3", "--recipe.checkpoint-every", "2"),
    *("--recipe.lr", "0.02"),
]
NET = [*SHORT, "--network", "vgg6a", "--width", "0.125"]
RECORDS = ["--records.probes", "1", "--records.calibration-images", "64", "--records.shift-images", "40"]
SUPERNET = [*SHORT, *RECORDS, "--records.calibration-batch", "32", "--records.latency-batch", "0"]
SEARCH = [
    *("--device", "cpu", "--threads", "1", "--population", "4", "--generations", "1"),
    *("--breeding.parents", "2", "--scoring.calibration-images", "64", "--scoring.calibration-batch", "32"),
]
RATES = ("images_per_second", "peak_memory_mib", "seconds")

pytestmark = pytest.mark.slow


def made(script: str, folder: Path, *options: str, ranks: int = 1) -> Path:
    done = run(script, *options, "--run", str(folder), ranks=ranks)
    assert done.returncode == 0, done.stderr
    return folder


def refused(script: str, *options: str, ranks: int = 1) -> str:
    done = run(script, *options, ranks=ranks)
    assert done.returncode == 2, done
    (line,) = done.stderr.splitlines()
    return line


def assert_same_run(one: Path, other: Path) -> None:
    assert_same_weights(one, other)
    for name in ("metrics.jsonl", "shift.jsonl"):
        if (one / name).exists():
            assert lines_of(one / name) == lines_of(other / name)


def assert_same_weights(one: Path, other: Path) -> None:
    for name in ("weights.safetensors", "best.safetensors"):
        expected, found = weights(one, name), weights(other, name)
        assert expected.keys() == found.keys()
        assert all(torch.equal(found[key], value) for key, value in expected.items())


def lines_of(path: Path) -> list[dict[str, Any]]:
    return [{key: each for key, each in line.items() if key not in RATES} for line in read_metrics(path)]


@pytest.fixture(scope="module")
def ours(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A network in blocks with linear heads."""
    return made("retrain_model.py", tmp_path_factory.mktemp("ours") / "run", *NET, "--decoupling", CUTS)


CUTS, OWN_CUTS = "uniform:3:linear", "uniform:3:ownlinear"
OWN_NET = [*SHORT, *OWN, "--network", "ownnet", "--decoupling", "uniform:2:ownlinear"]
OWN_NET += ["--local.loss", "ownentropy", "--precision", "fp64"]


@pytest.fixture(scope="module")
def on_one_rank(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return made("retrain_model.py", tmp_path_factory.mktemp("one") / "run", *OWN_NET)


def test_a_head_of_the_same_layers_is_the_same(ours: Path, tmp_path: Path) -> None:
    found = made("retrain_model.py", tmp_path / "run", *NET, *OWN, "--decoupling", OWN_CUTS)
    assert_same_run(ours, found)
    assert json.loads((found / "decoupling.json").read_text())["heads"] == ["ownlinear"] * 2
    assert list(json.loads((found / "plugins.json").read_text())["sha256"]) == [PARTS]
    assert not (ours / "plugins.json").exists()
    # From the run's decoupling.json, and from its config.
    again = ["--decoupling", str(found / "decoupling.json")]
    assert_same_run(ours, made("retrain_model.py", tmp_path / "file", *NET, *OWN, *again))
    config = ["--config", str(found / "config.toml"), *OWN]
    assert_same_run(ours, made("retrain_model.py", tmp_path / "config", *config))


@pytest.mark.parametrize("options", [["--parallel", "blocks"], ["--local.loss", "ownentropy"]])
def test_a_rule_that_is_greedy_and_a_loss_that_is_cross_entropy_are_the_same(
    options: list[str], ours: Path, tmp_path: Path
) -> None:
    asked = [*NET, *OWN, "--decoupling", CUTS, "--rule", "ownrule", *options]
    assert_same_run(ours, made("retrain_model.py", tmp_path / "run", *asked))


def test_a_loss_that_takes_no_mixed_labels_is_refused_before_the_training(tmp_path: Path) -> None:
    asked = [*NET, *OWN, "--decoupling", CUTS, "--data.mixup", "0.2", "--run", str(tmp_path / "run")]
    said = refused("retrain_model.py", *asked, "--local.loss", "ownmargin")
    assert "--data.cutmix: --local.loss ownmargin does not take the probabilities that they make of" in said
    assert not list((tmp_path / "run").glob("checkpoints/*"))
    other = [*asked[:-2], "--local.loss", "ownentropy", "--recipe.steps", "1"]
    made("retrain_model.py", tmp_path / "other", *other)


def test_a_run_goes_on_with_its_parts_and_no_others(ours: Path, tmp_path: Path) -> None:
    mine = tmp_path / "mine.py"
    shutil.copy(PARTS, mine)
    run_folder = tmp_path / "run"
    line = [*NET, "--decoupling", OWN_CUTS, "--run", str(run_folder)]
    run_up_to("step-00000004.json", "retrain_model.py", *line, "--plugins", str(mine))
    assert "head 'ownlinear' is unknown" in refused("retrain_model.py", *line)
    assert "--plugins FILE.py brings one" in refused("retrain_model.py", *line)
    mine.write_text(Path(PARTS).read_text() + "\n# changed\n")
    told = refused("retrain_model.py", *line, "--plugins", str(mine))
    assert f"--plugins: since '{run_folder}' began, '{mine}' has changed" in told
    mine.write_text(Path(PARTS).read_text())
    done = run("retrain_model.py", *line, "--plugins", str(mine))
    assert done.returncode == 0, done.stderr
    assert_same_run(ours, run_folder)


@pytest.mark.parametrize("options", [["--parallel", "blocks"], []])
def test_two_processes_have_them_too(options: list[str], on_one_rank: Path, tmp_path: Path) -> None:
    line, one = OWN_NET, on_one_rank
    two = made("retrain_model.py", tmp_path / "two", *line, *options, ranks=2)
    expected, found = weights(one), weights(two)
    assert expected.keys() == found.keys()
    for name, tensor in expected.items():
        torch.testing.assert_close(found[name], tensor, rtol=0, atol=1e-9)
    if options:  # it stops and goes on as two
        run_up_to(
            "step-00000004.json", "retrain_model.py", *line, *options, "--run", str(tmp_path / "cut"), ranks=2
        )
        cut = made("retrain_model.py", tmp_path / "cut", *line, *options, ranks=2)
        assert_same_weights(two, cut)
        told = refused(
            "retrain_model.py", *SHORT, "--network", "ownnet", "--run", str(tmp_path / "no"), ranks=2
        )
        assert "network 'ownnet' is unknown" in told


def test_a_strategy_that_walks_as_spos_is_the_same(tmp_path: Path) -> None:
    few, file, mark = tmp_path / "few.toml", tmp_path / "mine.py", tmp_path / "imported"
    few.write_text(FEW)
    file.write_text(f"{Path(PARTS).read_text()}\nopen({str(mark)!r}, 'w').close()\n")
    own = ["--plugins", str(file)]
    line = [*SUPERNET, "--space", str(few)]
    expected = made("train_supernet.py", tmp_path / "spos", *line, "--strategy", "spos")
    asked = [*line, "--strategy", "ownwalk", "--objective", "ownlabels"]
    mine = [*asked, *own]
    found = made("train_supernet.py", tmp_path / "mine", *mine)
    assert_same_run(expected, found)
    run_up_to("step-00000004.json", "train_supernet.py", *mine, "--run", str(tmp_path / "cut"))
    assert_same_run(expected, made("train_supernet.py", tmp_path / "cut", *mine))
    once = ["--recipe.steps", "2", "--recipe.evaluate-every", "2", "--records.shift-images", "0"]
    two = made("train_supernet.py", tmp_path / "two", *mine, *once, ranks=2)
    assert_same_run(made("train_supernet.py", tmp_path / "spos-2", *line, *once, ranks=2), two)

    supernet = ["--supernet", str(found), *SEARCH]
    at = supernet.index("--breeding.parents")
    drawn = [*supernet[:at], *supernet[at + 2 :], *own]
    by_random, by_own = (
        made("search_architecture.py", tmp_path / method, *drawn, "--method", method)
        for method in ("random", "ownsearch")
    )
    assert lines_of(by_random / "evaluations.jsonl") == lines_of(by_own / "evaluations.jsonl")
    # Nothing is imported because a run names it.
    mark.unlink()
    told = refused("search_architecture.py", *supernet, "--run", str(tmp_path / "no"))
    assert "unknown value 'ownwalk'" in told
    assert "--plugins FILE.py brings one" in told
    refused("train_supernet.py", *asked, "--run", str(found))
    assert not mark.exists()


def test_a_space_with_an_operation_goes_through_all_scripts(tmp_path: Path) -> None:
    def place(name: str) -> list[str]:
        return ["--run", str(tmp_path / name)]

    line = [*SUPERNET, "--space", "ownspace"]
    supernet = made("train_supernet.py", tmp_path / "supernet", *line, *OWN)
    search = ["--supernet", str(supernet), *SEARCH]
    found = made("search_architecture.py", tmp_path / "search", *search, *OWN, ranks=2)
    best = [*SHORT, "--architecture", str(found / "best.json")]
    made("retrain_model.py", tmp_path / "best", *best, *OWN)
    networks = [*SHORT, "--space", "ownspace", "--networks", "3", "--jobs", "2"]
    truth = made("make_truth.py", tmp_path / "truth", *networks, *OWN)
    report = ["--supernet", str(supernet), "--truth", str(truth), *SEARCH[:4], *SEARCH[-4:]]
    report += ["--resamples", "100", "--shift-images", "8"]
    made("rank_report.py", tmp_path / "report", *report, *OWN)

    unknown = {
        "train_supernet.py": (line, "space 'ownspace' is unknown"),
        "search_architecture.py": (search, "operation 'ownconv_k3' is unknown"),
        "retrain_model.py": (best, "operation 'ownconv_k3' is unknown"),
        "make_truth.py": (networks, "space 'ownspace' is unknown"),
        "rank_report.py": (report, "operation 'ownconv_k3' is unknown"),
    }
    for script, (options, words) in unknown.items():
        told = refused(script, *options, *place("no"))
        assert words in told
        assert "--plugins FILE.py brings one" in told


def test_a_search_for_cuts_mixes_heads_of_ones_own(tmp_path: Path) -> None:
    line = [*SHORT, "--network", "vgg6a", "--width", "0.125", "--data.image-size", "8", "--search.steps", "2"]
    line += ["--search.snapshots", "2", "--recipe.steps", "2", "--recipe.checkpoint-every", "1"]
    line += ["--recipe.evaluate-every", "2", "--search.inner-steps", "1", "--search.validation-batch", "20"]
    expected = made("search_decoupling.py", tmp_path / "ours", *line, "--heads", "aux1", "linear")
    mine = made("search_decoupling.py", tmp_path / "mine", *line, *OWN, "--heads", "aux1", "ownlinear")
    assert (mine / "relaxation.json").read_text() == (expected / "relaxation.json").read_text().replace(
        '"linear"', '"ownlinear"'
    )
    again = ["--decoupling", str(mine / "decoupling-3.json"), "--network", "vgg6a", "--width", "0.125"]
    again += ["--data.image-size", "8"]
    made("retrain_model.py", tmp_path / "cut", *SHORT, *again, *OWN)


def test_a_truth_trains_cuts_of_a_network_of_ones_own(tmp_path: Path) -> None:
    line = [*SHORT, *OWN, "--network", "ownnet", "--decouplings", "uniform:2:ownlinear", "uniform:2:aux1"]
    folder = made("make_truth.py", tmp_path / "truth", *line)
    facts = [json.loads(text) for text in (folder / "truth.jsonl").read_text().splitlines()]
    assert [each["heads"] for each in facts] == [["ownlinear"], ["aux1"]]


@pytest.mark.parametrize(
    ("text", "message", "ranks"),
    [
        (None, "--plugins: cannot read 'MINE': No such file or directory", 1),
        ("import torch\ntorch.zeros(2) @ torch.zeros(3)\n", "--plugins: 'MINE', line 2: RuntimeError: ", 2),
        (
            "from local_learning.build import register_network\nregister_network('mlp')(print)\n",
            "--plugins: 'MINE', line 2: network 'mlp' is registered already; take another name",
            1,
        ),
    ],
)
def test_a_file_that_is_wrong_is_one_line(text: str | None, message: str, ranks: int, tmp_path: Path) -> None:
    mine = tmp_path / "mine.py"
    if text is not None:
        mine.write_text(text)
    told = refused(
        "retrain_model.py", *NET, "--plugins", str(mine), "--run", str(tmp_path / "r"), ranks=ranks
    )
    assert message.replace("MINE", str(mine)) in told
    assert not os.path.exists(tmp_path / "r")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--network", "ownnet", "--dropout", "0.5"], "dropout: ownnet does not take it; leave it at 0.0"),
        (["--network", "odd"], "what builds odd gave a Linear; it must give a Chain, an nn.Sequential that"),
        (["--decoupling", "uniform:2:ownlinea"], "head 'ownlinea' is unknown; did you mean 'ownlinear'?"),
        (
            ["--local.loss", "ownentropi"],
            "--local.loss: unknown value 'ownentropi'; did you mean 'ownentropy'?",
        ),
    ],
)
def test_a_mistake_with_a_part_is_one_line(options: list[str], message: str, tmp_path: Path) -> None:
    odd = tmp_path / "odd.py"
    odd.write_text(
        "from torch import nn\nfrom local_learning.build import register_network\n"
        "register_network('odd')(lambda: nn.Linear(2, 2))\n"
    )
    files = ["--plugins", PARTS, str(odd), "--run", str(tmp_path / "run")]
    assert message in refused("retrain_model.py", *SHORT, *files, *options)


def test_an_error_inside_a_part_is_seen_whole(tmp_path: Path) -> None:
    mine = tmp_path / "mine.py"
    mine.write_text(
        "from local_learning.losses import register_loss\n\n\n@register_loss('bad')\n"
        "def bad(outputs, targets, images):\n    raise ValueError('a bug of mine')\n"
    )
    line = [*NET, "--decoupling", CUTS, "--local.loss", "bad", "--plugins", str(mine)]
    done = run("retrain_model.py", *line, "--run", str(tmp_path / "run"))
    assert done.returncode == 1
    assert f'File "{mine}", line 6, in bad' in done.stderr


def test_a_head_with_more_than_logits_is_not_searched_for(tmp_path: Path) -> None:
    mine = tmp_path / "mine.py"
    mine.write_text(
        "from torch import nn\nfrom local_learning.heads import register_head\n\n\n@register_head('pair')\n"
        "class Pair(nn.Module):\n    def __init__(self, in_chs, in_size, num_classes):\n"
        "        super().__init__()\n\n    def forward(self, features):\n        return features, features\n"
    )
    line = [*SHORT, "--heads", "aux1", "pair", "--plugins", str(mine), "--run", str(tmp_path / "run")]
    told = refused("search_decoupling.py", *line, "--network", "vgg6a", "--width", "0.125")
    assert "head 'pair' cannot be searched: it must give logits and nothing else" in told
