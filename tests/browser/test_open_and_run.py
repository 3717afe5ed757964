"""Notebook 01 as a reader meets it in JupyterLab: its parameters changed in their cell, run, stopped, asked."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path

import pytest
from lab import NOTEBOOKS, Opened, with_parameters
from playwright.sync_api import expect

from cookbook import results


@pytest.mark.model
def test_training_is_stopped_by_its_button_and_the_rest_goes_on(
    open_notebook: Callable[..., Opened], tmp_path: Path
) -> None:
    run = tmp_path / "run"
    passes = 400  # more than anybody would wait for
    given = {"PROFILE": "smoke", "OUTPUT_DIR": str(run), "INTERACTIVE": True, "EPOCHS": float(passes)}
    notebook = with_parameters(NOTEBOOKS / "01_customer_service_qlora.ipynb", **given)
    opened = open_notebook("01.ipynb", notebook)
    opened.start_all()
    stop = opened.cell("train").get_by_role("button", name="Stop after this step")
    expect(stop).to_be_visible(timeout=600_000)
    expect(opened.cell("train").get_by_text(re.compile(r"step [1-9]\d* of \d+, loss"))).to_be_visible()
    stop.click()
    cells = opened.finish_all(timeout=600)
    expect(opened.cell("train").get_by_role("button", name="Stopped at step")).to_be_disabled()
    record = results.read(run)
    assert record.profile == "smoke" and record.parameters["INTERACTIVE"] is True
    (stopped,) = record.resources.stopped
    assert 1 <= stopped.step < stopped.steps / 2
    assert (run / "model" / "adapter_model.safetensors").is_file()
    assert all(cell["execution_count"] for cell in cells if cell["cell_type"] == "code")
    assert any("image/png" in out.get("data", {}) for cell in cells for out in cell.get("outputs", []))
    asked = opened.cell("try-it")
    asked.get_by_placeholder("Type a message").fill("My mug arrived broken, order LK-40213.")
    asked.get_by_role("button", name="Answer").click()
    for name in ("base", "prompted", "tuned"):
        expect(asked.get_by_text(re.compile(f"{name}: .* mean probability"))).to_be_visible(timeout=60_000)
    opened.screenshots("01-train", "train")
    opened.screenshots("01-try-it", "try-it")
