"""Figures of a search among architectures are whole: nothing is cut off at their edges."""

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from search.architectures.figures import course_figure, front_figure, operations_figure
from search.limits import Limit, Limits
from search.method import Scored
from supernet.additive import Additive, counted
from supernet.presets import preset
from supernet.sampling import stream

SPACE = preset("nas_bench_macro", num_classes=10, image_size=32)
MACS = counted(SPACE, "macs")
LATENCY = Additive("latency", 5, MACS.table)


def scored(count: int, seed: int) -> list[Scored]:
    within, rng = Limits(SPACE), stream(seed, "figures")
    return [Scored(within.draw(rng), rng.random()) for _ in range(count)]


RUNS = {
    "evolution": scored(200, 0),
    "runs/seed0/regularised": scored(150, 1),
    "runs/seed1/random": scored(120, 2),
    "its first 50, random": scored(50, 3),
}


def assert_whole(path: Path) -> None:
    """There is ink, and none on the outermost pixels."""
    pixels = np.asarray(Image.open(path).convert("L"))
    assert pixels.min() < 100
    for edge in (pixels[0], pixels[-1], pixels[:, 0], pixels[:, -1]):
        assert edge.min() == 255, "something reaches over the edge"


@pytest.mark.parametrize("count", range(1, 5))
def test_courses_and_fronts_are_whole(count: int, tmp_path: Path) -> None:
    runs = dict(list(RUNS.items())[:count])
    course_figure(tmp_path / "course.png", runs)
    assert_whole(tmp_path / "course.png")
    for cost, of in ((MACS, ""), (LATENCY, " (Intel(R) Xeon(R) Processor, 1 threads)")):
        limits = [Limit(cost, 60_000_000)]
        front_figure(tmp_path / "front.png", runs, cost, limits, of=of)
        assert_whole(tmp_path / "front.png")


def test_a_search_without_a_network_in_common_is_drawn(tmp_path: Path) -> None:
    front_figure(tmp_path / "front.png", {**RUNS, "nothing of it": []}, MACS)
    course_figure(tmp_path / "course.png", {**RUNS, "nothing of it": []})
    assert_whole(tmp_path / "front.png")


@pytest.mark.parametrize("name", ["tiny", "nas_bench_macro", "lwsl_fit"])
def test_operations_are_whole(name: str, tmp_path: Path) -> None:
    space = preset(name, num_classes=10, image_size=32)
    rng = stream(0, "figures")
    members = [Scored(Limits(space).draw(rng), rng.random()) for _ in range(30)]
    operations_figure(tmp_path / "operations.png", space, members, members[:10])
    assert_whole(tmp_path / "operations.png")


def test_the_same_scores_give_the_same_file(tmp_path: Path) -> None:
    for name in ("one", "two"):
        front_figure(tmp_path / f"{name}.png", RUNS, MACS)
    assert (tmp_path / "one.png").read_bytes() == (tmp_path / "two.png").read_bytes()
