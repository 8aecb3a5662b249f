"""The root scripts and their options, as the dataclasses and their source say."""

import ast
import dataclasses
import functools
import inspect
import re
import runpy
import textwrap
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple, get_type_hints

HOUSE = Path(__file__).resolve().parents[1]
SCRIPTS = sorted(path.name for path in HOUSE.glob("*.py"))


class Option(NamedTuple):
    """One field of a config."""

    name: str
    """Dotted, as in `tools.options.config.flatten`."""
    kind: Any
    default: Any
    text: str
    """The string under it; empty where it has none."""

    @property
    def flag(self) -> str:
        return "--" + self.name.replace("_", "-")


@functools.cache
def config_of(script: str) -> type[Any]:
    """The config that a root script parses: the one dataclass that it names."""
    named = runpy.run_path(str(HOUSE / script), run_name="looked at").values()
    (found,) = (each for each in named if isinstance(each, type) and dataclasses.is_dataclass(each))
    return found


def options(config: type[Any], prefix: str = "") -> Iterator[Option]:
    """All options of a config, those of its groups too."""
    hints, plain = get_type_hints(config), config()
    for field in dataclasses.fields(config):
        kind = hints[field.name]
        if dataclasses.is_dataclass(kind):
            assert isinstance(kind, type)
            # The defaults of a group are those that it has here.
            inner = getattr(plain, field.name)
            for each in options(kind, f"{prefix}{field.name}."):
                own = getattr(inner, each.name.rpartition(".")[2])
                yield each._replace(default=own)
        else:
            default = getattr(plain, field.name)
            yield Option(prefix + field.name, kind, default, text_of(config, field.name))


def listed(config: type[Any]) -> list[Option]:
    """The options that `--help-all` lists: another script may list the others of a group that both have."""
    elsewhere = getattr(config, "LISTED_BY", {})
    every = options(config)
    return [each for each in every if each.name in config.USUAL or each.name.split(".")[0] not in elsewhere]


def groups(config: type[Any]) -> dict[str, str]:
    """The groups of a config by name, with what describes them: the string under the field or the class."""
    hints = get_type_hints(config)
    kinds = {field.name: hints[field.name] for field in dataclasses.fields(config)}
    return {
        name: text_of(config, name) or inspect.cleandoc(vars(kind)["__doc__"] or "")
        for name, kind in kinds.items()
        if dataclasses.is_dataclass(kind)
    }


def text_of(config: type[Any], name: str) -> str:
    """The string under a field, of the class itself or inherited, with the names of parts filled in."""
    kind = next((kind for kind in config.__mro__ if name in _texts(kind)), config)
    catalogues = vars(kind).get("NAMES", {})

    def filled(marker: re.Match[str]) -> str:
        parts = catalogues[marker["parts"]]
        if not marker["says"]:
            return ", ".join(parts)
        return "; ".join(f"{part}: {parts[part].says}" for part in parts if parts[part].says) + "."

    return re.sub(r"\{(?P<parts>\w+)(?P<says>\.says)?\}", filled, _texts(kind).get(name, ""))


@functools.cache
def _texts(kind: type[Any]) -> dict[str, str]:
    if not dataclasses.is_dataclass(kind):
        return {}
    (tree,) = ast.parse(textwrap.dedent(inspect.getsource(kind))).body
    assert isinstance(tree, ast.ClassDef)
    found = {}
    for field, below in zip(tree.body, tree.body[1:], strict=False):
        if isinstance(field, ast.AnnAssign) and isinstance(field.target, ast.Name):  # noqa: SIM102
            if isinstance(below, ast.Expr) and isinstance(below.value, ast.Constant):
                found[field.target.id] = inspect.cleandoc(str(below.value.value))
    return found
