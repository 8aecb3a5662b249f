"""The programs in the documentation run as they stand."""

import re
from pathlib import Path

import pytest
import torch

PAGE = Path("docs/own_network.md")

PROGRAMS = [
    pytest.param(match[1], PAGE.read_text()[: match.start(1)].count("\n"), id=f"line {number}")
    for match in re.finditer(r"^```python\n(.*?)^```$", PAGE.read_text(), re.MULTILINE | re.DOTALL)
    if (number := PAGE.read_text()[: match.start(1)].count("\n") + 1)
]


@pytest.mark.parametrize(("program", "lines_before"), PROGRAMS)
def test_programs_of_the_page_on_own_networks(program: str, lines_before: int) -> None:
    torch.manual_seed(0)
    code = compile("\n" * lines_before + program, PAGE, "exec")  # a traceback then names the page's lines
    exec(code, {"__name__": "__main__"})


def test_the_page_has_all_its_programs() -> None:
    assert len(PROGRAMS) == 4
