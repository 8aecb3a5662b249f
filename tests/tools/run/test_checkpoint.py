import subprocess
import sys
from pathlib import Path

import pytest
import torch

from tools.failures import RunFailed
from tools.files.atomic import read_document, write_bytes, write_document
from tools.run.checkpoint import Written, load_checkpoint, save_checkpoint, save_part

STATE = {"weights": torch.arange(10.0), "step": 3, "groups": [{"lr": 0.1}]}


def test_a_checkpoint_comes_back_and_two_are_kept(tmp_path: Path) -> None:
    assert load_checkpoint(tmp_path) is None
    for step in (1, 5, 30):
        save_checkpoint(tmp_path, step, STATE | {"step": step})
    found = load_checkpoint(tmp_path)
    assert found is not None
    step, state = found
    assert (step, state["step"], state["groups"]) == (30, 30, [{"lr": 0.1}])
    assert torch.equal(state["weights"], STATE["weights"])  # type: ignore[arg-type]
    assert sorted(path.name for path in tmp_path.iterdir()) == [
        "step-00000005.json",
        "step-00000005.pt",
        "step-00000030.json",
        "step-00000030.pt",
    ]


@pytest.mark.parametrize("damage", ["flip", "truncate", "remove"])
def test_a_damaged_checkpoint_says_what_to_do(tmp_path: Path, damage: str) -> None:
    save_checkpoint(tmp_path, 5, STATE)
    save_checkpoint(tmp_path, 9, STATE)
    path = tmp_path / "step-00000009.pt"
    data = bytearray(path.read_bytes())
    if damage == "remove":
        path.unlink()
    else:
        data[len(data) // 2] ^= 1
        path.write_bytes(data if damage == "flip" else data[:-1])
    with pytest.raises(
        ValueError, match=r"step-00000009.pt.*remove .*step-00000009.json to go on from step 5"
    ):
        load_checkpoint(tmp_path)
    path.with_suffix(".json").unlink()
    found = load_checkpoint(tmp_path)
    assert found is not None
    assert found[0] == 5


def test_a_checkpoint_cut_short_before_its_json_does_not_count(tmp_path: Path) -> None:
    save_checkpoint(tmp_path, 5, STATE)
    (tmp_path / "step-00000009.pt").write_bytes(b"half")
    found = load_checkpoint(tmp_path)
    assert found is not None
    assert found[0] == 5


class Payload:
    def __reduce__(self) -> tuple[object, tuple[str]]:
        return print, ("code out of a file has run",)


def test_no_code_runs_out_of_a_foreign_checkpoint(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    save_checkpoint(tmp_path, 5, {"payload": Payload()})
    with pytest.raises(ValueError, match="is not one of ours"):
        load_checkpoint(tmp_path)
    assert "has run" not in capfd.readouterr().out


def test_a_full_disk_keeps_the_last_good_checkpoint(tmp_path: Path) -> None:
    save_checkpoint(tmp_path, 5, STATE)
    code = (
        "import resource, sys, torch, pathlib\n"
        "from tools.run.checkpoint import save_checkpoint\n"
        "from tools.failures import RunFailed\n"
        "resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, 100_000))\n"
        "try: save_checkpoint(pathlib.Path(sys.argv[1]), 9, {'weights': torch.zeros(1_000_000)})\n"
        "except RunFailed as error: print(error)\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, str(tmp_path)], capture_output=True, text=True, check=False
    )
    assert "cannot write" in done.stdout, done.stderr
    assert "what was there before is kept" in done.stdout
    found = load_checkpoint(tmp_path)
    assert found is not None
    assert found[0] == 5
    assert not [path for path in tmp_path.iterdir() if path.name.startswith(".")]


def test_a_file_is_whole_or_as_before(tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.write_text("before")

    with pytest.raises(TypeError):
        write_bytes(path, "no bytes")  # type: ignore[arg-type]
    assert path.read_text() == "before"
    with pytest.raises(RunFailed, match="cannot write"):
        write_bytes(tmp_path / "no" / "folder", b"after")
    write_bytes(path, b"after")
    assert path.read_text() == "after"
    assert list(tmp_path.iterdir()) == [path]


def test_documents_insist_on_format_and_version(tmp_path: Path) -> None:
    path = tmp_path / "d.json"
    write_document(path, "thing", 1, {"a": 1})
    assert read_document(path, "thing", 1)["a"] == 1
    with pytest.raises(ValueError, match="expected a file of format 'cleave/other', found 'cleave/thing'"):
        read_document(path, "other", 1)
    with pytest.raises(ValueError, match="version 1 of cleave/thing is not known"):
        read_document(path, "thing", 2)
    path.write_text("{")
    with pytest.raises(ValueError, match="is not JSON"):
        read_document(path, "thing", 1)


def parts_of(step: int, folder: Path) -> list[Written]:
    return [
        save_part(folder, step, rank, {"job": {"network": {f"block {rank}": torch.full((3,), rank)}}})
        for rank in range(3)
    ]


def test_parts_become_one_state(tmp_path: Path) -> None:
    for step in (5, 9, 12):
        save_checkpoint(tmp_path, step, {"step": step}, parts_of(step, tmp_path))
    found = load_checkpoint(tmp_path)
    assert found is not None
    step, state = found
    assert (step, state["step"]) == (12, 12)
    assert {name: int(value[0]) for name, value in state["job"]["network"].items()} == {
        "block 0": 0,
        "block 1": 1,
        "block 2": 2,
    }
    assert len(list(tmp_path.iterdir())) == 2 * (2 + 3)  # of the oldest nothing is left


def test_parts_without_their_checkpoint_do_not_count_and_go(tmp_path: Path) -> None:
    save_checkpoint(tmp_path, 5, {"step": 5}, parts_of(5, tmp_path))
    parts_of(9, tmp_path)  # and then the machine went down
    found = load_checkpoint(tmp_path)
    assert found is not None
    assert found[0] == 5
    save_checkpoint(tmp_path, 8, {"step": 8}, parts_of(8, tmp_path))
    assert not list(tmp_path.glob("step-00000009*"))


def test_a_damaged_part_is_a_damaged_checkpoint(tmp_path: Path) -> None:
    save_checkpoint(tmp_path, 5, {"step": 5}, parts_of(5, tmp_path))
    path = tmp_path / "step-00000005.part-1.pt"
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)
    with pytest.raises(ValueError, match=r"step-00000005\.part-1\.pt is damaged"):
        load_checkpoint(tmp_path)
