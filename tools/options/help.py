"""This module prints `--help` and `--help-all`. It is free of torch.

The text under a field is its help. A config names in `USUAL` the options that people use:

    USUAL: ClassVar[tuple[str, ...]] = ("network", "recipe.lr")

A config may leave it to another script to list a group of options that both have. `--help-all` then lists
only the usual options of the group:

    LISTED_BY: ClassVar[dict[str, str]] = {"recipe": "retrain_model.py"}

A text may leave names to a catalogue, so that a new part shows by itself. `{rules}` then stands for the
names, and `{rules.says}` for what each of the parts is:

    NAMES: ClassVar[dict[str, Iterable[str]]] = {"rules": RULES}
"""

import ast
import dataclasses
import functools
import inspect
import re
import shutil
import sys
import textwrap
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Annotated, Any, NoReturn, get_args, get_origin, get_type_hints

import tyro

CONFIG, HELP, HELP_ALL = "--config", "--help", "--help-all"
NARROWEST, WIDEST = 80, 100
"""A page of help is as wide as the terminal, between these numbers of columns."""

_OF_CONFIG = "Read options from this file, such as the config.toml of an earlier run; flags override it."
_LEFT = 30
"""The names of options take at most this many columns."""
_KINDS = {str: "STR", int: "INT", float: "FLOAT"}
"""These are tyro's words for the kind of value that an option takes."""


@dataclasses.dataclass(frozen=True)
class Option:
    """An `Option` is one option of a config, as its field describes it."""

    name: str
    """The name is dotted where the option belongs to a group."""
    kind: Any
    """The kind is the type of its value."""
    default: Any
    text: str
    """The text says in one line what the option means."""

    @property
    def takes(self) -> str:
        """Return what kind of value follows the option's flag."""
        if get_origin(self.kind) is tuple:
            kind, *more = get_args(self.kind)
            several = more == [...]
            return f"{_KINDS[kind]} ..." if several else " ".join(_KINDS[each] for each in (kind, *more))
        return "" if self.kind is bool else _KINDS[self.kind]

    @property
    def default_in_words(self) -> str:
        """Return the option's default, as one would give it."""
        if isinstance(self.default, bool):
            return "yes" if self.default else "no"
        values = self.default if isinstance(self.default, tuple) else (self.default,)
        return " ".join(str(value).removesuffix(".0") for value in values) or "not given"

    @property
    def sentence(self) -> str:
        """Return the first sentence of the option's text."""
        return re.split(r"(?<=[.!?])\s", self.text, maxsplit=1)[0]


def options_of(config: Any, prefix: str = "") -> Iterator[Option]:
    """Return all options of a config, with its values as defaults."""
    hints = get_type_hints(type(config))
    for field in dataclasses.fields(config):
        value, name = getattr(config, field.name), f"{prefix}{field.name}"
        if dataclasses.is_dataclass(value):
            yield from options_of(value, f"{name}.")
        else:
            yield Option(name, hints[field.name], value, _text(type(config), field.name))


def listed(config: Any) -> list[Option]:
    """Return the options that `--help-all` lists."""
    return [option for option in options_of(config) if _is_listed(type(config), option.name)]


def _is_listed(cls: type[Any], name: str) -> bool:
    return name.partition(".")[0] not in getattr(cls, "LISTED_BY", {}) or name in cls.USUAL


def print_help(
    config: Any, *, prog: str, description: str, spell: Callable[[str], str], whole: bool
) -> NoReturn:
    """Print the help of a script whose defaults are those of `config`, and exit.

    `spell` turns an option's dotted name into its flag. With `whole`, all options are listed.
    """
    if whole:
        text = f"{description.strip()}\n\n{CONFIG} FILE.toml: {_OF_CONFIG}"
        text = "\n\n".join([text, *_of_others(type(config), spell)])
        left_out = {option.name for option in options_of(config)} - {option.name for option in listed(config)}
        shown = _in_lines(type(config), frozenset(left_out))
        tyro.cli(shown, default=_mirrored(config, shown), args=[HELP], prog=prog, description=text)
    columns = min(max(shutil.get_terminal_size((WIDEST, 24)).columns, NARROWEST), WIDEST)
    print(short_help(config, prog=prog, description=description, spell=spell, columns=columns))
    sys.exit(0)


def short_help(config: Any, *, prog: str, description: str, spell: Callable[[str], str], columns: int) -> str:
    """Return a page that says what a script does, how it is called, and what the usual options mean."""
    options = {option.name: option for option in options_of(config)}
    usual = [options[name] for name in type(config).USUAL]
    rows = [(_signature(option, spell), _meaning(option)) for option in usual]
    others = list(_of_others(type(config), spell))
    return "\n".join(
        [
            f"usage: {prog} [{CONFIG} FILE.toml] [options]",
            "",
            *(part for line in description.strip().splitlines() for part in _folded(line, columns)),
            "",
            "Usual options:",
            *_in_columns([*rows, (f"{CONFIG} FILE.toml", _OF_CONFIG)], columns),
            "",
            *(part for line in others for part in _folded(line, columns)),
            f"{HELP_ALL} lists {'' if others else 'all '}{len(listed(config))} options by group.",
        ]
    )


def _of_others(cls: type[Any], spell: Callable[[str], str]) -> Iterator[str]:
    """Return sentences that say which options are listed by other scripts."""
    others: dict[str, list[str]] = {}
    for group, script in getattr(cls, "LISTED_BY", {}).items():
        others.setdefault(script, []).append(spell(group))
    for script, groups in others.items():
        named = " and ".join(filter(None, (", ".join(groups[:-1]), groups[-1])))
        yield f"All {named} options of {script} are options here too; its {HELP_ALL} explains them."


def _signature(option: Option, spell: Callable[[str], str]) -> str:
    if option.kind is bool:
        group, _, last = option.name.rpartition(".")
        return f"{spell(option.name)}, {spell(f'{group}.no-{last}' if group else f'no-{last}')}"
    return f"{spell(option.name)} {option.takes}"


def _meaning(option: Option) -> str:
    return f"{option.sentence} (default: {option.default_in_words})"


def _in_columns(rows: Sequence[tuple[str, str]], columns: int) -> Iterator[str]:
    """Return lines with names on the left and meanings beside them; a long name has its own line."""
    left = min(_LEFT, max(len(name) for name, _ in rows) + 2)
    for name, meaning in rows:
        lines = textwrap.wrap(meaning, columns - left - 2, break_on_hyphens=False)
        if len(name) + 2 > left:
            yield f"  {name}"
        else:
            yield f"  {name:<{left}}{lines.pop(0)}"
        yield from (f"  {'':<{left}}{line}" for line in lines)


def _folded(line: str, columns: int) -> list[str]:
    """Fold a line of a description; a long command goes on after a backslash, as in a shell."""
    if not line.startswith(" "):
        return textwrap.wrap(line, columns, break_on_hyphens=False) or [""]
    indent = line[: -len(line.lstrip())]
    parts = [indent]
    for word in re.split(r" (?=-)", line.strip()):  # an option stays together with its values
        if len(parts[-1]) + len(word) + 2 > columns:
            parts.append(f"{indent}   ")
        parts[-1] += f" {word}" if parts[-1].strip() or len(parts) > 1 else word
    return [f"{part} \\" for part in parts[:-1]] + parts[-1:]


# ---- what tyro receives --------------------------------------------------------------------------------


def _in_lines(cls: type[Any], left_out: frozenset[str] = frozenset(), prefix: str = "") -> type[Any]:
    """Return a class with the fields of a config, whose texts have no line breaks, which tyro would keep."""
    hints = get_type_hints(cls)
    fields = []
    for field in dataclasses.fields(cls):
        name, kind, text = f"{prefix}{field.name}", hints[field.name], _text(cls, field.name)
        if dataclasses.is_dataclass(kind):
            assert isinstance(kind, type)
            text, kind = text or _joined(kind.__doc__ or ""), _in_lines(kind, left_out, f"{name}.")
        if name not in left_out:
            fields.append((field.name, Annotated[kind, tyro.conf.arg(help=text)]))
    made: type[Any] = dataclasses.make_dataclass(cls.__name__, fields, kw_only=True, frozen=True)
    return made


def _mirrored(config: Any, cls: type[Any]) -> Any:
    """Return the values of a config in such a class; nothing is checked."""
    values = {field.name: getattr(config, field.name) for field in dataclasses.fields(cls)}
    kinds = get_type_hints(cls)
    return cls(**{k: _mirrored(v, kinds[k]) if dataclasses.is_dataclass(v) else v for k, v in values.items()})


# ---- the texts under fields ----------------------------------------------------------------------------


def _text(cls: type[Any], name: str) -> str:
    """Return the string under a field in one line, from the class itself or from where it is inherited."""
    for kind in cls.__mro__:
        if name in (texts := _texts(kind)):
            return _filled(texts[name], vars(kind).get("NAMES", {}))
    return ""


def _filled(text: str, names: Mapping[str, Any]) -> str:
    """Return a text with the names of parts, and with what the parts are, in place of its markers."""
    for marker, parts in names.items():
        text = text.replace(f"{{{marker}}}", ", ".join(parts))
        if (meanings := f"{{{marker}.says}}") in text:
            rows = [parts[name] for name in parts]
            clauses = [f"{row.name}: {row.says}" for row in rows if row.says]
            text = text.replace(meanings, f"{'; '.join(clauses)}.")
    return text


@functools.cache
def _texts(cls: type[Any]) -> dict[str, str]:
    if not dataclasses.is_dataclass(cls):
        return {}
    (tree,) = ast.parse(textwrap.dedent(inspect.getsource(cls))).body
    assert isinstance(tree, ast.ClassDef)
    found = {}
    for field, below in zip(tree.body, tree.body[1:], strict=False):
        match field, below:
            case ast.AnnAssign(target=ast.Name(id=name)), ast.Expr(value=ast.Constant(value=str(text))):
                found[name] = _joined(text)
    return found


def _joined(text: str) -> str:
    return " ".join(text.split())
