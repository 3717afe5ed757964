"""How a notebook opens: its badges, where a repository is known, and its setup cell, the same in every notebook."""

from __future__ import annotations

import re
from typing import Any

BRANCH = "main"
BADGE = re.compile(r"\n+\[!\[Open in .*")  # with the empty line before it
# What a notebook that was opened alone needs before it can reach the package.
SETUP = """\
{imports}
from importlib.util import find_spec
from pathlib import Path

if not getattr(find_spec("cookbook"), "origin", None):  # not installed: in a clone it lies beside this folder
    place = Path("..").resolve()
{fetch}    if not (place / "cookbook" / "hosted.py").is_file():
        raise ModuleNotFoundError(
            "There is no package `cookbook` here. Clone or upload the whole project, change into its folder "
            "notebooks with %cd, and run this cell again; or install the package's wheel."
        )
    sys.path.insert(0, str(place))
from cookbook import hosted

hosted.prepare()  # on Colab and Kaggle: installs what is missing; elsewhere: nothing"""
FETCH = """\
    hosts = "google.colab" in sys.modules or "KAGGLE_KERNEL_RUN_TYPE" in os.environ
    if hosts and not (place / "cookbook" / "hosted.py").is_file():  # this notebook was opened alone
        place = Path("{name}").resolve()
        if not place.is_dir():
            address = "{repository}"
            subprocess.run(["git", "clone", "-q", "--depth", "1", address, str(place)], check=True)
"""


def setup(repository: str) -> str:
    """Source of the setup cell; with a repository, a hosted notebook that was opened alone clones it."""
    imports, fetch = ["sys"], ""
    if repository:
        imports = ["os", "subprocess", "sys"]
        fetch = FETCH.format(name=repository.rsplit("/", 1)[-1], repository=repository)
    return SETUP.format(imports="\n".join(f"import {name}" for name in imports), fetch=fetch)


def badges(file: str, repository: str) -> str:
    """Markdown that opens `notebooks/FILE` in Colab and in Kaggle; empty unless the repository is one of GitHub's.

    Both can open a notebook by its address from nowhere else.
    """
    prefix = "https://github.com/"
    if not repository.startswith(prefix):
        return ""
    path = f"{repository.removeprefix(prefix)}/blob/{BRANCH}/notebooks/{file}"
    places = {
        "Colab": ("https://colab.research.google.com/assets/colab-badge.svg", "https://colab.research.google.com/github/"),
        "Kaggle": ("https://kaggle.com/static/images/open-in-kaggle.svg", f"https://kaggle.com/kernels/welcome?src={prefix}"),
    }  # fmt: skip
    return " ".join(f"[![Open in {name}]({image})]({base}{path})" for name, (image, base) in places.items())


def furnish(notebook: Any, file: str, repository: str) -> None:
    """Write the badges into the title cell and the setup cell's source, in place.

    Args:
        notebook: as nbformat reads it.
        file: its file name.
        repository: as `project.repository` gives it.
    """
    title = notebook.cells[0]
    if title.cell_type == "markdown":
        line = badges(file, repository)
        head, _, rest = BADGE.sub("", title.source).partition("\n")
        title.source = "\n".join([head, *["", line] * bool(line), *[rest] * bool(rest)])
    for cell in notebook.cells:
        if "setup" in cell.metadata.get("tags", []):
            cell.source = setup(repository)
