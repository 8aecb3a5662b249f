"""The programs in the documentation run as they stand, its links lead somewhere, and its tables are right."""

import re
from collections import Counter
from pathlib import Path

import pytest
import torch

from local_learning.catalogue import HEADS
from local_learning.heads import make_head
from supernet.network.documents import find_space
from tests.scripts import SCRIPTS, config_of, options
from tools.cost import count_params

PAGES = {
    **{"README.md": 1, "docs/own_network.md": 5, "docs/spaces.md": 2, "docs/supernet.md": 1},
    **{"docs/evolution.md": 2, "docs/ranking.md": 1},
}
"""Pages with programs, and how many they have."""


def programs(page: str) -> dict[int, str]:
    """The Python programs of a page, by the line on which they begin."""
    text = Path(page).read_text(encoding="utf-8")
    found = re.finditer(r"^```python\n(.*?)^```$", text, re.MULTILINE | re.DOTALL)
    return {text.count("\n", 0, match.start(1)) + 1: match[1] for match in found}


@pytest.mark.parametrize(("page", "line"), [(page, line) for page in PAGES for line in programs(page)])
def test_a_program_runs(page: str, line: int) -> None:
    torch.set_num_threads(1)
    torch.manual_seed(0)
    moved_down = "\n" * (line - 1) + programs(page)[line]  # a traceback then names the lines of the page
    exec(compile(moved_down, page, "exec"), {"__name__": "__main__"})


@pytest.mark.parametrize("page", PAGES)
def test_a_page_has_its_programs(page: str) -> None:
    assert len(programs(page)) == PAGES[page]


def test_the_space_in_the_documentation_is_one(tmp_path: Path) -> None:
    (toml,) = re.findall(
        r"^```toml\n(.*?)^```$", Path("docs/spaces.md").read_text("utf-8"), re.MULTILINE | re.DOTALL
    )
    (tmp_path / "mine.toml").write_text(toml)
    space = find_space(str(tmp_path / "mine.toml"), num_classes=5, image_size=32)
    assert space.size == 3 * 4 * 4 * 2 * 3


def test_the_heads_have_the_params_that_the_guide_says() -> None:
    said: dict[str, int] = {}
    for line in Path("docs/pieces.md").read_text("utf-8").splitlines():
        cells = [cell.strip() for cell in line.split("|")]
        if len(cells) == 6 and re.fullmatch(r"[\d,; ]+", cells[3]):
            params = [int(each.replace(",", "")) for each in cells[3].split(";")]
            kinds = [f"aux{depth}" for depth in range(1, 5)] if "…" in cells[1] else [cells[1].strip("`")]
            said |= dict(zip(kinds, params, strict=True))
    assert set(said) == {kind for kind in HEADS.ours if HEADS[kind].takes_map}
    made = {kind: make_head(kind, 64, 8, 10, width=0.25, image_shape=(3, 32, 32)) for kind in said}
    assert said == {kind: count_params(head) for kind, head in made.items()}


ROOT = Path(__file__).resolve().parents[1]
LINKED = [
    *(ROOT / name for name in ("README.md", "CHANGELOG.md", "CONTRIBUTING.md", "benchmarks/RESULTS.md")),
    *sorted((ROOT / "docs").rglob("*.md")),
]
"""Pages whose links are followed."""


def prose(page: Path) -> str:
    """A page without its blocks of code, in which nothing is a heading or a link."""
    fenced = re.sub(r"^```.*?^```$", "", page.read_text(encoding="utf-8"), flags=re.MULTILINE | re.DOTALL)
    return re.sub(r"^    .*$", "", fenced, flags=re.MULTILINE)


def anchors(page: Path) -> set[str]:
    """The anchors that GitHub gives to a page's headings."""
    found: set[str] = set()
    met: Counter[str] = Counter()
    for heading in re.findall(r"^#+ +(.+?) *$", prose(page), re.MULTILINE):
        text = re.sub(r"\[([^]]*)\]\([^)]*\)", r"\1", heading)
        anchor = re.sub(r"[^\w\- ]", "", text.lower()).replace(" ", "-")
        found.add(f"{anchor}-{met[anchor]}" if met[anchor] else anchor)
        met[anchor] += 1
    return found


def links(page: Path) -> list[str]:
    """The targets of a page's links and pictures that are not on the web."""
    text = re.sub(r"`[^`\n]*`", "code", prose(page))
    targets = re.findall(r"\]\(([^)\s]+)\)", text)
    return [each for each in targets if not re.match(r"[a-z]+:", each)]


@pytest.mark.parametrize("page", LINKED, ids=lambda page: page.relative_to(ROOT).as_posix())
def test_every_link_leads_somewhere(page: Path) -> None:
    lost = []
    for link in links(page):
        path, _, anchor = link.partition("#")
        target = (page.parent / path).resolve() if path else page
        if not target.exists() or (anchor and anchor not in anchors(target)):
            lost.append(link)
    assert not lost


@pytest.mark.parametrize("page", LINKED, ids=lambda page: page.relative_to(ROOT).as_posix())
def test_no_gap_is_left_to_be_filled(page: Path) -> None:
    assert not re.findall(
        r"^[A-Z]+(?:_[A-Z]+)+$|\b(?:TODO|FIXME|TBD)\b", page.read_text("utf-8"), re.MULTILINE
    )


def commands(page: Path) -> list[tuple[str, list[str]]]:
    """The scripts that a page starts, in blocks of code and within a sentence, with the options of each."""
    text = re.sub(r" *\\\n *", " ", page.read_text(encoding="utf-8"))
    fenced = re.findall(r"^```sh\n(.*?)^```$", text, re.MULTILINE | re.DOTALL)
    indented = re.findall(r"^    .*$", text, re.MULTILINE)
    lines = [line for block in (*fenced, *indented) for line in block.splitlines()]
    found = []
    for line in (*lines, *re.findall(r"`([^`\n]+)`", text)):
        for script, rest in re.findall(rf"\b({'|'.join(map(re.escape, SCRIPTS))})\b(.*)", line):
            found.append((script, re.findall(r"(?<![^\s\[])--[\w.-]+", rest)))
    return found


@pytest.mark.parametrize("page", LINKED, ids=lambda page: page.relative_to(ROOT).as_posix())
def test_commands_have_options_that_exist(page: Path) -> None:
    unknown = []
    for script, flags in commands(page):
        known = {option.flag for option in options(config_of(script))} | {"--config", "--help", "--help-all"}
        positive = [re.sub(r"--(.*\.)?no-", r"--\1", flag) for flag in flags]
        unknown += [(script, flag) for flag in positive if flag not in known]
    assert not unknown


def test_the_first_page_has_a_command_for_every_script() -> None:
    assert {script for script, _ in commands(ROOT / "README.md")} == {*SCRIPTS} - {"demo.py"}  # make demo


def test_the_architecture_names_what_is_there() -> None:
    text = (ROOT / "docs/architecture.md").read_text(encoding="utf-8")
    (tree,) = re.findall(r"^```text\n(.*?)^```$", text, re.MULTILINE | re.DOTALL)
    named: list[str] = []
    above: list[tuple[int, str]] = []
    for line in tree.splitlines():
        depth, name = len(line) - len(line.lstrip()), line.split()[0]
        above = [(deep, folder) for deep, folder in above if deep < depth]
        named.append("".join(folder for _, folder in above) + name)
        if name.endswith("/"):
            above.append((depth, name))
    named += re.findall(r"`((?:tools|local_learning|supernet|search|retrain)/[\w/.]+)`", text)
    assert len(named) > 100
    assert [name for name in named if not (ROOT / name).exists() and not (ROOT / f"{name}.py").exists()] == []


@pytest.mark.parametrize(
    "page",
    [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))],
    ids=lambda page: page.relative_to(ROOT).as_posix(),
)
def test_a_page_fits_an_editor(page: Path) -> None:
    lines = re.sub(r"\]\([^)\s]+\)", "]", prose(page)).splitlines()  # a link's target cannot be wrapped
    cells = [cell.strip() for line in lines if line.startswith("|") for cell in line.split("|")]
    assert [line for line in lines if not line.startswith("|") and len(line) > 100] == []
    assert [cell for cell in cells if len(cell) > 300] == []


def test_the_first_page_is_short() -> None:
    assert len((ROOT / "README.md").read_text(encoding="utf-8").splitlines()) < 120


def test_links_and_anchors_are_told_apart(tmp_path: Path) -> None:
    page = tmp_path / "page.md"
    page.write_text(
        "# `--a.b` Sure, it's\n\n## One\n\n## One\n\n"
        "[x](y.md#z) `[no](code)` ![p](p.png) [w](https://x.org)\n\n"
        "```python\n# Not [one](a)\n```\n\n    # nor this\n"
    )
    assert anchors(page) == {"--ab-sure-its", "one", "one-1"}
    assert links(page) == ["y.md#z", "p.png"]


def test_results_are_told_with_the_numbers_that_were_measured() -> None:
    def numbers(page: Path) -> set[str]:
        text = re.sub(r"\]\([^)]*\)", "]", page.read_text(encoding="utf-8"))
        return {each.replace(",", "") for each in re.findall(r"(?<![\d.])\.?\d[\d,]*(?:\.\d+)?", text)}

    told = numbers(ROOT / "docs/results.md")
    assert len(told) > 100
    assert told - numbers(ROOT / "benchmarks/RESULTS.md") == set()


def test_every_section_of_the_measurements_is_told() -> None:
    told = (ROOT / "docs/results.md").read_text(encoding="utf-8")
    untold = {
        anchor for anchor in anchors(ROOT / "benchmarks/RESULTS.md") if f"RESULTS.md#{anchor})" not in told
    }
    assert untold == {"measurements", "not-measured", "the-generated-data-set"}
