import json
from pathlib import Path

import torch

from tools.run.meters import MetricsLog, Sums, read_metrics


def test_a_torn_line_is_passed_over_and_does_not_spoil_the_next(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    log = MetricsLog(path)
    log.append(1, {"loss": 2.0})
    log.close()
    with path.open("a") as file:
        file.write('{"step": 2, "lo')  # a kill in the middle of a line
    log = MetricsLog(path)
    log.append(2, {"loss": 1.0})
    log.close()
    assert read_metrics(path) == [{"step": 1, "loss": 2.0}, {"step": 2, "loss": 1.0}]


def test_the_later_line_of_a_step_counts(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    lines: list[dict[str, float]] = [
        {"step": 10, "loss": 3.0},
        {"step": 20, "loss": 2.0},
        {"step": 20, "top1": 0.5},
    ]
    lines += [{"step": 20, "loss": 1.5}]
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    assert read_metrics(path) == [
        {"step": 10, "loss": 3.0},
        {"step": 20, "loss": 1.5},
        {"step": 20, "top1": 0.5},
    ]


def test_a_step_that_other_processes_made_again_counts_once(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    lines: list[dict[str, float]] = [
        {"step": 5, "loss": 3.0, "idle/0": 0.1, "idle/1": 0.0},
        {"step": 5, "top1": 0.5},
        {"step": 5, "loss": 2.0},
    ]
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    assert read_metrics(path) == [{"step": 5, "loss": 2.0}, {"step": 5, "top1": 0.5}]


def test_sums_go_through_a_checkpoint() -> None:
    sums = Sums()
    for value in (1.0, 2.5):
        sums.add({"loss": torch.tensor(value)})
    again = Sums()
    again.load_state_dict(sums.state_dict(), torch.device("cpu"))
    again.add({"loss": torch.tensor(0.5)})
    again.add({"another": torch.tensor(2.0)})
    assert {name: float(mean) for name, mean in again.means().items()} == {"loss": 4 / 3, "another": 2.0}
