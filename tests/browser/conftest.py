"""One JupyterLab and one browser for all tests; `open_notebook` opens a notebook of a test's own."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import nbformat
import pytest
from lab import HEIGHT, PATIENCE, WIDTHS, Lab, Opened, chromium
from playwright.sync_api import Browser, expect, sync_playwright

expect.set_options(timeout=PATIENCE * 1000)


@pytest.fixture(scope="session")
def lab(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Lab]:
    with Lab(tmp_path_factory.mktemp("lab")) as running:
        yield running


@pytest.fixture(scope="session")
def browser() -> Iterator[Browser]:
    if not chromium():
        pytest.exit("no Chromium: install it (apt-get install chromium), or name it in CHROMIUM", returncode=2)
    with sync_playwright() as playwright:
        # a container has no user namespaces for the sandbox and little shared memory
        launched = playwright.chromium.launch(
            executable_path=chromium(), args=["--no-sandbox", "--disable-dev-shm-usage"]
        )
        yield launched
        launched.close()


@pytest.fixture
def open_notebook(lab: Lab, browser: Browser) -> Iterator[Callable[[str, Any], Opened]]:
    """`open_notebook(name, notebook)` writes the notebook into the lab's folder and opens it in a new page.

    At the end of the test its kernel is shut down; errors on the browser's console fail the test.
    """
    all_opened: list[Opened] = []

    def open_one(name: str, notebook: Any) -> Opened:
        path = Path(lab.notebooks, name)
        notebook.metadata["kernelspec"] = {"name": "python3", "display_name": "Python 3", "language": "python"}
        nbformat.write(notebook, path)
        page = browser.new_page(viewport={"width": WIDTHS[0], "height": HEIGHT})
        all_opened.append(Opened.at(page, lab, name))
        return all_opened[-1]

    yield open_one
    for opened in all_opened:
        opened.close()
    assert [error for opened in all_opened for error in opened.errors] == []
