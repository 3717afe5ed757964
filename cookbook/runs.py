"""Finished and failed runs as they lie on disk, read one after the other; little is kept of each."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, NamedTuple

from pydantic import JsonValue, ValidationError

from cookbook import results
from cookbook.batch import RunStatus
from cookbook.recipes import RequestError


@dataclass(frozen=True, slots=True)
class Run:
    """What is kept of a run. One that failed has no scores, and only the parameters that it was given."""

    path: Path
    recipe: str
    parameters: Mapping[str, JsonValue]
    status: str = "ok"
    error: str = ""
    headline: str = ""
    metrics: Mapping[str, results.Metric] = field(default_factory=dict)
    probes: Sequence[results.Probe] = ()
    resources: results.Resources | None = None
    data: str = ""
    device: str = ""


class Fault(NamedTuple):
    """A record that cannot be compared, and why."""

    path: Path
    why: str


def collect(paths: Iterable[Path | str]) -> tuple[list[Run], list[Fault]]:
    """Read every run at or below the paths: run folders, folders of them at any depth, or record files.

    A run met twice, copies of its record included, counts once. Records are read one after the other and
    their details let go.

    Raises:
        RequestError: a path is not there, or nothing that can be compared is found.
    """
    runs: dict[Any, Run] = {}
    faults: dict[Path, Fault] = {}
    names: dict[str, str] = {}  # of notebook files to recipes, for runs that left no record
    visited: set[str] = set()
    for given in map(Path, paths):
        if not given.exists():
            raise RequestError(f"{given}: no such file or folder")
        place = None
        for place in _places(given):
            if (real := os.path.realpath(place)) in visited:
                continue
            visited.add(real)
            try:
                key, run, notebook = _read(place)
                runs.setdefault(key, run)
                if notebook and run.status == "ok":
                    names[notebook] = run.recipe
            except _Unreadable as error:
                faults[place] = Fault(*error.args)
        if place is None:
            loose = next(given.glob("*.json"), None)
            hint = f"; record files of other names are given one by one: {given / '*.json'}" if loose else ""
            faults[given] = Fault(given, f"no run records (results.json or status.json) below it{hint}")
    if not runs:
        raise RequestError("\n".join(f"{path}: {why}" for path, why in faults.values()) or "no folder was given")
    for key, run in runs.items():
        if run.status != "ok":
            runs[key] = replace(run, recipe=names.get(f"{run.recipe}.ipynb", run.recipe))
    return list(runs.values()), list(faults.values())


def _places(given: Path) -> Iterator[Path]:
    """Run folders and record files at or below a path; hidden folders are not looked into."""
    if given.is_file():
        yield given.parent if given.name in ("results.json", "status.json") else given
        return
    for folder, below, files in os.walk(given):
        below[:] = sorted(name for name in below if not name.startswith("."))
        if "results.json" in files or "status.json" in files:
            yield Path(folder)


class _Unreadable(Exception):
    """A file and what is wrong with it."""


def _parsed(file: Path, read: Callable[[Path], Any]) -> Any:
    try:
        return read(file)
    except FileNotFoundError:
        raise _Unreadable(file, "status.json says that the run is ok, but this file is gone") from None
    except (OSError, UnicodeDecodeError) as error:
        raise _Unreadable(file, getattr(error, "strerror", None) or str(error)) from error
    except ValidationError as error:
        raise _Unreadable(file, results.fault(error)) from error


def _status(file: Path) -> RunStatus:
    return RunStatus.model_validate_json(file.read_text(encoding="utf-8"))


def _read(place: Path) -> tuple[Any, Run, str]:
    """What identifies a run, the run, and its notebook's file name where a launcher told it."""
    status, file = None, place / "results.json" if place.is_dir() else place
    if file != place and (place / "status.json").exists():
        status = _parsed(place / "status.json", _status)
    if status and status.status != "ok" and not _superseded(file, status):
        known = {k: v for k, v in status.parameters.items() if k != "OUTPUT_DIR" and (k, v) != ("PROFILE", "auto")}
        run = Run(place, Path(status.notebook).stem, known, status.status, " ".join(status.error.split())[:200])
        return (status.notebook, status.started, frozen(known)), run, status.notebook
    record = _parsed(file, results.read)
    # PROFILE may say "auto"; the record knows what that came to
    known = record.parameters | ({"PROFILE": record.profile} if "PROFILE" in record.parameters else {})
    run = Run(
        path=place,
        recipe=record.recipe,
        parameters=known,
        headline=record.headline,
        metrics=record.metrics,
        probes=record.forgetting,
        resources=record.resources,
        data=record.data.fingerprint,
        device=str(record.environment.get("device", "")),
    )
    own = {name: value for name, value in known.items() if name != "OUTPUT_DIR"}
    return (record.recipe, record.started, record.finished, frozen(own)), run, status.notebook if status else ""


def _superseded(file: Path, status: RunStatus) -> bool:
    """Whether the record is of a later run than the failed one, made in the same folder without the launcher."""
    try:
        return (results.read(file).started - status.started).total_seconds() > status.seconds
    except (OSError, ValueError):
        return False


def frozen(value: Any) -> str:
    """A parameter or a set of them as a key; 1 and 1.0 are the same, 1 and true are not."""
    if isinstance(value, int) and not isinstance(value, bool):
        value = float(value)
    if isinstance(value, dict):
        return json.dumps(sorted((name, frozen(v)) for name, v in value.items()))
    return json.dumps([frozen(v) for v in value] if isinstance(value, list) else value)


def shown(value: JsonValue) -> str:
    """A parameter's value for a reader: short, a missing one as a dash."""
    if isinstance(value, float):
        return f"{value:g}"
    if isinstance(value, list):
        return " ".join(map(shown, value)) or "none"
    return "–" if value is None else str(value) or "empty"
