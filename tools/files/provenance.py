"""This module records where results come from: the code's commit, the versions of packages, the machine."""

import hashlib
import os
import platform
import subprocess
from datetime import date
from importlib import metadata
from pathlib import Path

HOUSE = Path(__file__).resolve().parents[2]
PACKAGES = ("torch", "torchvision", "timm", "accelerate", "numpy", "scipy")


def provenance() -> dict[str, str]:
    """Return the date, the code's commit, the versions of packages and the machine, by name."""
    versions = ", ".join(f"{name} {metadata.version(name)}" for name in PACKAGES)
    return {
        "date": date.today().isoformat(),
        "commit": commit(),
        "versions": f"Python {platform.python_version()}, {versions}",
        "machine": f"{processor()}, {os.cpu_count()} cores, {platform.system()}",
    }


def commit() -> str:
    """Return the code's commit and whether files changed since; for an installed package, its version."""
    # An installed package may lie inside somebody else's checkout.
    top = _git("rev-parse", "--show-toplevel")
    if not top or Path(top).resolve() != HOUSE:
        return f"unknown: the code is not in a git checkout, but {_version()}"
    revision = _git("rev-parse", "--short=10", "HEAD")
    return revision + (", changed since" if _git("status", "--porcelain", "--untracked-files=no") else "")


def _version() -> str:
    try:
        return f"installed as cleave {metadata.version('cleave')}"
    except metadata.PackageNotFoundError:
        return "in a folder of its own"


def processor() -> str:
    """Return the processor's name, as far as the system gives it."""
    info = Path("/proc/cpuinfo")
    if info.exists():
        for line in info.read_text(errors="replace").splitlines():
            if line.startswith("model name"):
                return line.split(":", 1)[1].strip()
    return platform.processor() or platform.machine()


def sha256(path: Path) -> str:
    """Return the SHA-256 digest of a file."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _git(*words: str) -> str:
    try:
        done = subprocess.run(["git", "-C", str(HOUSE), *words], capture_output=True, text=True, timeout=20)
    except (OSError, subprocess.TimeoutExpired):
        return ""
    return done.stdout.strip() if done.returncode == 0 else ""
