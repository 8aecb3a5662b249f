"""How runs of a report are called, and what may be wrong with them."""

from pathlib import Path

import pytest

from search.report.runs import faults_of, finished_results, labelled
from tools.mistake import Mistake
from tools.options.config import flag
from tools.run.folder import Run


@pytest.mark.parametrize(
    ("words", "labels"),
    [
        (["runs/one"], ["one"]),
        (["runs/one/weights.safetensors", "runs/two/weights.safetensors"], ["one", "two"]),
        (["a/run", "b/run", "c/last/run"], ["a/run", "b/run", "last/run"]),
        (["mine=a/run", "b/run"], ["mine", "b/run"]),
        (["a=b=c"], ["a"]),
    ],
)
def test_runs_are_called_as_said_or_by_the_ends_in_which_they_differ(
    words: list[str], labels: list[str]
) -> None:
    paths = labelled(words, "search")
    assert list(paths) == labels
    assert list(paths.values()) == [Path(word.partition("=")[2] or word) for word in words]


def test_a_path_may_have_the_sign_of_a_name(tmp_path: Path) -> None:
    (tmp_path / "lr=0.1").mkdir()
    assert labelled([str(tmp_path / "lr=0.1")], "search") == {"lr=0.1": tmp_path / "lr=0.1"}


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (["x=a", "x=b"], "two are called 'x'; call one otherwise, as in NAME=b"),
        (["a/run", "a/run"], "two are called"),
        (["x="], "'x=' is neither a path nor NAME=PATH"),
        (["..=a"], "'..=a' is neither a path nor NAME=PATH"),
        (["=a"], "'=a' is neither a path nor NAME=PATH"),
    ],
)
def test_labels_that_cannot_be_are_refused(words: list[str], says: str) -> None:
    with pytest.raises(Mistake) as of_one:
        labelled(words, "search")
    assert of_one.value.worded(flag).startswith(f"--search: {says}")
    with pytest.raises(Mistake) as of_two:
        labelled(words, "scores", "losses")
    assert of_two.value.worded(flag).startswith(f"--scores, --losses: {says}")


def test_what_is_wrong_with_a_run_is_told_of_its_option_and_its_path(tmp_path: Path) -> None:
    def worded(error: Exception) -> str:
        with pytest.raises(Mistake) as mistake, faults_of("cuts", tmp_path):
            raise error
        return mistake.value.worded(flag)

    begin = f"--cuts: '{tmp_path}' is not whole, or was changed: "
    assert worded(KeyError("best")) == f"{begin}'best' is missing"
    assert worded(ValueError("it is empty")) == f"{begin}it is empty"
    assert worded(Mistake("choices", "has 3")) == f"{begin}--choices: has 3"
    assert worded(ValueError(f"{tmp_path}/a: torn")) == f"--cuts: {tmp_path}/a: torn"
    assert worded(Mistake("cuts", "is no run")) == "--cuts: is no run"
    with pytest.raises(Mistake) as mistake, faults_of("cuts", tmp_path):
        (tmp_path / "gone").read_text()
    assert (
        mistake.value.worded(flag) == f"--cuts: cannot read '{tmp_path / 'gone'}': No such file or directory"
    )


def test_only_a_finished_run_of_its_script_has_results(tmp_path: Path) -> None:
    named = {"option": "search", "script": "search_architecture.py", "key": "front"}
    with pytest.raises(
        Mistake, match=r"is no finished run of search_architecture\.py: it has no results\.json"
    ):
        finished_results(tmp_path, **named)
    Run(tmp_path).write_results({"decouplings": {}})
    with pytest.raises(Mistake, match=r"is not a run of search_architecture\.py"):
        finished_results(tmp_path, **named)
    Run(tmp_path).write_results({"front": []})
    assert finished_results(tmp_path, **named)["front"] == []
