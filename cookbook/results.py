"""The run record: one validated `results.json` a run, written last and atomically."""

from __future__ import annotations

import importlib.metadata
import json
import os
import platform
import uuid
from collections.abc import Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Literal, Self

import psutil
from pydantic import BaseModel, ConfigDict, Field, JsonValue, model_validator

SCHEMA_VERSION = 1
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


class Resources(_Record):
    """Seconds, tokens (real ones, no padding), bytes."""

    seconds: Seconds
    tokens: int
    tokens_per_second: float
    peak_memory_bytes: Memory
    parameters: Parameters
    artifact_bytes: int
    cost: Cost


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
    found = {}
    for name in STACK:
        try:
            found[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue
    return found


def environment(device: str, **more: JsonValue) -> dict[str, JsonValue]:
    """What the run stood on: Python, the stack's versions, the device in words, usable cores, memory."""
    usable = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    return {
        "python": platform.python_version(),
        **versions(),
        "device": device,
        "cores": usable,
        "memory_bytes": psutil.virtual_memory().total,
        **more,
    }


def parameters(namespace: Mapping[str, Any]) -> dict[str, JsonValue]:
    """The notebook's parameters: every UPPER_CASE plain value of `namespace` (pass `globals()`).

    Call it in the cell right after the parameters cell, before other constants exist.
    """
    plain = (str, int, float, bool, list)
    return {k: v for k, v in namespace.items() if k.isupper() and not k.startswith("_") and isinstance(v, plain)}


def write_json(path: Path, value: Mapping[str, Any]) -> Path:
    """Write JSON so that a reader sees the whole file or none of it (temporary file, fsync, rename)."""
    temporary = path.with_name(f".{path.name}-{uuid.uuid4().hex}")  # not mkstemp: others may read a record
    try:
        with temporary.open("x", encoding="utf-8") as f:
            json.dump(value, f, indent=1, ensure_ascii=False)
            f.flush()
            os.fsync(f.fileno())
        os.replace(temporary, path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise
    return path


def write(folder: Path, record: Results) -> Path:
    """Write the record as `folder/results.json`: the last act of a run."""
    return write_json(folder / "results.json", record.model_dump(mode="json"))


def read(path: Path | str) -> Results:
    """Read a record from a run folder or a file.

    Raises:
        FileNotFoundError: no `results.json` there, that is, the run did not finish.
        pydantic.ValidationError: the file is not a record of this schema.
    """
    path = Path(path)
    path = path / "results.json" if path.is_dir() else path
    return Results.model_validate_json(path.read_text(encoding="utf-8"))


def now() -> datetime:
    return datetime.now(UTC)
