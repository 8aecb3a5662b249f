"""This module writes files either completely or not at all, and JSON documents that name their format."""

import errno
import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from tools.failures import RunFailed
from tools.mistake import Mistake


def write_bytes(path: Path, *data: bytes | memoryview) -> None:
    """Write a file in one step: whatever happens, `path` holds either its old content or all of `data`.

    A full disk ends the run with a message.
    """
    temporary = path.with_name(f".{path.name}.tmp")
    try:
        with temporary.open("wb") as file:
            file.writelines(data)
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
        _sync_folder(path.parent)
    except OSError as error:
        temporary.unlink(missing_ok=True)
        full = error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
        cure = "Make room" if full else f"See to {path.parent}"
        raise RunFailed(
            f"cannot write {path}: {error.strerror or error}; what was there before is kept. "
            f"{cure} and start the same command again."
        ) from error
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise


def write_document(path: Path, kind: str, version: int, content: Mapping[str, Any]) -> None:
    """Write a JSON document in one of our formats."""
    document = {"format": f"cleave/{kind}", "version": version, **content}
    write_bytes(path, (json.dumps(document, indent=1, allow_nan=False) + "\n").encode())


def read_document(path: Path, kind: str, version: int) -> dict[str, Any]:
    """Read a JSON document, and raise an error unless its format and version are the expected ones."""
    try:
        document = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise ValueError(f"cannot read {path}: {error.strerror}") from None
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{path} is not JSON: {error}") from None
    check_format(path, document, kind, version)
    assert isinstance(document, dict)
    return document


def check_format(path: Path, document: object, kind: str, version: int) -> None:
    """Raise an error unless a document has this format and version."""
    actual = document.get("format") if isinstance(document, dict) else None
    if actual != f"cleave/{kind}":
        raise Mistake("", f"expected a file of format 'cleave/{kind}', found {actual!r}", source=str(path))
    assert isinstance(document, dict)
    if document.get("version") != version:
        what = f"version {document.get('version')!r} of cleave/{kind} is not known here, only {version}"
        raise Mistake("", what, source=str(path))


def _sync_folder(folder: Path) -> None:
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
