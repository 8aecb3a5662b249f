from pathlib import Path

import pytest

from local_learning.catalogue import HEADS
from local_learning.cuts.requests import Request, parse_request


@pytest.mark.parametrize(
    ("text", "request_"),
    [
        ("uniform:4:aux2", Request("uniform", num_blocks=4, head="aux2")),
        ("balanced:16:mlp_sr", Request("balanced", num_blocks=16, head="mlp_sr")),
        ("uniform:1:linear", Request("uniform", num_blocks=1, head="linear")),
        ("published:4", Request("published", num_blocks=4)),
    ],
)
def test_ways_to_choose_the_cuts(text: str, request_: Request) -> None:
    assert parse_request(text) == request_


def test_every_head_can_be_asked_for() -> None:
    assert [parse_request(f"uniform:2:{head}").head for head in HEADS.ours] == list(HEADS.ours)


@pytest.mark.parametrize("name", ["decoupling-4.json", "uniform", "a:b", "unifrom:4:aux2"])
def test_anything_else_is_a_file(name: str, tmp_path: Path) -> None:
    path = tmp_path / name
    path.touch()
    assert parse_request(str(path)) == Request("file", path=str(path))


def test_a_file_that_exists_is_taken_at_its_word(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    Path("unifrom:4").touch()
    assert parse_request("unifrom:4").kind == "file"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("uniform:4", "'uniform:4' names no head; write uniform:K:HEAD, HEAD being one of aux1, aux2"),
        ("balanced:4:", "'balanced:4:' names no head; write balanced:K:HEAD"),
        ("uniform", "'uniform' is not of the form uniform:K:HEAD, such as uniform:4:aux2"),
        ("uniform::aux2", "'uniform::aux2' is not of the form uniform:K:HEAD"),
        ("uniform:aux2", "'uniform:aux2' is not of the form uniform:K:HEAD"),
        ("uniform:4:aux2:1", "is not of the form uniform:K:HEAD"),
        ("published", "'published' is not of the form published:K, such as published:4"),
        ("published:", "'published:' is not of the form published:K"),
        ("published:4:aux1", "'published:4:aux1' names a head, but the published ones have theirs"),
        ("uniform:0:aux2", "'0' in 'uniform:0:aux2' is not a number of blocks"),
        ("uniform:-1:aux2", "'-1' in 'uniform:-1:aux2' is not a number of blocks"),
        ("balanced:4.0:aux2", "'4.0' in 'balanced:4.0:aux2' is not a number of blocks"),
        ("published:four", "'four' in 'published:four' is not a number of blocks"),
        ("published:²", "'²' in 'published:²' is not a number of blocks"),
        ("uniform:4:aux5", "head 'aux5' is unknown; did you mean 'aux"),
        ("uniform:4:zzz", "head 'zzz' is unknown; known: aux1, aux2"),
        ("unifrom:4:aux2", "there is no file 'unifrom:4:aux2'; did you mean 'uniform:4:aux2'?"),
        ("publish:4", "there is no file 'publish:4'; did you mean 'published:4'?"),
        ("none.json", "there is no file 'none.json'; it takes a decoupling.json, uniform:K:HEAD, balanced:"),
        ("a" * 5000, "there is no file 'aaaa"),
        (".", "'.' is a folder; it takes a decoupling.json"),
        ("", "takes a decoupling.json, uniform:K:HEAD, balanced:K:HEAD, published:K"),
    ],
)
def test_mistakes_say_what_would_be_right(
    text: str, message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ValueError, match=r"^decoupling: ") as caught:
        parse_request(text)
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)
