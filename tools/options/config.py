"""This module reads options from a TOML file, lets flags override them, and writes them back as TOML.

A config is a frozen dataclass of plain values (bool, int, float, str, tuples of these) and of other such
dataclasses. A string under a field is its help. This module must stay free of torch, because options are
parsed and `--help` is answered before anything heavy is imported.
"""

import contextlib
import copy
import dataclasses
import difflib
import io
import itertools
import json
import math
import re
import tomllib
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, TypeVar, get_args, get_origin, get_type_hints

import tyro

from tools.mistake import Mistake
from tools.options.help import CONFIG, HELP, HELP_ALL, print_help
from tools.options.hints import options_meant
from tools.options.unlisted import narrowed, unlisted, widened

_Config = TypeVar("_Config")

MEANT_NOTHING: Any = object()
"""As a value in a config's RETIRED, this says that no run ever looked at the option, whatever was given."""

_PLAINLY = {
    r"invalid literal for int\(\) with base 10: (.*)": r"\1 is not a whole number",
    r"could not convert string to float: (.*)": r"\1 is not a number",
    r"Could not (?:find valid parse for|parse) arguments:? \[(.*?)\].*": r"takes numbers, which \1 are not",
    r"^Missing value for argument '(.*)'. Expected (\d+) values?.*": r"\1: the value is missing; it takes \2",
    r"^Unrecognized options: (.*)": r"\1: belongs to no option; every value follows one that takes it",
}
"""tyro's messages on the left are worded as on the right."""


def parse(cls: type[_Config], arguments: Sequence[str], *, prog: str, description: str) -> _Config:
    """Return the config that the file named by `--config` and the flags over it describe.

    A mistake is a ValueError of one line. `--help` and `--help-all` print and exit.
    """
    path, flags = _split_config_flag(arguments)
    # Unchecked, because a flag may give what the file leaves open, such as a data folder.
    default = cls()
    if path:
        default = _build(default, _table(_read(path), path), "", path, _unchecked)
    _check_names(cls, flags)
    if asked := {"-h", HELP, HELP_ALL}.intersection(flags):
        print_help(default, prog=prog, description=description, spell=flag, whole=HELP_ALL in asked)
    default = widened(default, _names_given(flags))
    try:
        config = _with_values(default, _values_given(default, flags, prog))
    except Mistake as mistake:
        mistake.source = mistake.source or path
        raise
    except ValueError as error:
        raise ValueError(f"{error}" + (f" (with {path})" if path else "")) from None
    config = narrowed(config)
    _refuse_idle(config, flags)
    return config


def given(arguments: Sequence[str], name: str) -> tuple[tuple[str, ...] | None, tuple[str, ...]]:
    """Return an option's values in the flags (None if it is not there), and in the file of `--config`."""
    path, flags = _split_config_flag(arguments)
    from_flags: tuple[str, ...] | None = None
    for index, argument in enumerate(flags):
        first, equals, value = argument.partition("=")
        if first == flag(name):
            if from_flags is not None:
                raise ValueError(f"{first}: give it once, with all its values behind it")
            rest = itertools.takewhile(lambda word: not word.startswith("-"), flags[index + 1 :])
            from_flags = (*([value] if equals else []), *rest)
    words = _table(_read(path), path).get(name, ()) if path else ()
    from_file = tuple(word for word in words if isinstance(word, str)) if isinstance(words, list) else ()
    return from_flags, from_file


def to_toml(config: Any) -> str:
    """Return the whole config as TOML; `from_toml` gives an equal config back."""
    return "\n".join(_toml_lines(config, "")).lstrip("\n") + "\n"


def from_toml(cls: type[_Config], text: str, *, source: str, checked: bool = True) -> _Config:
    """Return the config that a TOML text describes; what the text leaves out keeps its default in `cls`.

    Without `checked`, the config may name files that are gone, as a record of earlier work.

    An older text may have keys that are no longer options. `cls.RETIRED` gives, by dotted name, the value
    that all runs now have in their place. A key with this value is passed over, and one with another value is
    refused.
    """
    return _build(cls(), _table(text, source), "", source, _checked if checked else _unchecked)


def of_run(cls: type[_Config], text: str, *, source: str, checked: bool = True) -> _Config:
    """Return the config of a run, from the text of its config.toml or of its weights' notes.

    An older run may lack an option of today. What it did in its place is in `cls.EARLIER`, by dotted name, as
    a value or as a function of the config. Options that are not there have always done what the default does.
    """
    return with_earlier(from_toml(cls, text, source=source, checked=checked), text, source)


def with_earlier(config: _Config, text: str, source: str) -> _Config:
    """Return the config with what a run did where today's default is another than when it began."""
    table = _table(text, source)
    now, default = flatten(config), flatten(type(config)())
    for name, earlier in getattr(config, "EARLIER", {}).items():
        value = earlier(config) if callable(earlier) else earlier
        if now[name] == default[name] and _at(table, name, value) == value:
            config = _with(config, name.split("."), value)
    return config


def flatten(config: Any, prefix: str = "") -> dict[str, Any]:
    """Return the config's values by dotted option name."""
    flat: dict[str, Any] = {}
    for field in dataclasses.fields(config):
        value = getattr(config, field.name)
        name = f"{prefix}{field.name}"
        if dataclasses.is_dataclass(value):
            flat.update(flatten(value, f"{name}."))
        else:
            flat[name] = value
    return flat


def flag(name: str) -> str:
    """Return the flag of a dotted field name; `compile=False` means the switch that turns it off."""
    if name.endswith("=False"):
        group, dot, last = name.removesuffix("=False").rpartition(".")
        name = f"{group}{dot}no_{last}"
    return "--" + name.replace("_", "-")


def message_of(error: Exception) -> str:
    """Return an error's message for the user of a script, who knows options by their flags."""
    return error.worded(flag) if isinstance(error, Mistake) else str(error)


def suggest(word: str, known: Sequence[str]) -> str:
    """Return a clause that suggests the nearest known word or lists a few, or an empty text."""
    near = difflib.get_close_matches(word, known, n=1, cutoff=0.6)
    if near:
        return f"; did you mean '{near[0]}'?"
    return f"; known: {', '.join(known)}" if 0 < len(known) <= 20 else ""


def check_choice(option: str, value: str, known: Sequence[str]) -> None:
    """Refuse a value that is not one of the known words, for the option of this dotted field name."""
    if value not in known:
        raise Mistake(option, f"unknown value '{value}'{suggest(value, known)}")


def check_range(
    option: str, value: float, low: float, high: float = float("inf"), *, open_low: bool = False
) -> None:
    """Refuse a number outside [low, high], or outside (low, high] with `open_low`."""
    if not math.isfinite(value) or not (low < value if open_low else low <= value) or not value <= high:
        bound = f"over {low:g}" if open_low else f"at least {low:g}"
        limit = f" and at most {high:g}" if high != float("inf") else ""
        finite = "" if math.isfinite(value) else "finite and "
        raise Mistake(option, f"{value:g} is out of range", f"it must be {finite}{bound}{limit}")


def check_idle(group: str, options: Any, used: Collection[str], who: str) -> None:
    """Refuse options of a group that differ from their defaults and that nobody would look at.

    `who` says what does not look at them; options that it names stand in back-quotes.
    """
    for field in dataclasses.fields(options):
        if field.name not in used and getattr(options, field.name) != field.default:
            raise Mistake(f"{group}.{field.name}", f"{who} does not look at it", "leave it out")


def idle_options(config: Any) -> dict[str, str]:
    """Return the options that have no effect beside the other options' values, each with the reason.

    Names are dotted. A config and its groups say so by a method `idle` with their own names. Only the command
    line refuses such an option. Older files may have it, and it does not tell one run from another.
    """
    found = dict(config.idle()) if hasattr(config, "idle") else {}
    for field in dataclasses.fields(config):
        value = getattr(config, field.name)
        if dataclasses.is_dataclass(value):
            found = within(field.name, idle_options(value)) | found
    return found


def within(group: str, idle: Mapping[str, str]) -> dict[str, str]:
    """Return the idle options of a group by dotted name."""
    return {f"{group}.{name}": who for name, who in idle.items()}


def _refuse_idle(config: Any, flags: Sequence[str]) -> None:
    """Refuse flags that have no effect."""
    given, now, default = _names_given(flags), flatten(config), flatten(type(config)())
    for name, who in idle_options(config).items():
        if name in given and now[name] != default[name]:
            spelled = re.sub(r"(\w+)$", r"no_\1", name) if now[name] is False else name
            raise Mistake(spelled, f"{who} does not look at it", "leave it out")


def _names_given(flags: Sequence[str]) -> set[str]:
    """Return the dotted names of the options that flags give."""
    given = {word[2:].split("=", 1)[0].replace("-", "_") for word in flags if word.startswith("--")}
    return given | {re.sub(r"(^|\.)no_", r"\1", name) for name in given}


def _values_given(config: Any, flags: Sequence[str], prog: str) -> dict[str, Any]:
    """Return the values that flags give, by dotted name.

    Only the options that are given are described to tyro, because each one takes it time.
    """
    values, kinds, names = flatten(config), _kinds(config), _names_given(flags)
    given = {name.replace(".", "__"): name for name in values if name in names}
    fields = []
    for key, name in given.items():
        described = Annotated[kinds[name], tyro.conf.arg(name=flag(name)[2:])]  # type: ignore[valid-type]
        fields.append((key, described, dataclasses.field(default=values[name])))
    # Its help is never shown, so tyro need not look for texts in the source.
    without_texts = (tyro.conf.HelptextFromCommentsOff,)
    said = io.StringIO()
    try:
        with contextlib.redirect_stderr(said):
            cls = dataclasses.make_dataclass("Given", fields)
            found: Any = tyro.cli(cls, args=flags, prog=prog, config=without_texts)
    except SystemExit:
        raise ValueError(_one_line(said.getvalue())) from None
    return {name: getattr(found, key) for key, name in given.items()}


def _kinds(config: Any, prefix: str = "") -> dict[str, Any]:
    """Return the types of a config's values by dotted option name."""
    kinds: dict[str, Any] = {}
    for name, kind in _fields(type(config)):
        value, name = getattr(config, name), f"{prefix}{name}"
        kinds |= _kinds(value, f"{name}.") if dataclasses.is_dataclass(value) else {name: kind}
    return kinds


def _with_values(config: _Config, values: Mapping[str, Any], prefix: str = "") -> _Config:
    """Return the config, checked, with other values by dotted option name."""
    new = {}
    for field in dataclasses.fields(config):  # type: ignore[arg-type]
        value, name = getattr(config, field.name), f"{prefix}{field.name}"
        nested = dataclasses.is_dataclass(value)
        new[field.name] = _with_values(value, values, f"{name}.") if nested else values.get(name, value)
    return type(config)(**new)


def _split_config_flag(arguments: Sequence[str]) -> tuple[str, list[str]]:
    flags, path = [], ""
    rest = iter(arguments)
    for argument in rest:
        if argument == CONFIG or argument.startswith(CONFIG + "="):
            value = argument[len(CONFIG) + 1 :] or next(rest, "")
            if not value or path:
                raise ValueError(f"{CONFIG}: takes the name of one TOML file")
            path = value
        else:
            flags.append(argument)
    return path, flags


def _read(path: str) -> str:
    try:
        return Path(path).read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else "it is not a text file"
        raise ValueError(f"{CONFIG}: cannot read '{path}': {reason}") from None


def _fields(cls: type[Any]) -> Iterator[tuple[str, Any]]:
    hints = get_type_hints(cls)
    for field in dataclasses.fields(cls):
        yield field.name, hints[field.name]


def _option_names(cls: type[Any], prefix: str = "") -> list[str]:
    names = []
    for name, kind in _fields(cls):
        if dataclasses.is_dataclass(kind):
            assert isinstance(kind, type)
            names += _option_names(kind, f"{prefix}{name}.")
        else:
            names.append(flag(prefix + name))
            if kind is bool:
                names.append(flag(f"{prefix}no-{name}"))
    return names


def _check_names(cls: type[Any], flags: Sequence[str]) -> None:
    known = [*_option_names(cls), CONFIG, HELP, HELP_ALL]
    taken = unlisted(cls).keys()
    for argument in flags:
        name = argument.split("=", 1)[0].replace("_", "-")
        if not _names_given([argument]).isdisjoint(getattr(cls, "RETIRED", {})):
            raise ValueError(f"{name}: this script does not look at it; leave it out")
        if name.startswith("--") and name not in known and taken.isdisjoint(_names_given([argument])):
            meant = options_meant(name, known)
            near = suggest(name, [*known, *map(flag, taken)])
            hint = f"; did you mean {' or '.join(map(repr, meant))}?" if meant else near
            raise ValueError(f"unknown option '{name}'{hint}")


def _one_line(boxed: str) -> str:
    """Return what tyro's boxed message says, without box, hints and prefixes."""
    lines = [re.sub(r"^│\s?(.*?)\s*│$", r"\1", line) for line in boxed.splitlines()]
    body: list[str] = []
    for line in lines[1:]:
        if line.strip().startswith(("─", "╰", "---")):  # "---" on a terminal without such signs
            if body:
                break
            continue
        body.append(line.strip())
    text = " ".join(part for part in body if part)
    text = re.sub(r"^Error parsing ([\w.\-]+): (--)", r"\2", text)
    text = re.sub(r"^Error parsing (?=--)", "", text)
    for said, meant in _PLAINLY.items():
        text = re.sub(said, meant, text)
    return text


def _at(table: Any, name: str, otherwise: Any) -> Any:
    """Return what a table says about a dotted option name, or `otherwise` if it says nothing."""
    for part in name.split("."):
        keys = {key.replace("-", "_"): key for key in table} if isinstance(table, dict) else {}
        if part not in keys:
            return otherwise
        table = table[keys[part]]
    return table


def _with(config: _Config, path: Sequence[str], value: Any) -> _Config:
    """Return a copy with another value at the end of a path of field names, unchecked."""
    first, *rest = path
    copied = copy.copy(config)
    object.__setattr__(copied, first, _with(getattr(config, first), rest, value) if rest else value)
    return copied


def _toml_lines(config: Any, prefix: str) -> Iterator[str]:
    tables = []
    for field in dataclasses.fields(config):
        value = getattr(config, field.name)
        if dataclasses.is_dataclass(value):
            tables.append((f"{prefix}{field.name}", value))
        else:
            yield f"{field.name} = {_toml_value(value)}"
    for name, table in tables:
        yield f"\n[{name}]"
        yield from _toml_lines(table, f"{name}.")


def _toml_value(value: Any) -> str:
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, int | float):
        return repr(value)
    if isinstance(value, str):
        return json.dumps(value, ensure_ascii=False).replace("\x7f", "\\u007F")
    assert isinstance(value, tuple), f"a config holds plain values, not {type(value).__name__}"
    return "[" + ", ".join(map(_toml_value, value)) + "]"


def _table(text: str, source: str) -> dict[str, Any]:
    try:
        return tomllib.loads(text)
    except (tomllib.TOMLDecodeError, RecursionError) as error:
        raise ValueError(f"{source}: not valid TOML: {error}") from None


def _checked(cls: type[Any], values: dict[str, Any], source: str) -> Any:
    try:
        return cls(**values)
    except Mistake as mistake:
        mistake.source = source
        raise
    except ValueError as error:
        raise ValueError(f"{source}: {error}") from None


def _unchecked(cls: type[Any], values: dict[str, Any], source: str) -> Any:
    config = object.__new__(cls)
    for name, value in values.items():
        object.__setattr__(config, name, value)
    return config


def _build(
    default: _Config,
    table: dict[str, Any],
    prefix: str,
    source: str,
    make: Callable[[type[Any], dict[str, Any], str], Any],
) -> _Config:
    """Return the values of a table over those of `default`, which need not be the defaults of its class."""
    default = widened(default, _names_in(table))
    cls = type(default)
    kinds = dict(_fields(cls))
    values = dict(vars(default))
    for key, value in _without_retired(table, getattr(cls, "RETIRED", {}), prefix, source).items():
        name = key.replace("-", "_")
        if name not in kinds:
            raise ValueError(f"{source}: unknown key '{prefix}{key}'{suggest(key, list(kinds))}")
        kind = kinds[name]
        if dataclasses.is_dataclass(kind):
            if not isinstance(value, dict):
                raise ValueError(f"{source}: '{prefix}{key}' is a table, [{prefix}{key}], not a value")
            values[name] = _build(values[name], value, f"{prefix}{key}.", source, make)
        else:
            values[name] = _convert(kind, value, f"{prefix}{key}", source)
    built: _Config = make(cls, values, source)
    return narrowed(built)


def _names_in(table: dict[str, Any]) -> set[str]:
    """Return the dotted names of the options that a table's groups give."""
    groups = {group: keys for group, keys in table.items() if isinstance(keys, dict)}
    return {f"{group}.{key}".replace("-", "_") for group, keys in groups.items() for key in keys}


def _without_retired(
    table: dict[str, Any], retired: Mapping[str, Any], prefix: str, source: str
) -> dict[str, Any]:
    """Return a table without the keys that are no longer options."""
    kept = {}
    for key, value in table.items():
        name = key.replace("-", "_")
        start = f"{name}."
        inside = {each.removeprefix(start): was for each, was in retired.items() if each.startswith(start)}
        if inside and isinstance(value, dict):
            left = _without_retired(value, inside, f"{prefix}{key}.", source)
            if left:
                kept[key] = left
        elif name not in retired:
            kept[key] = value
        elif retired[name] not in (MEANT_NOTHING, value):
            raise ValueError(
                f"{source}: '{prefix}{key}' is no longer an option; everything is done as with "
                f"{_toml_value(retired[name])}, so leave it out"
            )
    return kept


def _convert(kind: Any, value: Any, name: str, source: str) -> Any:
    if get_origin(kind) is tuple and isinstance(value, list):
        element = get_args(kind)[0]
        return tuple(_convert(element, item, name, source) for item in value)
    if kind is float and type(value) is int:
        return float(value)
    if kind is not type(value):
        wanted = "list" if get_origin(kind) is tuple else kind.__name__
        raise ValueError(f"{source}: '{name}' must be of type {wanted}, not {value!r}")
    return value
