"""Options that are still taken though no list shows them. Free of torch.

A group of options may have become smaller than it was. The config then names the class that the group was:

    UNLISTED: ClassVar[dict[str, type]] = {"data": DataConfig}

A file (such as the config.toml of a run of before) and the command line may still say what only that class
has. Where all of it is as the defaults are, it is passed over. Otherwise the value is of a wider class.
It is a subclass of the group's class of today with these options added, and it checks all as the old class
does. Whoever uses the config says whether such a value is allowed.
"""

import copy
import dataclasses
import functools
from collections.abc import Collection
from typing import Any, TypeVar, get_type_hints

Config = TypeVar("Config")


def unlisted(cls: type[Any]) -> dict[str, Any]:
    """The options of a config that no list shows, by dotted name, with their defaults."""
    return {
        f"{group}.{field.name}": field.default
        for group, former in getattr(cls, "UNLISTED", {}).items()
        for field in _only_former(get_type_hints(cls)[group], former)
    }


def widened(config: Config, names: Collection[str]) -> Config:
    """The config with a wider group where one of these dotted names is an unlisted option of it.

    Nothing is checked, as a config that is still being read may not be whole.
    """
    for group, former in getattr(config, "UNLISTED", {}).items():
        options = getattr(config, group)
        wide = _wider(get_type_hints(type(config))[group], former)
        more = {field.name: field.default for field in _only_former(type(options), former)}
        if any(f"{group}.{name}" in names for name in more):
            config = _with(config, group, _unchecked(wide, more | vars(options)))
    return config


def narrowed(config: Config) -> Config:
    """The config with groups of today's classes where all unlisted options have their defaults."""
    for group, former in getattr(config, "UNLISTED", {}).items():
        options, listed = getattr(config, group), get_type_hints(type(config))[group]
        more = {field.name: field.default for field in _only_former(listed, former)}
        if type(options) is not listed and more.items() <= vars(options).items():
            kept = {field.name: getattr(options, field.name) for field in dataclasses.fields(listed)}
            config = _with(config, group, _unchecked(listed, kept))
    return config


def _only_former(listed: type[Any], former: type[Any]) -> list[dataclasses.Field[Any]]:
    """The options that a group had before, and has no more."""
    kept = {field.name for field in dataclasses.fields(listed)}
    return [field for field in dataclasses.fields(former) if field.name not in kept]


@functools.cache
def _wider(listed: type[Any], former: type[Any]) -> type[Any]:
    """A subclass of a group's class that has the former one's other options and checks."""

    def check(options: Any) -> None:
        former(**vars(options))

    more = [
        (field.name, field.type, dataclasses.field(default=field.default))
        for field in _only_former(listed, former)
    ]
    wide: type[Any] = dataclasses.make_dataclass(
        former.__name__, more, bases=(listed,), namespace={"__post_init__": check}, frozen=True, kw_only=True
    )
    wide.__module__ = former.__module__  # where the texts under the options are read
    return wide


def _unchecked(cls: type[Any], values: dict[str, Any]) -> Any:
    options = object.__new__(cls)
    for name, value in values.items():
        object.__setattr__(options, name, value)
    return options


def _with(config: Config, group: str, options: Any) -> Config:
    copied = copy.copy(config)
    object.__setattr__(copied, group, options)
    return copied
