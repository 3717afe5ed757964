"""A copied recipe runs where there is no project: in new environments, with its own data and its own package.

The environments see the packages installed here and nothing of the project. In each copy one line of the data card
and one of the profiles is changed, and the record of the run must show both: a run that reads the project's own
files does not.
"""

from __future__ import annotations

import os
import subprocess
import sys
import sysconfig
from fnmatch import fnmatch
from pathlib import Path

import pytest
from test_smoke import numbers

from cookbook import publish, results

ROOT = Path(__file__).resolve().parents[2]
NAME = "01_customer_service_qlora"
PROJECT = ("cookbook", "fine_tuning_cookbook*", "__editable__*fine_tuning_cookbook*", "*.pth", "*.egg-link")
BIN = "Scripts" if os.name == "nt" else "bin"
LICENCE, TEST_ROWS = "only in this copy", 7

pytestmark = [pytest.mark.model, pytest.mark.xdist_group("copied")]


class Place:
    """A copy of recipe 01, and an environment to run it in."""

    def __init__(self, work: Path, *how: str) -> None:
        self.folder, self.env = work / "copy", work / "env"
        command = [sys.executable, "-m", "cookbook", "copy", "01", str(self.folder), *how]
        subprocess.run(command, cwd=ROOT, check=True, capture_output=True)
        subprocess.run([sys.executable, "-m", "venv", "--without-pip", str(self.env)], check=True)
        self.site = Path(self.call("-c", "import sysconfig; print(sysconfig.get_path('purelib'))").strip())
        (stack := work / "stack" / "site-packages").mkdir(parents=True)  # what is elsewhere, dill takes for a script
        for folder in {sysconfig.get_path("purelib"), sysconfig.get_path("platlib")}:
            for entry in Path(folder).iterdir():
                if not any(fnmatch(entry.name, pattern) for pattern in PROJECT):
                    (stack / entry.name).symlink_to(entry)
        (self.site / "stack.pth").write_text(f"{stack}\n")

    def call(self, *words: str, cwd: Path | None = None) -> str:
        """`python WORDS` in the environment, outside the copy unless `cwd` says so; what it wrote on stdout."""
        mine = ("COOKBOOK_", "PYTHON", "JUPYTER", "VIRTUAL_ENV", "CONDA")
        variables = {k: v for k, v in os.environ.items() if not k.startswith(mine) or k == "COOKBOOK_CACHE"}
        variables |= {
            "PATH": f"{self.env / BIN}{os.pathsep}{variables['PATH']}",
            "JUPYTER_DATA_DIR": str(self.env / "jupyter"),  # a user's own kernels are another Python
        }
        python = str(self.env / BIN / "python")
        done = subprocess.run(
            [python, *words], cwd=cwd or self.env, env=variables, capture_output=True, text=True, timeout=900
        )
        assert done.returncode == 0, f"{words}: {done.stdout[-1000:]}\n{done.stderr[-3000:]}"
        return done.stdout

    def mark(self, package: Path) -> None:
        """Change the copy's data card, and the profiles of the package that it is to use."""
        card, rows = self.folder / "data_samples" / "customer_service" / "README.md", package / "profiles.toml"
        for file, old, new in (
            (card, "**Licence:** Apache-2.0", f"**Licence:** {LICENCE}"),
            (rows, "test_rows = 8\n", f"test_rows = {TEST_ROWS}\n"),
        ):
            text = file.read_text(encoding="utf-8")
            assert text.count(old) == 1
            file.write_text(text.replace(old, new), encoding="utf-8")


def ran(folder: Path) -> results.Results:
    """The record of a run, which must be one of the copy."""
    record = results.read(folder)
    assert (record.recipe, record.profile) == (NAME, "smoke")
    assert record.data.licence == LICENCE
    assert record.data.test == TEST_ROWS
    assert list((folder / "model").glob("*.safetensors"))
    assert not publish.PATHS.search(record.model_dump_json())
    return record


@pytest.fixture(scope="module")
def installed(tmp_path_factory: pytest.TempPathFactory) -> Place:
    """A copy with a wheel of the package, installed by the first command of its README."""
    place = Place(tmp_path_factory.mktemp("installed"), "--script")
    pinned = ("--no-index", "-r", "requirements.txt")  # nothing is fetched: what is pinned is there
    place.call("-m", "pip", "install", *pinned, cwd=place.folder)
    assert Path(place.call("-c", "import cookbook; print(cookbook.__file__)").strip()).parent.parent == place.site
    place.mark(place.site / "cookbook")
    return place


@pytest.fixture(scope="module")
def launched(installed: Place) -> results.Results:
    """The second command of the README."""
    shown = (installed.folder / "README.md").read_text(encoding="utf-8")
    assert f"pip install -r requirements.txt\ncookbook run {NAME}.ipynb\n" in shown
    command = str(installed.env / BIN / "cookbook")
    installed.call(command, "run", f"{NAME}.ipynb", "-p", "PROFILE", "smoke", cwd=installed.folder)
    return ran(installed.folder / "runs" / NAME)


def test_launcher(launched: results.Results) -> None:
    assert launched.parameters["PROFILE"] == "smoke"


def test_script(installed: Place, launched: results.Results, tmp_path: Path) -> None:
    """From elsewhere, with the seed's numbers; figures are files."""
    script = str(installed.folder / f"{NAME}.py")
    said = installed.call(script, "--profile", "smoke", "--output-dir", "out", cwd=tmp_path)
    record = ran(tmp_path / "out")
    assert numbers(record) == numbers(launched)
    assert record.parameters == launched.parameters and record.claims.keys() == launched.claims.keys()
    drawn = {file.suffix for file in (tmp_path / "out" / "figures").iterdir()}
    assert drawn == {".png", ".html"} and "Figure(" not in said and "object at 0x" not in said
    assert [p.name for p in tmp_path.iterdir()] == ["out"]


def test_papermill_with_the_source_beside(
    launched: results.Results, tmp_path_factory: pytest.TempPathFactory
) -> None:
    place = Place(tmp_path_factory.mktemp("vendored"), "--vendor")
    where = "import importlib.util as u; s = u.find_spec('cookbook'); print(s and s.origin)"
    assert place.call("-c", where).strip() == "None"  # nothing of the project is in the environment
    assert Path(place.call("-c", where, cwd=place.folder).strip()).parent == place.folder / "cookbook"
    place.mark(place.folder / "cookbook")
    place.call("-m", "papermill", f"{NAME}.ipynb", "out.ipynb", "-p", "PROFILE", "smoke", cwd=place.folder)
    assert numbers(ran(place.folder / "runs" / NAME)) == numbers(launched)
