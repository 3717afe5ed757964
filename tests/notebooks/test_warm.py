"""A warm kernel is the run's own process, with the libraries loaded, and goes when its run is stopped."""

from __future__ import annotations

import sys
import threading
import time
from pathlib import Path

import nbformat
import psutil
import pytest
import warm
from nbformat.v4 import new_code_cell, new_notebook

from cookbook import batch

CODE = """\
import os, sys, time
from pathlib import Path
Path("told.part").write_text(f"{os.getpid()} {'trl' in sys.modules} {Path(os.environ['COOKBOOK_OUTPUT_DIR']).name}")
os.rename("told.part", "told")
time.sleep(300)"""


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="elsewhere no kernel is forked")
def test_it_is_the_runs_own_and_ends_with_it(tmp_path: Path) -> None:
    notebook = new_notebook(cells=[new_code_cell(CODE)])
    notebook.metadata.kernelspec = {"name": "python3", "display_name": "Python", "language": "python"}
    nbformat.write(notebook, tmp_path / "sleeps.ipynb")
    told, stop = tmp_path / "run" / "told", threading.Event()

    def wait() -> None:
        while not told.exists():
            time.sleep(0.1)
        stop.set()

    threading.Thread(target=wait, daemon=True).start()
    with pytest.raises(KeyboardInterrupt):
        batch.run_one(
            tmp_path / "sleeps.ipynb", told.parent, {}, timeout=120, environment=warm.environment(), stop=stop
        )
    pid, loaded, folder = told.read_text().split()
    assert (loaded, folder) == ("True", "run")
    for _ in range(100):
        if not psutil.pid_exists(int(pid)):
            return
        time.sleep(0.1)
    raise AssertionError("the kernel outlives its run")
