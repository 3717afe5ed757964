"""The harness itself: a notebook that is run, a slider that is moved, pictures that show it, errors that are seen."""

from __future__ import annotations

from collections.abc import Callable

import pytest
from lab import ROOT, SCREENSHOTS, Opened
from nbformat.v4 import new_code_cell, new_notebook
from PIL import Image
from playwright.sync_api import expect

SLIDER = """\
import ipywidgets
slider = ipywidgets.IntSlider(value=8, min=1, max=64, description="rank")
shown = ipywidgets.HTML()
def show(change):
    shown.value = f"rank {slider.value} trains {slider.value * 2048} parameters"
slider.observe(show, "value")
show(None)
ipywidgets.VBox([slider, shown])"""


def notebook(*sources: str):
    return new_notebook(cells=[new_code_cell(source, id=f"cell-{i}") for i, source in enumerate(sources)])


def test_a_slider_moves_by_keyboard_and_its_callback_answers(open_notebook: Callable[..., Opened]) -> None:
    filler = [f"print({i})\n" + "#\n" * 20 for i in range(12)]
    opened = open_notebook("slider.ipynb", notebook(SLIDER, *filler, "print('at', slider.value)"))
    cells = opened.run_all()
    assert [cell["execution_count"] for cell in cells] == list(range(1, 15))
    assert opened.text("cell-13") == "at 8\n"
    cell = opened.cell("cell-0")
    handle = cell.get_by_role("slider")
    handle.focus()
    for _ in range(3):
        handle.press("ArrowRight")
    expect(cell.get_by_text("rank 11 trains 22528 parameters")).to_be_visible()
    sizes, dark = [], []
    for path in opened.screenshots("slider", "cell-0"):
        picture = Image.open(path).convert("L")
        sizes.append(picture.size)
        dark.append(picture.resize((1, 1)).getpixel((0, 0)) < 128)
    assert sizes == [(1280, 900), (800, 900)] * 2 and dark == [False, False, True, True]


def test_errors_are_seen(open_notebook: Callable[..., Opened]) -> None:
    opened = open_notebook("error.ipynb", notebook("1 / 0", "print('not reached')"))
    with pytest.raises(AssertionError, match="cell-0: ZeroDivisionError: division by zero"):
        opened.run_all()
    opened.page.evaluate("() => { console.error('planted'); setTimeout(() => { throw new Error('thrown'); }, 0); }")
    opened.page.wait_for_timeout(500)
    assert opened.errors[0] == "planted" and "thrown" in opened.errors[1]
    opened.errors.clear()


def test_screenshots_go_where_git_does_not_look() -> None:
    assert SCREENSHOTS.relative_to(ROOT).parts[0] + "/" in (ROOT / ".gitignore").read_text().splitlines()
