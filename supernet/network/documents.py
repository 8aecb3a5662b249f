"""Spaces and architectures are kept in files: TOML written by hand, and JSON documents."""

import tomllib
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields, replace
from pathlib import Path
from typing import Any, TypeVar

from supernet.layers import Op, Style, parse_op
from supernet.options import FidelityOptions
from supernet.presets import PRESETS, preset
from supernet.space import Architecture, Fixed, Layer, Space, stage
from supernet.spaces import SPACES, check_space
from supernet.tail import Tail
from tools.files.atomic import check_format, read_document, write_document
from tools.mistake import Mistake, quoted
from tools.options.config import suggest
from tools.options.plugins import call

SPACE, ARCHITECTURE, VERSION = "space", "architecture", 1

Plain = TypeVar("Plain", Style, Tail)


def find_space(name: str, *, num_classes: int, image_size: int, in_chs: int = 3) -> Space:
    """Return the space of this name, or the one that a .toml or .json file describes, for these images."""
    check_space(name)
    images = {"num_classes": num_classes, "image_size": image_size, "in_chs": in_chs}
    if name in SPACES:
        space: Space = call(SPACES[name].maker, **images)
        return replace(space, name=name)
    path = Path(name)
    description = read_space_file(path)
    try:
        return space_from(description | images, name=path.stem)
    except ValueError as error:
        raise Mistake("", quoted(error), source=str(path)) from None


def reduced_space(full: Space, fidelity: FidelityOptions) -> Space:
    """Return the copy of a space that the options ask for, or the space itself."""
    try:
        space = full.reduced(width=fidelity.width, image_size=fidelity.image_size)
        if space is not full:
            _ = space.fixed_cost, space.costs  # what cannot be built at its place is refused now
    except ValueError as error:
        option = "fidelity.width" if fidelity.width != 1 else "fidelity.image_size"
        raise Mistake(option, quoted(error)) from None
    return space


def read_space_file(path: Path) -> dict[str, Any]:
    """Read what a space's file says."""
    if path.suffix == ".json":
        return read_document(path, SPACE, VERSION)
    try:
        description = tomllib.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise ValueError(f"cannot read {path}: {error.strerror}") from None
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{path} is not TOML: {error}") from None
    if "format" in description or "version" in description:
        check_format(path, description, SPACE, VERSION)
    return description


def space_from(description: Mapping[str, Any], *, name: str = "own") -> Space:
    """Make the space of a description.

    A description goes layer by layer or stage by stage; docs/spaces.md has both forms.
    """
    known = ("format", "version", "name", "stem", "layers", "stages", "tail", "style")
    sizes = ("num_classes", "image_size", "in_chs", "width", "full_image_size")
    _check_keys("", description, (*known, *sizes))
    if ("layers" in description) == ("stages" in description):
        raise ValueError("give either [[stages]] or [[layers]]")
    layers: list[Layer] = []
    for number, entry in enumerate(_tables(description, "stages"), start=1):
        where = f"stages {number}: "
        _check_keys(where, entry, ("ops", "first", "depth", "out_chs", "stride"))
        layers += stage(
            _ops(entry, where),
            depth=_whole(entry, "depth", where),
            out_chs=_whole(entry, "out_chs", where),
            stride=_whole(entry, "stride", where, 1),
            first=_ops(entry, where, "first") if "first" in entry else (),
        )
    for number, entry in enumerate(_tables(description, "layers"), start=1):
        where = f"layers {number}: "
        _check_keys(where, entry, ("ops", "out_chs", "stride"))
        layers.append(
            Layer(_ops(entry, where), _whole(entry, "out_chs", where), _whole(entry, "stride", where, 1))
        )
    stem = []
    for number, entry in enumerate(_tables(description, "stem"), start=1):
        where = f"stem {number}: "
        _check_keys(where, entry, ("op", "out_chs", "stride"))
        stem.append(
            Fixed(
                _op(entry.get("op"), f"{where}op"),
                _whole(entry, "out_chs", where),
                _whole(entry, "stride", where, 1),
            )
        )
    image_size, width = _whole(description, "image_size", "", 32), description.get("width", 1.0)
    if type(width) not in (int, float):
        raise ValueError(f"width is {width!r}; it must be a number")
    full = Space(
        tuple(stem),
        tuple(layers),
        _plain(Tail, description.get("tail", {}), "tail"),
        name=str(description.get("name", name)),
        style=_plain(Style, description.get("style", {}), "style"),
        num_classes=_whole(description, "num_classes", "", 10),
        image_size=_whole(description, "full_image_size", "", image_size),
        in_chs=_whole(description, "in_chs", "", 3),
    )
    space = full.reduced(width=width, image_size=image_size)
    _ = space.fixed_cost, space.costs  # what cannot be built at its place is refused now
    return space


def space_to(space: Space) -> dict[str, Any]:
    """Return a description from which `space_from` makes an equal space.

    That of a copy has the layers of the full size, and says how the copy differs.
    """
    full = space.full
    description = {
        "name": space.name,
        "num_classes": space.num_classes,
        "image_size": space.image_size,
        "in_chs": space.in_chs,
        "style": asdict(space.style),
        "stem": [
            {"op": str(fixed.op), "out_chs": fixed.out_chs, "stride": fixed.stride} for fixed in full.stem
        ],
        "layers": [
            {"ops": [str(op) for op in layer], "out_chs": layer.out_chs, "stride": layer.stride}
            for layer in full.layers
        ],
        "tail": asdict(full.tail),
    }
    if space.fidelity is None:
        return description
    return description | {"width": space.width, "full_image_size": full.image_size}


def save_space(path: Path, space: Space) -> None:
    """Write a space as a document."""
    write_document(path, SPACE, VERSION, space_to(space))


def load_space(path: Path) -> Space:
    """Read a space's document, for the images that it was written for."""
    description = read_space_file(path)
    try:
        return space_from(description, name=path.stem)
    except ValueError as error:
        raise Mistake("", quoted(error), source=str(path)) from None


def save_architecture(path: Path, architecture: Architecture, space: Space, **notes: Any) -> None:
    """Write an architecture. If its space is no preset, the space's description is written with it."""
    space.validate(architecture)
    own = space.name not in PRESETS or space != preset(
        space.name, num_classes=space.num_classes, image_size=space.image_size, in_chs=space.in_chs
    )
    content = {"space": space_to(space) if own else space.name, "choices": list(architecture.choices)}
    write_document(path, ARCHITECTURE, VERSION, content | notes)


@dataclass(frozen=True)
class ArchitectureFile:
    """This is what an architecture's file says, before it is known for which images."""

    path: Path
    """The path of the file."""
    described: str | Mapping[str, Any]
    """The space, as its name or as a whole description."""
    choices: list[int]
    """The candidate of each searchable layer."""
    stem: str
    """How the run that keeps this file counts the stem. Older files do not say; their runs all counted it
    as layers of its own (unit)."""

    @property
    def name(self) -> str:
        """The network's name, <space>/<choices>; the space's operations need not be known for it."""
        space = self.described if isinstance(self.described, str) else self.described.get("name", "own")
        return f"{space}/{Architecture(tuple(self.choices))}"

    @property
    def width(self) -> float:
        """The part of the full-size space's channels that the network has."""
        return 1.0 if isinstance(self.described, str) else self.described.get("width", 1.0)

    def space_for(self, *, num_classes: int, image_size: int, in_chs: int = 3) -> tuple[Space, Architecture]:
        """Return the space and the architecture, for these images."""
        images = {"num_classes": num_classes, "image_size": image_size, "in_chs": in_chs}
        try:
            if isinstance(self.described, str):
                space = find_space(self.described, **images)
            else:
                space = space_from({**self.described, **images})
        except ValueError as error:
            raise Mistake("", quoted(error), source=str(self.path)) from None
        return space, listed_architecture(self.path, self.choices, space)


def read_architecture(path: Path) -> ArchitectureFile:
    """Read an architecture's file."""
    document = read_document(path, ARCHITECTURE, VERSION)
    described, choices = document.get("space"), document.get("choices")
    _check_choices(path, choices)
    if not isinstance(described, str | dict):
        raise ValueError(f"{path}: space must be a name or a description, not {described!r}")
    assert isinstance(choices, list)
    return ArchitectureFile(path, described, choices, document.get("stem", "unit"))


def load_architecture(
    path: Path, *, num_classes: int, image_size: int, in_chs: int = 3
) -> tuple[Space, Architecture]:
    """Read an architecture and its space, for these images."""
    file = read_architecture(path)
    return file.space_for(num_classes=num_classes, image_size=image_size, in_chs=in_chs)


def stem_of(path: Path) -> str:
    """Return how the run that keeps this file counts the stem: fused, or unit."""
    return checked_stem(read_architecture(path))


def checked_stem(file: ArchitectureFile) -> str:
    """Return how the run that keeps a file counts the stem, and refuse anything but fused and unit."""
    if file.stem not in ("fused", "unit"):
        raise ValueError(f"{file.path}: stem must be fused or unit, not {file.stem!r}")
    return file.stem


def listed_architecture(path: Path, choices: Any, space: Space) -> Architecture:
    """Return the architecture whose choices a file lists, and refuse one that is not in the space."""
    _check_choices(path, choices)
    architecture = Architecture(tuple(choices))
    try:
        space.validate(architecture)
    except ValueError as error:
        raise Mistake("", quoted(error), source=str(path)) from None
    return architecture


def _check_choices(path: Path, choices: object) -> None:
    if not isinstance(choices, list) or not all(type(choice) is int for choice in choices):
        raise ValueError(f"{path}: choices must be a list of whole numbers, not {choices!r}")


def _check_keys(where: str, entry: Mapping[str, Any], known: tuple[str, ...]) -> None:
    for key in entry:
        if key not in known:
            raise ValueError(f"{where}unknown key '{key}'{suggest(key, known)}")


def _tables(description: Mapping[str, Any], key: str) -> list[Mapping[str, Any]]:
    entries = description.get(key, [])
    if not isinstance(entries, list) or not all(isinstance(entry, Mapping) for entry in entries):
        raise ValueError(f"{key} must be a list of tables")
    return entries


def _ops(entry: Mapping[str, Any], where: str, key: str = "ops") -> tuple[Op, ...]:
    words = entry.get(key)
    if not isinstance(words, list):
        raise ValueError(f"{where}{key} must be a list of operations, such as mbconv_k3_e4_se0.25")
    return tuple(_op(word, f"{where}{key}") for word in words)


def _op(word: Any, where: str) -> Op:
    if not isinstance(word, str):
        raise ValueError(f"{where}: an operation is a text such as mbconv_k3_e4_se0.25, not {word!r}")
    try:
        return parse_op(word)
    except ValueError as error:
        raise Mistake("", f"{where}: {quoted(error)}") from None


def _whole(entry: Mapping[str, Any], key: str, where: str, default: int | None = None) -> int:
    value = entry.get(key, default)
    if type(value) is not int or value < 1:
        wrong = "is missing" if value is None else f"is {value!r}"
        raise ValueError(f"{where}{key} {wrong}; it must be a whole number from 1")
    return value


def _plain(cls: type[Plain], values: Any, where: str) -> Plain:
    if not isinstance(values, Mapping):
        raise ValueError(f"{where} must be a table")
    kinds: dict[str, type] = {field.name: type(field.default) for field in fields(cls)}
    _check_keys(f"{where}: ", values, tuple(kinds))
    checked: dict[str, Any] = {}
    for key, value in values.items():
        right = kinds[key](value) if kinds[key] is float and type(value) is int else value
        if type(right) is not kinds[key]:
            raise ValueError(f"{where}: {key} must be of type {kinds[key].__name__}, not {value!r}")
        checked[key] = right
    return cls(**checked)
