"""A real JupyterLab on a folder of its own, and a notebook that is open in it."""

from __future__ import annotations

import json
import os
import secrets
import shutil
import socket
import subprocess
import sys
import time
import urllib.request
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Self

import nbformat
from playwright.sync_api import Error, Locator, Page

ROOT = Path(__file__).resolve().parents[2]
NOTEBOOKS = ROOT / "notebooks"
SCREENSHOTS = ROOT / "runs" / "screenshots"
NAMES = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")
WIDTHS, HEIGHT = (1280, 800), 900  # pixels
PATIENCE = 120  # seconds for whatever is not told otherwise: a busy machine is slow, not wrong
THEMES = {"light": "JupyterLab Light", "dark": "JupyterLab Dark"}
# Nothing that comes between the test and the page: no news, and every cell in the document, also those out of sight.
SETTINGS = {
    "@jupyterlab/apputils-extension/notification": {"fetchNews": "false", "checkForUpdates": False},
    "@jupyterlab/notebook-extension/tracker": {"windowingMode": "none"},
}
PANEL = "window.jupyterapp.shell.currentWidget"


def chromium() -> str:
    """The system's Chromium: the one named in CHROMIUM, or the first on the path; empty if there is none."""
    return os.environ.get("CHROMIUM") or next(filter(None, map(shutil.which, NAMES)), "")


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


class Lab:
    """A JupyterLab server with clean settings and a token; a context manager.

    Args:
        root: an empty folder for all that the server writes; notebooks lie in `root/notebooks`.
    """

    def __init__(self, root: Path) -> None:
        self.root, self.notebooks = root, root / "notebooks"
        self.token = secrets.token_hex(16)
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            port = free.getsockname()[1]
        self.address = f"http://127.0.0.1:{port}"
        self._command = [sys.executable, "-m", "jupyterlab", "--no-browser", "--allow-root", "--ip=127.0.0.1"]
        self._command += [f"--port={port}", "--ServerApp.port_retries=0", f"--ServerApp.root_dir={self.notebooks}"]
        self._command += [f"--IdentityProvider.token={self.token}"]
        self._command += ["--LabApp.expose_app_in_browser=True"]  # as window.jupyterapp

    def __enter__(self) -> Self:
        self.notebooks.mkdir()
        for name, values in SETTINGS.items():
            path = self.root / "settings" / f"{name}.jupyterlab-settings"
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(json.dumps(values), encoding="utf-8")
        own = {"CONFIG_DIR": "config", "DATA_DIR": "data", "RUNTIME_DIR": "runtime"}
        variables = {k: v for k, v in os.environ.items() if not k.startswith("JUPYTER")}
        variables |= {f"JUPYTER_{name}": str(self.root / folder) for name, folder in own.items()}
        variables |= {
            "JUPYTERLAB_SETTINGS_DIR": str(self.root / "settings"),
            "JUPYTERLAB_WORKSPACES_DIR": str(self.root / "workspaces"),
            "IPYTHONDIR": str(self.root / "ipython"),
        }
        self._log = (self.root / "lab.log").open("wb")
        self._process = subprocess.Popen(
            self._command, env=variables, stdout=self._log, stderr=subprocess.STDOUT, stdin=subprocess.DEVNULL
        )
        until = time.monotonic() + PATIENCE
        while time.monotonic() < until and self._process.poll() is None:
            try:
                urllib.request.urlopen(f"{self.address}/api/status?token={self.token}", timeout=5).close()
                return self
            except OSError:
                time.sleep(0.25)
        self.__exit__()
        raise RuntimeError(f"JupyterLab did not start:\n{(self.root / 'lab.log').read_text()[-3000:]}")

    def __exit__(self, *_: object) -> None:
        self._process.terminate()  # it ends its kernels first
        try:
            self._process.wait(20)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        self._log.close()


@dataclass
class Opened:
    """A notebook that is open in a page; `errors` are those of the browser's console since it was opened."""

    page: Page
    errors: list[str] = field(default_factory=list)

    @classmethod
    def at(cls, page: Page, lab: Lab, name: str, timeout: float = PATIENCE) -> Opened:
        """Open `lab.notebooks / name` and wait until its kernel is idle (seconds)."""
        opened = cls(page)
        page.set_default_timeout(PATIENCE * 1000)
        page.on("pageerror", lambda error: opened.errors.append(f"pageerror: {error}"))
        page.on("console", lambda message: message.type == "error" and opened.errors.append(message.text))
        page.goto(f"{lab.address}/lab/tree/{name}?reset&token={lab.token}", wait_until="domcontentloaded")
        page.wait_for_function(
            """() => {
                const panel = window.jupyterapp?.shell?.currentWidget;
                return panel?.context?.isReady && panel.sessionContext?.session?.kernel?.status === 'idle';
            }""",
            timeout=timeout * 1000,
        )
        page.evaluate("() => window.jupyterapp.shell.collapseLeft()")
        return opened

    def command(self, name: str, **arguments: Any) -> Any:
        """Carry out one of JupyterLab's commands and wait for its end."""
        return self.page.evaluate(
            "([name, args]) => window.jupyterapp.commands.execute(name, args)", [name, arguments]
        )

    def run_all(self, timeout: float = PATIENCE) -> list[dict[str, Any]]:
        """Run all cells by JupyterLab's own command and return them; an error in one fails the test (seconds)."""
        self.start_all()
        return self.finish_all(timeout)

    def start_all(self) -> None:
        """Begin to run all cells."""
        self.page.evaluate(
            """() => {
                window.ran = undefined;
                window.jupyterapp.commands.execute('notebook:run-all-cells').then(done => { window.ran = [done]; });
            }"""
        )

    def finish_all(self, timeout: float = PATIENCE) -> list[dict[str, Any]]:
        """Wait for the end of what `start_all` began, as `run_all` does."""
        self.page.wait_for_function("() => window.ran !== undefined", timeout=timeout * 1000)
        cells = self.cells()
        for cell in cells:
            for output in cell.get("outputs", []):
                assert output["output_type"] != "error", f"{cell['id']}: {output['ename']}: {output['evalue']}"
        assert self.page.evaluate("() => window.ran[0]") is True
        return cells

    def cells(self) -> list[dict[str, Any]]:
        """The cells with their outputs, from the notebook's model: what would be saved."""
        return self.page.evaluate(f"() => {PANEL}.content.model.toJSON().cells")

    def text(self, identifier: str) -> str:
        """All that a cell printed or displayed as text."""
        cell = next(cell for cell in self.cells() if cell["id"] == identifier)
        parts = [output.get("text", output.get("data", {}).get("text/plain", "")) for output in cell["outputs"]]
        return "".join("".join(part) for part in parts)

    def cell(self, identifier: str) -> Locator:
        """A cell in the page, scrolled to."""
        index = [cell["id"] for cell in self.cells()].index(identifier)
        found = self.page.locator(".jp-Notebook .jp-Notebook-cell").nth(index)
        found.scroll_into_view_if_needed()
        return found

    def screenshots(self, name: str, identifier: str) -> list[Path]:
        """Pictures of a cell in its page, at each width and in each theme, into the folder SCREENSHOTS."""
        SCREENSHOTS.mkdir(parents=True, exist_ok=True)
        made = []
        for theme, title in THEMES.items():
            self.command("apputils:change-theme", theme=title)
            self.page.wait_for_function("title => document.body.dataset.jpThemeName === title", arg=title)
            for width in WIDTHS:
                self.page.set_viewport_size({"width": width, "height": HEIGHT})
                self.page.wait_for_timeout(500)  # the layout follows the window a little later
                self.cell(identifier).evaluate("cell => cell.scrollIntoView({block: 'start'})")
                made.append(SCREENSHOTS / f"{name}-{width}-{theme}.png")
                self.page.screenshot(path=made[-1])
        self.page.set_viewport_size({"width": WIDTHS[0], "height": HEIGHT})
        return made

    def close(self) -> None:
        """End the kernel and forget unsaved changes."""
        try:
            self.page.evaluate(f"() => {PANEL}.sessionContext.shutdown()")
        except Error:  # the page is gone already
            pass
        self.page.close()
