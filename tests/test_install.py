"""What `pip install .` gives: the wheel is built, installed beside other people's packages, and used."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tests.scripts import HOUSE, SCRIPTS

pytest.importorskip("setuptools", minversion="77", reason="the wheel is built with setuptools >= 77")
pytestmark = pytest.mark.slow

PACKAGES = ("tools", "local_learning", "supernet", "search", "retrain")
PIP = [sys.executable, "-m", "pip", "--quiet", "--disable-pip-version-check"]


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A site-packages with Cleave in it; the checkout is copied, since a build leaves files in it."""
    folder = tmp_path_factory.mktemp("install")
    source, wheels, site = folder / "source", folder / "wheels", folder / "site-packages"
    for name in (*PACKAGES, "install", "configs"):
        shutil.copytree(HOUSE / name, source / name, ignore=shutil.ignore_patterns("__pycache__"))
    for name in (*SCRIPTS, "pyproject.toml", "README.md", "LICENSE", "MANIFEST.in"):
        shutil.copy(HOUSE / name, source / name)
    build = ["wheel", "--no-deps", "--no-build-isolation", "--wheel-dir", str(wheels), str(source)]
    subprocess.run([*PIP, *build], check=True)
    (wheel,) = wheels.glob("*.whl")
    subprocess.run(
        [*PIP, "install", "--no-deps", "--no-compile", "--target", str(site), str(wheel)], check=True
    )
    return site


def python(folder: Path, site: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    """A user's process in a folder of theirs, where Cleave is installed and another's `tools` comes first."""
    foreign = folder / "others" / "tools"
    foreign.mkdir(parents=True, exist_ok=True)
    (foreign / "__init__.py").write_text("whose = 'others'\n")
    variables = os.environ | {"PYTHONPATH": os.pathsep.join((str(foreign.parent), str(site)))}
    line = [sys.executable, *arguments]
    return subprocess.run(line, cwd=folder, env=variables, capture_output=True, text=True, check=False)


def their_own(folder: Path) -> None:
    """A user's package beside their script, with a name that is one of ours."""
    (folder / "tools").mkdir()
    (folder / "tools" / "__init__.py").write_text("")
    (folder / "tools" / "helper.py").write_text("answer = 42\n")


def test_an_installation_takes_one_name(site: Path) -> None:
    taken = {path.name for path in site.iterdir() if path.suffix != ".dist-info"}
    assert taken == {"cleave", "bin"}
    packed = {path.relative_to(site / "cleave") for path in (site / "cleave").rglob("*.py")}
    kept = {path.relative_to(HOUSE) for name in PACKAGES for path in (HOUSE / name).rglob("*.py")}
    assert packed == {*kept, *map(Path, SCRIPTS), Path("__init__.py"), Path("__main__.py")}
    assert (site / "cleave/tools/page/report.html").exists()


def test_the_command_starts_every_script(site: Path, tmp_path: Path) -> None:
    listed = python(tmp_path, site, str(site / "bin/cleave"), "--help")
    assert listed.returncode == 0, listed.stderr
    for script in SCRIPTS:
        assert f"  {script.removesuffix('.py')} " in listed.stdout
    helped = python(tmp_path, site, str(site / "bin/cleave"), "retrain_model", "--help")
    assert helped.returncode == 0, helped.stderr
    assert "--recipe.lr" in helped.stdout
    unknown = python(tmp_path, site, str(site / "bin/cleave"), "retrain_mdoel")
    assert (unknown.returncode, unknown.stderr) == (
        2,
        "cleave: there is no script 'retrain_mdoel'; did you mean 'retrain_model'?\n",
    )


def test_a_mistake_is_one_line_in_an_installation_too(site: Path, tmp_path: Path) -> None:
    done = python(tmp_path, site, "-m", "cleave", "retrain_model", "--rule", "gredy")
    assert done.returncode == 2
    said = "retrain_model.py: --rule: unknown value 'gredy'; did you mean 'greedy'? --plugins FILE.py brings"
    assert done.stderr == f"{said} one of your own\n"


def test_the_command_trains_where_the_user_has_packages_of_these_names(site: Path, tmp_path: Path) -> None:
    for name in PACKAGES:
        (tmp_path / name).mkdir()
        (tmp_path / name / "__init__.py").write_text("raise RuntimeError('the wrong one')\n")
    small = "--device cpu --threads 1 --data.image-size 8 --data.train-size 64 --data.test-size 16"
    line = f"make_truth --space tiny --networks 1 --recipe.steps 1 --recipe.batch-size 8 {small} --run truth"
    done = python(tmp_path, site, "-m", "cleave", *line.split())
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "truth/results.json").exists()


def test_an_installation_does_not_take_the_checkout_around_it_for_its_own(site: Path, tmp_path: Path) -> None:
    git = ["git", "-C", str(site.parent), "-c", "user.name=a", "-c", "user.email=a@b"]
    subprocess.run([*git, "init", "--quiet"], check=True)
    subprocess.run([*git, "commit", "--quiet", "--allow-empty", "--message", "theirs"], check=True)
    program = "import cleave; from tools.files.provenance import commit; print(commit())"
    done = python(tmp_path, site, "-c", program)
    assert done.stdout.startswith("unknown: the code is not in a git checkout, but installed as cleave "), (
        done
    )


def test_both_are_used_where_no_module_is_meant_twice(site: Path, tmp_path: Path) -> None:
    program = "import cleave, tools.cost, local_learning.chain; print(tools.__file__)"
    done = python(tmp_path, site, "-c", program)
    assert done.returncode == 0, done.stderr
    assert Path(done.stdout.strip()).parent == site / "cleave/tools"


@pytest.mark.parametrize(
    ("program", "says"),
    [
        ("import cleave\nfrom tools import helper", "'tools.helper' of {own} is hidden by Cleave's 'tools'"),
        ("import cleave\nfrom tools.helper import answer", "'tools.helper' of {own} is hidden by Cleave's"),
        (
            "import tools.helper, cleave",
            "Cleave has a package 'tools', but that of {own} is imported already",
        ),
    ],
)
def test_a_clash_is_named_with_its_cure(site: Path, tmp_path: Path, program: str, says: str) -> None:
    their_own(tmp_path)
    done = python(tmp_path, site, "-c", program)
    said = done.stderr.strip().splitlines()[-1]
    assert said.startswith(f"ImportError: {says.format(own=tmp_path / 'tools')}")
    assert "Rename yours, or use the two in processes of their own" in said
    none = python(tmp_path, site, "-c", "import cleave, importlib.util as i; print(i.find_spec('tools.no'))")
    assert none.stdout == "None\n", none.stderr
