"""The run record: one validated `results.json` a run, written last and atomically."""

from __future__ import annotations

import json
import os
import platform
import shutil
import uuid
from collections.abc import Callable, Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Literal, Self

import psutil
from pydantic import BaseModel, ConfigDict, Field, JsonValue, ValidationError, model_validator

from cookbook import project

SCHEMA_VERSION = 2
# From each older version, a function that returns a record's fields as the next version has them. A change of
# the schema raises SCHEMA_VERSION by one and adds one function here. Version 2 added `resources.stopped`.
UPGRADES: dict[int, Callable[[dict[str, Any]], dict[str, Any]]] = {1: dict}
OUTPUT_VARIABLE = "COOKBOOK_OUTPUT_DIR"  # set by the launcher, so that no path enters the notebook
RECIPE_VARIABLE = "COOKBOOK_RECIPE_DIR"  # set by the launcher: the recipe's own folder, as it runs in another
STACK = ("torch", "transformers", "peft", "trl", "bitsandbytes", "datasets", "evaluate", "lm_eval")

Verdict = Literal["improved", "no measurable change", "worse"]


class _Record(BaseModel):
    model_config = ConfigDict(extra="forbid", allow_inf_nan=False)


class Model(_Record):
    id: str
    fingerprint: str
    technique: str


class Data(_Record):
    source: str
    fingerprint: str
    train: int = Field(ge=0)
    validation: int = Field(ge=0)
    test: int = Field(ge=0)
    licence: str


class _Change(_Record):
    before: float
    after: float
    change: float
    ci95: tuple[float, float]
    n: int = Field(ge=1)
    higher_is_better: bool = True
    verdict: Verdict

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        if abs(self.after - self.before - self.change) > 1e-6:
            raise ValueError(f"change {self.change} is not after - before ({self.after} - {self.before})")
        if self.ci95[0] > self.ci95[1]:
            raise ValueError(f"ci95 {self.ci95} is not [low, high]")
        return self


class Metric(_Change):
    """One score before and after, over the same `n` test rows; `ci95` is of the paired change."""

    prompted: float | None = None


class Probe(_Change):
    """One forgetting probe: general ability before and after, with the interval of the paired change."""

    probe: str


class Seconds(_Record):
    total: float
    train: float
    evaluate: float


class Memory(_Record):
    predicted: int
    measured: int


class Parameters(_Record):
    total: int
    trainable: int


class Cost(_Record):
    rate_per_hour: float
    currency: str
    amount: float


class Stopped(_Record):
    """A training that somebody ended after `step` of its planned `steps`."""

    training: str
    step: int
    steps: int


class Resources(_Record):
    """Seconds, tokens (real ones, no padding), bytes; and what was not trained to its end."""

    seconds: Seconds
    tokens: int
    tokens_per_second: float
    peak_memory_bytes: Memory
    parameters: Parameters
    artifact_bytes: int
    cost: Cost
    stopped: list[Stopped] = []


class Claim(_Record):
    """A sentence from the literature and what this run measured of it."""

    claim: str
    verdict: Literal["holds", "holds in part", "does not hold here", "not measured in this run"]
    evidence: str


class Results(_Record):
    schema_version: int = SCHEMA_VERSION
    recipe: str
    profile: str
    parameters: dict[str, JsonValue]
    model: Model
    data: Data
    metrics: dict[str, Metric]
    headline: str
    forgetting: list[Probe]
    resources: Resources
    environment: dict[str, JsonValue]
    started: datetime
    finished: datetime
    claims: dict[str, Claim] = {}
    details: dict[str, JsonValue] = {}

    @model_validator(mode="before")
    @classmethod
    def _upgraded(cls, fields: Any) -> Any:
        version = fields.get("schema_version", SCHEMA_VERSION) if isinstance(fields, dict) else None
        if type(version) is not int:  # no object, or a version that the field's own check refuses
            return fields
        if version > SCHEMA_VERSION:
            raise ValueError(
                f"written by a newer cookbook (schema version {version}; this one reads up to {SCHEMA_VERSION}): "
                "update the cookbook"
            )
        for step in range(version, SCHEMA_VERSION):
            if step not in UPGRADES:
                raise ValueError(f"schema version {version} is older than what this cookbook reads")
            fields = UPGRADES[step](dict(fields)) | {"schema_version": step + 1}
        return fields

    @model_validator(mode="after")
    def _headline(self) -> Results:
        if self.headline not in self.metrics:
            raise ValueError(f"headline {self.headline!r} is none of the metrics {sorted(self.metrics)}")
        return self


def output_dir(recipe: str, chosen: str = "") -> Path:
    """The folder of this run: the launcher's, else `chosen`, else `runs/<recipe>` under the project or here.

    An old `results.json` in it is removed, so that a record always belongs to the run that wrote it.
    """
    project = Path(__file__).resolve().parent.parent
    base = project if (project / "notebooks").is_dir() else Path.cwd()
    folder = Path(os.environ.get(OUTPUT_VARIABLE) or chosen or base / "runs" / recipe)
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "results.json").unlink(missing_ok=True)
    return folder


def versions() -> dict[str, str]:
    """Installed version of each package of the stack; a missing one is left out."""
    return {name: version for name in STACK if (version := project.installed(name))}


def cores() -> int:
    """Cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def environment(device: str, **more: JsonValue) -> dict[str, JsonValue]:
    """What the run stood on: Python, the stack's versions, the device in words, usable cores, memory."""
    return {
        "python": platform.python_version(),
        **versions(),
        "device": device,
        "cores": cores(),
        "memory_bytes": psutil.virtual_memory().total,
        **more,
    }


def parameters(namespace: Mapping[str, Any]) -> dict[str, JsonValue]:
    """The notebook's parameters: every UPPER_CASE plain value of `namespace` (pass `globals()`).

    Call it in the cell right after the parameters cell, before other constants exist.
    """
    plain = (str, int, float, bool, list)
    return {k: v for k, v in namespace.items() if k.isupper() and not k.startswith("_") and isinstance(v, plain)}


def write_text(path: Path, text: str) -> Path:
    """Write a file so that a reader sees the whole of it or none (temporary file, fsync, rename)."""
    temporary = path.with_name(f".{path.name}-{uuid.uuid4().hex}")  # not mkstemp: others may read a record
    try:
        with temporary.open("x", encoding="utf-8") as f:
            f.write(text)
            f.flush()
            os.fsync(f.fileno())
        os.replace(temporary, path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise
    return path


def write_json(path: Path, value: Mapping[str, Any]) -> Path:
    """Write JSON as `write_text` does."""
    return write_text(path, json.dumps(value, indent=1, ensure_ascii=False))


def write(folder: Path, record: Results) -> Path:
    """Write the record as `folder/results.json`: the last act of a run, after which no checkpoint is needed."""
    written = write_json(folder / "results.json", record.model_dump(mode="json"))
    shutil.rmtree(folder / "checkpoints", ignore_errors=True)
    return written


def read(path: Path | str) -> Results:
    """Read a record from a run folder or a file; one of an older schema is upgraded on the way.

    Raises:
        FileNotFoundError: no `results.json` there, that is, the run did not finish.
        pydantic.ValidationError: the file is not a record of this schema, or a newer cookbook wrote it.
    """
    path = Path(path)
    path = path / "results.json" if path.is_dir() else path
    return Results.model_validate_json(path.read_text(encoding="utf-8"))


def fault(error: ValidationError) -> str:
    """The first thing wrong with a record, in a line: the field and why."""
    first = error.errors(include_url=False)[0]
    place = ".".join(map(str, first["loc"]))
    return f"{place}: {first['msg']}" if place else first["msg"].removeprefix("Value error, ")


def now() -> datetime:
    return datetime.now(UTC)
