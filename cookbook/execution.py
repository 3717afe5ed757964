"""The process that `cookbook.batch` starts for a run: Papermill, its kernel, and a report of every cell.

`python -m cookbook.execution WORK` reads `WORK/request.json` and appends events to `WORK/events.jsonl`, the
last one of kind "outcome". When the starting process goes, this one ends the kernel and itself.
"""

from __future__ import annotations

import json
import os
import shutil
import sys
import threading
from pathlib import Path
from typing import Any

from cookbook.batch import RUN, end_run
from cookbook.recipes import heading, literal


class _Report:
    """Writes an event as each cell begins, and remembers them by their place in the notebook."""

    def __init__(self, file: Path, notebook: str) -> None:
        self._file, self._notebook, self._heading, self._total = file, notebook, "", 0
        self.begun: dict[int, dict[str, Any]] = {}

    def tell(self, kind: str, **event: Any) -> None:
        with open(self._file, "a", encoding="utf-8") as f:
            f.write(json.dumps({"kind": kind, **event}) + "\n")

    def notebook_starts(self, notebook: Any) -> None:
        """The kernel is ready: count the cells, and keep this machine's paths out of the result."""
        self._total = sum(_counts(cell) for cell in notebook.cells)
        notebook.metadata.papermill |= {"input_path": self._notebook, "output_path": "executed.ipynb"}

    def cell_starts(self, cell: Any, cell_index: int) -> None:
        if cell.cell_type == "markdown":
            self._heading = heading(cell.source) or self._heading
        if _counts(cell):
            line = next((line.strip() for line in cell.source.splitlines() if line.strip()), "")
            number = len(self.begun) + 1
            event = {"number": number, "id": cell.get("id", ""), "line": line[:100], "heading": self._heading}
            self.begun[cell_index] = event
            self.tell("cell", total=self._total, **event)


def _counts(cell: Any) -> bool:
    """Whether it is a code cell of the recipe, and not the one that Papermill adds with the parameters."""
    return cell.cell_type == "code" and "injected-parameters" not in cell.metadata.get("tags", [])


def main(work: Path) -> None:
    """Run the notebook of `work/request.json`; the outcome is an event, not an exit code."""
    threading.Thread(target=_end_with_parent, args=(work,), daemon=True).start()
    request = json.loads((work / "request.json").read_text(encoding="utf-8"))
    report = _Report(work / "events.jsonl", Path(request["notebook"]).name)

    sys.modules.setdefault("rfc3987_syntax", None)  # how jsonschema checks URIs: a second, for nothing
    import papermill
    from nbclient.exceptions import DeadKernelError
    from papermill.exceptions import PapermillExecutionError

    def outcome(status: str, error: str, exited: bool = False, index: int | None = None) -> None:
        report.tell("outcome", status=status, error=error, exit=exited, cell=report.begun.get(index))

    for attempt in (1, 2):
        try:
            executed = papermill.execute_notebook(
                literal(request["notebook"]),
                literal(os.path.join(request["folder"], "executed.ipynb")),
                parameters=request["parameters"],
                progress_bar=False,
                cwd=request["folder"],
                on_notebook_start=report.notebook_starts,
                on_cell_start=report.cell_starts,
            )
        except PapermillExecutionError as error:
            text = f"{error.ename}: {error.evalue}".strip(": ")
            return outcome("cell_error", text, error.ename == "SystemExit", error.cell_index)
        except Exception as error:
            if report.begun and isinstance(error, DeadKernelError):
                why = "the kernel was killed; mostly that is a lack of memory: free some, or use a smaller"
                return outcome("kernel_died", f"{why} model, batch or sequence length")
            if report.begun:
                return outcome("cell_error", f"{type(error).__name__}: {error}")
            if attempt == 2 or not isinstance(error, RuntimeError):  # only a race for ports deserves a retry
                return outcome("kernel_died", f"the kernel did not start: {type(error).__name__}: {error}")
        else:
            exits = [
                f"{output.ename}: {output.evalue}".strip(": ")
                for cell in executed.cells
                for output in cell.get("outputs", [])
                if output.output_type == "error"
            ]  # Papermill takes sys.exit(0) for success
            return outcome("ok", "".join(exits[:1]), bool(exits))


def _end_with_parent(work: Path) -> None:
    """Wait until the other end of stdin closes: then the starting process is gone, and this run ends."""
    os.read(0, 1)
    end_run(os.environ[RUN])
    shutil.rmtree(work, ignore_errors=True)
    os._exit(1)


if __name__ == "__main__":
    main(Path(sys.argv[1]))
