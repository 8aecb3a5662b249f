"""The programs in the documentation run as they stand."""

import re
from pathlib import Path

import pytest
import torch

PAGE = Path("docs/own_network.md")


def programs() -> dict[int, str]:
    """The Python programs of the page, by the line on which they begin."""
    text = PAGE.read_text(encoding="utf-8")
    found = re.finditer(r"^```python\n(.*?)^```$", text, re.MULTILINE | re.DOTALL)
    return {text.count("\n", 0, match.start(1)) + 1: match[1] for match in found}


@pytest.mark.parametrize("line", programs())
def test_a_program_runs(line: int) -> None:
    torch.set_num_threads(1)
    torch.manual_seed(0)
    moved_down = "\n" * (line - 1) + programs()[line]  # a traceback then names the lines of the page
    exec(compile(moved_down, PAGE, "exec"), {"__name__": "__main__"})


def test_the_page_has_four_programs() -> None:
    assert len(programs()) == 4
