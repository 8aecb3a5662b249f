"""This module names the runs and files that a report's options give, and words the mistakes in them.

It is free of torch.
"""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from tools.files.atomic import read_document
from tools.mistake import Mistake, quoted

USUAL_FILES = ("weights.safetensors", "evaluations.jsonl", "truth.jsonl")
"""Files with these names are called by their folder's name."""


def labelled(words: Sequence[str], *options: str) -> dict[str, Path]:
    """Return the paths that options name, by label.

    A label is the NAME of NAME=PATH, or else the shortest end of the path that no other path has.

    Raises:
        Mistake: if two have one label, or a word is neither a path nor NAME=PATH.
    """
    pairs = [_label_and_path(word, options) for word in words]
    paths = [path for _, path in pairs]
    by_label: dict[str, Path] = {}
    for given, path in pairs:
        label = given or _shortest_end(path, paths)
        if label in by_label:
            raise mistake_of(options, f"two are called '{label}'; call one otherwise, as in NAME={path}")
        by_label[label] = path
    return by_label


def mistake_of(options: Sequence[str], problem: str) -> Mistake:
    """Return a mistake in one of several options."""
    if len(options) == 1:
        return Mistake(options[0], problem)
    return Mistake("", f"{', '.join(f'`{option}`' for option in options)}: {problem}")


@contextmanager
def faults_of(option: str, path: Path) -> Iterator[None]:
    """Turn what is wrong with a run into a mistake about the option that names it."""
    try:
        yield
    except OSError as error:
        raise Mistake(option, f"cannot read '{error.filename}': {error.strerror}") from error
    except ValueError as error:
        if isinstance(error, Mistake) and error.option == option:
            raise
        raise _of_run(option, path, quoted(error)) from error
    except (LookupError, TypeError, AttributeError) as error:
        problem = f"{error} is missing" if isinstance(error, KeyError) else error
        raise _of_run(option, path, str(problem)) from error


def finished_results(path: Path, *, option: str, script: str, key: str) -> Mapping[str, Any]:
    """Return the results.json of a finished run of a script.

    Only the results of this script have `key`.
    """
    file = path / "results.json"
    if not file.exists():
        raise Mistake(option, f"'{path}' is no finished run of {script}: it has no results.json")
    results = read_document(file, "results", 1)
    if key not in results:
        raise Mistake(option, f"'{path}' is not a run of {script}")
    return results


def _of_run(option: str, path: Path, problem: str) -> Mistake:
    """Return a mistake about a run, and name the run unless the problem already names it."""
    return Mistake(
        option, problem if str(path) in problem else f"'{path}' is not whole, or was changed: {problem}"
    )


def _label_and_path(word: str, options: Sequence[str]) -> tuple[str, Path]:
    """Return the label that a word gives, or an empty one, and the path."""
    label, given, path = word.partition("=")
    if not given or Path(word).exists():
        label, path = "", word
    if not path or (given and path != word and (not label or "/" in label or label in (".", ".."))):
        raise mistake_of(options, f"'{word}' is neither a path nor NAME=PATH")
    return label, Path(path)


def _shortest_end(path: Path, paths: Sequence[Path]) -> str:
    """Return the shortest end of a path that no other of the paths has."""
    parts = _parts(path)
    for count in range(1, len(parts) + 1):
        end = parts[-count:]
        if sum(_parts(other)[-count:] == end for other in paths) == 1:
            return "/".join(end)
    return "/".join(parts)


def _parts(path: Path) -> tuple[str, ...]:
    """Return a path's parts from the root on, without a usual file name."""
    parts = path.absolute().resolve().parts[1:] if ".." in path.parts else path.absolute().parts[1:]
    return parts[:-1] if parts[-1:] and parts[-1] in USUAL_FILES else parts
