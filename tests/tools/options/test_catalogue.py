"""Parts by name: one door for ours and a user's own, facts in rows, and no idle option."""

import importlib
from dataclasses import dataclass, field

import pytest

from local_learning.catalogue import HEADS, LOSSES
from local_learning.networks.catalogue import NETWORKS
from local_learning.rules.catalogue import RULES
from search.methods import METHODS
from supernet.layers import OPERATIONS
from supernet.options import OBJECTIVES, STRATEGIES
from supernet.spaces import SPACES
from tests.scripts import SCRIPTS, config_of, options
from tools.mistake import Mistake
from tools.options.catalogue import Catalogue, Row
from tools.options.plugins import Refused

ALL = [HEADS, LOSSES, NETWORKS, RULES, METHODS, OPERATIONS, OBJECTIVES, STRATEGIES, SPACES]


@dataclass(frozen=True, kw_only=True)
class Depth:
    """Options that not all look at."""

    layers: int = 3
    chs: tuple[int, ...] = ()


@dataclass(frozen=True, kw_only=True)
class Options:
    """Some of them in a group."""

    kind: str = "plain"
    rate: float = 0.5
    depth: Depth = field(default_factory=Depth)


def made() -> Catalogue[Row]:
    return Catalogue(
        "head",
        Row,
        [
            Row(name="plain", reads=()),
            Row(name="deep", reads=("depth", "rate")),
            Row(name="thin", reads=("depth.chs",), make="json:dumps"),
        ],
    )


def test_what_is_registered_is_known_beside_ours() -> None:
    heads = made()

    @heads.register("mine", says="one of my own")
    def one() -> int:
        return 1

    assert one() == 1
    assert list(heads) == ["plain", "deep", "thin", "mine"]
    assert heads.ours == ("plain", "deep", "thin")
    assert heads["mine"].maker is one
    assert heads["mine"].says == "one of my own"
    assert heads["thin"].maker is importlib.import_module("json").dumps
    assert heads.is_own("mine")
    assert not heads.is_own("thin")
    assert not heads.is_own("other")
    heads.check("head", "mine")
    heads.check("head", "mine", among=("other",))
    for name, among, says in (
        ("mime", (), "did you mean 'mine'? `plugins` FILE.py brings"),
        ("plain", ("other",), "known: other, mine; `plugins` FILE.py brings"),
        ("x", (), "known: plain, deep, thin, mine; `plugins` FILE.py brings"),
    ):
        with pytest.raises(Mistake) as caught:
            heads.check("head", name, among=among)
        assert caught.value.option == "head"
        assert caught.value.what.startswith(f"unknown value '{name}'; {says}")


@pytest.mark.parametrize("name", ["plain", "mine"])
def test_a_name_is_given_once(name: str) -> None:
    heads = made()
    heads.register("mine")(object())
    with pytest.raises(Refused, match=f"^head '{name}' is registered already; take another name$"):
        heads.register(name)


@pytest.mark.parametrize(
    ("form", "name"), [(r"[A-Za-z]\w*", ""), (r"[A-Za-z]\w*", "a:b"), ("[A-Za-z][A-Za-z0-9]*", "a_b")]
)
def test_a_name_fits_where_it_is_written(form: str, name: str) -> None:
    with pytest.raises(Refused, match=f"^head '{name}': a name is letters, digits"):
        Catalogue("head", Row, form=form).register(name)


@pytest.mark.parametrize(
    ("name", "given", "idle"),
    [
        ("plain", Options(), ""),
        ("plain", Options(rate=0.1), "rate"),
        ("plain", Options(depth=Depth(chs=(1,))), "depth.chs"),
        ("deep", Options(rate=0.1, depth=Depth(layers=2, chs=(1,))), ""),
        ("thin", Options(depth=Depth(chs=(1,))), ""),
        ("thin", Options(depth=Depth(layers=1)), "depth.layers"),
        ("mine", Options(rate=0.1, depth=Depth(layers=1)), ""),  # nobody knows what it looks at
    ],
)
def test_what_a_part_does_not_look_at_is_refused(name: str, given: Options, idle: str) -> None:
    heads = made()
    heads.register("mine")(print)
    if not idle:
        heads.check_idle("kind", name, given)
        return
    with pytest.raises(Mistake) as caught:
        heads.check_idle("kind", name, given)
    assert str(caught.value) == f"{idle}: kind {name} does not look at it; leave it out"


def test_what_a_users_part_says_binds_no_other_part() -> None:
    heads = made()
    # One that others read too, one that is misspelled, and one that is its own.
    heads.register("mine", reads=("kind", "depth.layer", "depth.chs"))(print)
    for name in heads:
        heads.check_idle("kind", name, Options(kind=name))
    with pytest.raises(Mistake, match=r"^depth\.chs: kind plain does not look at it"):
        heads.check_idle("kind", "plain", Options(depth=Depth(chs=(1,))))
    heads.check_idle("kind", "mine", Options(depth=Depth(chs=(1,))))
    with pytest.raises(Mistake, match=r"^rate: kind mine does not look at it"):
        heads.check_idle("kind", "mine", Options(rate=0.1))


@pytest.mark.parametrize("catalogue", ALL, ids=lambda catalogue: catalogue.what)
def test_each_of_our_rows_leads_to_what_it_names(catalogue: Catalogue[Row]) -> None:
    everything = {each.name for script in SCRIPTS for each in options(config_of(script))}
    groups = {name.rpartition(".")[0] for name in everything}
    others = {"width", "init", "stem", "dropout"}  # of build_chain
    for name in catalogue.ours:
        row = catalogue[name]
        assert callable(row.maker)
        assert set(row.reads or ()) <= everything | groups | others
