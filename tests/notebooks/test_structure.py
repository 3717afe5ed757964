"""What every notebook must be, checked without running it; a new notebook is picked up by itself."""

from __future__ import annotations

import re
import statistics
from pathlib import Path

import nbformat
import papermill
import pytest

from cookbook import publish, results

ROOT = Path(__file__).resolve().parents[2]
NOTEBOOKS = sorted((ROOT / "notebooks").glob("*.ipynb"))
ARC = [
    "## 1. What you will build",
    "## 2. Setup",
    "## 3. Data",
    "## 4. Before",
    "## 5. Train",
    "## 6. After",
    "## 7. Ship it",
    "## 8. Going further",
]

pytestmark = pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda p: p.stem)


@pytest.fixture
def notebook(path: Path) -> nbformat.NotebookNode:
    return nbformat.read(path, as_version=4)


def code_cells(notebook: nbformat.NotebookNode) -> list[nbformat.NotebookNode]:
    return [c for c in notebook.cells if c.cell_type == "code"]


def test_valid_and_named(path: Path, notebook: nbformat.NotebookNode) -> None:
    nbformat.validate(notebook)
    assert re.fullmatch(r"\d\d[a-z]?_[a-z0-9_]+", path.stem)


def test_one_parameters_cell_that_papermill_sees_whole(path: Path, notebook: nbformat.NotebookNode) -> None:
    tagged = [c for c in code_cells(notebook) if "parameters" in c.metadata.get("tags", [])]
    assert len(tagged) == 1
    lines = [line for line in tagged[0].source.splitlines() if line.strip()]
    names = [re.match(r"([A-Z][A-Z0-9_]*): (str|int|float|bool|list\[str\]) = .+  # .+", line) for line in lines]
    assert all(names), [line for line, name in zip(lines, names, strict=True) if not name]
    inspected = papermill.inspect_notebook(str(path))
    assert [n[1] for n in names] == list(inspected)
    assert all(p["help"] for p in inspected.values())
    assert {"PROFILE", "MODEL", "DATA", "OUTPUT_DIR", "SEED", "INTERACTIVE"} <= set(inspected)


def test_arc(path: Path, notebook: nbformat.NotebookNode) -> None:
    found = [line for c in notebook.cells if c.cell_type == "markdown" for line in c.source.splitlines()]
    headings = [line for line in found if line.startswith("## ")]
    if notebook.metadata["cookbook"].get("kind") != "guide":
        assert headings == ARC
    else:  # trains nothing, so its sections are its own
        assert not any(".train(" in c.source for c in code_cells(notebook))
        assert [re.match(r"## (\d+)\. \S", line)[1] for line in headings] == [
            str(i + 1) for i in range(len(headings))
        ]
        assert "## 2. Setup" in headings and headings[-1].endswith("Going further")
    assert notebook.cells[0].source.startswith("# ")


def test_cells_are_short_and_have_readable_ids(path: Path, notebook: nbformat.NotebookNode) -> None:
    ids = [c["id"] for c in notebook.cells]
    assert len(set(ids)) == len(ids)
    assert all(re.fullmatch(r"[a-z][a-z0-9-]+", i) and not re.fullmatch(r"[0-9a-f]{8}", i) for i in ids)
    lengths = {
        c["id"]: sum(bool(line.strip()) for line in c.source.splitlines())
        for c in code_cells(notebook)
        if "parameters" not in c.metadata.get("tags", [])
    }
    assert max(lengths.values()) <= 40, max(lengths, key=lengths.get)
    assert statistics.median(lengths.values()) <= 15
    assert 20 <= len(notebook.cells) <= 60


def test_outputs_are_there_and_clean(path: Path, notebook: nbformat.NotebookNode) -> None:
    assert sum(bool(c.outputs) for c in code_cells(notebook)) >= len(code_cells(notebook)) / 2
    outputs = [o for c in code_cells(notebook) for o in c.outputs]
    assert not [o for o in outputs if o.output_type == "error"]
    assert not [o for o in outputs if o.output_type == "stream" and o.name == "stderr"]
    assert all(c.execution_count for c in code_cells(notebook))
    assert any("image/png" in o.get("data", {}) for o in outputs)
    assert not [o for o in outputs if "application/vnd.jupyter.widget-view+json" in o.get("data", {})]


def test_nothing_of_one_machine_or_run(path: Path, notebook: nbformat.NotebookNode) -> None:
    assert not publish.machine_paths(notebook)
    for metadata in [notebook.metadata, *(c.metadata for c in notebook.cells)]:
        assert not set(metadata) & set(publish.RUN_ONLY)
    assert "injected-parameters" not in str([c.metadata for c in notebook.cells])
    assert path.stat().st_size < publish.MOST_BYTES


def test_outputs_belong_to_these_sources(path: Path, notebook: nbformat.NotebookNode) -> None:
    stamp = notebook.metadata.get("cookbook", {})
    assert stamp.get("profile") == "cpu"
    assert stamp.get("sources") == publish.sources_hash(notebook), f"run: python -m cookbook.publish {path.stem}"


def test_record_is_of_the_run_that_is_shown(path: Path, notebook: nbformat.NotebookNode) -> None:
    if not publish.record_of(path).is_file():
        pytest.skip("published before records were kept")
    record = results.read(publish.record_of(path))
    minutes = f"after {record.resources.seconds.total / 60:.1f} minutes"
    assert (record.recipe, record.profile) == (path.stem, "cpu")
    assert minutes in code_cells(notebook)[-1].outputs[-1].text
    assert not publish.PATHS.search(publish.record_of(path).read_text(encoding="utf-8"))


def test_nothing_blocks_or_is_dead(path: Path, notebook: nbformat.NotebookNode) -> None:
    for cell in code_cells(notebook):
        assert cell.source.strip()
        assert not re.search(r"if False|TODO|FIXME|notebook_login|trust_remote_code|input\(", cell.source)
