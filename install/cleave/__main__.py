"""The command `cleave`: starts any script of Cleave, by its name and with its options."""

import ast
import os
import runpy
import sys
from pathlib import Path
from typing import NoReturn

from . import HOME


def main() -> None:
    """Run the script that the first word names, as `python SCRIPT.py` does in a checkout."""
    scripts = {path.stem: path for path in sorted(HOME.glob("*.py")) if path.stem.isidentifier()}
    scripts = {name: path for name, path in scripts.items() if not name.startswith("_")}
    asked = sys.argv[1] if len(sys.argv) > 1 else ""
    path = scripts.get(asked.removesuffix(".py").replace("-", "_"))
    if path is None:
        _explain(asked, scripts)
    # Processes that this one starts are to find the same packages, and nothing beside the user's files.
    os.environ["PYTHONSAFEPATH"] = "1"
    os.environ["PYTHONPATH"] = os.pathsep.join(filter(None, (str(HOME), os.environ.get("PYTHONPATH"))))
    sys.argv[:2] = [str(path)]
    runpy.run_path(str(path), run_name="__main__")


def _explain(asked: str, scripts: dict[str, Path]) -> NoReturn:
    if asked not in ("", "-h", "--help"):
        from tools.options.config import suggest

        print(f"cleave: there is no script '{asked}'{suggest(asked, list(scripts))}", file=sys.stderr)
        sys.exit(2)
    print("cleave SCRIPT --help says what a script does, and explains its usual options:\n")
    for name, path in scripts.items():
        text = ast.get_docstring(ast.parse(path.read_text(encoding="utf-8"))) or ""
        print(f"  {name:<20} {text.partition(chr(10))[0]}")
    print(f"\nOn several processes: accelerate launch ... -m cleave SCRIPT ...\nRecipes: {HOME / 'configs'}")
    sys.exit(0 if asked else 2)


if __name__ == "__main__":
    main()
