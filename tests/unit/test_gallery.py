"""The gallery shows what is committed, and nothing that was typed by hand."""

from __future__ import annotations

import base64
import copy
import json
from pathlib import Path

import nbformat
import pytest
from conftest import RECORD
from nbformat.v4 import new_code_cell, new_markdown_cell, new_notebook, new_output

from cookbook import gallery, project, recipes

ROOT = Path(__file__).resolve().parents[2]
MARKS = "a\n<!-- gallery -->\nold\n<!-- end of gallery -->\nb\n<!-- scores of 01 -->\n<!-- end of scores of 01 -->\n"


@pytest.fixture
def root(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A project of two notebooks, one with a record and a figure."""
    for module in (recipes, project):
        monkeypatch.setattr(module, "ROOT", tmp_path)
    (tmp_path / "notebooks" / "records").mkdir(parents=True)
    picture = new_output("display_data", {"image/png": base64.b64encode(b"a picture").decode()})
    other = new_output("display_data", {"image/png": base64.b64encode(b"another").decode()})
    cells = [
        new_markdown_cell('# 01 · A "title"\n\nIt [is](x.ipynb) a | b.\nThere is more.\n\nAnd more.', id="title"),
        new_code_cell("1", outputs=[other], id="one"),
        new_code_cell("2", outputs=[picture, other], id="two", metadata={"tags": ["gallery"]}),
    ]
    nbformat.write(new_notebook(cells=cells), tmp_path / "notebooks" / "01_a.ipynb")
    nbformat.write(new_notebook(cells=[new_markdown_cell("# B", id="title")]), tmp_path / "notebooks" / "02_b.ipynb")
    (tmp_path / "notebooks" / "records" / "01_a.json").write_text(json.dumps(RECORD))
    (tmp_path / "README.md").write_text(MARKS.replace("scores of 01 -->\n<", "scores of 01 -->\n\n<"))
    return tmp_path


def test_readme_and_figures_are_those_of_the_committed_runs() -> None:
    for path, content in gallery.files(ROOT).items():
        assert (ROOT / path).read_bytes() == content, f"{path}: run python -m cookbook.gallery"
    shown = gallery.entries(ROOT / "notebooks")
    there = {path.name for path in (ROOT / gallery.FIGURES).iterdir()}
    assert there == {f"{entry.number}.png" for entry in shown if entry.figure}
    assert [entry.number for entry in shown if entry.record and not entry.figure] == []
    assert all(entry.title and entry.about.endswith((".", "?")) for entry in shown)


def test_a_row(root: Path) -> None:
    gallery.write(root)
    text = (root / "README.md").read_text()
    assert (
        '| <img src="docs/gallery/01.png" width="280" alt="A figure of 01 · A &quot;title&quot;"><br>'
        'accuracy: 0.100 → **0.900** | **[01 · A "title"](notebooks/01_a.ipynb)**<br>It is a \\| b.<br>'
        "*change +0.800, 95 % interval [+0.700, +0.900], n = 96; only prompted 0.200; 9 min; 2.1 GB* |\n"
        "|  | **[B](notebooks/02_b.ipynb)** |\n"
    ) in text.replace("\N{NO-BREAK SPACE}", " ")
    assert "| accuracy | 0.100 | 0.200 | 0.900 | +0.800 | [+0.700, +0.900] | 96 | improved |\n<!-- end of" in text
    assert text.startswith("a\n") and "\nb\n" in text and "old" not in text
    assert (root / "docs" / "gallery" / "01.png").read_bytes() == b"a picture"


def test_what_is_out_of_date_is_written_and_the_rest_left(root: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert gallery.main() == 0
    assert "written: README.md" in capsys.readouterr().out
    gallery.main()
    assert capsys.readouterr().out == ""
    record = copy.deepcopy(RECORD)
    record["metrics"]["accuracy"] |= {"after": 0.8, "change": 0.7, "higher_is_better": False, "prompted": None}
    record["resources"]["seconds"]["total"] = 20
    (root / "notebooks" / "records" / "01_a.json").write_text(json.dumps(record))
    (root / "docs" / "gallery" / "09.png").write_bytes(b"of a notebook that is gone")
    assert [str(path) for path in gallery.write(root)] == ["docs/gallery/09.png", "README.md"]
    text = (root / "README.md").read_text().replace("\N{NO-BREAK SPACE}", " ")
    assert "accuracy (lower is better): 0.100 → **0.800** |" in text and "n = 96; under 1 min; 2.1 GB*" in text


def test_an_address_brings_badges_everywhere(root: Path) -> None:
    (root / "pyproject.toml").write_text('[project]\nurls = {Repository = "https://github.com/a/b"}\n')
    changed = [str(path) for path in gallery.write(root)]
    assert changed[:3] == ["notebooks/01_a.ipynb", "notebooks/02_b.ipynb", "README.md"]
    notebook = nbformat.read(root / "notebooks" / "01_a.ipynb", as_version=4)
    assert "a/b/blob/main/notebooks/01_a.ipynb" in notebook.cells[0].source
    text = (root / "README.md").read_text()
    assert "; 2.1 GB*<br>[![Open in Colab](" in text and text.count("blob/main/notebooks/02_b.ipynb") == 2
    (root / "pyproject.toml").unlink()
    gallery.write(root)
    assert "Open in" not in (root / "README.md").read_text() + (root / "notebooks" / "01_a.ipynb").read_text()


@pytest.mark.parametrize("text", ["", "<!-- x -->\na", MARKS * 2, "<!-- end of x -->\n<!-- x -->\n"])
def test_marks_must_be_there_once(text: str) -> None:
    with pytest.raises(ValueError, match="not one pair of the marks <!-- gallery --> and"):
        gallery.between(text, "gallery", "new")
