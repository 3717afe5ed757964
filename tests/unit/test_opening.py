"""How a notebook opens: badges where the repository is known, one setup cell for all, tied to no hash."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import nbformat
import pytest
from nbformat.v4 import new_code_cell, new_markdown_cell, new_notebook

from cookbook import opening, project, recipes

NOTEBOOKS = sorted((Path(__file__).resolve().parents[2] / "notebooks").glob("*.ipynb"))
REPOSITORY = "https://github.com/someone/some-cookbook"


@pytest.fixture
def root(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A project of its own, without an address."""
    monkeypatch.setattr(project, "ROOT", tmp_path)
    (tmp_path / "pyproject.toml").write_text(
        '[project]\nname = "x"\ndependencies = ["numpy>=1", "colour; os_name == \'x\'"]\n'
    )
    return tmp_path


def test_what_the_project_says_of_itself(root: Path) -> None:
    assert project.repository() == "" and [str(r) for r in project.required()[1]] == ["numpy>=1"]
    with (root / "pyproject.toml").open("a") as file:
        file.write(f'[project.urls]\nRepository = "{REPOSITORY}.git/"\n')
    assert project.repository() == REPOSITORY
    (root / "pyproject.toml").unlink()
    assert project.repository() == ""


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda p: p.stem)
def test_every_notebook_opens_alike(path: Path) -> None:
    notebook = nbformat.read(path, as_version=4)
    first = next(cell for cell in notebook.cells if cell.cell_type == "code")
    assert first["id"] == "setup" and first.metadata["tags"] == ["setup"]
    assert ["setup" in cell.metadata.get("tags", []) for cell in notebook.cells].count(True) == 1
    assert first.source == opening.setup(project.repository()) and first.outputs == []
    before = nbformat.writes(notebook)
    opening.furnish(notebook, path.name, project.repository())
    assert nbformat.writes(notebook) == before


def test_badges_come_and_go_with_the_address() -> None:
    cells = [
        new_markdown_cell("# 01 · Title\n\nText [link](x.ipynb)."),
        new_code_cell("x", metadata={"tags": ["setup"]}),
    ]
    notebook = new_notebook(cells=[*cells, new_code_cell("y = 1")])
    opening.furnish(notebook, "01_x.ipynb", REPOSITORY)
    opening.furnish(notebook, "01_x.ipynb", REPOSITORY)
    title, colab, text = notebook.cells[0].source.split("\n\n")
    assert (title, text) == ("# 01 · Title", "Text [link](x.ipynb).")
    path = "github/someone/some-cookbook/blob/main/notebooks/01_x.ipynb"
    assert f"](https://colab.research.google.com/{path})" in colab
    assert "src=https://github.com/someone/some-cookbook/blob/main/notebooks/01_x.ipynb)" in colab
    assert recipes.heading(notebook.cells[0].source) == "01 · Title"
    assert notebook.cells[1].source == opening.setup(REPOSITORY) and notebook.cells[2].source == "y = 1"
    opening.furnish(notebook, "01_x.ipynb", "")
    assert notebook.cells[0].source == "# 01 · Title\n\nText [link](x.ipynb)."
    assert notebook.cells[1].source == opening.setup("") and "git" not in opening.setup("")
    assert opening.badges("01_x.ipynb", "https://git.example.org/a/b") == ""  # neither can open it from there


def test_setup_cells_are_formatted_as_the_linter_wants(tmp_path: Path) -> None:
    for name, repository in (("with.py", REPOSITORY), ("without.py", "")):
        (tmp_path / name).write_text(opening.setup(repository) + "\n")
    line = ["--line-length", "118", "--isolated", str(tmp_path)]
    for command in (["format", "--check"], ["check", "--ignore", "E402"]):
        done = subprocess.run([sys.executable, "-m", "ruff", *command, *line], capture_output=True, text=True)
        assert done.returncode == 0, done.stdout


def test_only_the_tagged_cell_is_left_out_of_the_hash() -> None:
    def digest(setup: str, code: str, tags: list[str]) -> str:
        cells = [new_code_cell(setup, metadata={"tags": tags} if tags else {}), new_code_cell(code)]
        return recipes.code_hash(json.loads(nbformat.writes(new_notebook(cells=cells)))["cells"])

    assert digest("a", "x", ["setup"]) == digest("b", "x", ["setup"]) != digest("a", "y", ["setup"])
    assert digest("a", "x", []) != digest("b", "x", [])
    assert digest("a", "x", ["parameters"]) != digest("b", "x", ["parameters"])
