"""This catalogue lists the spaces by name, ours and the user's own. Free of torch."""

from pathlib import Path

from tools.mistake import Mistake
from tools.options.catalogue import Catalogue, Row

FILES = (".toml", ".json")
"""A file with one of these endings can describe a space."""

SPACES: Catalogue[Row] = Catalogue(
    "space",
    Row,
    [
        *(
            Row(name=name, make="supernet.presets:lwsl", given={"depth": depth, "name": name})
            for name, depth in (("lwsl_table1", 3), ("lwsl_fit", 4))
        ),
        *(Row(name=name, make=f"supernet.presets:{name}") for name in ("cream", "nas_bench_macro", "tiny")),
    ],
)
"""`make` is called with `num_classes`, `image_size` and `in_chs`."""


def check_space(name: str, option: str = "") -> None:
    """Refuse what is neither the name of a space nor that of a file that can describe one."""
    if name not in SPACES and Path(name).suffix not in FILES:
        raise Mistake(option, f"space '{name}' is unknown{SPACES.hint(name)}, or name a .toml or .json file")
