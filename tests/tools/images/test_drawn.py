"""Images of the embedded data set are drawn once, and read after that."""

from pathlib import Path

import numpy as np
import pytest

from tools.images import shapes
from tools.images.drawn import FEWEST, drawn

WANTED = {"num_classes": 5, "image_size": 8, "seed": 0, "split": "train"}


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    return tmp_path / "cleave"


def forbid_drawing(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object, **__: object) -> None:
        raise AssertionError("drawn again")

    monkeypatch.setattr(shapes, "generate", fail)


def test_what_is_kept_is_what_is_drawn(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    images, _ = shapes.generate(FEWEST, **WANTED)  # type: ignore[arg-type]
    assert np.array_equal(drawn(FEWEST, **WANTED), images)  # type: ignore[arg-type]
    (file,) = cache.iterdir()
    forbid_drawing(monkeypatch)
    assert np.array_equal(drawn(FEWEST, **WANTED), images)  # type: ignore[arg-type]
    with pytest.raises(AssertionError, match="drawn again"):
        drawn(FEWEST + 1, **WANTED)  # type: ignore[arg-type]
    assert list(cache.iterdir()) == [file]


def test_few_images_are_not_kept(cache: Path) -> None:
    assert len(drawn(FEWEST - 1, **WANTED)) == FEWEST - 1  # type: ignore[arg-type]
    assert not cache.exists()


@pytest.mark.parametrize("damage", [b"", b"no array", b"half"])
def test_a_damaged_file_is_drawn_again(damage: bytes, cache: Path) -> None:
    images = drawn(FEWEST, **WANTED)  # type: ignore[arg-type]
    (file,) = cache.iterdir()
    whole = file.read_bytes()
    file.write_bytes(whole[: len(whole) // 2] if damage == b"half" else damage)
    assert np.array_equal(drawn(FEWEST, **WANTED), images)  # type: ignore[arg-type]
    assert file.read_bytes() == whole


def test_another_way_to_draw_has_files_of_its_own(
    cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    drawn(FEWEST, **WANTED)  # type: ignore[arg-type]
    other = tmp_path / "shapes.py"
    other.write_text("another way")
    monkeypatch.setattr(shapes, "__file__", str(other))
    drawn(FEWEST, **WANTED)  # type: ignore[arg-type]
    assert len(list(cache.iterdir())) == 2


def test_without_a_cache_images_are_drawn(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "file").touch()
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file"))
    assert len(drawn(FEWEST, **WANTED)) == FEWEST  # type: ignore[arg-type]
