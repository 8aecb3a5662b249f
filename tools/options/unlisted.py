"""This module accepts options that no list of options shows any more. It is free of torch.

A group of options may have become smaller than it was. The config then names the former class of the group:

    UNLISTED: ClassVar[dict[str, type]] = {"data": DataConfig}

A file (such as the config.toml of an older run) and the command line may still give options that only the
former class has. If all of them have their default values, they are passed over. Otherwise the group becomes
an instance of a wider class. It is a subclass of the group's present class with these options added, and it
makes all checks of the former class. The user of the config decides whether such a value is allowed.
"""

import copy
import dataclasses
import functools
from collections.abc import Collection
from typing import Any, TypeVar, get_type_hints

_Config = TypeVar("_Config")


def unlisted(cls: type[Any]) -> dict[str, Any]:
    """Return the options of a config that no list shows, by dotted name, with their defaults."""
    return {
        f"{group}.{field.name}": field.default
        for group, former in getattr(cls, "UNLISTED", {}).items()
        for field in _only_former(get_type_hints(cls)[group], former)
    }


def widened(config: _Config, names: Collection[str]) -> _Config:
    """Return the config with a wider group where one of these dotted names is an unlisted option of it.

    Nothing is checked, because a config that is still being read may be incomplete.
    """
    for group, former in getattr(config, "UNLISTED", {}).items():
        options = getattr(config, group)
        wide = _wider(get_type_hints(type(config))[group], former)
        more = {field.name: field.default for field in _only_former(type(options), former)}
        if any(f"{group}.{name}" in names for name in more):
            config = _with(config, group, _unchecked(wide, more | vars(options)))
    return config


def narrowed(config: _Config) -> _Config:
    """Return the config with groups of their present classes, where all unlisted options have defaults."""
    for group, former in getattr(config, "UNLISTED", {}).items():
        options, listed = getattr(config, group), get_type_hints(type(config))[group]
        more = {field.name: field.default for field in _only_former(listed, former)}
        if type(options) is not listed and more.items() <= vars(options).items():
            kept = {field.name: getattr(options, field.name) for field in dataclasses.fields(listed)}
            config = _with(config, group, _unchecked(listed, kept))
    return config


def _only_former(listed: type[Any], former: type[Any]) -> list[dataclasses.Field[Any]]:
    """Return the options that a group once had and no longer has."""
    kept = {field.name for field in dataclasses.fields(listed)}
    return [field for field in dataclasses.fields(former) if field.name not in kept]


@functools.cache
def _wider(listed: type[Any], former: type[Any]) -> type[Any]:
    """Return a subclass of a group's class with the other options and the checks of the former class."""

    def check(options: Any) -> None:
        former(**vars(options))

    more = [
        (field.name, field.type, dataclasses.field(default=field.default))
        for field in _only_former(listed, former)
    ]
    wide: type[Any] = dataclasses.make_dataclass(
        former.__name__, more, bases=(listed,), namespace={"__post_init__": check}, frozen=True, kw_only=True
    )
    wide.__module__ = former.__module__  # the texts under the options are read from there
    return wide


def _unchecked(cls: type[Any], values: dict[str, Any]) -> Any:
    options = object.__new__(cls)
    for name, value in values.items():
        object.__setattr__(options, name, value)
    return options


def _with(config: _Config, group: str, options: Any) -> _Config:
    copied = copy.copy(config)
    object.__setattr__(copied, group, options)
    return copied
