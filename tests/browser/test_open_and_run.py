"""Notebook 01 as a reader meets it: opened in JupyterLab, its parameters changed in their cell, run, looked at."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import nbformat
import pytest
from lab import Opened
from playwright.sync_api import expect

from cookbook import results

NOTEBOOK = Path(__file__).resolve().parents[2] / "notebooks" / "01_customer_service_qlora.ipynb"


def with_parameters(path: Path, **given: Any) -> Any:
    """The notebook without outputs, with other values in its parameters cell."""
    notebook = nbformat.read(path, as_version=4)
    for cell in notebook.cells:
        if cell.cell_type == "code":
            cell.outputs, cell.execution_count = [], None
        if "parameters" in cell.metadata.get("tags", []):
            lines = {line.partition(":")[0]: line for line in cell.source.splitlines()}
            for name, value in given.items():
                declared, _, help_text = lines[name].partition("  # ")
                lines[name] = f"{declared.partition(' = ')[0]} = {value!r}  # {help_text}"
            cell.source = "\n".join(lines.values())
    return notebook


@pytest.mark.model
def test_run_at_smoke_with_widgets(open_notebook: Callable[..., Opened], tmp_path: Path) -> None:
    run = tmp_path / "run"
    given = {"PROFILE": "smoke", "OUTPUT_DIR": str(run), "INTERACTIVE": True}
    opened = open_notebook("01.ipynb", with_parameters(NOTEBOOK, **given))
    cells = opened.run_all(timeout=600)
    record = results.read(run)
    assert record.profile == "smoke" and record.parameters["INTERACTIVE"] is True
    assert all(cell["execution_count"] for cell in cells if cell["cell_type"] == "code")
    assert any("image/png" in out.get("data", {}) for cell in cells for out in cell.get("outputs", []))
    asked = opened.cell("try-it")
    asked.get_by_placeholder("Type a message").fill("My mug arrived broken, order LK-40213.")
    asked.get_by_role("button", name="Answer").click()
    expect(asked.get_by_text(re.compile("base: .* mean probability"))).to_be_visible(timeout=60_000)
    expect(asked.get_by_text(re.compile("tuned: .* mean probability"))).to_be_visible()
    opened.screenshots("01-train", "train")
    opened.screenshots("01-try-it", "try-it")
