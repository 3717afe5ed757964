"""Notebook 00 as a reader meets it: the chooser answered by keys, the planner's slider moved by keys and mouse."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
from lab import NOTEBOOKS, Opened, with_parameters
from playwright.sync_api import Locator, expect

from cookbook import choosing, planning, planning_view, results


@pytest.fixture
def opened(open_notebook: Callable[..., Opened], tmp_path: Path) -> Opened:
    given = {"PROFILE": "smoke", "OUTPUT_DIR": str(tmp_path / "run"), "INTERACTIVE": True, "SIZE": "Qwen3-4B"}
    given |= {"CARD": "L4 24 GB", "LENGTH": 512}
    return open_notebook("00.ipynb", with_parameters(NOTEBOOKS / "00_start_here.ipynb", **given))


def row(cell: Locator, label: str) -> Locator:
    """A widget in a cell's output by its label."""
    return cell.locator(".widget-inline-hbox", has=cell.page.get_by_text(label, exact=True))


@pytest.mark.model
def test_chooser_and_planner(opened: Opened, tmp_path: Path) -> None:
    opened.run_all(timeout=300)
    assert results.read(tmp_path / "run").recipe == "00_start_here"

    chooser, answers = opened.cell("one-case"), {}
    expect(chooser.get_by_text(choosing.advise({}).reasons[0].text).last).to_be_visible()
    for name in ("behaviour", "examples", "hardware"):
        question = next(question for question in choosing.QUESTIONS if question.name == name)
        menu = row(chooser, question.text).get_by_role("combobox")
        menu.focus()
        for key in ("Space", "ArrowDown", "Enter"):  # closed, JupyterLab would take the arrow for its cells
            menu.press(key)
        answers[name] = list(question.options)[1]
        expect(menu).to_have_value(question.options[answers[name]])
    advised = choosing.advise(answers)
    assert advised.approach != choosing.advise({}).approach
    answer = chooser.locator(".widget-html").last
    expect(answer).to_contain_text(f"{advised.approach}: {advised.method}")
    expect(answer).to_contain_text(advised.reasons[-1].text)
    opened.screenshots("00-chooser", "one-case")

    planner = opened.cell("planner-widget")
    job = planning.Job(
        model="Qwen3-4B", method="qlora", card="L4 24 GB", length=512, batch=4, rows=1000, tokens=500, epochs=3.0
    )
    for move in ("keyboard", "mouse"):
        handle = row(planner, "Rank").get_by_role("slider")
        if move == "keyboard":
            handle.focus()
            handle.press("ArrowRight")
            job = replace(job, rank=32)
        else:
            track = row(planner, "Rank").locator(".noUi-base").bounding_box()
            handle.hover()
            opened.page.mouse.down()
            opened.page.mouse.move(track["x"] + track["width"], track["y"] + track["height"] / 2, steps=5)
            opened.page.mouse.up()
            job = replace(job, rank=256)
        first = planning_view.text(planning.estimate(job)).splitlines()[0]
        expect(row(planner, "Rank").locator(".widget-readout")).to_have_text(str(job.rank))
        expect(planner.get_by_role("img", name=first)).to_be_visible()
    opened.screenshots("00-planner", "planner-widget")
