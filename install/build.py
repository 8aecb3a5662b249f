"""How the wheel is built: the packages, the scripts and the recipes, all in one folder `cleave`.

At the top of site-packages names such as `tools` would meet those of others, which hide or overwrite them. A
checkout keeps its folders, and so does an editable installation, which points to them.
"""

import shutil
from pathlib import Path

from setuptools.command.build_py import build_py


class InOneFolder(build_py):
    """setuptools' step that gathers the files, and what is needed to have them in one folder."""

    def run(self) -> None:
        if self.editable_mode:
            super().run()
            return
        # What an earlier version left here would be packed too.
        shutil.rmtree(self.build_lib, ignore_errors=True)
        super().run()
        gathered = Path(self.build_lib)
        home = gathered / "cleave"
        for package in {name.partition(".")[0] for name in self.packages} - {home.name}:
            (gathered / package).rename(home / package)
        for script in sorted(Path().glob("*.py")):
            self.copy_file(str(script), str(home / script.name))
        shutil.copytree("configs", home / "configs")
