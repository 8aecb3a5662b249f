"""Cleave, installed: after `import cleave` its packages have the names that they have in a checkout.

They lie in this folder, so that an installation takes no name but `cleave` among those of others. What one
process imports as `tools` is one package only: the user is told where somebody else's is meant.
"""

import sys
from collections.abc import Sequence
from importlib.machinery import ModuleSpec, PathFinder
from pathlib import Path
from types import ModuleType

HOME = next(folder for folder in Path(__file__).resolve().parents if (folder / "retrain_model.py").exists())
"""The folder of the packages, the scripts and the recipes: this one, or the checkout's."""

PACKAGES = ("tools", "local_learning", "supernet", "search", "retrain")

CURE = "Rename yours, or use the two in processes of their own; the command cleave is always one."


class Hidden:
    """Asked last, for modules that nobody has found: those of another package whose name is ours."""

    @staticmethod
    def find_spec(
        name: str, path: Sequence[str] | None = None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        package = name.partition(".")[0]
        if package not in PACKAGES or package == name:
            return None
        others = [entry for entry in sys.path if Path(entry).resolve() != HOME]
        hidden = PathFinder.find_spec(package, others)
        places = list((hidden and hidden.submodule_search_locations) or ())
        if not PathFinder.find_spec(name, places):
            return None
        raise ImportError(f"'{name}' of {places[0]} is hidden by Cleave's '{package}'. {CURE}")


def _take_names() -> None:
    for name in PACKAGES:
        places = [Path(place).resolve() for place in getattr(sys.modules.get(name), "__path__", ())]
        if name in sys.modules and HOME / name not in places:
            where = places[0] if places else getattr(sys.modules[name], "__file__", None)
            raise ImportError(
                f"Cleave has a package '{name}', but that of {where} is imported already. {CURE}"
            )
    sys.path.insert(0, str(HOME))
    sys.meta_path.append(Hidden)


_take_names()
