"""The programs in the documentation run as they stand."""

import re
from pathlib import Path

import pytest
import torch

from supernet.documents import find_space

PAGES = {"own_network": 4, "spaces": 1, "supernet": 1, "evolution": 2, "ranking": 1}
"""Pages with programs, and how many they have."""


def _path(page: str) -> Path:
    return Path("docs") / f"{page}.md"


def programs(page: str) -> dict[int, str]:
    """The Python programs of a page, by the line on which they begin."""
    text = _path(page).read_text(encoding="utf-8")
    found = re.finditer(r"^```python\n(.*?)^```$", text, re.MULTILINE | re.DOTALL)
    return {text.count("\n", 0, match.start(1)) + 1: match[1] for match in found}


@pytest.mark.parametrize(("page", "line"), [(page, line) for page in PAGES for line in programs(page)])
def test_a_program_runs(page: str, line: int) -> None:
    torch.set_num_threads(1)
    torch.manual_seed(0)
    moved_down = "\n" * (line - 1) + programs(page)[line]  # a traceback then names the lines of the page
    exec(compile(moved_down, _path(page), "exec"), {"__name__": "__main__"})


@pytest.mark.parametrize("page", PAGES)
def test_a_page_has_its_programs(page: str) -> None:
    assert len(programs(page)) == PAGES[page]


def test_the_space_in_the_documentation_is_one(tmp_path: Path) -> None:
    (toml,) = re.findall(
        r"^```toml\n(.*?)^```$", _path("spaces").read_text("utf-8"), re.MULTILINE | re.DOTALL
    )
    (tmp_path / "mine.toml").write_text(toml)
    space = find_space(str(tmp_path / "mine.toml"), num_classes=5, image_size=32)
    assert space.size == 3 * 4 * 4 * 2 * 3
