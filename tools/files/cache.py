"""This module names the user's folder for what can be made again, and takes a while to make."""

import os
from pathlib import Path


def cache_folder() -> Path:
    """Return the folder, made if it is missing.

    Raises:
        OSError: if it cannot be made.
    """
    base = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    folder = Path(base) / "cleave"
    folder.mkdir(parents=True, exist_ok=True)
    return folder
