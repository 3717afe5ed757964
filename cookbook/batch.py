"""One run of a recipe in a process of its own, and an honest account of how it ended.

Success is the `results.json` that the notebook writes last. A killed kernel or a timeout leaves a notebook in
which every cell looks completed, so `status.json` says what happened.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from datetime import datetime
from itertools import chain
from pathlib import Path
from threading import Event
from typing import Any, Literal
from uuid import uuid4

import psutil
from filelock import FileLock, Timeout
from pydantic import BaseModel, JsonValue, ValidationError

from cookbook import results
from cookbook.ledger import PROGRESS
from cookbook.recipes import ROOT, Recipe, RequestError, check_parameters, code_hash, find, recipes

__all__ = ["Cell", "Recipe", "RequestError", "RunStatus", "check_parameters", "find", "recipes", "run_one"]

RUN = "COOKBOOK_RUN"  # marks every process of a run in its environment, so that none is left behind
Progress = Callable[[dict[str, Any]], None]


class Cell(BaseModel):
    """Where a run stopped: the code cell's number from 1, as in the recipe, its id and its first line."""

    number: int
    id: str
    line: str


class BusyError(RequestError):
    """Another run is writing the folder."""


class RunStatus(BaseModel):
    """What `status.json` holds.

    `cell` is the last one begun, `error` is empty if the run is ok, `code_sha256` is of the code cells.
    """

    status: Literal["ok", "cell_error", "kernel_died", "timeout", "no_results", "interrupted"]
    seconds: float
    error: str
    cell: Cell | None
    notebook: str
    code_sha256: str
    parameters: dict[str, JsonValue]
    started: datetime


def run_one(
    notebook: Path,
    output_dir: Path,
    parameters: Mapping[str, Any],
    *,
    timeout: float | None = None,
    progress: Progress | None = None,
    environment: Mapping[str, str] | None = None,
    stop: Event | None = None,
) -> RunStatus:
    """Run a notebook into `output_dir` and write its `status.json`; a failed run is a status, no exception.

    The kernel's working directory is `output_dir`. A whole-run timeout, Ctrl-C or the death of this process
    leaves no kernel and none of its children behind; Ctrl-C is recorded as "interrupted" and raised again.

    Args:
        parameters: as `check_parameters` returned them.
        timeout: seconds for the whole run.
        progress: called with events: `{"kind": "cell", "number", "total", "id", "line", "heading"}` as a
            cell begins, and the lines of `progress.jsonl` with `"kind": "stage"`.
        environment: more variables for the run's processes.
        stop: when it is set, the run ends as by Ctrl-C; for runs in other threads than the first.

    Raises:
        RequestError: the folder cannot be written, or another run is writing it.
    """
    folder = Path(os.path.abspath(output_dir))
    begun, started = results.now(), time.monotonic()
    code = code_hash(json.loads(Path(notebook).read_text(encoding="utf-8"))["cells"])
    seen: dict[str, Any] = {}

    def watch(event: dict[str, Any]) -> None:
        seen[event["kind"]] = event
        if progress and event["kind"] != "outcome":
            progress(event)

    def close(status: str, error: str) -> RunStatus:
        cell = seen.get("outcome", {}).get("cell") or seen.get("cell")
        record = RunStatus(
            status=status,
            seconds=round(time.monotonic() - started, 1),
            error=error[:2000],
            cell=Cell(**{key: cell[key] for key in Cell.model_fields}) if cell and status != "ok" else None,
            notebook=Path(notebook).name,
            code_sha256=code,
            parameters=dict(parameters),
            started=begun,
        )
        results.write_json(folder / "status.json", record.model_dump(mode="json"))
        return record

    with _locked(folder):
        for stale in ("status.json", "results.json", "executed.ipynb", PROGRESS):
            (folder / stale).unlink(missing_ok=True)
        try:
            said = _run_child(Path(notebook), folder, dict(parameters), timeout, watch, environment or {}, stop)
        except subprocess.TimeoutExpired:
            return close("timeout", f"the run took longer than {timeout:g} seconds and was stopped")
        except BaseException as error:
            close("interrupted", f"stopped by {type(error).__name__}")
            raise
        return close(*_judge(folder, seen.get("outcome"), said))


def _judge(folder: Path, outcome: dict[str, Any] | None, said: str) -> tuple[str, str]:
    """Status and error of a finished run, from what its process reported and from the record on disk."""
    if outcome is None:
        return "kernel_died", f"the process that runs the notebook ended early: {said or 'it said nothing'}"
    status, error = outcome["status"], outcome["error"]
    if status != "ok" and (not outcome["exit"] or (folder / "results.json").exists()):
        return status, error
    try:
        results.read(folder)
    except FileNotFoundError:
        why = f"a cell ended the notebook ({error})" if outcome["exit"] else "the notebook ran to its end"
        return "no_results", f"{why}, but it wrote no results.json"
    except ValidationError as invalid:
        return "no_results", f"results.json is not a valid record: {results.fault(invalid)}"
    return "ok", ""


def _run_child(
    notebook: Path,
    folder: Path,
    parameters: dict[str, Any],
    timeout: float | None,
    watch: Progress,
    more: Mapping[str, str],
    stop: Event | None,
) -> str:
    """Run the notebook in a process of its own; afterwards none of its processes is left.

    Returns the end of what it wrote on stderr; raises TimeoutExpired, and KeyboardInterrupt when told to stop.
    """
    token, deadline = uuid4().hex, time.monotonic() + (timeout or float("inf"))
    with tempfile.TemporaryDirectory(prefix="cookbook-") as work, open(f"{work}/log", "w+b") as log:
        request = {"notebook": str(notebook.resolve()), "folder": str(folder), "parameters": parameters}
        Path(work, "request.json").write_text(json.dumps(request), encoding="utf-8")
        tails = Tail(Path(work, "events.jsonl"), "cell"), Tail(folder / PROGRESS, "stage")
        child = None
        try:
            child = subprocess.Popen(
                [sys.executable, "-P", "-m", "cookbook.execution", work],
                stdin=subprocess.PIPE,  # its end tells the child that this process is gone
                stdout=log,
                stderr=log,
                env=_environment(notebook, folder, token) | dict(more),
                start_new_session=True,  # Ctrl-C reaches this process alone, which then ends the others
                creationflags=getattr(subprocess, "CREATE_NEW_PROCESS_GROUP", 0),
            )
            ended = False
            while not ended:
                with suppress(subprocess.TimeoutExpired):
                    child.wait(0.2)
                ended = child.returncode is not None
                for event in chain(*tails):
                    watch(event)
                if not ended and stop and stop.is_set():
                    raise KeyboardInterrupt
                if not ended and time.monotonic() > deadline:
                    raise subprocess.TimeoutExpired(notebook.name, timeout or 0)
        finally:
            end_run(token)
            if child and child.stdin:
                child.stdin.close()
                child.wait()
            for event in chain(*tails):  # so that a stopped run names the cell it was in
                watch(event)
        log.seek(0)
        return " ".join(log.read().decode(errors="replace").strip().splitlines()[-3:])


def _environment(notebook: Path, folder: Path, token: str) -> dict[str, str]:
    """The environment of a run; relative paths in it are made absolute, as the kernel works elsewhere."""
    env = os.environ | {results.OUTPUT_VARIABLE: str(folder), RUN: token}
    env[results.RECIPE_VARIABLE] = str(notebook.resolve().parent)
    for name in ("COOKBOOK_CACHE", "COOKBOOK_PROFILES"):
        if env.get(name):
            env[name] = os.path.abspath(os.path.expanduser(env[name]))
    paths = [os.path.abspath(path) for path in env.get("PYTHONPATH", "").split(os.pathsep) if path]
    if "site-packages" not in ROOT.parts:
        paths.insert(0, str(ROOT))
    return env | {"PYTHONPATH": os.pathsep.join(paths)}


def end_run(token: str) -> None:
    """Kill every process of a run but this one, wherever it has gone, and wait until none is left."""
    for _ in range(50):
        left = []
        for process in psutil.process_iter():
            with suppress(psutil.Error, OSError):
                if process.pid != os.getpid() and process.environ().get(RUN) == token:
                    process.kill()
                    left.append(process)
        if not left:
            return
        psutil.wait_procs(left, timeout=0.1)


@contextmanager
def _locked(folder: Path) -> Iterator[None]:
    try:
        folder.mkdir(parents=True, exist_ok=True)
        lock = FileLock(folder / ".lock")
        lock.acquire(timeout=0)
    except Timeout:
        raise BusyError(f"{folder}: another run is writing here; wait for it or choose another") from None
    except OSError as error:
        raise RequestError(f"{folder}: cannot be written ({error.strerror}); choose another") from error
    try:
        yield
    finally:
        lock.release()


class Tail:
    """The new lines of a JSONL file that another process writes, empties or has yet to make."""

    def __init__(self, path: Path, kind: str) -> None:
        self._path, self._kind, self._offset = path, kind, 0

    def __iter__(self) -> Iterator[dict[str, Any]]:
        if not self._path.exists():
            return
        with open(self._path, "rb") as file:
            self._offset = file.seek(0 if self._path.stat().st_size < self._offset else self._offset)
            for line in file:
                if not line.endswith(b"\n"):
                    return
                self._offset += len(line)
                with suppress(ValueError, TypeError):
                    yield {"kind": self._kind, **json.loads(line)}
