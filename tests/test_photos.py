"""The whole path on a folder as people have them: with a grey, a transparent, a broken and a text file."""

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from tests.forked import run


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    rng = np.random.default_rng(0)
    for number, name in enumerate(("cat", "dog", "owl")):
        folder = tmp_path / "photos" / name
        folder.mkdir(parents=True)
        for index in range(16):
            pixels = rng.integers(0, 200, (20, 20 + index, 3), dtype=np.uint8)
            pixels[..., number] += 50
            Image.fromarray(pixels).save(folder / f"{index}.jpg")
    root = tmp_path / "photos"
    Image.new("L", (20, 20)).save(root / "cat" / "grey.png")
    Image.new("RGBA", (20, 20)).save(root / "dog" / "transparent.png")
    (root / "owl" / "broken.jpg").write_bytes((root / "owl" / "0.jpg").read_bytes()[:300])
    (root / "owl" / "notes.txt").write_text("not an image")
    return root


@pytest.mark.slow
def test_every_script_works_on_a_folder_of_ones_own(photos: Path, tmp_path: Path) -> None:
    def said(script: str, name: str, *options: str, code: int = 0) -> str:
        common = ("--device", "cpu", "--threads", "1", "--run", str(tmp_path / name))
        done = run(script, *options, *common)
        assert done.returncode == code, done.stderr
        assert "Traceback" not in done.stderr
        return done.stderr if code else done.stdout

    def path(name: str) -> str:
        return str(tmp_path / name)

    data = ["--data.name", "folder", "--data.root", str(photos), "--data.image-size", "16"]
    small = [*data, "--recipe.steps", "2", "--recipe.batch-size", "8"]
    complaint = said("retrain_model.py", "whole", "--network", "mlp", *small, code=2)
    assert "1 file below" in complaint
    assert "owl/broken.jpg" in complaint

    small.append("--data.skip-broken")
    alone = [*small, "--data.workers", "0"]  # processes that read images take longer to begin than to read
    population = ["--population", "4", "--generations", "1", "--breeding.parents", "2"]
    cheap = [
        "--search.steps",
        "1",
        "--search.snapshots",
        "1",
        "--search.inner-steps",
        "1",
        "--heads",
        "linear",
    ]
    told = [
        said("retrain_model.py", "whole", "--network", "mlp", *small),
        said("make_truth.py", "truth", "--space", "tiny", "--networks", "4", *alone),
        said("train_supernet.py", "supernet", "--space", "tiny", "--records.probes", "0", *alone),
        said("search_architecture.py", "best", "--supernet", path("supernet"), *population),
        said(
            *("search_decoupling.py", "cuts", "--architecture", path("best/best.json"), *cheap, *alone),
            *("--search.validation-batch", "8"),
        ),
    ]
    for each in told:
        assert "holds 50 images of 3 classes: cat, dog, owl" in each
        assert "1 with .txt" in each
        assert "1 file is left out as broken (--data.skip-broken): owl/broken.jpg" in each
    said(
        *("rank_report.py", "report", "--supernet", path("supernet"), "--truth", path("truth/truth.jsonl")),
        *("--search", path("best"), "--cuts", path("cuts"), "--trained", path("whole"), "--resamples", "100"),
    )
    assert (tmp_path / "report" / "report.html").exists()
