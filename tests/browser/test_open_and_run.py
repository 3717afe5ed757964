"""Notebook 01 as a reader meets it in JupyterLab: its parameters changed in their cell, run, asked."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path

import pytest
from lab import NOTEBOOKS, Opened, with_parameters
from playwright.sync_api import expect

from cookbook import results


@pytest.mark.model
def test_run_at_smoke_with_widgets(open_notebook: Callable[..., Opened], tmp_path: Path) -> None:
    run = tmp_path / "run"
    given = {"PROFILE": "smoke", "OUTPUT_DIR": str(run), "INTERACTIVE": True}
    notebook = with_parameters(NOTEBOOKS / "01_customer_service_qlora.ipynb", **given)
    opened = open_notebook("01.ipynb", notebook)
    cells = opened.run_all(timeout=600)
    record = results.read(run)
    assert record.profile == "smoke" and record.parameters["INTERACTIVE"] is True
    assert (run / "model" / "adapter_model.safetensors").is_file()
    assert all(cell["execution_count"] for cell in cells if cell["cell_type"] == "code")
    assert any("image/png" in out.get("data", {}) for cell in cells for out in cell.get("outputs", []))
    asked = opened.cell("try-it")
    asked.get_by_placeholder("Type a message").fill("My mug arrived broken, order LK-40213.")
    asked.get_by_role("button", name="Answer").click()
    for name in ("base", "tuned"):
        expect(asked.get_by_text(re.compile(f"{name}: .* mean probability"))).to_be_visible(timeout=60_000)
    opened.screenshots("01-train", "train")
    opened.screenshots("01-try-it", "try-it")
