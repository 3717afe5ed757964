"""What a sweep asks for: read from a YAML file, or from the words of a command line, with the line of each fault."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from difflib import get_close_matches
from pathlib import Path
from typing import Any

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator, model_validator

from cookbook import recipes
from cookbook.recipes import RequestError

Value = bool | int | float | str | list[str] | list[int] | list[float]


class _Section(BaseModel):
    model_config = ConfigDict(extra="forbid")


class Range(_Section):
    """Numbers from `low` to `high`, evenly spread, or with `log` evenly over their orders of magnitude."""

    low: float
    high: float
    log: bool = False

    @model_validator(mode="after")
    def _in_order(self) -> Range:
        if not self.low < self.high or (self.log and self.low <= 0):
            raise ValueError("low must be below high, and with log above 0")
        return self


class Draws(_Section):
    """Random draws: each parameter from a list of values, or from a range."""

    draws: int = Field(ge=1)
    seed: int = 0
    parameters: dict[str, list[Value] | Range] = Field(min_length=1)


class Needs(_Section):
    """What one run takes for itself. On one machine cpus are threads; memory counts on a Ray cluster alone."""

    cpus: float | None = Field(None, gt=0)
    gpus: float = Field(0, ge=0)
    memory_gb: float = Field(0, ge=0)


class Sweep(_Section):
    """What a sweep file says: every cell of the grid, with every entry of `runs`, draw and seed.

    Args:
        seeds: as many from 0 on, or the seeds themselves; they go to SEED.
        timeout: seconds for each run.
        models: False deletes each run's `model/` when its record stands.
    """

    recipe: str
    fixed: dict[str, Value] = {}
    grid: dict[str, list[Value]] = {}
    runs: list[dict[str, Value]] = []
    random: Draws | None = None
    seeds: int | list[int] | None = None
    timeout: float | None = Field(None, gt=0)
    resources: Needs = Needs()
    models: bool = True
    output_dir: str = ""

    @field_validator("recipe", mode="before")
    @classmethod
    def _number(cls, value: Any) -> Any:
        return str(value) if isinstance(value, int) else value


def read(file: Path) -> tuple[Sweep, dict[str, int]]:
    """A sweep from a YAML file, and the line of each of its keys ("grid.LORA_RANK": 4).

    Raises:
        RequestError: naming file and line of what is wrong.
    """
    try:
        text = file.read_text(encoding="utf-8")
        node = yaml.compose(text, Loader=yaml.SafeLoader)
        content = yaml.safe_load(text)
    except (OSError, UnicodeDecodeError) as error:
        raise RequestError(f"{file}: cannot be read ({getattr(error, 'strerror', None) or error})") from error
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        place = f"{file}:{mark.line + 1}" if mark else str(file)
        raise RequestError(f"{place}: not valid YAML: {getattr(error, 'problem', error)}") from error
    if not isinstance(content, dict):
        raise RequestError(f"{file}: write `recipe: 01` and what to vary, as in the README")
    lines: dict[str, int] = {}
    for key, line in _keys(node):
        if key in lines:
            raise RequestError(f"{file}:{line}: {key} stands here and in line {lines[key]}; keep one")
        lines[key] = line
    return _validated(content, file, lines), lines


def from_words(recipe: str, pairs: Sequence[str], base: Sweep | None = None) -> Sweep:
    """A sweep from the words of a command line: `LORA_RANK=4,8` varies, `SEED=0..2` is a range, others are fixed.

    With `base`, what the words say takes the place of what the file says of the same parameters.

    Raises:
        RequestError: a pair without a value, or given twice, or no such recipe.
    """
    known = recipes.declared(recipes.find(recipe))
    fixed, grid = dict(base.fixed if base else {}), dict(base.grid if base else {})
    named: set[str] = set()
    for pair in pairs:
        name, equals, text = pair.partition("=")
        if not equals:
            raise RequestError(f"-p {pair}: the value is missing; write -p NAME VALUE")
        if name in named:
            raise RequestError(f"-p {name} is given twice; several values take commas: -p {name} A,B")
        named.add(name)
        fixed.pop(name, None)
        grid.pop(name, None)
        kind = known[name][0] if name in known else "str"
        values = [text] if kind.startswith("list") else _alternatives(text, kind)
        if len(values) == 1:
            fixed[name] = values[0]
        else:
            grid[name] = values
    changes = {"recipe": recipe, "fixed": fixed, "grid": grid}
    return base.model_copy(update=changes) if base else Sweep(**changes)


class Place:
    """Names the line of the sweep file that a parameter came from."""

    def __init__(self, file: str, lines: Mapping[str, int]) -> None:
        self._file, self._lines = file, lines

    def line(self, key: str) -> str:
        return f"{self._file}:{self._lines[key]}: " if key in self._lines else f"{self._file}: " if self._file else ""

    def named(self, problem: str) -> str:
        name = problem.partition(":")[0]
        keys = [key for key in self._lines if re.fullmatch(rf"(\w+\.)*(\d+\.)?{re.escape(name)}", key)]
        return self.line(keys[0] if keys else "") + problem


def _keys(node: yaml.Node | None, prefix: str = "") -> Iterator[tuple[str, int]]:
    """Each key of a YAML tree with its line, a list's items by their number."""
    if isinstance(node, yaml.MappingNode):
        for key, value in node.value:
            name = f"{prefix}{key.value}"
            yield name, key.start_mark.line + 1
            yield from _keys(value, f"{name}.")
    elif isinstance(node, yaml.SequenceNode):
        for number, value in enumerate(node.value):
            yield from _keys(value, f"{prefix}{number}.")


def _validated(content: dict[str, Any], file: Path, lines: Mapping[str, int]) -> Sweep:
    try:
        return Sweep.model_validate(content)
    except ValidationError as error:
        place, problems = Place(str(file), lines), []
        for fault in error.errors(include_url=False):
            parts = [str(part) for part in fault["loc"]]
            keys = [".".join(parts[:n]) for n in range(len(parts), 0, -1)]
            key = next((key for key in keys if key in lines), "")
            text = f"{key or parts[0]}: {fault['msg'].removeprefix('Value error, ')}"
            if fault["type"] == "extra_forbidden":
                near = get_close_matches(parts[-1], _fields(parts), n=1)
                text = f"{key}: no such key" + (f"; did you mean {near[0]}?" if near else "")
            elif fault["type"] == "missing":
                text = f"{parts[-1]} is missing"
            problems.append(place.line(key) + text)
        raise RequestError("\n".join(dict.fromkeys(problems))) from error


def _fields(parts: Sequence[str]) -> Iterable[str]:
    inner = {"random": Draws, "resources": Needs}.get(parts[0], Sweep) if len(parts) > 1 else Sweep
    return inner.model_fields


def _alternatives(text: str, kind: str) -> list[Any]:
    """The values in `4,8,16`, `0..2` or a JSON list."""
    if text.strip().startswith("["):
        with suppress(ValueError):
            return json.loads(text)
    found: list[Any] = []
    for part in text.split(",") if "," in text else [text]:
        ends = re.fullmatch(r"\s*(-?\d+)\.\.(-?\d+)\s*", part) if kind == "int" else None
        found += range(int(ends[1]), int(ends[2]) + 1) if ends else [part.strip() if "," in text else part]
    return found
