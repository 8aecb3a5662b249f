import pytest

from local_learning.decoupling import Decoupling
from local_learning.published import PUBLISHED, is_tied, published

# Layers of the network, largest number of blocks, sizes of four blocks.
TABLES = {
    "resnet152": (50, 17, [11, 2, 4, 33]),
    "resnet101": (33, 17, [7, 4, 1, 21]),
    "resnet50": (16, 16, [10, 1, 1, 4]),
    "vgg19": (16, 16, [6, 7, 1, 2]),
}


@pytest.mark.parametrize("name", TABLES)
def test_four_blocks_have_the_papers_sizes(name: str) -> None:
    layers, _, sizes = TABLES[name]
    assert [len(block) for block in published(name, 4).blocks(layers)] == sizes


@pytest.mark.parametrize("name", TABLES)
def test_each_number_of_blocks_adds_one_cut(name: str) -> None:
    layers, most, _ = TABLES[name]
    before: set[tuple[int, str]] = set()
    for num_blocks in range(1, most + 1):
        decoupling = published(name, num_blocks)
        assert decoupling.num_blocks == num_blocks
        assert all(len(block) for block in decoupling.blocks(layers))
        assert set(decoupling.heads) <= {"aux1", "aux2", "aux3", "aux4"}
        pairs = set(zip(decoupling.cuts, decoupling.heads, strict=True))
        assert before < pairs or num_blocks == 1
        before = pairs


def test_heads_go_with_their_layers() -> None:
    assert published("resnet50", 1) == Decoupling((), ())
    assert published("resnet50", 7) == Decoupling((10, 11, 12, 13, 14, 15), ("aux4",) * 4 + ("aux1", "aux4"))
    assert published("resnet152", 7).heads == ("aux4", "aux4", "aux4", "aux3", "aux2", "aux4")
    assert published("vgg19", 7) == Decoupling(
        (6, 11, 12, 13, 14, 15), ("aux4", "aux2", "aux1", "aux1", "aux1", "aux1")
    )


@pytest.mark.parametrize(
    ("name", "tied"),
    [("resnet152", [10, *range(12, 18)]), ("resnet101", [9]), ("resnet50", []), ("vgg19", [])],
)
def test_where_the_published_values_leave_it_open(name: str, tied: list[int]) -> None:
    most = TABLES[name][1]
    assert [num_blocks for num_blocks in range(1, most + 1) if is_tied(name, num_blocks)] == tied


@pytest.mark.parametrize("use", [published, is_tied])
def test_what_the_paper_does_not_have(use: object) -> None:
    assert callable(use)
    for name, (_, most, _) in TABLES.items():
        for wrong in (0, -1, most + 1):
            with pytest.raises(ValueError, match=f"num_blocks is {wrong}; for {name} 1 to {most} blocks"):
                use(name, wrong)
    with pytest.raises(ValueError, match="network 'resnet34' .*; there are " + ", ".join(PUBLISHED)):
        use("resnet34", 4)
    assert set(PUBLISHED) == set(TABLES)
